"""A student both of whose halves are of other families than its teacher's: labels, KD, and OFA-KD besides.

    python -m bench.halves runs/halves --gemma gemma-3-270m.gguf --families runs/families

The teacher of scenes sees by EfficientNet-Lite0, a CNN, and speaks by layers of SmolLM2, a Llama with its pre-trained
weights. The student sees by a ViT, which learned EasyVQA's shapes from a CNN by the method of its case (bench.families,
pair `easyvqa_lite0_vit_64`, same seed), is frozen here and reads a scene in tiles. It speaks by the first layers of
Gemma 3 270M, with its own pre-trained weights. Both decoders are given the 400 tokens of which scenes' texts are made
(bench.transplant): logit objectives want one tokenizer on both sides, and products with 49,152 tokens are some 40 % of
the operations of a step of OFA-KD. All cases of a seed take the same steps on the same rows of scenes in the same
order, from one teacher; each seed has a teacher of its own, so that seeds may come from different machines. Scored on
`easyvqa_scenes` with full vision. A killed run is gone on with.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from bench.families import compared as towers
from bench.runs import METRICS, scored, trained
from bench.scores import add_new, conclude, of_run
from bench.transplant import transplanted, word_tokens
from mmkd.data.scenes import records

BENCH = "word_halves"  # rows of "halves" are of a GPT-NeoX of random weights, of "gemma_halves" of SmolLM2's tokens
TEACHER = "teacher"
PAIR = "easyvqa_lite0_vit_64"


@dataclass(frozen=True)
class Case:
    """How each half learns: a method of bench.families, and the objectives of the whole."""

    tower: str
    objectives: str


CASES = {
    "sft": Case("scratch", "[{name: cross_entropy}]"),
    "kd": Case("kd", "[{name: cross_entropy}, {name: forward_kl}]"),
    "ofa+kd": Case(
        "ofa", "[{name: cross_entropy}, {name: forward_kl}, {name: ofa_logits, form: released, weight: 1.0}]"
    ),
}
PAIRS = [("ofa+kd", "kd"), ("kd", "sft"), ("ofa+kd", "sft")]
SMOLLM2 = "gguf:smollm2-135m"
# Half of the rows describe a scene cell by cell, which teaches to look; packed, since they are shorter than questions.
ROWS = [
    "data.mixture=[{source: scenes, split: train, count: 8000, grid: 2}, "
    "{source: scenes, split: train, count: 8000, grid: 2, described: true}]",
    "data.packing=true",
]
TEACHER_STAGE = (
    "stages=[{name: tune, steps: 900, trainable: [projector, language], learning_rate: 1.0e-3, batch_size: 12, "
    "read: [full]}]"
)
# A fifth of the teacher's rate for the decoder: Gemma's weights are a fifth to a tenth as large as SmolLM2's, and a
# step of Adam is as long for either (docs/bench.md).
STAGE = (
    "stages=[{name: learn, steps: 1000, trainable: [projector, language], learning_rate: 2.0e-4, "
    "learning_rates: {projector: 1.0e-3}, batch_size: 8, read: [full]}]"
)


def decoders(out: Path, gemma: Path) -> None:
    """The teacher's and the student's decoder, with the words of scenes."""
    described = (False, True)
    rows = [row for way in described for row in records("train", 400, 0, grid=2, described=way)]
    words = word_tokens([turn.text for row in rows for turn in row.turns], SMOLLM2, out / "words")
    for name, body in (("teacher-decoder", SMOLLM2), ("student-decoder", f"gguf:{gemma}")):
        transplanted(body, f"hf:{words}", out / name)


def settings_of(case: str, seed: int, out: Path, families: Path, teacher: Path) -> list[str]:
    tower = families / f"{PAIR}-{CASES[case].tower}-{seed}" / "model"
    seen = f"source: 'timm:local-dir:{tower}', image_size: 64, tiles: 4, taps: [2, 4, 6], grid: [2, 2]"
    return [
        f"student.vision={{{seen}, standardize: true}}",
        f"student.language={{source: 'hf:{out / 'student-decoder'}', keep_layers: 4}}",
        *ROWS,
        "data.cache_features=false",  # a live teacher has a tower of its own
        f"objectives={CASES[case].objectives}",
        "teacher=null" if case == "sft" else f"teacher={{kind: live, model: {teacher}}}",
        STAGE,
    ]


def rows(run: Path, case: str) -> None:
    """Score the run, and append what has no row yet."""
    scored(run, ["full"])
    add_new(BENCH, [row for metric in METRICS for row in of_run(BENCH, case, run, metric)])


def compared(out: Path, gemma: Path, families: Path, seeds: list[int], cases: list[str], ranks: int) -> None:
    """Train, score, and append what has no row yet. Seeds outermost: each is complete early."""
    students = [case for case in cases if case != TEACHER]
    decoders(out, gemma)
    for seed in seeds:
        teacher = out / f"{TEACHER}-{seed}"
        if cases != ["sft"]:
            spoken = f"student.language={{source: 'hf:{out / 'teacher-decoder'}', keep_layers: 6}}"
            trained("train", "scenes/teacher", teacher, seed, [spoken, *ROWS, TEACHER_STAGE], ranks)
            rows(teacher, TEACHER)
        for case in students:
            towers(families, [PAIR], [CASES[case].tower], [seed])
            settings = settings_of(case, seed, out, families, teacher / "model")
            job = "train" if case == "sft" else "distill"
            run = trained(job, "scenes/teacher", out / f"{case}-{seed}", seed, settings, ranks)
            rows(run, case)
    conclude(BENCH, [pair for pair in PAIRS if set(pair) <= set(cases)] if len(seeds) > 1 else [])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.halves", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--gemma", type=Path, required=True, help="GGUF file of Gemma 3 270M")
    parser.add_argument("--families", type=Path, required=True, help="folder of bench.families' runs, with the towers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of each case")
    parser.add_argument(
        "--cases", nargs="+", choices=[TEACHER, *CASES], default=list(CASES), help="cases to train, and the teacher"
    )
    parser.add_argument("--ranks", type=int, default=2, help="processes of each run")
    asked = parser.parse_args()
    compared(asked.out, asked.gemma, asked.families, asked.seeds, asked.cases, asked.ranks)
