"""Requests that got nothing: the server's fault until it is clear that it is the request's."""

from __future__ import annotations

import pytest

from mmkd.config.synthesis_schema import ModelSection
from mmkd.errors import ConfigError, DataError
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.client import Endpoint
from mmkd.synthesis.open import open_asker
from mmkd.synthesis.requests import Answer, Request, Status
from mmkd.synthesis.store import Store
from tests.synthesis.fault_proxy import FaultProxy

FAILING = ("What 3?", "What 7?")


def asked(section, folder, requests, found: list[Answer]) -> None:
    with Asker(Endpoint(section), Store(folder), all_replied=True) as asker:
        found.extend(asker.answer(requests))


def faults(kind: str, *texts: str):
    return lambda number, body: kind if any(text in str(body["messages"]) for text in texts) else ""


@pytest.fixture
def requests(request_of) -> list[Request]:
    return [request_of(number, images=()) for number in range(20)]


def test_replies_that_are_owed_end_the_run_and_the_next_asks_only_for_them(endpoint, requests, tmp_path):
    with FaultProxy(None, fault=faults("500", *FAILING)) as proxy:
        section, found = endpoint(proxy.url, retry_seconds=0), []
        with pytest.raises(
            DataError, match=rf"2 of 20 requests to tiny got no reply.*{proxy.url}: HTTP 500.*run again, and only what"
        ):
            asked(section, tmp_path, requests, found)
        assert len(proxy.seen) == 20
        proxy.fault = faults("")
        asked(section, tmp_path, requests, found)
        assert sorted(str(seen.body["messages"][-1]["content"])[-8:] for seen in proxy.seen[20:]) == sorted(
            str(seen.body["messages"][-1]["content"])[-8:] for seen in proxy.seen if seen.fault
        )
    with Store(tmp_path) as store:
        assert len({entry.key for entry in store.entries(status=Status.DONE)}) == 20


def test_one_request_that_the_server_cannot_bear_does_not_stop_a_job_for_ever(endpoint, requests, tmp_path):
    with FaultProxy(None, fault=faults("500", FAILING[0])) as proxy:
        section, found = endpoint(proxy.url, retry_seconds=0), []
        for _ in range(2):
            with pytest.raises(DataError, match="1 of 20 requests to tiny got no reply"):
                asked(section, tmp_path, requests, [])
        asked(section, tmp_path, requests, found)
    assert [answer.status for answer in found].count(Status.DONE) == 19
    assert [answer.kind for answer in found if not answer.done] == ["HTTP 500"]


def test_a_server_that_is_down_again_and_again_is_never_taken_for_bad_requests(endpoint, requests, tmp_path):
    section = endpoint("http://127.0.0.1:9/v1", retry_seconds=0)
    for _ in range(4):
        with pytest.raises(DataError, match=r"20 of 20 requests to tiny got no reply.*127\.0\.0\.1:9"):
            asked(section, tmp_path, requests, [])


def test_a_refusal_is_the_requests_own_unless_all_are_refused(endpoint, requests, tmp_path):
    with FaultProxy(None, fault=faults("400", FAILING[0])) as proxy:
        section, found = endpoint(proxy.url), []
        asked(section, tmp_path / "one", requests, found)
        assert [answer.status for answer in found if not answer.done] == [Status.REFUSED]
        proxy.fault = faults("400", "What")
        with pytest.raises(DataError, match=r"all 20 requests to tiny were refused.*unknown field.*mend"):
            asked(section, tmp_path / "all", requests, [])


def test_a_403_of_a_server_that_answers_is_the_requests_own(endpoint, requests, tmp_path):
    with FaultProxy(None, fault=faults("403", FAILING[0])) as proxy:
        section, found = endpoint(proxy.url, concurrency=1), []
        asked(section, tmp_path, requests, found)
        [refused] = (answer for answer in found if not answer.done)
        assert (refused.status, "HTTP 403" in refused.reason) == (Status.REFUSED, True)
        flagged = [request for request in requests if request.id == refused.request.id]
        with open_asker(ModelSection(endpoint=section), tmp_path) as asker:  # whose store tells that it answers
            [again] = asker.answer(flagged)
        assert again.status is Status.REFUSED
        with pytest.raises(ConfigError, match=r"does not answer for model 'tiny': HTTP 403.*api_key_env"):
            asked(section, tmp_path / "new", flagged, [])


def test_a_server_that_answers_no_more_but_403_stops_the_run(endpoint, request_of, tmp_path):
    requests = [request_of(number, images=()) for number in range(100)]
    with FaultProxy(None, fault=lambda number, body: "403" if number >= 20 else "") as proxy:
        with pytest.raises(DataError, match=r"30 of 50 requests to tiny got no reply or were refused.*HTTP 403"):
            asked(endpoint(proxy.url, concurrency=1), tmp_path, requests, [])
        assert len(proxy.seen) == 50
