"""Asking the real server through a proxy that damages what it says: nothing is lost, nothing is made of garbage."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from dataclasses import replace
from itertools import cycle

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmkd.errors import ConfigError, DataError
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.client import Endpoint
from mmkd.synthesis.requests import Answer, Request, Sampling, Status
from mmkd.synthesis.store import Store
from mmkd.teachers.identity import served_identity
from tests.synthesis.fault_proxy import FAULTS, AtOnce, FaultProxy


class Score(BaseModel):
    reason: str
    score: int = Field(ge=1, le=10)


def ask_all(section, store_folder, requests, reasks=2) -> list[Answer]:
    with Asker(Endpoint(section), Store(store_folder), reasks) as asker:
        return list(asker.answer(requests))


def test_a_real_server_answers_each_question_once(served, endpoint, request_of, tmp_path):
    requests = [request_of(number) for number in range(20)]
    with FaultProxy(served) as proxy:
        first = ask_all(endpoint(proxy.url), tmp_path, requests)
        asked = len(proxy.seen)
        again = ask_all(endpoint(proxy.url), tmp_path, requests)
        assert len(proxy.seen) == asked  # the second time the store answers
    assert Counter(answer.request.id for answer in first) == Counter(request.id for request in requests)
    assert {a.key: (a.status, a.text) for a in first} == {a.key: (a.status, a.text) for a in again}
    done = [answer for answer in first if answer.done]
    assert len(done) > 15  # a random model may end an answer before it began
    assert all(answer.usage.prompt_tokens > 4 and answer.usage.answer_tokens > 0 for answer in done)


def test_equal_requests_are_paid_once_and_both_answered(served, endpoint, request_of, tmp_path):
    requests = [replace(request_of(3), id=f"copy {number}") for number in range(12)]
    with FaultProxy(served) as proxy:
        answers = ask_all(endpoint(proxy.url), tmp_path, requests)
        assert len({seen.call for seen in proxy.seen if seen.call.endswith("-0")}) == 1
    assert len(answers) == 12
    assert len({answer.text for answer in answers}) == 1


def test_images_go_out_whole_and_before_the_text(served, endpoint, request_of, picture, tmp_path):
    with FaultProxy(served) as proxy:
        ask_all(endpoint(proxy.url), tmp_path, [request_of(0, images=(picture(0, (90, 40)), picture(1)))])
        parts = proxy.seen[0].body["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"]
    import base64
    import io

    from PIL import Image

    head, data = parts[0]["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (90, 40)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "half json"])
def test_each_fault_passes_and_the_answer_is_the_servers_own(served, endpoint, request_of, tmp_path, fault):
    requests = [request_of(number) for number in range(4)]
    clean = {a.request.id: a.text for a in ask_all(endpoint(served), tmp_path / "clean", requests)}
    first = {"duplicate": 2}.get(fault, 0)  # something has to come before it can come twice
    times = 1 if fault in ("hang", "drip") else 2  # these take the whole timeout
    with FaultProxy(served, fault=lambda number, body: fault if first <= number < first + times else "") as proxy:
        section = endpoint(proxy.url, timeout=3, concurrency=1)
        answers = ask_all(section, tmp_path / "faulty", requests, reasks=3)
        assert [seen.fault for seen in proxy.seen].count(fault) == times
    assert {answer.request.id: answer.text for answer in answers} == clean
    with Store(tmp_path / "faulty") as store:
        kept = Counter(entry.kind for entry in store.entries() if entry.status is Status.UNUSABLE)
    expected = {"empty": "empty reply", "duplicate": "duplicated reply"}.get(fault)
    assert not expected or kept[expected] == 2


def test_through_all_faults_every_item_ends_and_none_is_scored_from_garbage(
    served, endpoint, request_of, tmp_path, record_property
):
    """Each reply's score is in the question, so a score from anywhere else would show."""
    draw = random.Random(0)
    faults = cycle(draw.sample(FAULTS, len(FAULTS)))

    def content(body) -> str:
        said = next(message for message in body["messages"] if message["role"] == "user")["content"]
        number = int(said[-1]["text"].split()[1].rstrip("?").split("\n")[0].rstrip("?"))
        return f'{{"reason": "as asked", "score": {number % 10 + 1}}}'

    def fault(number, body) -> str:
        return next(faults) if draw.random() < 0.4 else ""

    requests = [request_of(number, schema=Score, may_be_cut=False) for number in range(60)]
    with FaultProxy(served, fault=fault, content=content) as proxy:
        section = endpoint(proxy.url, structured="validate", timeout=3)
        answers = ask_all(section, tmp_path, requests)
        delivered = sum(seen.whole for seen in proxy.seen)
        assert {"hang", "drip"} < {seen.fault for seen in proxy.seen}
        assert len({seen.fault for seen in proxy.seen}) > 10
        record_property("requests", len(proxy.seen))
        record_property("faults", sum(bool(seen.fault) for seen in proxy.seen))
    record_property("items", len(requests))
    record_property("done", sum(answer.done for answer in answers))
    record_property("rejected", sum(not answer.done for answer in answers))
    assert sorted(answer.request.id for answer in answers) == sorted(request.id for request in requests)
    for answer in answers:
        if answer.done:
            assert answer.value.score == int(answer.request.id[1:]) % 10 + 1
        else:
            assert (answer.value, answer.text) == (None, "")
            assert answer.kind
            assert answer.reason
    assert sum(answer.done for answer in answers) > 50
    with Store(tmp_path) as store:
        lost = [entry for entry in store.entries() if entry.kind == "broken reply"]
        assert lost
        assert all((entry.text, entry.status) == ("", Status.UNUSABLE) for entry in lost)
        # Every reply that came is kept, and nothing else but the cost of what was none, and that no reply came.
        given_up = sum(answer.status is Status.UNANSWERED for answer in answers)
        assert len(list(store.entries())) == sum(store.counts().values()) == delivered + len(lost) + given_up


def choice(content="x", **beside) -> dict:
    return {"choices": [{"message": {"content": content}, "finish_reason": "stop", **beside}]}


def scored(log_prob, likeliest) -> dict:
    return choice(logprobs={"content": [{"token": "x", "logprob": log_prob, "top_logprobs": likeliest}]})


@pytest.mark.parametrize(
    "beside",
    [
        {"id": 7},
        {"model": ["m"], "id": None},
        scored(None, None),
        choice(logprobs="none"),
        choice([{"type": "text", "text": "x"}]),
        choice([{"type": "thinking", "thinking": [{"type": "text", "text": "well"}]}, {"type": "text", "text": "x"}]),
    ],
)
def test_a_good_reply_with_odd_words_beside_it_is_paid_once_and_an_answer(endpoint, request_of, tmp_path, beside):
    with FaultProxy(None, beside=beside) as proxy:
        [answer] = ask_all(endpoint(proxy.url), tmp_path, [request_of(0, images=())])
        assert len(proxy.seen) == 1
    assert (answer.done, answer.text, answer.tokens) == (True, "x", None)


def test_log_probs_that_were_asked_for_are_read_and_null_stands_for_none_others(endpoint, request_of, tmp_path):
    with FaultProxy(None, beside=scored(-0.5, None)) as proxy:
        [answer] = ask_all(
            endpoint(proxy.url), tmp_path, [request_of(0, images=(), sampling=Sampling(max_tokens=6, log_probs=2))]
        )
    assert [(token.token, token.logprob, token.top_logprobs) for token in answer.tokens or ()] == [("x", -0.5, [])]


@pytest.mark.parametrize(
    ("beside", "place"),
    [
        ({"choices": []}, "choices"),
        (scored(None, []), r"choices\.0\.logprobs\.content\.0\.logprob"),
        ({"choices": 1}, ""),
    ],
)
def test_a_wrong_shape_is_given_up_after_three_replies_for_no_waiting_mends_it(
    endpoint, request_of, tmp_path, beside, place
):
    request = request_of(0, images=(), sampling=Sampling(max_tokens=6, log_probs=2))
    with FaultProxy(None, beside=beside) as proxy:
        [answer] = ask_all(endpoint(proxy.url), tmp_path, [request])
        assert len(proxy.seen) == 3
    assert (answer.status, answer.kind) == (Status.UNANSWERED, "broken reply")
    assert re.search(rf"no chat completion: {place}.*\(tries: 3; retry_seconds: 120\)$", answer.reason)


def test_an_error_that_a_router_tells_with_a_200_may_pass(endpoint, request_of, tmp_path):
    with FaultProxy(None, fault=lambda number, body: "error with a 200" if number < 4 else "") as proxy:
        backend = Endpoint(endpoint(proxy.url))
        backend._random = AtOnce()
        with Asker(backend, Store(tmp_path)) as asker:
            [answer] = asker.answer([request_of(0, images=())])
    assert answer.done


def test_json_that_stays_wrong_is_rejected_with_what_was_wrong(served, endpoint, request_of, tmp_path):
    replies = iter(["nine", '{"reason": "x", "score": 11}', '{"score": 3}'])
    with FaultProxy(served, content=lambda body: next(replies)) as proxy:
        section = endpoint(proxy.url, structured="validate")
        [answer] = ask_all(section, tmp_path, [request_of(1, schema=Score)])
        bodies = [seen.body for seen in proxy.seen]
    assert answer.status is Status.REJECTED
    assert (answer.kind, answer.value) == ("not the form asked for", None)
    assert "reason: Field required" in answer.reason
    assert [len(body["messages"]) for body in bodies] == [1, 3, 3]
    assert "Input should be less than or equal to 10" in str(bodies[2]["messages"][-1])
    with Store(tmp_path) as store:
        assert answer.usage == store.spent()  # of all three
        assert [entry.text for entry in store.entries()] == ["nine", '{"reason": "x", "score": 11}', '{"score": 3}']


def test_a_server_without_response_format_is_asked_with_the_schema_in_the_prompt(
    served, endpoint, request_of, tmp_path
):
    """mmkd serve refuses response_format by name."""
    with FaultProxy(served, content=lambda body: '{"reason": "r", "score": 5}') as proxy:
        answers = ask_all(endpoint(proxy.url, concurrency=1), tmp_path, [request_of(n, schema=Score) for n in range(3)])
        forms = ["response_format" in seen.body for seen in proxy.seen]
    assert [answer.value.score for answer in answers] == [5, 5, 5]
    assert forms == [True, False, False, False]
    assert proxy.seen[0].call != proxy.seen[1].call  # or a server could reply as before
    assert "JSON schema" in str(proxy.seen[1].body["messages"])


def test_a_server_is_given_the_schema_as_strict_mode_demands_it(endpoint, request_of, tmp_path):
    class Part(BaseModel):
        properties: str
        default: int = 3

    class Whole(BaseModel):
        model_config = ConfigDict(extra="allow")
        parts: list[Part] = Field(default_factory=list)
        note: str | None = None

    said = '{"parts": [{"properties": "p", "default": 1}], "note": null}'
    with FaultProxy(None, content=lambda body: said) as proxy:
        [answer] = ask_all(endpoint(proxy.url), tmp_path, [request_of(0, images=(), schema=Whole)])
    assert isinstance(answer.value, Whole)
    form = proxy.seen[0].body["response_format"]["json_schema"]
    assert form["strict"] is True
    part = form["schema"]["$defs"]["Part"]
    assert part["required"] == list(part["properties"]) == ["properties", "default"]
    assert form["schema"]["required"] == list(form["schema"]["properties"]) == ["parts", "note"]
    assert part["additionalProperties"] is form["schema"]["additionalProperties"] is False
    assert not any("default" in one for one in (*part["properties"].values(), *form["schema"]["properties"].values()))


def test_a_dead_server_stops_the_run_and_the_next_run_asks_again(served, endpoint, request_of, tmp_path):
    requests = [request_of(number) for number in range(80)]
    stop = pytest.raises(
        DataError, match=r"5\d of 5\d requests to tiny got no reply or were refused, more than 10%.*run again"
    )
    with FaultProxy(served, fault=lambda number, body: "500") as proxy, stop:
        ask_all(endpoint(proxy.url, retry_seconds=0), tmp_path, requests)
    few = requests[:10]
    assert {a.status for a in ask_all(endpoint(served), tmp_path, few)} <= {Status.DONE, Status.REJECTED}


def test_of_several_servers_one_that_is_dead_costs_little(endpoint, request_of, tmp_path):
    with FaultProxy(None) as one, FaultProxy(None) as other:
        dead = "http://127.0.0.1:9/v1"  # refuses connections, and so has always the fewest calls on their way
        section = endpoint(one.url, replicas=[dead, other.url], concurrency=2, retry_seconds=30)
        answers = ask_all(section, tmp_path, [request_of(number) for number in range(60)])
        assert all(answer.done for answer in answers)
        assert min(len(one.seen), len(other.seen)) > 20
        assert Endpoint(section).concurrency == 6


def test_a_wrong_key_or_model_stops_the_run_at_once(served, endpoint, request_of, tmp_path):
    with pytest.raises(ConfigError, match=r"does not answer for model 'other'.*404.*Check url, model"):
        ask_all(endpoint(served, model="other"), tmp_path, [request_of(number) for number in range(100)])
    with pytest.raises(ConfigError, match="api_key_env names NO_SUCH_KEY, which is not set"):
        Endpoint(endpoint(served, api_key_env="NO_SUCH_KEY"))


def test_what_the_server_refuses_is_told_and_tried_again_by_the_next_run(served, endpoint, request_of, tmp_path):
    from mmkd.data.records import Turn

    long = Request("long", (Turn("user", "x" * 500),))
    for _ in range(2):
        [answer] = ask_all(endpoint(served), tmp_path, [long])
        assert answer.status is Status.REFUSED
        assert "the model reads 160" in answer.reason
    broken = replace(request_of(0), images=(b"\x89PNG\r\n\x1a\nnothing",))
    [answer] = ask_all(endpoint(served), tmp_path, [broken])
    assert (answer.status, answer.kind) == (Status.REFUSED, "image unreadable")


def test_a_field_that_the_server_does_not_know_stops_the_run_and_rejects_nothing_for_good(
    served, endpoint, request_of, tmp_path
):
    requests = [request_of(number) for number in range(60)]
    with FaultProxy(served, fault=lambda number, body: "400") as proxy, pytest.raises(DataError, match="unknown field"):
        ask_all(endpoint(proxy.url), tmp_path, requests)
    assert all(answer.done or answer.kind == "empty reply" for answer in ask_all(endpoint(served), tmp_path, requests))


def test_all_calls_wait_where_the_server_says_when_to_come_back(endpoint, request_of, tmp_path):
    with FaultProxy(None, fault=lambda number, body: "429" if number < 8 else "") as proxy:
        answers = ask_all(endpoint(proxy.url), tmp_path, [request_of(number) for number in range(30)])
        refused = max(seen.began for seen in proxy.seen[:8])  # when it ended, the client may have known for a while
        later = min(seen.began for seen in proxy.seen[8:])
    assert all(answer.done for answer in answers)
    assert later - refused > 0.05  # Retry-After: 0.05


def test_the_client_keeps_a_server_busy(endpoint, request_of, tmp_path):
    """Each reply is followed by the next request before another one has to come: here none comes before that."""
    requests = [request_of(number, images=()) for number in range(40)]
    with FaultProxy(None, full=(10, 40)) as proxy:
        answers = ask_all(endpoint(proxy.url, concurrency=10, timeout=20, retry_seconds=0), tmp_path, requests)
    assert len(proxy.seen) == 40
    assert all(answer.done for answer in answers)


def test_fields_of_a_vendor_go_into_the_request_and_into_what_an_answer_is_known_by(endpoint, request_of, tmp_path):
    requests = [request_of(0, images=(), sampling=Sampling(max_tokens=7))]
    with FaultProxy(None) as proxy:
        plain = endpoint(proxy.url)
        vendor = endpoint(proxy.url, token_field="max_completion_tokens", extra_body={"reasoning_effort": "low"})
        for section in (plain, vendor, plain, vendor):
            assert ask_all(section, tmp_path, requests)[0].done
        first, second = (seen.body for seen in proxy.seen)  # each is asked once
    assert first["max_tokens"] == second["max_completion_tokens"] == 7
    assert first.keys() ^ second.keys() == {"max_tokens", "max_completion_tokens", "reasoning_effort"}
    assert second["reasoning_effort"] == "low"
    with pytest.raises(ValidationError, match="temperature: mmkd sets this itself"):
        endpoint("http://x/v1", extra_body={"temperature": 1})


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [(500, Status.UNANSWERED, "HTTP 500"), (400, Status.REFUSED, "refused by the server"), (307, None, "")],
)
def test_of_an_error_without_end_the_beginning_is_read(endpoint, request_of, tmp_path, code, status, kind):
    with FaultProxy(None, fault=lambda number, body: "" if number else f"endless {code}") as proxy:
        section, requests = endpoint(proxy.url, retry_seconds=0, concurrency=1), [request_of(n) for n in range(2)]
        if status is None:
            with pytest.raises(ConfigError, match="HTTP 307: "):
                ask_all(section, tmp_path, requests)
        else:
            answer, other = ask_all(section, tmp_path, requests)
            assert (answer.status, answer.kind, other.done) == (status, kind, True)
        time.sleep(0.2)
        assert proxy.seen[0].endless < 2**25  # what buffers between hold


def test_what_a_vendor_refuses_is_not_sent_and_answers_without_it_are_others(endpoint, request_of, tmp_path):
    requests = [request_of(0, images=())]
    with FaultProxy(None) as proxy:
        plain, bare = endpoint(proxy.url), endpoint(proxy.url, omit=["temperature", "seed"])
        for section in (plain, bare, plain, endpoint(proxy.url, omit=["seed", "temperature"])):
            assert ask_all(section, tmp_path, requests)[0].done
        first, second = (seen.body for seen in proxy.seen)
    assert first.keys() - second.keys() == {"seed", "temperature"}
    assert not second.keys() - first.keys()
    assert plain.beside == {}  # such answers are known by what they were known by
    assert served_identity(plain) != served_identity(bare)
    with pytest.raises(ValidationError, match="Input should be 'seed' or 'temperature'"):
        endpoint("http://x/v1", omit=["messages"])


@pytest.mark.parametrize("fields", [{"url": "127.0.0.1:8000/v1"}, {"replicas": ["http://x/v1", "127.0.0.1:8000/v1"]}])
def test_an_address_without_its_scheme_is_told_before_anything_is_asked(endpoint, fields):
    with pytest.raises(ValidationError, match=r"'127\.0\.0\.1:8000/v1' does not begin with http:// or"):
        endpoint(**{"url": "http://x/v1"} | fields)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999/v1", "http://[::1/v1", "http://x:80O0/v1", "http://:8000/v1", "http://x:0/v1"]
)
def test_a_slip_in_an_address_is_told_before_anything_is_asked(endpoint, url):
    for fields in ({"url": url}, {"url": "http://x/v1", "replicas": [url]}):
        with pytest.raises(ValidationError, match=re.escape(repr(url)) + " (is no address: |names no host)"):
            endpoint(**fields)


@pytest.mark.parametrize("url", ["http://1.2.3.999/v1", "http://[::1]x/v1", "http://x/\x1b[2J"])
def test_what_the_client_takes_for_no_address_is_told_too(endpoint, url):
    with pytest.raises(ConfigError, match="is no address: ") as told:
        Endpoint(endpoint(url))
    assert str(told.value).isprintable()


@pytest.mark.parametrize("url", ["http://[::1]:8000/v1", "https://ü.example/v1", "http://u:p@h:1/v1"])
def test_odd_addresses_are_addresses(endpoint, url):
    Endpoint(endpoint(url))
