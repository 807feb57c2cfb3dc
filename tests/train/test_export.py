"""What a run leaves is the model that was trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from safetensors import safe_open

from mmkd.compose import load
from mmkd.config.schema import Config
from mmkd.data.loader import build_loader
from mmkd.models import MmkdForConditionalGeneration
from mmkd.teachers.reading import prefixes


def logits(model: MmkdForConditionalGeneration, processor: Any, config: dict[str, Any]) -> torch.Tensor:
    """Of the run's first rows, their images read as four tokens."""
    settings = Config.model_validate(config)
    loader = build_loader(
        settings.data,
        processor,
        seed=0,
        batch_size=4,
        micro_batch_size=4,
        rank=0,
        world_size=1,
        start_step=0,
        rejected=Path(config["run"]["dir"]) / "unused.jsonl",
    )
    batch = next(iter(loader))
    model.eval()
    with torch.no_grad():
        features = model.image_features(batch["pixel_values"])
        [(_, prefix)] = prefixes(model, features, batch, [4])
        text = (batch["input_ids"], batch["attention_mask"], batch["position_ids"], batch["segment_ids"])
        return model.head(model.read(prefix, *text))


def go_and_look(config: dict[str, Any]) -> dict[str, Any]:
    """A rank of a run that also gives the trained model's logits, as it stood on the ranks before its export."""
    import mmkd.train.stage as stage

    built = Path(config["run"]["dir"]) / "extensions"
    os.environ["TORCH_EXTENSIONS_DIR"] = str(built)
    found: dict[str, Any] = {}
    export = stage.export

    def look_and_export(trainer: Any, composed: Any, *rest: Any) -> None:
        found["logits"] = logits(trainer.task.student, composed.processor, config).numpy()
        found["whole"] = all(p.numel() for p in trainer.task.student.parameters())
        found["rank"], found["world"] = trainer.args.process_index, trainer.args.world_size
        found["saves"] = trainer.args.should_save
        export(trainer, composed, *rest)

    stage.export = look_and_export
    ranks.go(config)
    found["built"] = list(built.rglob("*"))
    return found


@pytest.mark.distributed
def test_the_file_written_under_zero_3_holds_the_trained_model(config, student):
    settings = config(zero=3, stage={"steps": 4})
    results = ranks.on_ranks(2, ranks.call, __file__, "go_and_look", settings)
    for rank, found in enumerate(results):
        assert isinstance(found, dict), found
        assert not found["whole"]  # the ranks held parts
        assert found["built"] == []  # no operator was compiled
        assert (found["rank"], found["world"], found["saves"]) == (rank, 2, rank == 0)

    target = Path(settings["run"]["dir"]) / "model"
    reopened = load(target)
    torch.testing.assert_close(
        logits(reopened.model, reopened.processor, settings), torch.tensor(results[0]["logits"]), atol=1e-5, rtol=1e-5
    )
    before = load(student).model.state_dict()
    with safe_open(target / "model.safetensors", framework="pt") as file:
        written = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    tied = {"language_model.lm_head.weight"}
    assert written.keys() | tied == before.keys() | tied
    assert all(written[name].shape == before[name].shape for name in written)
    changed = {name for name in written if not torch.equal(written[name], before[name])}
    assert not any(name.startswith("vision_tower") for name in changed)
    assert {"projector", "language_model", "voco"} == {name.split(".")[0] for name in changed}
    assert not any("teacher" in name or "objective" in name for name in written)
