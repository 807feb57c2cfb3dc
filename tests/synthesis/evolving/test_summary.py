"""What a round's summary counts, and how its directions are drawn."""

from __future__ import annotations

from collections import Counter

from mmkd.config.evolve_schema import DirectionsSection
from mmkd.synthesis.evolving.items import Content, Version
from mmkd.synthesis.evolving.journal import Journal
from mmkd.synthesis.evolving.outcomes import Outcome
from mmkd.synthesis.evolving.rounds import direction_of
from mmkd.synthesis.evolving.summary import summarise


def version(name: str, difficulty: float | None = None, skills: int = 1) -> Version:
    names = ["grounding", "calculating", "existence"][:skills]
    content = {
        "objects": ["it"],
        "skills": names,
        "steps": [],
        "form": "open question",
        "question": "what?",
        "answer": "it",
    }
    return Version(id=name, content=Content.model_validate(content), difficulty=difficulty)


def outcome(item: str, round: int, current: Version, **rest) -> Outcome:
    return Outcome(item=item, index=0, image="0", round=round, current=current, **rest)


def test_difficulty_and_skills_are_of_all_items_as_they_stand_after_a_round(tmp_path):
    journal = Journal(tmp_path)
    journal.write(0, [outcome(item, 0, version(f"{item}/v0")) for item in "abcd"])
    journal.write(
        1,
        [
            outcome("a", 1, version("a/v1", 6.0, 3), direction="cognitive", kept=True, parent_difficulty=3.0),
            outcome("b", 1, version("b/v0"), direction="cognitive", kind="not better", parent_difficulty=2.0),
            outcome("c", 1, version("c/v0", 5.0), direction="perceptual", kind="asked before"),  # of an earlier round
            outcome("d", 1, version("d/v0"), direction="interaction", kind="asked before"),  # no judge has seen it
        ],
    )
    seeds, first = summarise(journal, 1)["rounds"]
    assert (seeds["difficulty per item"], seeds["items with a difficulty"], seeds["skills per item"]) == (None, 0, 1)
    assert first["difficulty per item"] == round((6 + 2 + 5) / 3, 3)
    assert (first["items with a difficulty"], first["skills per item"]) == (3, 1.5)
    assert (first["difficulty of kept"], first["difficulty of their parents"]) == (6.0, 3.0)
    assert first["rejected"] == {"asked before": 2, "not better": 1}


def test_the_three_directions_have_equal_chances_by_default_and_their_weights_otherwise():
    drawn = Counter(direction_of(f"{n}.0", 1, DirectionsSection(), 0) for n in range(3000))
    assert all(900 < drawn[name] < 1100 for name in ("perceptual", "cognitive", "interaction"))
    weights = DirectionsSection(perceptual=0.5, cognitive=0.25, interaction=0.25)
    drawn = Counter(direction_of(f"{n}.0", 1, weights, 0) for n in range(3000))
    assert 1400 < drawn["perceptual"] < 1600
    assert {direction_of(f"{n}.0", 1, DirectionsSection(interaction=0), 0) for n in range(99)} == {
        "perceptual",
        "cognitive",
    }
