"""What the model card says, and that it was so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmkd.checkpoints import mark_complete
from mmkd.release.card import write_card
from mmkd.release.run_folder import RunFolder

MODEL = {
    "voco": {"tokens": 8},
    "image_tokens": 16,
    "text_config": {"num_hidden_layers": 2, "model_type": "llama"},
    "vision_config": {"architecture": "test_vit", "library": "timm"},
    "projector": {"kind": "mlp"},
}


@pytest.fixture
def card(tmp_path):
    """The card of a student of up to 8 tokens whose stages read images so, verified with these differences."""

    def written(reads: list[list], differences: dict[str, float]) -> str:
        model, out = tmp_path / "run" / "model", tmp_path / "out"
        for folder, settings in ((model, MODEL), (out, MODEL)):
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps(settings))
        mark_complete(model)
        stage = {"steps": 5, "batch_size": 8, "learning_rate": 0.1, "trainable": ["projector"]}
        config = {
            "run": {"seed": 0},
            "student": {},
            "data": {"mixture": [{"source": "easyvqa"}]},
            "objectives": [],
            "stages": [{"name": f"s{i}", "read": read, **stage} for i, read in enumerate(reads)],
            "training": {"precision": "bf16"},
            "deepspeed": {"stage": 2},
        }
        (tmp_path / "run" / "config.yaml").write_text(json.dumps(config))
        logits = {name: {"difference": value, "allowed": 0.5} for name, value in differences.items()}
        record = {"format": "mmkd", "parameters": 1e6, "dtype": "bfloat16", "versions": {}, "logits": logits}
        write_card(Path(out / "README.md"), RunFolder.read(tmp_path / "run"), record, "tiny")
        return (out / "README.md").read_text()

    return written


@pytest.mark.parametrize(
    ("reads", "as_tokens", "with_k"),
    [
        ([[8]], "reads an image as 8 tokens instead", "k = 8;"),
        ([["full"], [4, 1, "full"], [8]], "reads an image as 1, 4 or 8 tokens instead", "k = 1, 4, 8 and full;"),
        ([[1, 2, 3, 4, 5, 6, 7, 8]], "reads an image as 1 to 8 tokens instead", "k = 1 to 8;"),
        ([["full"]], "reads an image as its 16 vision tokens", "k = full;"),
    ],
)
def test_it_names_the_token_counts_that_were_trained_and_no_others(card, reads, as_tokens, with_k):
    text = card(reads, {"full": 0.0})
    assert as_tokens in text
    assert f"It was trained with {with_k} with another count it answers too, untrained." in text
    counts = [k for read in reads for k in read if k != "full"] or [8]
    assert f"tokens={min(counts)})\ncache.save" in text


def test_it_says_that_answers_are_the_same_only_where_they_had_to_be(card):
    text = card([[8]], {"full": 0.0, "8": 0.0})
    assert "the same inputs, the same answers, and these logits" in text
    assert "words" not in text.split("## Verified")[1]


def test_where_logits_differ_by_what_is_allowed_it_says_that_answers_may(card):
    text = card([[8]], {"full": 0.0, "8": 0.01}).split("## Verified")[1]
    assert "the same answers" not in text
    assert "the same inputs, and these logits" in text
    assert "Where two words are nearly as likely, an answer may be another." in text
