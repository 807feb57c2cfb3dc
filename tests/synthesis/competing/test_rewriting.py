"""Questions of templates in a model's words: the same question, or the template's; both are kept, each asked once."""

from __future__ import annotations

from collections import Counter

import pytest
from PIL import Image

from mmkd.config.compete_schema import CompeteConfig
from mmkd.config.load import check_options
from mmkd.config.schema import SourceSection
from mmkd.config.synthesis_schema import ModelSection
from mmkd.data.rejected import RejectedLog
from mmkd.errors import ConfigError
from mmkd.synthesis.competing.assessing import Kind, Outcome
from mmkd.synthesis.competing.augmenting import IN_OTHER_WORDS, check_augmentor, grow
from mmkd.synthesis.competing.augmentors import Parent, Wanted
from mmkd.synthesis.competing.augmentors.grounded import grounded
from mmkd.synthesis.competing.filters import Known
from mmkd.synthesis.competing.items import read_items, write_items
from mmkd.synthesis.competing.prepare import items_of
from mmkd.synthesis.rewording import objection
from tests.synthesis.competing.oracle import ASKED, POLITE, truth
from tests.synthesis.fault_proxy import FaultProxy


def config(out, url: str, **augment) -> CompeteConfig:
    model = {"endpoint": {"url": url, "model": "oracle", "license": "MIT"}}
    return CompeteConfig.model_validate(
        {"out": str(out), "start": "s", "training": {"config": "t"}, "teacher": model, "sampling": {"max_tokens": 8},
         "reasks": 0, "pool": [{"source": "scenes"}], "held_out": [{"source": "scenes"}],
         "filters": {"similarity": 1.0}, "augment": {"name": "grounded", "count": 24, "rewrite": model, **augment}}
    )  # fmt: skip


@pytest.fixture
def failed(tmp_path):
    sources = [SourceSection.model_validate({"source": "scenes", "count": 2, "grid": 2})]
    items, _ = items_of(sources, "pool", tmp_path / "images", RejectedLog(tmp_path / "log.jsonl"), True, True)
    return items, [Outcome(item.id, Kind.HARD, item.reference or "", "wrong", (10.0, 1.0)) for item in items]


def test_a_round_keeps_both_texts_counts_them_and_asks_nothing_twice(failed, oracle, tmp_path):
    pool, outcomes = failed
    with FaultProxy(oracle) as proxy:
        asks = config(tmp_path, proxy.url)

        def round(number, items):
            log = RejectedLog(tmp_path / f"{number}.jsonl")
            return grow(asks, tmp_path, number, items, outcomes, asks.teacher, log)

        grown = round(1, pool)
        seen = len(proxy.seen)
        assert round(1, pool) == grown
        assert len(proxy.seen) == seen
        assert len({one.call for one in proxy.seen}) == seen
        assert sum(ASKED in str(one.body) for one in proxy.seen) == grown.drafted == sum(grown.worded.values())
        after = round(2, [*pool, *grown.items])
    worded = [item for item in grown.items if item.question.startswith(POLITE)]
    assert worded
    assert grown.worded.keys() >= {IN_OTHER_WORDS, "not one question", "words that may change it"}
    for item in grown.items:
        assert item.writer == "oracle"
        assert item.question == (item.said if item in worded else item.template)
        assert item.reference == item.answer == truth(Image.open(item.images[0]).convert("RGB"), item.template)
        assert objection(item.template, item.question) == ("" if item in worded else "the same words")
        assert item.prompt.startswith("reword v2") == (item in worded)
        origin = item.record(0).provenance
        assert (origin.template, origin.said) == (item.template, item.said)
    write_items(tmp_path / "pool.jsonl", grown.items)
    kept = read_items(tmp_path / "pool.jsonl")
    assert [(item.template, item.said, item.writer) for item in kept] == [
        (item.template, item.said, item.writer) for item in grown.items
    ]
    asked = Counter((item.images, item.plain_question) for item in (*pool, *grown.items, *after.items))
    assert set(asked.values()) == {1}  # no template again, though it stands there in other words


def test_a_reworded_question_is_a_parent_like_any_other(failed, oracle, tmp_path):
    pool, outcomes = failed
    asks = config(tmp_path, oracle)
    items = grow(asks, tmp_path, 1, pool, outcomes, asks.teacher, RejectedLog(tmp_path / "1.jsonl")).items
    parents = [Parent(item, True, 0, "?") for item in items if item.question.startswith(POLITE)]
    drafts = list(grounded(Wanted(parents, Known(1.0), tmp_path / "next", 0, 2, 0)))
    assert len(drafts) == len(parents) > 2
    assert not [draft.problem for draft in drafts if "do not know" in draft.problem]


def test_who_rewords_is_checked_before_anything_is_asked(tmp_path):
    with pytest.raises(ConfigError, match=r"augment\.rewrite"):
        check_augmentor(config(tmp_path, "http://127.0.0.1:9/v1", rewrite={"languag": {"source": "gguf:x"}}))
    options = {"rewrite": {"language": {"source": "gguf:smollm2-135m"}}}
    checked = check_options("grounded", options, grounded, at="augment", given=("wanted",))
    assert isinstance(checked["rewrite"], ModelSection)


@pytest.mark.slow
def test_smollm2_rewords_some_questions_and_no_other_is_taken(failed, tmp_path):
    items, _ = failed
    parents = [Parent(item, True, 0, "?") for item in items[:8]]
    wanted = Wanted(parents, Known(1.0), tmp_path, 0, 1, 0)
    model = ModelSection.model_validate({"language": {"source": "gguf:smollm2-135m"}})
    plain, drafts = list(grounded(wanted)), list(grounded(wanted, rewrite=model))
    assert [draft.template for draft in drafts] == [draft.question for draft in plain]
    taken = [draft for draft in drafts if not draft.objection]
    assert taken
    for draft in drafts:
        assert draft.question == (draft.said if draft in taken else draft.template)
        assert draft.license == ("Apache-2.0" if draft in taken else None)
