"""`mmkd serve`: the routes in this process, and the real program asked by the real `openai` client."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import os
import re
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from starlette.testclient import TestClient

from mmkd.data.byte_spans import byte_table
from mmkd.errors import ConfigError
from mmkd.inference import server as server_module
from mmkd.inference.reader import Reader
from mmkd.inference.request_images import ImageSources
from mmkd.inference.server import ChatServer, build_app, is_loopback, serve, served_name


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def ask(text: str, *urls: str, **fields: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [*parts, {"type": "text", "text": text}]
    return {"model": "tiny", "max_tokens": 6, "messages": [{"role": "user", "content": content}], **fields}


def png_bomb() -> bytes:
    """A PNG of a few bytes that claims 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = (30_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.fixture
def client(reader) -> TestClient:
    app = build_app(ChatServer("tiny", reader, ImageSources(), answer_tokens=8))
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


def post(client: TestClient, body: dict[str, Any]) -> tuple[int, Any]:
    response = client.post("/v1/chat/completions", json=body)
    return response.status_code, response.json()


def said(client: TestClient, body: dict[str, Any]) -> str:
    status, answer = post(client, body)
    assert status == 200, answer
    return answer["choices"][0]["message"]["content"]


def streamed(client: TestClient, body: dict[str, Any]) -> str:
    response = client.post("/v1/chat/completions", json=body | {"stream": True})
    assert response.status_code == 200, response.text
    return text_of(response.text)


def text_of(events: str) -> str:
    chunks = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def refused(client: TestClient, body: dict[str, Any]) -> tuple[int, str]:
    status, answer = post(client, body)
    assert set(answer) == {"error"}, answer
    return status, answer["error"]["message"]


def test_many_questions_about_an_image_compress_it_once(client, picture):
    answers = [said(client, ask(text, data_url(picture(0)))) for text in ("What?", "Where?", "What?")]
    assert answers[0] == answers[2]
    said(client, ask("And these?", data_url(picture(1)), data_url(picture(0))))
    assert client.get("/health").json() == {"status": "ok", "images": {"compressed": 2, "reused": 3}}


def test_pictures_are_told_apart(client, picture):
    assert len({said(client, ask("What?", data_url(picture(seed)))) for seed in range(6)}) > 1


@pytest.mark.parametrize("url", ["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/x", "https://example.org/x"])
def test_what_lies_outside_the_request_is_refused_by_name(client, url):
    status, message = refused(client, ask("What?", url))
    assert status == 403
    assert url in message
    assert "data: URL" in message


def test_broken_images_and_bombs_are_refused_and_the_server_goes_on(client, picture):
    status, message = refused(client, ask("What?", data_url(png_bomb())))
    assert status == 400
    assert "30000 x 30000 pixels" in message or "64,000,000 pixels" in message
    status, message = refused(client, ask("What?", data_url(picture(0, (64, 64))[:2000])))
    assert status == 400
    assert "broken" in message
    status, message = refused(client, ask("What?", data_url(b"")))
    assert status == 400
    assert "empty" in message
    assert said(client, ask("What?", data_url(picture(0)))) is not None


def test_a_request_that_is_too_large_is_refused_before_it_is_read_to_the_end(client, monkeypatch):
    monkeypatch.setattr(server_module, "MOST_BODY", 1000)
    status, message = refused(client, ask("x" * 2000))
    assert (status, "larger than 1,000 bytes" in message) == (413, True)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tools": [{"type": "function"}]}, "tools: Extra inputs are not permitted"),
        ({"generation_config": '{"num_beams": 100000}'}, "generation_config: Extra inputs"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs: Extra inputs"),
        ({"n": 2}, "n: Input should be 1"),
        ({"temperature": "hot"}, "temperature: Input should be a valid number"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"stop": ""}, "stop: an empty string"),
        ({"stop": ["a", ""]}, "stop: an empty string"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: Input should be 'system'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video_url"}]}]},
            "messages.0.content.0: Input tag 'video_url'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages.0.content.0.image_url.image_url: Input should be an object",
        ),
    ],
)
def test_a_field_that_is_wrong_or_would_be_ignored_is_named(client, fields, words):
    status, message = refused(client, ask("What?", **fields))
    assert status == 400
    assert words in message


def test_requests_that_are_no_chat_are_refused(client):
    status, message = refused(client, ask("What?") | {"model": "gpt-4"})
    assert (status, message) == (404, "model 'gpt-4' is not served here; this server has 'tiny'.")
    assert client.post("/v1/chat/completions", json=[1]).status_code == 400
    assert client.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"}).is_error
    sneaked = client.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert sneaked.status_code == 415
    status, message = refused(client, ask("What?", *["data:,"] * 17))
    assert (status, "at most 16" in message) == (400, True)
    status, message = refused(client, ask("x" * 300))
    assert (status, "the model reads 160" in message) == (400, True)


@pytest.mark.parametrize("route", ["/load_model", "/reset", "/v1/responses", "/v1/completions", "/docs"])
def test_the_other_routes_of_transformers_serve_are_not_there(client, route):
    assert client.post(route, json={"model": "/etc"}).status_code == 404


def test_a_web_page_cannot_reach_the_server_under_a_name_of_its_own(reader):
    app = build_app(ChatServer("tiny", reader, ImageSources()), host="127.0.0.1")
    for host, status in [("evil.example", 400), ("localhost:8000", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200)]:
        assert TestClient(app).get("/health", headers={"host": host}).status_code == status
    open_app = build_app(ChatServer("tiny", reader, ImageSources()), host="0.0.0.0")
    assert TestClient(open_app).get("/health", headers={"host": "gpu-7.example"}).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_the_address_that_is_printed_is_answered(reader, monkeypatch, host):
    apps, lines = [], []
    monkeypatch.setattr(Reader, "open", lambda *_: reader)
    monkeypatch.setattr(server_module.uvicorn.Server, "run", lambda self, sockets: apps.append(self.config.app))
    serve("tiny", host=host, port=0, say=lines.append)
    [line], [app] = lines, apps
    address = re.search(r"http://\S+(?=/v1)", line).group()
    assert TestClient(app, base_url=address).get("/health").status_code == 200
    assert TestClient(app, base_url="http://evil.example").get("/health").status_code == 400


def test_answers_are_no_longer_than_asked_for_allowed_or_possible(client):
    lengths = {}
    for asked in (1, 3, 1000):
        _, answer = post(client, ask("What?", max_tokens=asked))
        lengths[asked] = answer["usage"]["completion_tokens"]
    assert lengths[1] == 1
    assert lengths[3] <= 3
    assert lengths[1000] <= 8  # answer_tokens
    _, answer = post(client, ask("x" * 150, max_tokens=1000))  # 160 positions
    assert answer["usage"]["total_tokens"] <= 160


def test_a_temperature_samples_and_a_seed_repeats(client):
    hot = [said(client, ask("What?", temperature=2, seed=seed)) for seed in (1, 2, 3, 1)]
    assert hot[0] == hot[3]
    assert len(set(hot)) > 1
    assert said(client, ask("What?", temperature=0)) == said(client, ask("What?"))


@pytest.mark.parametrize("kind", [{}, {"stream": True}, {"logprobs": True}])
def test_a_seed_repeats_although_others_ask_at_once(reader, kind):
    server = ChatServer("tiny", reader, ImageSources(), answer_tokens=8)

    async def answer(seed: int) -> str:
        response = await server.answer(json.dumps(ask("What?", temperature=2, seed=seed, **kind)).encode())
        if "stream" in kind:
            return text_of("".join([event async for event in response.body_iterator]))
        return json.loads(response.body)["choices"][0]["message"]["content"]

    async def at_once() -> list[str]:
        return await asyncio.gather(*map(answer, range(6)))

    alone = [asyncio.run(answer(seed)) for seed in range(6)]
    assert asyncio.run(at_once()) == alone
    assert len(set(alone)) > 1


@pytest.mark.parametrize(
    "own",
    [
        {"do_sample": True, "temperature": 2.0},
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 1},
        {"num_beams": 4},
    ],
)
def test_a_decoders_own_settings_do_not_change_an_answer(client, reader, picture, monkeypatch, own):
    # To this question the random model repeats itself, so that a penalty would show.
    asked = [ask("eee iii", data_url(picture(seed)), max_tokens=8) for seed in range(4)]
    asked += [ask("eee iii", data_url(picture(0)), max_tokens=8, frequency_penalty=1)]
    plain = [said(client, body) for body in asked]
    settings = copy.deepcopy(reader.loaded.model.generation_config)
    settings.update(**own)
    monkeypatch.setattr(reader.loaded.model, "generation_config", settings)
    assert [said(client, body) for body in asked] == plain


def test_a_request_that_gives_temperature_or_top_p_samples(client):
    for fields in ({"temperature": 2}, {"top_p": 1.0}):
        assert len({said(client, ask("What?", seed=seed, **fields)) for seed in range(8)}) > 1


@pytest.mark.parametrize("temperature", [1e-45, 1e-7, 1e-6])
def test_a_temperature_of_next_to_nothing_is_greedy(client, temperature):
    assert said(client, ask("What?", temperature=temperature)) == said(client, ask("What?"))


def test_no_stop_strings_are_no_stop_strings(client):
    whole = said(client, ask("What?"))
    assert said(client, ask("What?", stop=[])) == whole
    assert streamed(client, ask("What?", stop=[])) == streamed(client, ask("What?"))


def test_a_stop_string_ends_the_answer(client, picture):
    whole = {seed: said(client, ask("What?", data_url(picture(seed)))) for seed in range(6)}
    # A random model says few letters; any that is not its last word will do.
    seed, letter = next((seed, c) for seed, text in whole.items() for c in text[:-1] if c.isascii())
    stopped = said(client, ask("What?", data_url(picture(seed)), stop=letter))
    assert stopped == whole[seed][: whole[seed].index(letter) + 1]


def test_only_addresses_of_this_machine_are_loopback():
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.2", "example.org")] == [False] * 4


@torch.no_grad()
def test_log_probs_are_the_models_own_before_temperature_with_the_bytes_of_each_token(client, reader, picture):
    body = ask("What?", data_url(picture(0)), logprobs=True, top_logprobs=3, temperature=2.0, seed=1)
    status, answer = post(client, body)
    assert status == 200, answer
    [choice] = answer["choices"]
    told = choice["logprobs"]["content"]
    tokenizer, model = reader.loaded.processor.tokenizer, reader.loaded.model
    table = byte_table(tokenizer)
    ids = [table.index(bytes(token["bytes"])) for token in told]
    assert 0 < len(ids) <= answer["usage"]["completion_tokens"] <= 6
    assert tokenizer.decode(ids) == choice["message"]["content"]
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    inputs = reader.inputs(messages, [picture(0)])
    prompt = inputs.pop("input_ids")
    for place, token in enumerate(told):
        so_far = torch.cat([prompt, torch.tensor([ids[:place]], dtype=torch.long)], 1)
        inputs["attention_mask"] = torch.ones_like(so_far)
        made = model.generate(
            so_far, **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        log_probs = made.logits[0][0].float().log_softmax(-1)
        assert token["logprob"] == pytest.approx(float(log_probs[ids[place]]), abs=1e-4)
        best = log_probs.topk(3)
        assert [one["logprob"] for one in token["top_logprobs"]] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert [bytes(one["bytes"] or b"") for one in token["top_logprobs"]] == [table[i] for i in best.indices]
        assert token["token"] == bytes(token["bytes"]).decode(errors="replace")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logprobs": True, "stream": True}, "logprobs come with a whole answer only; leave stream out"),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: Input should be less than or equal to 20"),
    ],
)
def test_log_probs_that_cannot_be_told_are_refused(client, fields, message):
    status, said = refused(client, ask("What?", **fields))
    assert status == 400
    assert message in said


def test_a_model_is_called_by_its_folder_its_run_or_its_hub_id(tmp_path):
    (tmp_path / "demo" / "model").mkdir(parents=True)
    assert served_name(str(tmp_path / "demo")) == served_name(str(tmp_path / "demo" / "model")) == "demo"
    assert served_name("org/model") == "org/model"


def test_a_port_that_is_taken_is_known_before_the_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{port} .*choose another --port"):
            serve("no-such-model", port=port)


@dataclass
class Running:
    """The real program."""

    process: subprocess.Popen
    client: openai.OpenAI
    model: str
    said: str


@pytest.fixture(scope="module")
def running(model_path, tmp_path_factory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "mmkd", "serve", model_path, "--port", "0", "--answer-tokens", "8"]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=file, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
        )
    try:
        line = process.stdout.readline()  # written once it can be asked
        url = re.search(r"http://127\.0\.0\.1:\d+/v1", line)
        assert url, line + log.read_text()
        client = openai.OpenAI(base_url=url.group(), api_key="none", max_retries=0, timeout=120)
        yield Running(process, client, Path(model_path).name, line)
    finally:
        process.terminate()
        process.wait(120)


def content(text: str, *images: bytes) -> list[dict[str, Any]]:
    return [{"role": "user", "content": ask(text, *map(data_url, images))["messages"][0]["content"]}]


@pytest.mark.e2e
@pytest.mark.slow
def test_the_openai_client_lists_asks_and_streams(running, picture, model_path):
    client, model = running.client, running.model
    assert "an image is read as 4 tokens" in running.said
    assert [entry.id for entry in client.models.list()] == [model]
    messages = content("What?", picture(0), picture(1))
    answer = client.chat.completions.create(model=model, messages=messages, temperature=0)
    assert answer.usage.completion_tokens <= 8
    assert answer.choices[0].finish_reason in ("stop", "length")

    most = 0
    for seed in range(6):
        asked: dict[str, Any] = {"model": model, "messages": content("What?", picture(seed)), "temperature": 0}
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True))
        pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
        # Bytes that end no letter are held back while streaming, and shown as U+FFFD in a whole answer.
        assert "".join(pieces).replace("\ufffd", "") == whole.choices[0].message.content.replace("\ufffd", "")
        assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
        most = max(most, len(pieces))
    assert most > 1  # bytes that are no letter wait for the next one: not every answer comes in pieces

    reader = Reader.open(model_path, tokens=4)
    inputs = reader.inputs([{"role": "user", "content": [{"type": "image"}] * 2 + [{"type": "text", "text": "What?"}]}],
                           [picture(0), picture(1)])  # fmt: skip
    ids = reader.loaded.model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    expected = reader.loaded.processor.tokenizer.decode(ids, skip_special_tokens=True)
    assert answer.choices[0].message.content == expected


@pytest.mark.e2e
@pytest.mark.slow
def test_the_openai_client_is_told_why_it_is_refused(running, picture, tmp_path):
    (tmp_path / "cat.png").write_bytes(picture(0))
    for url in (str(tmp_path / "cat.png"), f"file://{tmp_path}/cat.png", "http://127.0.0.1:9/cat.png"):
        with pytest.raises(openai.PermissionDeniedError, match="data: URL"):
            running.client.chat.completions.create(model=running.model, messages=ask("What?", url)["messages"])
    for broken in (png_bomb(), picture(0, (64, 64))[:2000]):
        with pytest.raises(openai.BadRequestError, match=r"pixels|broken"):
            running.client.chat.completions.create(model=running.model, messages=content("What?", broken))
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        running.client.chat.completions.create(model="gpt-4", messages=content("What?"))


@pytest.mark.e2e
@pytest.mark.slow
def test_clients_at_once_get_the_answers_they_would_get_alone(running, picture):
    def answer(seed: int) -> str:
        messages = content("What?", picture(seed))
        done = running.client.chat.completions.create(model=running.model, messages=messages, temperature=0)
        return done.choices[0].message.content

    alone = [answer(seed) for seed in range(6)]
    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(answer, [*range(6), *range(6)])) == alone * 2
    assert len(set(alone)) > 1


@pytest.mark.e2e
@pytest.mark.slow
def test_it_listens_on_this_machine_only_and_stops_when_asked(running):
    port = running.client.base_url.port
    inode = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {fields[1] for fields in inode if fields[3] == "0A" and fields[1].endswith(f":{port:04X}")}
    assert listening == {f"0100007F:{port:04X}"}  # 127.0.0.1
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(120) == 0
