"""Budget, rates and what a server may ask for."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.backends import Call
from mmkd.synthesis.client import Endpoint, most_of
from mmkd.synthesis.limits import BudgetSpent, Rates
from mmkd.synthesis.paid import Paid, purse_of
from mmkd.synthesis.requests import Sampling, Status, Usage
from mmkd.synthesis.retrying import LONGEST_RETRY_AFTER, _seconds
from mmkd.synthesis.store import Store
from tests.synthesis.fault_proxy import USAGES, AtOnce, FaultProxy


def asked(section, folder, requests) -> list:
    answers = []
    with Store(folder) as store:
        spent = store.spent(section.model)
    with Asker(Endpoint(section, Paid(spent)), Store(folder)) as asker:
        try:
            for answer in asker.answer(requests):
                answers.append(answer)
        except BudgetSpent as error:
            answers.append(error)
    return answers


def test_the_budget_is_never_passed_and_counts_what_earlier_runs_paid(endpoint, request_of, tmp_path):
    """A reply of the proxy is 10 + 5 tokens; the most that a call can take is more."""
    requests = [request_of(number, images=(), sampling=Sampling(max_tokens=5)) for number in range(100)]
    with FaultProxy(None) as proxy:
        section = endpoint(proxy.url, budget={"tokens": 300}, price={"prompt": 1.0, "answer": 2.0})
        *answers, error = asked(section, tmp_path, requests)
        assert isinstance(error, BudgetSpent)
        assert "of 300 tokens are spent" in str(error)
        assert 15 <= len(answers) <= 20
        sent = len(proxy.seen)
        assert sent == len(answers)
        *again, error = asked(section, tmp_path, requests)
        assert isinstance(error, BudgetSpent)
        assert len(proxy.seen) == sent  # not one more
        assert len(again) == len(answers)  # from the store
        richer = endpoint(proxy.url, budget={"tokens": 600}, price={"prompt": 1.0, "answer": 2.0})
        asked(richer, tmp_path, requests)
        assert sent < len(proxy.seen) <= 40
    with Store(tmp_path) as store:
        assert store.spent().tokens <= 600
        assert store.spent().cost == pytest.approx(len(proxy.seen) * (10 * 1.0 + 5 * 2.0) / 1e6)


def test_askers_that_share_a_budget_do_not_pass_it_together(endpoint, request_of, tmp_path):
    requests = [request_of(number, images=(), sampling=Sampling(max_tokens=5)) for number in range(30)]
    paid = Paid()

    def ask(role: str) -> None:
        with Asker(Endpoint(section, paid), Store(tmp_path / role)) as asker, suppress(BudgetSpent):
            list(asker.answer(requests))

    with FaultProxy(None, delay=0.02) as proxy:
        section = endpoint(proxy.url, budget={"tokens": 300})
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(ask, ("judge", "tools/query")))
    assert 15 <= len(proxy.seen) <= 20
    purse = purse_of(tmp_path)
    assert purse[section.model].spent.tokens == paid.spent.tokens == 15 * len(proxy.seen)
    assert purse["another"].spent.tokens == 0


@pytest.mark.parametrize(
    ("fault", "usage", "afforded"),
    [
        ("", (10, 5), 5),
        *((fault, (10, 7), 4) for fault in USAGES if "answer tokens" in fault),
        *((fault, (23, 7), 3) for fault in USAGES if "answer tokens" not in fault),
    ],
)
def test_money_is_a_budget_too_and_what_a_reply_does_not_tell_counts_in_full(
    endpoint, request_of, tmp_path, fault, usage, afforded
):
    requests = [request_of(number, images=(), sampling=Sampling(max_tokens=7)) for number in range(9)]
    with FaultProxy(None, fault=lambda number, body: fault) as proxy:
        section = endpoint(proxy.url, budget={"cost": 0.09}, price={"prompt": 1000.0, "answer": 1000.0}, concurrency=1)
        *answers, error = asked(section, tmp_path, requests)
    assert isinstance(error, BudgetSpent)
    assert len(answers) == len(proxy.seen) == afforded
    for answer in answers:
        assert (answer.usage.prompt_tokens, answer.usage.answer_tokens) == usage
        assert answer.usage.estimated == (fault != "")
    with Store(tmp_path) as store:
        assert store.spent().cost == pytest.approx(0.001 * sum(usage) * afforded)


@pytest.mark.parametrize(
    ("fault", "tokens"),
    [
        ("two choices", 15),
        ("two choices, no usage", None),
        ("two choices, null usage", None),
        ("two choices, no tokens", None),
        ("html", None),
    ],
)
def test_a_reply_that_is_no_chat_completion_is_paid_and_never_takes_a_call_past_the_budget(
    endpoint, request_of, tmp_path, fault, tokens
):
    requests = [request_of(number, images=(), sampling=Sampling(max_tokens=5)) for number in range(9)]
    with FaultProxy(None, fault=lambda number, body: fault) as proxy:
        backend = Endpoint(endpoint(proxy.url, budget={"tokens": 60}, concurrency=1, price={"prompt": 1.0}))
        backend._random = AtOnce()
        with Asker(backend, Store(tmp_path)) as asker:
            answers = asker.answer(requests)
            first = next(answers)
            with pytest.raises(BudgetSpent, match="of 60 tokens are spent"):
                list(answers)
        most = most_of(backend.section, Call("c", requests[0].turns, (), requests[0].sampling)).tokens
    assert first.status is Status.UNANSWERED
    assert first.reason.endswith("; the budget does not cover another try")
    assert len(proxy.seen) * (tokens or most) == first.usage.tokens <= 60
    with Store(tmp_path) as store:
        assert store.spent() == first.usage  # the next run knows
        assert store.spent().estimated == (tokens is None)
        assert [(e.status, e.kind) for e in store.entries()] == [
            (Status.UNUSABLE, "broken reply"), (Status.UNANSWERED, "broken reply"),
        ]  # fmt: skip


def test_a_call_that_first_got_no_chat_completion_is_told_with_both_costs(endpoint, request_of, tmp_path):
    request = request_of(0, images=())
    with FaultProxy(None, fault=lambda number, body: "" if number else "two choices") as proxy:
        asker = Asker(Endpoint(endpoint(proxy.url)), Store(tmp_path), reasks=0)
        with asker:
            [answer] = asker.answer([request])
            [again] = asker.answer([request])
            assert asker.store.spent().tokens == 30
    assert (answer.done, answer.usage.tokens, again.done) == (True, 30, True)
    assert (len(proxy.seen), asker.tally.ended) == (2, 1)


def test_requests_a_minute_are_spread_over_the_minute(endpoint, request_of, tmp_path):
    with FaultProxy(None) as proxy:
        section = endpoint(proxy.url, requests_per_minute=1200)
        asked(section, tmp_path, [request_of(number, images=()) for number in range(20)])
        starts = [seen.began for seen in proxy.seen]
    assert starts[-1] - starts[0] > 0.8  # 19 gaps of 50 ms


@pytest.mark.parametrize(
    ("a_second", "expected"),
    [
        (7000, [0, 0, 0, 0, 0]),  # a second's worth goes at once
        (2800, [0, 0, 0.5, 1, 1.5]),
        (1000, [0.4, 1.8]),  # a call of more than that waits for its whole size
    ],
)
def test_tokens_a_minute_are_spread_over_the_minute(a_second, expected):
    starts = []

    async def call(rates: Rates) -> None:
        await rates.wait(Usage(1000, 400, 0.0))
        starts.append(time.monotonic())

    async def calls() -> None:
        rates = Rates(EndpointSection(url="http://localhost/v1", model="m", tokens_per_minute=60 * a_second))
        await asyncio.gather(*(call(rates) for _ in expected))

    began = time.monotonic()
    asyncio.run(calls())
    assert all(start - began > least - 0.02 for start, least in zip(starts, expected, strict=True))
    assert starts[-1] - began < expected[-1] + 1


def test_retry_after_is_seconds_or_a_date_and_never_for_ever():
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime

    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < _seconds(soon) <= 30
    assert [_seconds(text) for text in ("2", "0.5", None, "-3", "nan", "soon", "")] == [2.0, 0.5, 0, 0, 0, 0, 0]
    assert _seconds("1e12") == LONGEST_RETRY_AFTER
    assert _seconds("inf") == LONGEST_RETRY_AFTER
    assert _seconds("Mon, 01 Jan 99999999999999999999 00:00:00 GMT") == 0
    assert _seconds("Mon, 01 Jan 2020 00:00:00 +99999999999999") == 0


def test_a_pause_holds_until_the_last_of_its_ends():
    from mmkd.synthesis.limits import Pause

    async def wait() -> float:
        pause, began = Pause(), time.monotonic()
        pause.extend(0.1)
        pause.extend(0.01)
        await pause.over()
        return time.monotonic() - began

    assert asyncio.run(wait()) >= 0.1


def test_waiting_for_a_turn_is_no_part_of_the_time_for_retries(endpoint, request_of, tmp_path):
    class Turns:
        """The first call's turn comes after the time for retries, the next one's at once."""

        seconds = iter((2.0, 0.0))

        async def wait(self, most) -> None:
            await asyncio.sleep(next(self.seconds))

    with FaultProxy(None, fault=lambda number, body: "500" if number == 0 else "") as proxy:
        backend = Endpoint(endpoint(proxy.url, retry_seconds=1.5))
        backend._rates, backend._random = Turns(), AtOnce()
        with Asker(backend, Store(tmp_path)) as asker:
            [answer] = asker.answer([request_of(0, images=())])
    assert answer.done
