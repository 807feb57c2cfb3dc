"""The asker: lazy, stoppable, and never silent about an error."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator

import pytest

from mmkd.errors import ConfigError
from mmkd.synthesis.asking import Asker, answer_of
from mmkd.synthesis.backends import Call
from mmkd.synthesis.client import Endpoint
from mmkd.synthesis.image_tokens import ImageCheck
from mmkd.synthesis.requests import Completion, Request, Sampling, Status, Usage
from mmkd.synthesis.store import Entry, Store
from tests.synthesis.fault_proxy import FaultProxy


def counted(request_of, count: int, taken: list[int]) -> Iterator[Request]:
    for number in range(count):
        taken.append(number)
        yield request_of(number, images=())


def test_requests_are_taken_as_answers_are_and_not_before(endpoint, request_of, tmp_path):
    taken: list[int] = []
    with FaultProxy(None) as proxy, Asker(Endpoint(endpoint(proxy.url, concurrency=4)), Store(tmp_path)) as asker:
        answers = asker.answer(counted(request_of, 1000, taken))
        for _ in range(20):
            next(answers)
        time.sleep(0.5)
        assert 20 <= len(taken) <= 20 + 2 * 4 + 4
        answers.close()
        assert len(list(asker.store.entries())) == len(taken)  # calls on their way were awaited and kept


def test_every_line_of_the_journal_tells_who_was_asked_what_how_under_which_licence_and_at_what_cost(
    endpoint, request_of, tmp_path
):
    asked = request_of(3, sampling=Sampling(0.7, 0.9, 6, seed=11), prompt="judge v2 0123456789ab", license="CC-BY-4.0")
    with FaultProxy(None, content=lambda body: "it is red") as proxy:
        section = endpoint(proxy.url, license="MIT", check_images=False)
        with Asker(Endpoint(section), Store(tmp_path)) as asker:
            list(asker.answer([asked]))
        assert proxy.seen[0].body["seed"] == 11
    [line] = [json.loads(text) for text in (tmp_path / "journal.jsonl").read_text().splitlines()]
    content = line["request"]
    assert (line["model"], line["text"], line["license"]) == (section.model, "it is red", "MIT")
    assert (line["usage"]["prompt_tokens"], line["usage"]["answer_tokens"]) == (10, 5)
    assert (content["prompt"], content["license"]) == ("judge v2 0123456789ab", "CC-BY-4.0")
    assert (content["sampling"]["seed"], content["sampling"]["temperature"]) == (11, 0.7)
    assert content["turns"][0]["text"] == asked.turns[0].text
    assert content["images"] == [hashlib.sha256(asked.images[0]).hexdigest()]


def test_closing_awaits_calls_of_an_iterator_that_is_still_held(endpoint, request_of, tmp_path):
    taken: list[int] = []
    with FaultProxy(None, delay=0.2) as proxy:
        with Asker(Endpoint(endpoint(proxy.url)), Store(tmp_path)) as asker:
            answers = asker.answer(counted(request_of, 1000, taken))
            next(answers)
        answers.close()
        with Store(tmp_path) as store:
            assert len(list(store.entries())) == len(taken) == len(proxy.seen)


def test_an_error_of_the_requests_reaches_whoever_takes_answers(endpoint, request_of, tmp_path):
    def requests() -> Iterator[Request]:
        yield request_of(0, images=())
        raise KeyError("no such row")

    with FaultProxy(None) as proxy, Asker(Endpoint(endpoint(proxy.url)), Store(tmp_path)) as asker:
        answers = asker.answer(requests())
        with pytest.raises(KeyError, match="no such row"):
            list(answers)
        assert len(list(asker.store.entries())) == 1
        assert len(list(asker.answer([request_of(n, images=()) for n in range(3)]))) == 3  # it can be used again


class Scripted:
    """A back end of a few words, for what no server does on command."""

    model, license, concurrency, extra_body = "scripted", None, 2, {}

    def __init__(self, *replies: Completion):
        self.replies, self.calls = iter(replies), list[Call]()

    async def complete(self, call: Call) -> Completion:
        self.calls.append(call)
        return next(self.replies)

    async def close(self) -> None:
        pass


def test_a_run_stopped_between_two_tries_goes_on_with_the_next_one(request_of, tmp_path):
    request = request_of(0, images=())
    first = Scripted(Completion("", Usage(1, 1)))
    with Asker(first, Store(tmp_path)) as asker, pytest.raises(BaseException):  # noqa: B017  it runs out of replies
        list(asker.answer([request]))
    second = Scripted(Completion("fine", Usage(2, 2)))
    with Asker(second, Store(tmp_path)) as asker:
        [answer] = asker.answer([request])
    assert (answer.text, answer.usage) == ("fine", Usage(3, 3))
    assert [call.id[-2:] for call in first.calls + second.calls] == ["-0", "-1", "-1"]
    assert second.calls[0].sampling.seed != request.sampling.seed


def test_a_reply_refused_by_the_model_is_not_asked_for_again(request_of, tmp_path):
    backend = Scripted(Completion("I would rather not", Usage(1, 1), "refusal"))
    with Asker(backend, Store(tmp_path)) as asker:
        [answer] = asker.answer([request_of(0, images=())])
    assert (answer.done, answer.kind, answer.reason) == (False, "refused by the model", "I would rather not")
    assert len(backend.calls) == 1


def test_one_reply_given_to_two_requests_at_once_answers_only_one(endpoint, request_of, tmp_path):
    class Slow(ImageCheck):
        passed = True

        def unread(self, request, usage) -> None:
            time.sleep(0.3)  # the second reply comes while the first is looked at

    replies = [Completion(text, Usage(1, 1), response_id=name) for text, name in (("a", "1"), ("a", "1"), ("b", "2"))]
    check = Slow(endpoint("http://127.0.0.1:1/v1"), tmp_path)
    with Asker(Scripted(*replies), Store(tmp_path), check=check) as asker:
        answers = list(asker.answer([request_of(0), request_of(1)]))
        kinds = [entry.kind for entry in asker.store.entries() if entry.kind]
    assert sorted(answer.text for answer in answers) == ["a", "b"]
    assert kinds == ["duplicated reply"]


def test_the_table_shows_yield_cost_and_why(request_of, tmp_path):
    from rich.console import Console

    replies = [
        Completion("x", Usage(10, 5, 0.5)),
        Completion("", Usage(10, 0, 0.25)),
        Completion("y", Usage(10, 5, 0.5)),
    ]
    with Asker(Scripted(*replies), Store(tmp_path), reasks=0) as asker:
        list(asker.answer([request_of(n, images=()) for n in range(3)]))
        console = Console(width=80, file=io.StringIO())
        console.print(asker.tally.table("a[/b]\x1b[2J"))
        line = asker.tally.line()
    text = console.file.getvalue()
    assert "a[/b]\\x1b[2J" in text
    for name, value in [
        ("done", "2 (66.7%)"),
        ("rejected", "1"),
        ("empty reply", "1"),
        ("cost of one answer", "0.625"),
    ]:
        assert any(name in row and value in row for row in text.splitlines()), (name, text)
    assert line == "2 done · 1 rejected · cost 1.25"


@pytest.mark.parametrize("fault", ["400", "500"])
def test_whether_pictures_are_read_is_found_out_by_the_next_request_where_the_first_got_nothing(
    endpoint, request_of, tmp_path, fault
):
    def first(number, body) -> str:
        return fault if "What 0?" in str(body) and "image_url" in str(body) else ""

    with FaultProxy(None, fault=first) as proxy:  # ten prompt tokens, whatever is sent
        section, found = endpoint(proxy.url, concurrency=1, retry_seconds=0), []
        asker = Asker(Endpoint(section), Store(tmp_path), check=ImageCheck(section, tmp_path))
        with asker, pytest.raises(ConfigError, match=r"1 image\(s\) in a prompt add 0 tokens"):
            found.extend(asker.answer(request_of(number) for number in range(9)))
        assert [answer.request.id for answer in found] == ["q0"]
        assert len(proxy.seen) == 4


def test_what_was_taken_for_whole_when_it_was_paid_for_stays_done(request_of):
    entry = Entry("k", Status.DONE, "m", {}, text="A cat.", finish="a word of its own")
    assert answer_of(entry, request_of(0)).done
