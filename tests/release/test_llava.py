"""A full-vision student as stock LLaVA: the same function, and a reason wherever it cannot be."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.data.records import Turn
from mmkd.errors import ReleaseError
from mmkd.release import clean_process
from mmkd.release.bundle import load_student, release, write_model
from mmkd.release.llava import to_llava
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.client import Endpoint
from mmkd.synthesis.requests import Request, Sampling
from mmkd.synthesis.store import Store
from tests.transformers_server import serving


@pytest.fixture(scope="module")
def full_run(make_run, tmp_path_factory) -> Path:
    """A full-vision student: the first two of CLIP's three layers, MLP, Llama."""
    return make_run(tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture(scope="module")
def llava(full_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("releases") / "tiny-llava"
    release(full_run, out, "llava")
    return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"taps": [1, 3]},
        {"taps": [-1]},
        {"vision": "siglip"},
        {"vision": "siglip", "taps": [-1]},
        {"language": "tied"},
    ],
    ids=["clip", "clip, two taps", "clip, last layer", "siglip", "siglip, last layer", "tied embeddings"],
)
def test_stock_llava_gives_the_students_logits(make_run, tmp_path, options):
    model, processor = load_student(make_run(tmp_path / "run", **options) / "model")
    stock, stock_processor = to_llava(model, processor)
    (tmp_path / "stock").mkdir()
    write_model(stock, stock_processor, tmp_path / "stock")
    reloaded = type(stock).from_pretrained(tmp_path / "stock")
    ours, our_answers = clean_process.ask(model, processor, [None])
    theirs, their_answers = clean_process.ask(reloaded, stock_processor, None)
    assert our_answers == their_answers
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-5)
    # The pictures matter: another one gives other logits.
    assert not torch.allclose(ours["logits/full/0"][:, -1], ours["logits/full/1"][:, -1], atol=1e-2)


def test_the_release_is_plain_llava_and_verified_without_mmkd(llava):
    record = json.loads((llava / "verification.json").read_text())
    assert record["blocked"] == {"mmkd": True, "mmkd_adapters": True}
    assert record["model_class"].startswith("transformers.models.llava.")
    assert record["processor_class"].startswith("transformers.models.llava.")
    assert record["logits"]["full"]["difference"] <= record["logits"]["full"]["allowed"]
    config = json.loads((llava / "config.json").read_text())
    assert config["model_type"] == "llava"
    assert "auto_map" not in config
    assert config["vision_config"]["num_hidden_layers"] == 2  # the penultimate of three, and none behind it
    assert not list(llava.glob("*.py"))
    with safe_open(llava / "model.safetensors", framework="pt") as file:
        assert not [name for name in file.keys() if "position_ids" in name]  # noqa: SIM118 (not a dict)
    card = (llava / "README.md").read_text()
    assert "trust_remote_code" not in card


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"voco": 2}, "reads images through compression tokens"),
        ({"vision": "timm:test_efficientnet", "pretrained": False}, "vision tower is timm:test_efficientnet"),
        ({"layers": 3}, "not an mlp of 2 layers"),
        ({"kind": "pixel_shuffle"}, "its projector is pixel_shuffle"),
        ({"grid": [2, 2]}, "pooled to a grid of 2 x 2"),
        ({"tiles": 4}, "cut into up to 4 tiles"),
        ({"image_size": 48}, "images are 48 pixels wide, the tower was made for 32"),
        ({"language": "gpt2"}, "decoder is gpt2, not one of llama"),
    ],
    ids=["voco", "timm", "three layers", "pixel shuffle", "grid", "tiles", "image size", "gpt2"],
)
def test_what_stock_llava_has_no_place_for_is_refused_by_name(make_run, tmp_path, options, reason):
    run = make_run(tmp_path / "run", **options)
    with pytest.raises(ReleaseError, match=reason) as raised:
        release(run, tmp_path / "out", "llava")
    assert "--format mmkd" in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.slow
@pytest.mark.e2e
def test_transformers_serve_answers_about_an_image_as_the_model_here_does(llava, tmp_path):
    openai = pytest.importorskip("openai")
    with serving(llava, tmp_path / "log") as url:
        client = openai.OpenAI(base_url=url, api_key="none", timeout=120)
        answers = [_answer(client, llava, picture) for picture in (0, 1)]
        asked = _asked(url, llava, tmp_path / "store")
    assert answers == [_in_process(llava, picture) for picture in (0, 1)]
    assert answers[0] != answers[1]
    assert asked == [answer.strip() for answer in answers]


def _asked(url: str, llava: Path, store: Path) -> list[str]:
    """What mmkd's own client gets of the same server: JSON replies, usage and all."""
    section = EndpointSection(url=url, model=str(llava))
    requests = [
        Request(
            str(picture), (Turn("user", "What is this?"),), (_png(picture),), Sampling(max_tokens=8), may_be_cut=True
        )
        for picture in (0, 1)
    ]
    with Asker(Endpoint(section), Store(store)) as asker:
        said = {answer.request.id: answer for answer in asker.answer(requests)}
    assert all(answer.usage.prompt_tokens > 4 and not answer.usage.estimated for answer in said.values())
    return [said[request.id].text.strip() for request in requests]


def _png(picture: int) -> bytes:
    buffer = BytesIO()
    clean_process.pictures()[picture].save(buffer, "PNG")
    return buffer.getvalue()


def _answer(client, llava: Path, picture: int) -> str:
    url = "data:image/png;base64," + base64.b64encode(_png(picture)).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    reply = client.chat.completions.create(
        model=str(llava), messages=[{"role": "user", "content": content}], max_tokens=8, temperature=0
    )
    return reply.choices[0].message.content


def _in_process(llava: Path, picture: int) -> str:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(llava)
    model = AutoModelForImageTextToText.from_pretrained(llava)
    inputs = clean_process._inputs(processor, "What is this?", [picture], {})
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
