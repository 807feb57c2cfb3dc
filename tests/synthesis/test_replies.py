"""Replies as answers: what counts as one, and what a hostile one costs."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import httpx2
import openai
import pytest
from pydantic import BaseModel, ConfigDict

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.data.records import Turn
from mmkd.synthesis.replies import EMPTY, Problem, read_reply, unfenced
from mmkd.synthesis.requests import Completion, Request, Sampling, Usage
from mmkd.synthesis.retrying import trouble_of


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ('```json\n{"a": 1}\n```', '{"a": 1}'),
        (' \n```\n{"a":\n1}\n  ```\n\n', '{"a":\n1}'),
        ("```json  \n\n{}\n\n```", "{}"),
        ("```\n```json\n{}\n```\n```", "```json\n{}\n```"),
    ],
)
def test_of_one_fenced_block_its_inside_is_read(text, inside):
    assert unfenced(text).strip("\n") == inside


@pytest.mark.parametrize(
    "text", ["{}", "```", "``````", "```\n```", "```python\n{}\n```", "so:\n```\n{}\n```", "```\n{}```"]
)
def test_any_other_text_is_read_as_it_is(text):
    assert unfenced(text) == text


def test_it_reads_what_its_definition_reads():
    fenced = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)
    parts = ("```", "```json", "\n", " ", "{}", "x")
    texts = [""]
    for _ in range(5):
        texts += [text + part for text in texts if len(text) < 30 for part in parts]
        texts = list(dict.fromkeys(texts))
    for text in texts:
        found = fenced.fullmatch(text)
        assert unfenced(text).strip() == (found[1] if found else text).strip(), text


@pytest.mark.parametrize("filling", ["\n", " \n", "\n```\n"])
def test_a_reply_of_a_million_blank_lines_is_read_at_once(filling):
    began = time.perf_counter()
    unfenced("```\n" + filling * 1_000_000 + "x")
    assert time.perf_counter() - began < 2


def test_a_field_that_a_model_made_up_is_named_in_a_line():
    class Closed(BaseModel):
        model_config = ConfigDict(extra="forbid")

    request = Request("q", (Turn("user", "well?"),), schema=Closed)
    said = json.dumps({"\x1b[2J" + "x" * 1_000_000: 1})
    wrong = read_reply(request, Completion(said, Usage()))
    assert isinstance(wrong, Problem)
    assert "Extra inputs are not permitted" in wrong.reason
    assert len(wrong.reason) < 300
    assert wrong.reason.isprintable()


def test_a_servers_words_cannot_command_the_terminal_that_shows_them():
    words = "\x1b[2Jgone\u202e"
    response = httpx2.Response(400, request=httpx2.Request("POST", "http://x/v1"))
    error = openai.BadRequestError(words, response=response, body=None)
    request = Request("q", (Turn("user", "well?"),))
    refused = read_reply(request, Completion(words, Usage(), "refusal"))
    assert isinstance(refused, Problem)
    empty = read_reply(request, Completion("", Usage(), words + "x" * 1_000_000))
    assert isinstance(empty, Problem)
    for told in (str(trouble_of(error, EndpointSection(url="http://x/v1", model="m"))), refused.reason, empty.reason):
        assert "gone" in told
        assert told.isprintable()
        assert len(told) < 300


@pytest.mark.parametrize("finish", ["abort", "error", "insufficient_system_resource", "tool_calls", "SAFETY"])
def test_what_a_server_broke_off_is_asked_again_and_no_answer(finish):
    problem = read_reply(Request("r", (Turn("user", "What is it?"),)), Completion("It is a re", Usage(), finish))
    assert isinstance(problem, Problem)
    assert not problem.final
    assert problem.reason == f"the server ended the reply before its end, finish reason {finish}"


@pytest.mark.parametrize("finish", ["stop", "STOP", "eos", "eos_token", "end_turn", "stop_sequence"])
def test_each_servers_word_for_an_end_is_one(finish):
    assert read_reply(Request("r", (Turn("user", "What is it?"),)), Completion("A cat.", Usage(), finish)) is None


@pytest.mark.parametrize("finish", ["length", "model_length", "max_tokens", "MAX_TOKENS"])
def test_each_servers_word_for_the_limit_is_one(finish):
    request, cut = Request("r", (Turn("user", "What is it?"),)), Completion("It is a re", Usage(), finish)
    problem = read_reply(request, cut)
    assert isinstance(problem, Problem)
    assert problem.kind == "cut off"
    assert read_reply(replace(request, may_be_cut=True), cut) is None


@pytest.mark.parametrize(("temperature", "final"), [(0.0, True), (0.7, False)])
def test_a_reply_that_was_cut_off_is_paid_again_only_where_it_may_come_out_shorter(temperature, final):
    request = Request("r", (Turn("user", "What is it?"),), sampling=Sampling(temperature=temperature, max_tokens=4))
    problem = read_reply(request, Completion("It is a re", Usage(), "length"))
    assert isinstance(problem, Problem)
    assert (problem.kind, problem.final) == ("cut off", final)
    assert read_reply(replace(request, may_be_cut=True), Completion("It is a re", Usage(), "length")) is None


@pytest.mark.parametrize(("temperature", "final"), [(0.0, True), (0.7, False)])
def test_a_reply_that_ended_in_thought_is_cut_off_and_not_empty(temperature, final):
    request = Request("r", (Turn("user", "What is it?"),), sampling=Sampling(temperature=temperature), may_be_cut=True)
    problem = read_reply(request, Completion(" ", Usage(), "length"))
    assert isinstance(problem, Problem)
    assert (problem.kind, problem.final) == ("cut off", final)
    assert problem.reason == "the reply ran into max_tokens 512 before it said a word; raise it"
    silent = read_reply(request, Completion(" ", Usage(), "stop"))
    assert isinstance(silent, Problem)
    assert silent.kind == EMPTY
