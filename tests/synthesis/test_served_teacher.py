"""A served teacher's log-probs in a cache: a real tiny model behind a socket, against the same model asked live."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from mmkd.cli import app
from mmkd.config.endpoint_schema import PriceSection
from mmkd.config.schema import Config
from mmkd.data.collate import Collator
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.rejected import BadRow
from mmkd.data.sources import open_source
from mmkd.data.write_records import write_jsonl
from mmkd.errors import ConfigError, DataError
from mmkd.inference.reader import Reader
from mmkd.models.processing_mmkd import MmkdProcessor
from mmkd.synthesis.requests import ScoredToken, Status, TokenScore
from mmkd.synthesis.served_teacher import cache_served
from mmkd.synthesis.served_tokens import TokenMap
from mmkd.synthesis.store import Store
from mmkd.teachers.checks import check_filling, check_teacher
from mmkd.teachers.fill import Filling
from mmkd.teachers.live import LiveTeacher
from mmkd.teachers.logit_store import LogitStore, read_manifest
from mmkd.teachers.rows import TeacherBatches
from mmkd.teachers.targets import TargetSettings
from mmkd.templates import chat_template

K, WORDS = 5, 4
LETTERS = [ord(letter) for letter in "abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture(scope="module")
def speaker(full_path, tmp_path_factory) -> str:
    """The tiny model, made to speak in letters: random bytes are no text."""
    reader = Reader.open(full_path)
    model, processor = reader.loaded.model, reader.loaded.processor
    letters = [processor.tokenizer.convert_tokens_to_ids(chr(i)) for i in LETTERS]
    with torch.no_grad():
        weight = model.language_model.lm_head.weight
        kept = weight[letters].clone()
        weight *= 0.3
        weight[letters] = kept * 3
    # As chat models do, it begins with a letter; the template plain would have it begin with a space.
    processor.chat_template = chat_template("plain", processor.tokenizer).replace("' ' + message", "message")
    folder = tmp_path_factory.mktemp("speaker")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


class Server(ThreadingHTTPServer):
    """Chat completions of one model with the log-probs of its answers, as OpenAI's API has them.

    Attributes:
        asked: bodies; spoil: what is done to a reply before it goes out.
    """

    def __init__(self, model: str):
        self.reader, self.asked, self.lock = Reader.open(model), [], threading.Lock()
        self.spoil: Any = lambda reply: None
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.asked.append(body)
            reply = self._reply(body)
            self.server.spoil(reply)
        data = json.dumps(reply).encode()
        self.send_response(reply.pop("status", 200))
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        reader, images, messages = self.server.reader, [], []
        for message in body["messages"]:
            parts = message["content"]
            parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
            images += [base64.b64decode(p["image_url"]["url"].split(",")[1]) for p in parts if p["type"] == "image_url"]
            parts = [{"type": "image"} if p["type"] == "image_url" else p for p in parts]
            messages.append({"role": message["role"], "content": parts})
        inputs = reader.inputs(messages, images)
        made = reader.loaded.model.generate(
            **inputs, max_new_tokens=WORDS, min_new_tokens=WORDS, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        tokenizer = reader.loaded.processor.tokenizer
        ids, content = made.sequences[0, -WORDS:].tolist(), []
        for i, logits in zip(ids, made.logits, strict=True):
            log_probs = logits[0].float().log_softmax(-1)
            top = [self._token(tokenizer, int(j), log_probs) for j in log_probs.topk(body["top_logprobs"]).indices]
            content.append(self._token(tokenizer, i, log_probs) | {"top_logprobs": top})
        choice = {"index": 0, "finish_reason": "stop", "logprobs": {"content": content}}
        choice["message"] = {"role": "assistant", "content": tokenizer.decode(ids)}
        usage = {"prompt_tokens": inputs["input_ids"].shape[1], "completion_tokens": WORDS}
        return {"id": f"id-{len(self.server.asked)}", "choices": [choice], "usage": usage, "model": body["model"]}

    @staticmethod
    def _token(tokenizer: Any, i: int, log_probs: torch.Tensor) -> dict[str, Any]:
        text = tokenizer.decode([i])
        return {"token": text, "bytes": list(text.encode()), "logprob": float(log_probs[i])}


@pytest.fixture
def server(speaker) -> Iterator[Server]:
    served = Server(speaker)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()


@pytest.fixture
def make(server, speaker, picture, tmp_path):
    """`make(rows, **teacher)`: a config whose teacher is the server."""

    def build(rows: int = 6, **teacher: Any) -> Config:
        records = [
            Record(
                id=f"r{n}",
                images=[picture(n)],
                turns=[Turn("user", f"What {n}?"), Turn("assistant", "a cat"), Turn("user", "And?"),
                       Turn("assistant", "b")][: 4 if n % 2 else 2],
                source="test",
                provenance=Provenance(license="MIT"),
            )
            for n in range(rows)
        ]  # fmt: skip
        write_jsonl(tmp_path / "questions.jsonl", records)
        endpoint = {"url": server.url, "model": "tiny", "concurrency": 2, "timeout": 60, "retry_seconds": 1}
        section = {"kind": "cached", "store": str(tmp_path / "store"), "k": K, "dtype": "float32", "endpoint": endpoint}
        return Config.model_validate(
            {
                "student": {"init": speaker},
                "teacher": section | teacher,
                "objectives": [{"name": "cross_entropy"}, {"name": "forward_kl"}],
                "data": {
                    "mixture": [{"source": "jsonl", "path": str(tmp_path / "questions.jsonl")}],
                    "max_length": 120,
                },
                "stages": [{"name": "tune", "steps": 1}],
                "training": {"precision": "fp32", "device": "cpu"},
            }
        )

    return build


def test_its_rows_are_those_of_the_same_model_asked_live_about_its_own_answers(make, server, speaker, tmp_path):
    config, said = make(), []
    cache_served(config, 4, said.append)
    store = LogitStore(tmp_path / "store")
    assert len(store) == 6
    assert "records.jsonl" in said[-1]
    card = (tmp_path / "store/card.md").read_text()
    assert card.startswith("# Data card: store\n\n6 chat records")
    assert f"| model | {config.teacher.endpoint.model} |" in card
    assert "| rows without a reply yet | 0 of 6 |" in card
    source = open_source(config.data.mixture[0].model_copy(update={"path": str(tmp_path / "store/records.jsonl")}))
    processor = MmkdProcessor.from_pretrained(speaker)
    batches = TeacherBatches([source], ["x"], processor, processor, 120, tmp_path / "bad.jsonl")
    live = LiveTeacher(speaker, torch.float32, "sdpa", torch.device("cpu"))
    asked = Filling(tmp_path, read_manifest(tmp_path / "store"), live, batches, 6).ask(batches[list(range(6))])
    assert [len(row["counts"]) for _, row in asked] == [WORDS + 1, 2 * (WORDS + 1)] * 3
    for key, expected in asked:
        found = store.find(key, "")
        ends = found["counts"] == 0  # the token that ends an answer, of which the server said nothing
        assert ends.sum() == len(ends) / (WORDS + 1)
        assert (found["counts"][~ends] == K).all()
        wanted = {
            name: expected[name].reshape(len(ends), -1)[~ends] for name in ("ids", "log_probs", "tail", "answers")
        }
        assert (found["ids"].reshape(-1, K) == wanted["ids"]).all()
        for name in ("log_probs", "tail", "answers"):
            got = found[name].reshape(-1, K) if name == "log_probs" else found[name][~ends][:, None]
            assert np.exp(got) == pytest.approx(np.exp(wanted[name]), rel=1e-4, abs=1e-5), name
        assert (found["best"][~ends] == expected["best"][~ends]).all()
    check_teacher(config)  # the same config reads it
    first = [body["messages"][0]["content"] for body in server.asked[:2]]  # one of them without its picture
    assert [part["type"] for content in first if not isinstance(content, str) for part in content[:1]] == ["image_url"]
    before = len(server.asked)
    cache_served(config, 4, said.append)
    assert len(server.asked) == before  # every reply is kept
    with pytest.raises(ConfigError, match=r"for something else: teacher \("):
        check_teacher(make(endpoint=config.teacher.endpoint.model_dump() | {"model": "other"}))


def test_a_server_that_gives_none_or_refuses_is_named_before_the_rest_is_asked(make, server, tmp_path):
    server.spoil = lambda reply: reply["choices"][0].pop("logprobs")
    with pytest.raises(ConfigError, match=r"gives no log-probs of 'tiny': the reply has none, though they were asked"):
        cache_served(make(), 4, print)
    assert len(server.asked) == 2  # with the picture and without

    def refuses(reply: dict[str, Any]) -> None:
        reply.clear()
        reply.update(status=400, error={"message": "unsupported fields: logprobs"})

    server.spoil = refuses
    with pytest.raises(ConfigError, match=r"gives no log-probs of 'tiny' \(.*unsupported fields: logprobs"):
        cache_served(make(store=str(tmp_path / "other")), 4, print)


def test_what_it_can_cost_is_told_before_the_first_question_and_an_estimate_asks_none(make, server, tmp_path):
    config, said = make(), []
    config.teacher.endpoint.image_tokens = 50
    config.teacher.endpoint.price = PriceSection(prompt=1000, answer=2000)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    run = CliRunner().invoke(app, ["cache", str(file), "--estimate"])
    assert run.exit_code == 0, run.output
    said += run.stdout.splitlines()
    assert not server.asked
    assert not (tmp_path / "store/manifest.json").exists()
    # Per turn 16, per image 50, and an answer to come of at most max_length in the prompt of a second question.
    first, second = len("What 0?") + 16 + 50, len("What 0?And?") + 3 * 16 + 50 + 120
    prompt, answers = 6 * first + 3 * second, 9 * 120
    most = f"{prompt:,} prompt and {answers:,} answer tokens, cost {(prompt + 2 * answers) / 1000:,.4f}"
    assert said == [f"{tmp_path / 'store'}: 6 of 6 rows to ask, 9 questions: at most {most}, each asked once"]

    cache_served(config, 4, lambda line: said.extend((line, len(server.asked))))
    assert said[1:3] == [said[0], 0]
    cache_served(config, 4, said.append, estimate_only=True)
    assert said[-1] == f"{tmp_path / 'store'}: nothing left to ask"


def test_what_is_left_to_ask_is_less_what_the_store_has_and_like_that_in_cost(make, server, tmp_path):
    config, said = make(), []
    config.teacher.endpoint.price = PriceSection(answer=1000)

    def rejects(reply: dict[str, Any]) -> None:  # the first question of r1: its second one will not be asked either
        if "What 1?" in str(server.asked[-1]["messages"]):
            reply["choices"][0]["finish_reason"] = "length"
        elif len(server.asked) > 6:
            reply["status"] = 500

    server.spoil = rejects
    with pytest.raises(DataError, match=r"got no reply"):
        cache_served(config, 2, print)
    cache_served(config, 2, said.append, estimate_only=True)
    with Store(tmp_path / "store/answers") as store:
        done = store.counts()[("tiny", Status.DONE, "")]
        spent = store.spent("tiny")
    left = 9 - (done - 1) - 2  # one was asked without its picture, too
    assert re.search(rf"store: [1-4] of 6 rows to ask, {left} questions", said[0])
    assert f"{spent.answer_tokens * left / done:,.0f} answer tokens, cost {spent.cost * left / done:,.4f}" in said[0]
    assert f"like the {done} answered so far" in said[0]


def test_ranks_of_a_launcher_are_refused_before_anything_is_written(make, server, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = make()
    with pytest.raises(ConfigError, match="start mmkd cache by itself"):
        cache_served(config, 4, print)
    assert not Path(config.teacher.store).exists()


def test_answers_cut_in_other_tokens_are_set_aside_by_name(make, server, tmp_path):
    def merged(reply: dict[str, Any]) -> None:
        content = reply["choices"][0]["logprobs"]["content"]
        first, second = content[:2]
        both = {"token": first["token"] + second["token"], "bytes": first["bytes"] + second["bytes"]}
        content[:2] = [first | both]

    server.spoil = merged
    with pytest.raises(DataError, match=r"more than 10%"):
        cache_served(make(rows=60), 60, print)
    lines = [json.loads(line) for line in (tmp_path / "store/rejected.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"tokens differ"}
    assert "token 1 of the answer is" in lines[0]["reason"]


def test_a_row_without_a_reply_leaves_its_shard_open_and_is_asked_for_again(make, server, tmp_path):
    def dead(reply: dict[str, Any]) -> None:
        if len(server.asked) > 6:
            reply["status"] = 500

    server.spoil = dead
    with pytest.raises(DataError, match=r"\d of 6 rows got no reply; the same command asks for them again"):
        cache_served(make(), 2, print)
    with pytest.raises(ConfigError, match="is not filled"):
        LogitStore(tmp_path / "store")
    server.spoil = lambda reply: None
    cache_served(make(), 2, print)
    assert len(LogitStore(tmp_path / "store")) == 6


def test_a_question_edited_in_place_is_asked_and_its_answers_are_in_the_store(make, server, speaker, tmp_path):
    config, said = make(), []
    cache_served(config, 2, said.append)
    before = {path.name: path.read_bytes() for path in (tmp_path / "store").glob("shard-*")}
    asked, file = len(server.asked), tmp_path / "questions.jsonl"
    file.write_text(file.read_text().replace("What 3?", "What was 3?"))
    with pytest.raises(ConfigError, match=r"1 of 6 rows .* the first is data\.mixture\[0\] jsonl, row 3: record 'r3'"):
        check_teacher(config)
    cache_served(config, 2, said.append)
    assert len(server.asked) == asked + 2  # its questions alone
    assert any("rows of 1 of 3 shards were edited" in line for line in said)
    after = {path.name: path.read_bytes() for path in (tmp_path / "store").glob("shard-*")}
    assert [name for name in after if after[name] != before[name]] == ["shard-000001.safetensors"]
    records = open_source(config.data.mixture[0].model_copy(update={"path": str(tmp_path / "store/records.jsonl")}))
    known = Collator(MmkdProcessor.from_pretrained(speaker), 120, teacher_rows=LogitStore(tmp_path / "store"))
    assert len(known(list(records))["sample_ids"]) == 6  # a row without answers would stop it


def scored(*tokens: tuple[str, float], top: dict[str, float] | None = None) -> list[ScoredToken]:
    likely = [{"token": token, "logprob": value} for token, value in (top or {}).items()]
    return [ScoredToken.model_validate({"token": t, "logprob": p, "top_logprobs": likely}) for t, p in tokens]


@pytest.fixture(scope="module")
def mapping(speaker) -> TokenMap:
    return TokenMap(MmkdProcessor.from_pretrained(speaker))


def test_likely_tokens_that_the_student_lacks_are_counted_and_their_mass_stays_in_the_tail(mapping):
    a, end = mapping.id_of(scored(("a", -1.0))[0]), mapping.id_of(scored(("</s>", -1.0))[0])
    rows = mapping.rows([a, end], scored(("a", -0.5), top={"a": -0.5, "the": -2.0, "</s>": -3.0}), TargetSettings(k=9))
    assert rows["ids"].tolist() == [a, end]
    mass = 1 - torch.tensor([-0.5, -3.0]).exp().sum()
    assert rows["tail"].astype(float)[0] == pytest.approx(float(mass.log()), abs=1e-3)
    assert mapping.strange == {"the": 1}


def test_a_server_that_tells_of_the_end_token_by_name_or_as_nothing_is_believed(mapping):
    a, end = mapping.id_of(scored(("a", -1.0))[0]), mapping.id_of(scored(("</s>", -1.0))[0])
    for name in ("</s>", ""):
        rows = mapping.rows([a, end], scored(("a", -0.5), (name, -0.1)), TargetSettings(k=2))
        assert rows["counts"].tolist() == [1, 1]
        assert rows["ids"].tolist() == [a, end]


def test_blanks_behind_an_answer_are_no_part_of_it_nor_what_was_thought_behind_them(mapping):
    a, end = mapping.id_of(scored(("a", -1.0))[0]), mapping.id_of(scored(("</s>", -1.0))[0])
    rows = mapping.rows([a, end], scored(("a", -0.5), ("\n", -0.2), ("</s>", -0.1)), TargetSettings(k=2))
    assert rows["counts"].tolist() == [1, 0]
    assert rows["ids"].tolist() == [a]


def test_bytes_of_the_mark_for_a_broken_character_are_nobodys(speaker):
    """As vLLM sends them of a token that is a part of a character."""
    mapping = TokenMap(MmkdProcessor.from_pretrained(speaker))
    mapping._ids["\ufffd".encode()] = 7  # a tokenizer may have the mark itself
    half = TokenScore.model_validate({"token": "\ufffd", "logprob": -1.0, "bytes": list("\ufffd".encode())})
    assert mapping.id_of(half) is None
    assert mapping.id_of(half.model_copy(update={"bytes": [97]})) == mapping.id_of(scored(("a", -1.0))[0])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ((("b", -0.5),), "token 1 of the answer is 'b' for the endpoint and 'a' for the student"),
        ((("\ufffd", -0.5),), "token 1 of the answer is '\ufffd'"),
        ((), "token 1 of the answer is no more for the endpoint and 'a' for the student"),
        ((("a", -0.5), ("b", -0.5), ("c", -1.0)), "token 2 of the answer is 'b' for the endpoint"),
        ((("a", -0.5), ("</s>", -0.5), ("c", -1.0)), "token 3 of the answer is 'c' for the endpoint and no more"),
    ],
)
def test_tokens_are_never_guessed(mapping, tokens, message):
    ids = [mapping.id_of(one) for one in scored(("a", -1.0), ("</s>", -1.0))]
    with pytest.raises(BadRow, match=message):
        mapping.rows(ids, scored(*tokens), TargetSettings(k=2))


def test_probabilities_over_one_are_refused(mapping):
    [a] = [mapping.id_of(one) for one in scored(("a", -1.0))]
    with pytest.raises(BadRow, match=r"probabilities sum to 1\.8"):
        mapping.rows([a], scored(("a", -0.1), top={"b": -0.1}), TargetSettings(k=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 64}, "teacher.k does not go with teacher.endpoint: endpoints give the 20 likeliest at most"),
        ({"targets": "sample"}, "teacher.targets does not go"),
        ({"hidden_layers": [1]}, "teacher.hidden_layers does not go"),
        ({"model": "runs/x"}, "teacher.model does not go with teacher.endpoint: the endpoint names its own"),
        ({"validation": [{"source": "easyvqa", "split": "test"}]}, "teacher.validation does not go"),
    ],
)
def test_options_that_no_endpoint_serves_are_refused(make, options, message):
    with pytest.raises(ConfigError, match=message):
        check_filling(make(**options))


def test_an_endpoint_beside_a_live_teacher_is_refused(make, tmp_path):
    config = make()
    config.teacher.kind, config.teacher.store = "live", None
    with pytest.raises(ConfigError, match=r"teacher.endpoint has no place beside kind: live"):
        check_teacher(config)
    assert not Path(tmp_path / "store").exists()
