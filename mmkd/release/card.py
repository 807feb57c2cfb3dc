"""The model card: what a release is, what it was made from, what it scores, how to load it, where it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from mmkd import __version__, assets
from mmkd.release.run_folder import RunFolder

# Sources of records made from an asset of ours; any other set's licence is its owner's to state.
DATA_ASSETS = {"easyvqa": "easyvqa", "scenes": "easyvqa"}
UNKNOWN = "unknown"


def write_card(path: Path, run: RunFolder, record: dict[str, Any], name: str) -> None:
    """Write README.md for a release that verified.

    Args:
        record: of `verify`, with the release's format.
    """
    model = json.loads((path.parent / "config.json").read_text())
    source = json.loads((run.model / "config.json").read_text())
    licences = licence_rows(run, source)
    sections = [
        _head(licences, name),
        _what(run, source, record, name),
        "## Load it\n\n" + _loading(run, source, record, name),
        "## Scores\n\n" + _scores(run),
        "## How it was made\n\n" + _making(run),
        "## Licences\n\n" + _table(["part", "source", "licence"], licences),
        "## Known limits\n\n" + "\n".join(f"* {limit}" for limit in _limits(run, source, model, record)),
        "## Verified\n\n" + _verified(record),
    ]
    path.write_text("\n\n".join(sections) + "\n")


# --- what and how ----------------------------------------------------------------------------------------------------


def _head(licences: list[list[str]], name: str) -> str:
    """The hub's metadata: a licence only where every part of the model has it, unknown where one part's is."""
    found = {licence for part, _, licence in licences if not part.startswith(("data", "code"))}
    if UNKNOWN in found or not found:
        licence = {"license": UNKNOWN}
    elif len(found) == 1:
        licence = {"license": found.pop().lower()}
    else:
        licence = {"license": "other", "license_name": "see-the-table-of-licences"}
    head = licence | {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["mmkd", "knowledge-distillation", "visual-token-compression"],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {name}"


def _what(run: RunFolder, source: dict[str, Any], record: dict[str, Any], name: str) -> str:
    voco, n = source.get("voco"), source["image_tokens"]
    parts, text = source.get("parts", {}), source["text_config"]
    read = f"reads an image as its {n} vision tokens"
    counts, _ = _trained_counts(run)
    if voco and counts:
        read = f"reads an image as {_listed(counts, 'or')} tokens instead of its {n} vision tokens"
    made = (
        f"{shown(parts.get('vision', {}).get('source', source['vision_config']['architecture']))} + "
        f"{source['projector']['kind']} + {shown(parts.get('language', {}).get('source', text['model_type']))} "
        f"({text['num_hidden_layers']} layers)"
    )
    taught = " and was distilled from a teacher" if run.config.get("teacher") else ""
    form = "stock LLaVA" if record["format"] == "llava" else "transformers, with its own code beside it"
    return (
        f"A vision-language model of {record['parameters'] / 1e6:.1f} M parameters ({record['dtype']}) that {read}"
        f"{taught}: {made}. Format: {form}. Made with mmkd {__version__}."
    )


def _trained_counts(run: RunFolder) -> tuple[list[int], bool]:
    """The token counts that the stages read compressed images with, few to many; whether any read full vision."""
    reads = {k for stage in run.config["stages"] for k in stage["read"]}
    return sorted(reads - {"full"}), "full" in reads


def _listed(counts: list[int], last: str, full: bool = False) -> str:
    """1 to 8; 1, 4 or 8; 1, 4 and full."""
    unbroken = len(counts) > 2 and counts == list(range(counts[0], counts[-1] + 1))
    words = [f"{counts[0]} to {counts[-1]}"] if unbroken else [str(k) for k in counts]
    words += ["full"] * full
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _loading(run: RunFolder, source: dict[str, Any], record: dict[str, Any], name: str) -> str:
    remote = ", trust_remote_code=True" if record["format"] == "mmkd" else ""
    question = '[{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What is this?"}]'
    code = f"""```python
from transformers import AutoModelForImageTextToText, AutoProcessor
model, processor = (auto.from_pretrained("{name}"{remote}) for auto in (AutoModelForImageTextToText, AutoProcessor))
inputs = processor.apply_chat_template([{{"role": "user", "content": {question}}}], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
print(processor.decode(model.generate(**inputs, max_new_tokens=32)[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```"""  # noqa: E501 (four lines are four lines)
    if not source.get("voco"):
        return code
    most, (counts, full) = source["voco"]["tokens"], _trained_counts(run)
    fewest = min(counts, default=most)
    return f"""{code}

It reads with {most} tokens unless told otherwise: `processor_kwargs={{"voco_tokens": {fewest}}}`, or `None` for full
vision. It was trained with k = {_listed(counts, "and", full)}; with another count it answers too, untrained.
Compress once, ask many; a cache can be kept on disk in place of the image:

```python
cache = model.compress(**processor(images="cat.png"), tokens={fewest})
cache.save("cat.safetensors")
cache = type(cache).load("cat.safetensors")
messages = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": "What is this?"}}]}}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
asked = processor(text=text, voco_tokens={fewest})
ids = model.generate(asked["input_ids"], asked["attention_mask"], voco_cache=cache, max_new_tokens=32)
print(processor.decode(ids[0, asked["input_ids"].shape[1]:], skip_special_tokens=True))
```"""


# --- scores ----------------------------------------------------------------------------------------------------------


def _scores(run: RunFolder) -> str:
    if not run.scores:
        return "Not scored. `mmkd eval RUN/model --suite SUITE --out RUN/eval` before `mmkd release` puts a table here."
    blocks = []
    for suite in dict.fromkeys(entry["suite"] for entry in run.scores):
        entries = sorted((e for e in run.scores if e["suite"] == suite), key=_order)
        metrics = list(dict.fromkeys(metric for entry in entries for metric in entry["scores"]))
        rows = [
            [_reading(e), *(_number(m, e["scores"].get(m)) for m in metrics), str(e.get("limit") or "all")]
            for e in entries
        ]
        versions = {str(e["lmms_eval_version"]) for e in entries if e.get("lmms_eval_version")}
        harness = f"lmms-eval {', '.join(sorted(versions)) or '(version not recorded)'}"
        header = ["image tokens k", *(m.replace("_", " ") for m in metrics), "questions"]
        blocks.append(f"### {suite}\n\nWith {harness}.\n\n{_table(header, rows)}")
    return "\n\n".join(blocks)


def _order(entry: dict[str, Any]) -> tuple[bool, bool, int]:
    """k = 1, 2, .., full, blind."""
    tokens = entry["tokens"]
    return bool(entry.get("blind")), tokens == "full", tokens if isinstance(tokens, int) else 0


def _reading(entry: dict[str, Any]) -> str:
    return "none (blind)" if entry.get("blind") else str(entry["tokens"])


def _number(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    if metric == "seconds_per_question":
        return f"{1000 * value:.1f} ms"
    share = 0 <= value <= 1 and metric not in ("image_tokens", "prefill_tokens")
    return f"{100 * value:.1f} %" if share else f"{value:.1f}"


# --- where it comes from ---------------------------------------------------------------------------------------------


def _making(run: RunFolder) -> str:
    config, environment = run.config, run.environment
    lines = [f"* teacher: {_teacher(run)}"]
    if config["student"].get("init"):
        lines.append(f"* started from: {shown(config['student']['init'])}")
    for source in config["data"]["mixture"]:
        options = {k: v for k, v in source.items() if k != "source" and v is not None}
        lines.append(f"* data: {source['source']}{_options(options)}")
    for stage in config["stages"]:
        objectives = stage.get("objectives") or config["objectives"]
        lines.append(
            f"* stage {stage['name']}: {stage['steps']} steps of {stage['batch_size']} rows, learning rate "
            f"{stage['learning_rate']:g}, trained: {', '.join(stage['trainable'])}, images read with k = "
            f"{', '.join(str(k) for k in stage['read'])}; losses: {'; '.join(_objective(o) for o in objectives)}"
        )
    for row in run.metrics:
        found = {k: v for k, v in row.items() if "/" not in k and k in ("loss", "ce", "kl", "accuracy")}
        values = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        lines.append(f"* last logged in stage {row.get('stage')}, step {row.get('step')}: {values}")
    versions = ", ".join(f"{name} {v}" for name, v in environment.get("versions", {}).items())
    lines.append(
        f"* seed {config['run']['seed']}, {config['training']['precision']}, "
        f"ZeRO stage {config['deepspeed']['stage']}, "
        f"{environment.get('world_size', '?')} ranks, commit {environment.get('commit', UNKNOWN)}, {versions}"
    )
    return "\n".join(lines)


def _teacher(run: RunFolder) -> str:
    teacher = run.config.get("teacher")
    if teacher is None:
        return "none"
    if teacher.get("kind") == "shared":
        return "the model itself with full vision (shared)"
    made = " + ".join(shown(part["source"]) for part in run.teacher.get("parts", {}).values())
    layers = run.teacher.get("text_config", {}).get("num_hidden_layers")
    return f"{shown(str(teacher.get('model')))} ({teacher.get('kind')})" + (
        f": {made}, {layers} layers" if made else ""
    )


def _objective(section: dict[str, Any]) -> str:
    options = {k: v for k, v in section.items() if k not in ("name", "weight") and v is not None}
    return f"{section['name']} x {section.get('weight', 1.0):g}{_options(options)}"


def _options(options: dict[str, Any]) -> str:
    return f" ({', '.join(f'{k} {shown(v)}' for k, v in options.items())})" if options else ""


def shown(value: Any) -> str:
    """Text for a card: of a whole path, also behind `source:`, only the last two parts, which say nothing about the
    machine."""
    text = str(value)
    source, colon, path = text.rpartition(":")
    return f"{source}{colon}{Path(*Path(path).parts[-2:])}" if Path(path).is_absolute() else text


def licence_rows(run: RunFolder, model: dict[str, Any]) -> list[list[str]]:
    """Part, source and licence of everything the weights come from, and of the code."""
    rows = [_part_row(name, part) for name, part in model.get("parts", {}).items()]
    if run.config.get("teacher"):
        rows += [_part_row(f"teacher's {name}", part) for name, part in run.teacher.get("parts", {}).items()]
        if not run.teacher.get("parts") and run.config["teacher"].get("model"):
            rows.append(["teacher", shown(run.config["teacher"]["model"]), UNKNOWN])
    for source in run.config["data"]["mixture"]:
        name = source["source"]
        licence = assets.ASSETS[DATA_ASSETS[name]].license if name in DATA_ASSETS else UNKNOWN
        rows.append(["data", shown(source.get("path") or source.get("name") or name), licence])
    return [*rows, ["code (*.py)", "mmkd", "Apache-2.0"]]


def _part_row(name: str, part: dict[str, Any]) -> list[str]:
    return [name, shown(part.get("source", UNKNOWN)), part.get("license") or UNKNOWN]


# --- limits and proof ------------------------------------------------------------------------------------------------


def _limits(run: RunFolder, source: dict[str, Any], model: dict[str, Any], record: dict[str, Any]) -> list[str]:
    data = ", ".join(dict.fromkeys(s["source"] for s in run.config["data"]["mixture"]))
    limits = [f"Trained on {data} only. On other pictures and questions nothing was measured."]
    if not run.scores:
        limits.append("Not scored on any benchmark.")
    elif not any(entry.get("blind") for entry in run.scores):
        limits.append("Not scored blind, so how much of the score language alone would reach is not known.")
    if any(entry.get("limit") for entry in run.scores):
        limits.append("Some scores are of the first questions of a test set only; see the column questions.")
    limits.append("All images stand before the text; an image inside or after the text is moved to the front.")
    if record["format"] == "llava":
        limits.append("Verified with transformers only; servers with a LLaVA of their own were not tried.")
        return limits
    library = source["vision_config"]["library"]
    packages = "torch, torchvision and transformers" if library == "transformers" else f"{library} and transformers"
    limits.append(f"Loading runs the .py files of this folder (trust_remote_code) and needs {packages}.")
    if source.get("voco"):
        limits.append("Compression does not know the question: what the tokens do not keep cannot be asked about.")
        limits.append("A saved cache is read by these very weights only, in the same dtype; others refuse it.")
        if source["voco"].get("mass_bias"):
            limits.append("Its score biases need eager or sdpa attention.")
    return limits


def _verified(record: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in record["versions"].items())
    rows = [[name, f"{v['difference']:.3g}", f"{v['allowed']:.3g}"] for name, v in record["logits"].items()]
    what = "and compressed, saved, loaded and answered from caches " if "identity" in record else ""
    # As `verify.compare`: answers are compared where no logit differs.
    exact = all(v["difference"] == 0 for v in record["logits"].values())
    answers = " the same answers," if exact else ""
    else_said = "" if exact else " Where two words are nearly as likely, an answer may be another."
    return (
        f"Before it was given its name, this folder was loaded with the Auto classes in a process where mmkd cannot "
        f"be imported ({versions}), {what}and compared with the trained model: the same inputs,{answers} and "
        f"these logits (verification.json).{else_said}\n\n"
        + _table(["image tokens k", "largest difference", "allowed"], rows)
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
