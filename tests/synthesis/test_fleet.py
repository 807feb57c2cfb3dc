"""Many workers through Ray: the records of one process, and nothing asked twice, whoever dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from mmkd.config.evolve_schema import EvolveConfig
from mmkd.config.load import load_as
from mmkd.config.synthesis_schema import AnswerConfig, ModelSection
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.write_records import write_jsonl
from mmkd.errors import AssetError
from mmkd.synthesis.answering import answer_records
from mmkd.synthesis.evolving.run import evolve
from mmkd.synthesis.fleet_worker import COLUMN, Batch, Done, Orders, Worker
from mmkd.synthesis.judging.judge import Item, Judge, Verdict
from mmkd.synthesis.limits import BudgetSpent
from mmkd.synthesis.open import open_asker
from mmkd.synthesis.store import Store
from tests.synthesis.evolving import fake_writer
from tests.synthesis.fault_proxy import FaultProxy

pytestmark = pytest.mark.slow
ROWS = 20


@pytest.fixture(scope="module")
def cluster():
    import ray

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    context = ray.init(num_cpus=3, object_store_memory=80 * 2**20, **quiet)
    yield context.address_info["address"]
    ray.shutdown()


@pytest.fixture
def records(tmp_path, picture, request) -> Path:
    deep, rows = getattr(request, "param", False), []
    for number in range(ROWS):
        turns = [Turn("user", f"What {number % 18}?"), Turn("assistant", "old")]  # two come twice
        if deep and number % 3 == 0:
            turns += [Turn("user", "And then?"), Turn("assistant", "older")]
        rows.append(Record(f"r{number}", turns, [picture(number % 6)], "t", "s", Provenance(license="MIT")))
    write_jsonl(tmp_path / "records.jsonl", rows)
    return tmp_path / "records.jsonl"


def written(tmp_path, records, model: dict, out: str) -> Path:
    path = tmp_path / f"{out}.yaml"
    data = [{"source": "jsonl", "path": str(records)}]
    text = {"model": model, "data": data, "out": str(tmp_path / out), "sampling": {"max_tokens": 6}}
    path.write_text(json.dumps(text | {"may_be_cut": True}))
    return path


def answered(path: Path) -> bytes:
    return answer_records(load_as(path, [], AnswerConfig)).file.read_bytes()


def said(body) -> str:
    content = body["messages"][-1]["content"]
    return "said to " + (content if isinstance(content, str) else content[-1]["text"])


def kept(out: Path) -> set[str]:
    """Calls whose reply stands in a journal of the folder, the store's or a shard's."""
    lines = [line for file in out.rglob("journal.jsonl") for line in file.read_bytes().split(b"\n")[:-1]]
    return {json.loads(line)["key"] + "-0" for line in lines}


def workers() -> list[psutil.Process]:
    """Ray's, of this process's cluster."""
    return [one for one in psutil.Process().children(recursive=True) if one.name().startswith("ray::MapWorker")]


@pytest.mark.parametrize("records", [True], indirect=True, ids=["two questions"])
def test_a_fleet_writes_the_records_that_one_process_writes(cluster, endpoint, records, tmp_path):
    with FaultProxy(None, content=said) as proxy, FaultProxy(None, content=said) as other:
        model = {"endpoint": endpoint(proxy.url, check_images=False).model_dump()}
        alone = answered(written(tmp_path, records, model, "alone"))
        calls = {seen.call for seen in proxy.seen}
        proxy.seen.clear()
        model["endpoint"]["replicas"] = [other.url]
        path = written(tmp_path, records, model | {"fleet": {"workers": 2, "batch": 3}}, "fleet")
        assert answered(path) == alone
        seen = [one.call for one in (*proxy.seen, *other.seen)]
        assert sorted(seen) == sorted(calls)  # equal questions once, though they are in different batches
        assert proxy.seen
        assert other.seen
        assert answered(path) == alone
        assert len(proxy.seen) + len(other.seen) == len(seen)
    assert not list((tmp_path / "fleet").rglob("shards/*"))


def test_killed_it_goes_on_with_other_workers_and_asks_for_nothing_that_came(cluster, endpoint, records, tmp_path):
    with FaultProxy(None, content=said, delay=0.3) as proxy:
        model = {"endpoint": endpoint(proxy.url, check_images=False, concurrency=1).model_dump()}
        path = written(tmp_path, records, model | {"fleet": {"workers": 2, "batch": 7}}, "killed")
        command = [sys.executable, str(Path(__file__).with_name("killed_fleet.py")), str(path)]
        process = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster}, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(proxy.seen) < 7:
            time.sleep(0.01)
        process.kill()
        process.wait()
        for _ in range(3000):
            if not workers():  # Ray ends those of a process that is gone
                break
            time.sleep(0.01)
        had, before = kept(tmp_path / "killed"), len(proxy.seen)
        assert had
        assert list((tmp_path / "killed").rglob("shards/*/journal.jsonl"))
        model["fleet"] = {"workers": 1, "batch": 50}
        resumed = answered(written(tmp_path, records, model, "killed"))
        assert not had & {seen.call for seen in proxy.seen[before:]}
        del model["fleet"]
        assert resumed == answered(written(tmp_path, records, model, "killed"))
    with FaultProxy(None, content=said) as proxy:
        model["endpoint"]["url"] = proxy.url
        assert resumed == answered(written(tmp_path, records, model, "alone"))


def test_a_worker_that_dies_costs_the_calls_on_their_way(cluster, endpoint, picture, tmp_path):
    def fault(number, body) -> str:
        if number == 5:
            workers()[0].kill()
        return ""

    def graded(model: dict, folder: Path) -> dict[str, Verdict]:
        items = [Item(f"i{n}", f"What {n}?", ("red", "blue"), (picture(n),)) for n in range(6)]
        with open_asker(ModelSection.model_validate(model), folder) as asker:
            return {verdict.item.id: verdict for verdict in Judge(asker).judge(items)}

    grades = '{"reason": "r", "first": 8, "second": 5}'
    with FaultProxy(None, content=lambda body: grades, fault=fault) as proxy:
        model = {"endpoint": endpoint(proxy.url, concurrency=1, check_images=False).model_dump()}
        fleet = graded(model | {"fleet": {"workers": 1, "batch": 50}}, tmp_path / "fleet")
        calls = [seen.call for seen in proxy.seen]
        assert (len(calls), len(set(calls))) == (13, 12)
        assert fleet == graded(model, tmp_path / "alone")


def test_an_evolution_by_a_fleet_is_that_of_one_process(cluster, endpoint, tmp_path):
    with FaultProxy(None, content=fake_writer.said) as proxy:
        for out, more in (("alone", {}), ("fleet", {"fleet": {"workers": 1}})):
            model = {"endpoint": endpoint(proxy.url, check_images=False).model_dump(), **more}
            fields = {
                "data": [{"source": "scenes", "count": 2, "grid": 2}],
                "out": str(tmp_path / out),
                "rounds": 1,
                "per_image": 2,
                "evolver": {"kind": "llm", "model": model},
                "judge": {"kind": "model", "model": model, "tolerance": 9},
                "blind": None,
                "tools": {"detector": "classical"},
            }
            evolve(EvolveConfig.model_validate(fields))
            proxy.seen.clear()
    alone, fleet = ((tmp_path / out / "rounds" / "1.jsonl").read_bytes() for out in ("alone", "fleet"))
    assert fleet == alone
    assert b'"kept":true' in fleet


def test_a_budget_is_neither_passed_nor_left_by_the_parts_of_a_fleet(cluster, endpoint, records, tmp_path):
    with FaultProxy(None, content=said) as proxy:
        settings = {"check_images": False, "image_tokens": 10, "concurrency": 2}
        model = {"endpoint": endpoint(proxy.url, budget={"tokens": 200}, **settings).model_dump()}
        fleet = {"workers": 1, "batch": 10}
        with pytest.raises(BudgetSpent, match=r"of 200 tokens are spent, and what is left does not cover the next"):
            answered(written(tmp_path, records, model | {"fleet": fleet}, "out"))
        with Store(tmp_path / "out" / "answers") as store:
            assert 140 < store.spent().tokens <= 200  # a call may take some 55 tokens and takes 15


def test_a_model_of_this_process_is_known_by_its_weights_to_all(cluster, records, model_path, tmp_path):
    model = {"vlm": {"model": model_path, "tokens": 4}}
    alone = answered(written(tmp_path, records, model, "alone"))
    assert answered(written(tmp_path, records, model | {"fleet": {"workers": 1, "batch": 10}}, "fleet")) == alone


def test_what_is_wrong_with_a_node_is_told(endpoint, tmp_path):
    section = ModelSection(endpoint=endpoint("http://127.0.0.1:9/v1"))
    worker = Worker(Orders(section, 2, "/no/such/folder", tmp_path))
    assert "does not see /no/such/folder" in str(worker.trouble)
    missing = ModelSection.model_validate({"language": {"source": "hf:/no/such/model"}})
    assert isinstance(Worker(Orders(missing, 2, os.getcwd(), tmp_path)).trouble, AssetError)


def test_a_node_without_the_key_says_so_and_lets_go_of_its_shard(endpoint, request_of, tmp_path):
    section = ModelSection(endpoint=endpoint("http://127.0.0.1:9/v1", api_key_env="NO_SUCH_KEY"))
    done = Worker(Orders(section, 2, os.getcwd(), tmp_path)).ask(Batch("0", (request_of(0),)))
    assert "NO_SUCH_KEY, which is not set" in str(done.trouble)
    assert len(done.left) == 1
    Store(tmp_path / "shards" / "0").close()


def test_a_batch_that_ends_every_worker_is_given_up(endpoint, request_of, tmp_path):
    section = ModelSection(endpoint=endpoint("http://127.0.0.1:9/v1", retry_seconds=0))
    column = np.empty(1, dtype=object)
    column[0] = Batch("0", (request_of(0),))
    troubles = []
    for _ in range(4):
        worker = Worker(Orders(section, 2, os.getcwd(), tmp_path))
        worker.ask = lambda batch: Done("0", ())  # it ends before it has asked
        troubles.append(worker({COLUMN: column})[COLUMN][0].trouble)
    assert troubles[:3] == [None] * 3
    assert "3 workers ended one after the other" in str(troubles[3])


def test_a_worker_finds_out_whether_pictures_are_read_where_nobody_did_yet(endpoint, request_of, tmp_path):
    class Reading(FaultProxy):
        reads = 0

        async def _upstream(self, body):
            status, answer = await super()._upstream(body)
            answer["usage"]["prompt_tokens"] += self.reads * str(body).count("'image_url':")
            return status, answer

    with Reading(None) as proxy:
        worker = Worker(Orders(ModelSection(endpoint=endpoint(proxy.url)), 0, os.getcwd(), tmp_path))
        batch = Batch("0", tuple(request_of(number) for number in range(3)))
        assert "add 0 tokens" in str(worker.ask(batch).trouble)
        proxy.reads = 20
        batches = [Batch(str(name), (request_of(3 * name), request_of(3 * name + 1))) for name in (1, 2, 3)]
        dones = [worker.ask(batch) for batch in batches]
        assert [(len(done.answers), done.trouble) for done in dones] == [(2, None)] * 3
        assert sum("image_url" not in str(seen.body) for seen in proxy.seen) == 2  # the later batches know
