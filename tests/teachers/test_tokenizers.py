"""A teacher that reads the student's ids must know them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

from mmkd.compose import load
from mmkd.config.schema import TeacherSection
from mmkd.data.collate import Collator
from mmkd.data.records import Record, Turn
from mmkd.errors import ConfigError
from mmkd.models import MmkdProcessor
from mmkd.objectives import Needs, build, names
from mmkd.teachers.live import LiveTeacher, SharedTeacher
from mmkd.teachers.reading import answer_batch
from mmkd.teachers.tokenizers import (
    difference,
    require_one_reading,
    require_one_tokenizer,
    teacher_side,
    vocabulary_size,
)
from tests.byte_tokenizer import byte_tokenizer
from tests.objectives.sides import Section
from tests.train.conftest import save_tiny_model


def other_tokenizer(turned: bool = False, words: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Bytes in another order, or with tokens of its own behind them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=turned)
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*letters, *words])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def saved(folder: Path, tokenizer: PreTrainedTokenizerFast) -> TeacherSection:
    """A teacher's folder that has a processor and no weights."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    MmkdProcessor(CLIPImageProcessor(), tokenizer, chat_template="{{ messages }}").save_pretrained(folder)
    return TeacherSection(kind="live", model=str(folder))


def test_one_tokenizer_serves_and_so_does_one_with_more_added_tokens():
    plain, more = byte_tokenizer(), byte_tokenizer(image=True)
    assert difference(plain, plain) is None
    assert difference(plain, more) is None
    assert difference(more, plain) is None
    assert vocabulary_size(more) == vocabulary_size(plain) + 1 == 259


def test_an_id_that_is_another_token_or_no_token_is_named():
    ours = byte_tokenizer()
    assert "id 0 is" in difference(ours, other_tokenizer(turned=True))
    assert "id 256 is 'zq' there and '<s>' here" in difference(ours, other_tokenizer(words=("zq",)))


def test_a_teacher_of_another_tokenizer_is_refused_without_its_weights_and_told_of_uld(tmp_path):
    section = saved(tmp_path, other_tokenizer(turned=True))
    with pytest.raises(ConfigError) as caught:
        require_one_tokenizer(section, byte_tokenizer(image=True), ["forward_kl", "taid"])
    text = str(caught.value)
    assert "259 ids" in text
    assert "(forward_kl, taid) compare both sides token by token" in text
    assert "Use uld in their place" in text
    assert str(tmp_path) in text


def test_a_teacher_of_the_students_tokenizer_passes_and_so_does_one_that_no_objective_reads(tmp_path):
    require_one_tokenizer(saved(tmp_path / "same", byte_tokenizer()), byte_tokenizer(), ["forward_kl"])
    other = saved(tmp_path / "other", other_tokenizer(turned=True))
    require_one_tokenizer(other, byte_tokenizer(), [])
    require_one_tokenizer(TeacherSection(kind="shared"), byte_tokenizer(), ["forward_kl"])
    require_one_tokenizer(None, byte_tokenizer(), ["forward_kl"])


def test_a_teacher_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder that mmkd can load"):
        require_one_tokenizer(TeacherSection(model=str(tmp_path / "none")), byte_tokenizer(), ["forward_kl"])


@pytest.mark.parametrize("name", names())
def test_every_objective_says_whose_tokens_the_teacher_reads_for_it(name):
    objective = build(Section(name))
    assert objective.needs(4, 4).teacher == (objective.teacher or objective.own_tokens)
    assert not (objective.teacher and objective.own_tokens)


def test_a_stage_has_the_teacher_read_its_own_tokens_or_the_students():
    kinds = {name: build(Section(name)) for name in ("cross_entropy", "uld", "forward_kl", "hidden_states")}
    require_one_reading("tune", [kinds["cross_entropy"], kinds["uld"]])
    require_one_reading("tune", [kinds["cross_entropy"], kinds["forward_kl"], kinds["hidden_states"]])
    with pytest.raises(ConfigError, match="stage tune: uld has the teacher read its own tokens, hidden_states"):
        require_one_reading("tune", [kinds["uld"], kinds["hidden_states"]])


def test_a_teacher_that_is_the_student_has_no_tokens_of_its_own():
    assert teacher_side(TeacherSection(kind="shared"), None, [build(Section("uld"))]) is None
    with pytest.raises(ConfigError, match="use forward_kl"):
        SharedTeacher().check(Needs(True, own_tokens=True))


def test_a_teacher_without_a_row_for_what_the_chats_hold_is_refused(tmp_path):
    tokenizer = byte_tokenizer(image=True)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    save_tiny_model(tmp_path / "student", 0, 1, None, tokenizer=tokenizer, template="chatml")
    save_tiny_model(tmp_path / "teacher", 1, 1, None)
    student = load(tmp_path / "student")
    require_one_tokenizer(
        TeacherSection(model=str(tmp_path / "teacher")), student.processor.tokenizer, ["forward_kl"]
    )  # alike but for added tokens
    batch = Collator(student.processor, 64)([Record("r", [Turn("user", "what?"), Turn("assistant", "a")], [])])
    batch["normalizer"] = 1.0
    teacher = LiveTeacher(str(tmp_path / "teacher"), torch.float32, "sdpa", torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"hold id 260, .* the teacher's embedding has 259 rows: .*plain or qa"):
        teacher.outputs(student.model, batch, answer_batch(batch), Needs(teacher=True))


def test_an_added_token_of_the_student_is_refused_in_the_first_row_that_holds_it(tmp_path):
    tokenizer = byte_tokenizer(image=True)
    tokenizer.add_tokens(["<think>"])
    save_tiny_model(tmp_path / "student", 0, 1, None, tokenizer=tokenizer)
    save_tiny_model(tmp_path / "teacher", 1, 1, None)
    student = load(tmp_path / "student")
    teacher = LiveTeacher(str(tmp_path / "teacher"), torch.float32, "sdpa", torch.device("cpu"))
    collator = Collator(student.processor, 64)

    def ask(answer):
        batch = collator([Record("r", [Turn("user", "what?"), Turn("assistant", answer)], [])]) | {"normalizer": 1.0}
        return teacher.outputs(student.model, batch, answer_batch(batch), Needs(teacher=True))

    ask("a")
    with pytest.raises(ConfigError, match=r"hold id 259, .* or leave such tokens out of the data"):
        ask("<think>a")
