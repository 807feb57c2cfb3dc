"""Tower + projector + decoder -> one VLM, from adapters or from a composed folder; layer cuts; the table of parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from rich.table import Table
from safetensors import SafetensorError
from torch import nn

from mmkd.config.schema import Keep, StudentSection, VocoSection
from mmkd.contracts import Spec, adapter
from mmkd.decoders import kept_layers
from mmkd.errors import ConfigError
from mmkd.lora import adapter_parameters
from mmkd.models.configuration_mmkd import MmkdConfig
from mmkd.models.modeling_mmkd import MmkdForConditionalGeneration
from mmkd.models.processing_mmkd import MmkdProcessor
from mmkd.models.projector import build_projector
from mmkd.models.vision_tower import Standardize
from mmkd.models.voco import CompressionTokens
from mmkd.templates import chat_template

# What loading a folder ends in that is half copied, or whose JSON is not that of a model.
BROKEN_FOLDER = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError, StrictDataclassError,
)  # fmt: skip
# What a decoder's config lists layer by layer.
PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")


@dataclass
class Composed:
    """A model with its processor. `config.parts` holds source and licence of tower and decoder."""

    model: MmkdForConditionalGeneration
    processor: MmkdProcessor


def compose(student: StudentSection, dtype: torch.dtype = torch.float32) -> Composed:
    """Build the VLM that a student section describes.

    Raises: ConfigError for an unknown source, a cut that the decoder does not have, or attention that it cannot use.
    """
    composed = _from_folder(student) if student.init else _from_parts(student)
    _end_as_the_template(composed)
    cast(composed.model, dtype)
    try:
        composed.model.set_attn_implementation(student.attention)
    except (ValueError, ImportError) as error:  # no such kernel for this decoder, or on this machine
        kind = composed.model.config.text_config.model_type
        raise ConfigError(
            f"student.attention {student.attention} does not serve a {kind} decoder here: {str(error).splitlines()[0]} "
            "Eager serves every decoder."
        ) from error
    return composed


def _end_as_the_template(composed: Composed) -> None:
    """Generation stops where the template ends an answer, too: a chat's end is often not the end of a text."""
    try:
        end = composed.processor.answer_end
    except ValueError:  # a template that only data can be refused for (encode_turns)
        return
    ends = answer_ends(composed.model, composed.processor.tokenizer)
    if end is not None and end not in ends:
        composed.model.generation_config.eos_token_id = [*ends, end]


def answer_ends(model: Any, tokenizer: Any) -> list[int]:
    """Ids at which generation stops: those of the model's settings, else the tokenizer's end of text."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return ends if isinstance(ends, list) else [ends]


def cast(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast as `from_pretrained` does: what is saved, but not buffers made anew (rotary frequencies), which bf16 would
    round and a reloaded model would not have rounded."""
    made = [(m, name, m._buffers[name]) for m in model.modules() for name in m._non_persistent_buffers_set]
    model.to(dtype)
    for module, name, buffer in made:
        module._buffers[name] = buffer


def _from_parts(student: StudentSection) -> Composed:
    vision, language = student.vision, student.language
    spec, text_spec = Spec.parse(vision.source), Spec.parse(language.source)
    seen = adapter("vision", spec)().load(
        spec, image_size=vision.image_size, taps=vision.taps, grid=vision.grid, pretrained=vision.pretrained
    )
    read = adapter("language", text_spec)().load(text_spec, pretrained=language.pretrained)
    decoder, tokenizer = read.model, read.tokenizer
    cut = cut_layers(decoder, language.keep_layers)
    _add_tokens(tokenizer)
    if len(tokenizer) > decoder.get_input_embeddings().num_embeddings:
        decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)

    template = chat_template(student.template, tokenizer)
    tokenizer.chat_template = None  # the processor's counts, and is saved

    tower = seen.tower.config
    if vision.standardize:
        tower.standardize, seen.tower.standardize = True, Standardize(tower.hidden_size)
    projector = build_projector(
        student.projector.model_dump(), tower.hidden_size, decoder.config.hidden_size, rows=tower.rows, cols=tower.cols
    )
    if vision.tiles > 1:
        _resize_to_the_crop(seen.image_processor)
    processor = MmkdProcessor(
        seen.image_processor,
        tokenizer,
        chat_template=template,
        image_tokens=projector.tokens,
        voco_tokens=student.voco.tokens if student.voco else None,
        tiles=vision.tiles,
    )
    config = MmkdConfig(
        vision_config=tower,
        text_config=decoder.config,
        projector=student.projector.model_dump(),
        voco=student.voco.model_dump() if student.voco else None,
        image_token_id=processor.image_token_id,
        sink_token_id=tokenizer.bos_token_id,
        image_tokens=projector.tokens,
        processor_hash=processor.fingerprint,
        parts={
            "vision": {"source": str(spec), "license": seen.license},
            "language": {"source": str(text_spec), "license": read.license, "cut": [cut] if cut else []},
        },
    )
    return Composed(_assemble(config, seen.tower, projector, decoder), processor)


def _resize_to_the_crop(images: Any) -> None:
    """Else the border of every tile would be cropped away (DINOv2's: resized to 256, cropped to 224), and with it what
    stands on a seam."""
    if getattr(images, "do_center_crop", False):
        crop = dict(images.crop_size)
        images.size = {"shortest_edge": crop["height"]} if "shortest_edge" in images.size else crop


def _add_tokens(tokenizer: Any) -> None:
    """What every chat here needs: a sink, padding, and the place of an image."""
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)


def _from_folder(student: StudentSection) -> Composed:
    base = load(student.init)
    cut = cut_layers(base.model.language_model, student.keep_layers)
    config = base.model.config
    if cut:
        language = config.parts["language"]
        config.parts["language"] = language | {"cut": [*language.get("cut", []), cut]}
    config.text_config = base.model.language_model.config
    voco = base.model.voco
    if student.voco is not None:
        config.voco = student.voco.model_dump()
        voco = _kept_voco(voco, student.voco)
    model = _assemble(config, base.model.vision_tower, base.model.projector, base.model.language_model, voco)
    model.generation_config = base.model.generation_config  # may say more than its decoder's own
    base.processor.voco_tokens = config.voco_tokens or None
    return Composed(model, _with_template(base.processor, student))


def _kept_voco(voco: CompressionTokens | None, wanted: VocoSection) -> CompressionTokens | None:
    """The C tokens that a model has learned, where as many of the same kind are `wanted`, else None. A score bias that
    they lack begins at 0; one that is not wanted is dropped."""
    rows = wanted.tokens if wanted.embeddings == "separate" else 1
    if voco is None or (voco.tokens, voco.embedding.num_embeddings) != (wanted.tokens, rows):
        return None
    if not wanted.mass_bias:
        voco.bias = None
    elif voco.bias is None:
        voco.bias = nn.Embedding(wanted.tokens, 1, _weight=torch.zeros(wanted.tokens, 1))
    return voco


def compose_tokenizer(student: StudentSection) -> Any:
    """The tokenizer of the VLM that a student section describes; no weights are loaded. Raises: as `compose`."""
    if student.init:
        return compose_processor(student).tokenizer
    spec = Spec.parse(student.language.source)
    tokenizer = adapter("language", spec)().tokenizer(spec)
    _add_tokens(tokenizer)
    return tokenizer


def compose_processor(student: StudentSection) -> MmkdProcessor:
    """The processor of the VLM that a student section describes. Weights are loaded only where it has parts, whose
    projector decides how many tokens an image has. Raises: as `compose`."""
    if not student.init:
        return compose(student).processor
    try:
        return _with_template(MmkdProcessor.from_pretrained(student.init), student)
    except BROKEN_FOLDER as error:
        raise ConfigError(f"student.init {student.init} is not a folder that mmkd can load ({error}).") from error


def _with_template(processor: MmkdProcessor, student: StudentSection) -> MmkdProcessor:
    if student.template != "default":
        processor.chat_template = chat_template(student.template, processor.tokenizer)
    return processor


def load(
    folder: str | Path,
    dtype: torch.dtype | str = torch.float32,
    quantization: Any = None,
    device: torch.device | None = None,
) -> Composed:
    """A composed model from its folder (or hub id).

    Args:
        dtype: to which weights are cast as they are read; "auto" is that of the file.
        quantization: a quantization config of transformers, applied as weights are read onto `device`.

    Raises: ConfigError where there is none, or its weights are not those of the model that its config describes.
    """
    try:
        config = MmkdConfig.from_pretrained(folder)
        if "/" in str(config._attn_implementation):
            raise ValueError(f"config.json asks for a kernel of {config._attn_implementation}, the code of others")
        how = {} if quantization is None else {"quantization_config": quantization, "device_map": {"": device}}
        loaded: Any = MmkdForConditionalGeneration.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **how
        )
        processor = MmkdProcessor.from_pretrained(folder)
    except BROKEN_FOLDER as error:
        raise ConfigError(
            f"{folder} is not a folder that mmkd can load ({type(error).__name__}: {error}). Copy it again, or export "
            "the model again."
        ) from error
    model, info = loaded
    # transformers would fill in random weights for what is missing and drop what is left over.
    wrong = {
        "lacks": sorted(info["missing_keys"]),
        "has but the model does not": sorted(info["unexpected_keys"]),
        "has in another shape": sorted(name for name, *_ in info["mismatched_keys"]),
    }
    found = [f"{what}: {len(names)} tensors, {_some(names)}" for what, names in wrong.items() if names]
    if found:
        raise ConfigError(
            f"{folder}: the weights do not fit config.json. The file {'; it '.join(found)}. Copy the folder again, or "
            "export the model again."
        )
    return Composed(model, processor)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", .." if len(names) > 5 else "")


def _assemble(
    config: MmkdConfig, tower: nn.Module, projector: nn.Module, decoder: nn.Module, voco: nn.Module | None = None
) -> MmkdForConditionalGeneration:
    """Put loaded parts into a model built without memory, so that nothing is initialised twice."""
    if config.voco and voco is None:
        options = config.voco
        width = decoder.config.hidden_size
        voco = CompressionTokens(options["tokens"], width, options["embeddings"], options["mass_bias"])
        nn.init.normal_(voco.embedding.weight, std=word_spread(decoder))  # as wide as the words it stands among
        if voco.bias is not None:
            nn.init.zeros_(voco.bias.weight)
    with torch.device("meta"):
        model = MmkdForConditionalGeneration(config)
    model.vision_tower, model.projector, model.language_model, model.voco = tower, projector, decoder, voco
    model.generation_config = decoder.generation_config
    return model


@torch.no_grad()
def word_spread(decoder: Any) -> float:
    """Standard deviation of what words are where the decoder reads them: its table's, times the factor by which an
    embedding that scales (Gemma) makes them longer than the table's rows."""
    table = decoder.get_input_embeddings()
    longest = table.weight.norm(dim=1).argmax()
    return float(table.weight.std() * table(longest).norm() / table.weight[longest].norm())


def cut_layers(decoder: Any, keep: Keep | None) -> str | None:
    """Keep some layers of a decoder, and say by what rule: the first n, every n-th (0, n, 2n ..), or those listed.

    Raises: ConfigError where one is missing.
    """
    if keep is None:
        return None
    config, body = decoder.config, decoder.get_decoder()
    name = "layers" if isinstance(getattr(body, "layers", None), nn.ModuleList) else "h"
    layers = getattr(body, name)
    total = len(layers)
    kept = kept_layers(keep, total)
    setattr(body, name, nn.ModuleList(layers[i] for i in kept))
    config.num_hidden_layers = len(kept)
    for listed in PER_LAYER:
        if values := getattr(config, listed, None):
            setattr(config, listed, [values[i] for i in kept])
    for place, layer in enumerate(getattr(body, name)):
        for module in layer.modules():
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = place
    rule = f"first {keep}" if isinstance(keep, int) else keep if isinstance(keep, str) else ", ".join(map(str, kept))
    return f"layers {rule} of {total}"


def parts(model: MmkdForConditionalGeneration) -> dict[str, list[nn.Parameter]]:
    """Parameters of the parts a stage may train, by the names the config uses; each parameter is in one part."""
    language = model.language_model
    tables = [*language.get_input_embeddings().parameters(), *language.get_output_embeddings().parameters()]
    embeddings = list({id(parameter): parameter for parameter in tables}.values())  # tied: once
    adapters = adapter_parameters(language)
    elsewhere = {id(parameter) for parameter in [*embeddings, *adapters]}
    found = {
        "vision": list(model.vision_tower.parameters()),
        "projector": list(model.projector.parameters()),
        "language": [p for p in language.parameters() if id(p) not in elsewhere],
        "embeddings": embeddings,
    }
    if adapters:
        found["adapters"] = adapters
    if model.voco is not None:
        found["voco"] = list(model.voco.parameters())
    return found


def parameter_table(model: MmkdForConditionalGeneration, title: str = "student") -> Table:
    """Each part: source, parameters, how many are trained, dtype."""
    table = Table(title=title, title_justify="left")
    for column in ("part", "source", "parameters", "trained", "dtype"):
        table.add_column(column, justify="right" if column in ("parameters", "trained") else "left")
    sources = getattr(model.config, "parts", {})
    own = {"projector": type(model.projector).__name__, "voco": "VoCo tokens", "adapters": "LoRA"}
    for name, parameters in parts(model).items():
        count = sum(p.numel() for p in parameters)
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        made_by = sources.get("language" if name == "embeddings" else name, {})
        source = made_by.get("source") or own.get(name, "-")
        if name == "language":
            source = ", ".join([source, *made_by.get("cut", [])])
        dtype = str(parameters[0].dtype).removeprefix("torch.") if count else "-"
        table.add_row(name, source, f"{count / 1e6:.2f} M", f"{trained / 1e6:.2f} M" if trained else "frozen", dtype)
    return table
