"""Run folders of tiny models composed from real parts on disk, as a training run leaves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from mmkd.compose import Composed, compose
from mmkd.config.schema import Config

SIDE = 32
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
WIDE = 0.3  # initialiser: different pictures get different answers


@pytest.fixture(scope="session")
def parts(tmp_path_factory, byte_tokenizer) -> dict[str, str]:
    """Folders of a tiny CLIP tower, a SigLIP tower, a Llama, one with tied embeddings, and a GPT-2."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    see = {"image_size": SIDE, "patch_size": 8}
    square = {"height": SIDE, "width": SIDE}
    CLIPVisionModel(CLIPVisionConfig(**SMALL, **see, initializer_range=WIDE)).save_pretrained(root / "clip")
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square).save_pretrained(root / "clip")
    SiglipVisionModel(SiglipVisionConfig(**SMALL, **see)).save_pretrained(root / "siglip")
    SiglipImageProcessor(size=square).save_pretrained(root / "siglip")
    words = {"vocab_size": len(byte_tokenizer), "initializer_range": WIDE}
    words |= {f"{name}_token_id": getattr(byte_tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    LlamaForCausalLM(LlamaConfig(**SMALL, **words, num_key_value_heads=2)).save_pretrained(root / "llama")
    tied = LlamaConfig(**SMALL, **words, tie_word_embeddings=True)
    LlamaForCausalLM(tied).save_pretrained(root / "tied")
    GPT2LMHeadModel(GPT2Config(**words, n_embd=32, n_layer=1, n_head=2)).save_pretrained(root / "gpt2")
    for name in ("llama", "tied", "gpt2"):
        byte_tokenizer.save_pretrained(root / name)
    return {name: str(root / name) for name in ("clip", "siglip", "llama", "tied", "gpt2")}


def student(
    parts: dict[str, str], vision: str = "clip", language: str = "llama", voco: int | None = None, **changes: Any
) -> dict[str, Any]:
    """The student section of a config; `changes` go into its vision or projector section, by key."""
    section: dict[str, Any] = {
        "vision": {"source": f"hf:{parts[vision]}" if vision in parts else vision},
        "projector": {"kind": "mlp", "layers": 2},
        "language": {"source": f"local:{parts[language]}"},
        "template": "qa",
    }
    if voco:
        section["voco"] = {"tokens": voco}
    for key, value in changes.items():
        section["projector" if key in ("kind", "layers") else "vision"][key] = value
    return section


@pytest.fixture(scope="session")
def make_run(parts) -> Callable[..., Path]:
    """`make_run(folder, vision=.., voco=.., teacher=.., dtype=.., ...)` composes a student and leaves a run folder."""

    def make(
        folder: Path,
        teacher: dict[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
        initial: Callable[[Any], None] = lambda model: None,
        **options: Any,
    ) -> Path:
        config = Config.model_validate(
            {
                "run": {"dir": str(folder)},
                "student": student(parts, **options),
                "teacher": teacher,
                "data": {"mixture": [{"source": "easyvqa", "split": "train"}]},
                "stages": [
                    {
                        "name": "tune",
                        "steps": 5,
                        "read": [1, options["voco"], "full"] if options.get("voco") else ["full"],
                    }
                ],
            }
        )
        torch.manual_seed(1)
        composed = compose(config.student, dtype)
        initial(composed.model)
        return leave_run(folder, config, composed)

    return make


def leave_run(folder: Path, config: Config, composed: Composed) -> Path:
    """The folder as a training run with this config leaves it."""
    composed.model.save_pretrained(folder / "model")
    composed.processor.save_pretrained(folder / "model")
    finish(folder / "model")
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (folder / "environment.json").write_text(json.dumps({"versions": {"torch": "x.y"}, "commit": "c0ffee"}))
    rows = [{"stage": "tune", "step": step, "loss": 1 / step, "ce": 0.5 / step} for step in (1, 5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def finish(model: Path) -> None:
    """What the trainer writes last: every file with its size."""
    sizes = {path.name: path.stat().st_size for path in model.iterdir() if path.name != "COMPLETE.json"}
    (model / "COMPLETE.json").write_text(json.dumps(sizes))


@pytest.fixture(scope="session")
def mark_whole() -> Callable[[Path], None]:
    return finish


@pytest.fixture(scope="session")
def voco_run(make_run, tmp_path_factory) -> Path:
    """A student with 4 compression tokens, its own teacher, scored at k = 1, 4, full and blind."""
    run = make_run(
        tmp_path_factory.mktemp("runs") / "voco",
        vision="timm:test_efficientnet",
        voco=4,
        pretrained=False,
        image_size=SIDE,
        grid=[2, 2],
        teacher={"kind": "shared"},
    )
    (run / "eval").mkdir()
    for tokens, blind, score in ((4, False, 0.975), (1, False, 0.961), ("full", False, 0.98), ("full", True, 0.67)):
        entry = {"model": str(run / "model"), "suite": "easyvqa", "tokens": tokens, "blind": blind, "limit": 1000}
        entry |= {"scores": {"accuracy": score, "image_tokens": 4.0}, "lmms_eval_version": "0.7.3"}
        (run / "eval" / f"easyvqa-{'blind' if blind else tokens}.json").write_text(json.dumps(entry))
    (run / "eval" / "costs.json").write_text(json.dumps({"1": {"prefill_flops": 7}}))
    return run
