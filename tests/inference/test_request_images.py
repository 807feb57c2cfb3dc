"""Where a server reads images from: data: URLs, and only the hosts and folders it was started with."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mmkd.inference import request_images
from mmkd.inference.request_images import ImageSources, RequestError


class Web(ThreadingHTTPServer):
    """Serves pictures on this machine and counts who asks."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("location", self.server.url + "/cat")
            self.end_headers()
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # the client has had enough
                while True:
                    self.wfile.write(b"x" * 65536)
        elif self.path == "/trickle":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.1)
                self.server.asked.append("and waited to the end")
        elif self.path == "/nonsense":
            self.wfile.write(b"a cat\r\n\r\n")
        else:
            self.send_response(200 if self.path == "/cat" else 404)
            self.end_headers()
            self.wfile.write(b"a cat")

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def refusal(sources: ImageSources, url: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        sources.read(url)
    return caught.value


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("url", [data_url(b"cat"), data_url(b"cat", ""), data_url(b"cat").replace("data", "DATA")])
def test_a_data_url_is_decoded(url):
    assert ImageSources().read(url) == b"cat"


@pytest.mark.parametrize("form", ["{}", "file://{}", "FILE://{}", "file://localhost{}", " {}", "~/../..{}"])
def test_a_file_is_not_read_however_it_is_named(tmp_path, form):
    (tmp_path / "cat.png").write_bytes(b"cat")
    error = refusal(ImageSources(), form.format(tmp_path / "cat.png"))
    assert error.status == 403
    assert "data: URL" in str(error)


def test_a_refusal_does_not_tell_whether_a_file_exists(tmp_path):
    (tmp_path / "a.png").write_bytes(b"cat")
    there, missing = (str(refusal(ImageSources(), f"file:///{tmp_path}/{name}")) for name in ("a.png", "b.png"))
    assert there.replace("a.png", "b.png") == missing


@pytest.mark.parametrize("url", ["http://127.0.0.1:{}/cat", "HTTP://127.0.0.1:{}/cat", "http://localhost:{}/cat"])
def test_a_url_is_not_fetched_unless_its_host_is_allowed(web, url):
    for sources in (ImageSources(), ImageSources(hosts=frozenset({"example.org"}))):
        error = refusal(sources, url.format(web.server_address[1]))
        assert error.status == 403
        assert "does not fetch from" in str(error)
        assert "--allow-host" in str(error)
    assert web.asked == []


@pytest.mark.parametrize("form", ["http://example.org@127.0.0.1:{}/cat", "http://127.0.0.1:{}/cat#@example.org"])
def test_a_host_cannot_be_passed_off_as_another(web, form):
    sources = ImageSources(hosts=frozenset({"example.org"}))
    assert refusal(sources, form.format(web.server_address[1])).status == 403
    assert web.asked == []


def test_an_allowed_host_is_fetched_from_but_leads_nowhere_else(web):
    sources = ImageSources(hosts=frozenset({"127.0.0.1"}))
    assert sources.read(web.url + "/cat") == b"a cat"
    moved = refusal(sources, web.url + "/moved")
    assert (moved.status, "302" in str(moved)) == (400, True)
    assert web.asked == ["/cat", "/moved"]
    assert "404" in str(refusal(sources, web.url + "/dog"))


def test_a_download_without_an_end_is_cut_off(web):
    sources = ImageSources(hosts=frozenset({"127.0.0.1"}), most_bytes=100_000)
    assert refusal(sources, web.url + "/endless").status == 413


def test_a_download_that_trickles_is_cut_off(web, monkeypatch):
    monkeypatch.setattr(request_images, "FETCH_SECONDS", 1)
    sources = ImageSources(hosts=frozenset({"127.0.0.1"}))
    assert "could not be fetched" in str(refusal(sources, web.url + "/trickle"))
    assert web.asked == ["/trickle"]


def test_an_answer_that_is_no_http_is_refused(web):
    """Python has an error of its own for it, which is no OSError."""
    sources = ImageSources(hosts=frozenset({"127.0.0.1"}))
    assert "could not be fetched" in str(refusal(sources, web.url + "/nonsense"))


def test_a_folder_that_is_allowed_is_read_and_nothing_beside_it(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "in-not"
    for folder in (inside / "deep", outside):
        folder.mkdir(parents=True)
        (folder / "a cat.png").write_bytes(b"cat")
    (inside / "link.png").symlink_to(outside / "a cat.png")
    sources = ImageSources(folders=(inside,))
    assert sources.read(f"file://{inside}/deep/a%20cat.png") == b"cat"
    for path in ("../in-not/a%20cat.png", "%2e%2e/in-not/a%20cat.png", "link.png"):
        assert refusal(sources, f"file://{inside}/{path}").status == 403
    assert refusal(sources, f"file://{outside}/a%20cat.png").status == 403
    assert refusal(sources, str(inside / "deep" / "a cat.png")).status == 403  # a path is no URL
    assert "No such file" in str(refusal(sources, f"file://{inside}/none.png"))


def test_a_folder_or_a_device_is_no_image(tmp_path):
    assert "is no file" in str(refusal(ImageSources(folders=(tmp_path,)), f"file://{tmp_path}"))
    assert "is no file" in str(refusal(ImageSources(folders=(Path("/dev"),)), "file:///dev/zero"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png;base64,%%%", "is not base64"),
        ("data:image/png,cat", "is not of the form data:image/png;base64"),
        ("data:", "is not of the form"),
        ("ftp://example.org/cat.png", "is no data: URL"),
        ("", "is no data: URL"),
        ("data:image/png;base64,é", "is not base64"),
        ("http://[", "is not a URL"),
        ("file://[", "is not a URL"),
        ("file:///%00", "is not a URL"),
        ("http://127.0.0.1/a cat", "could not be fetched"),
    ],
)
def test_what_is_no_url_is_named(url, words):
    error = refusal(ImageSources(frozenset({"127.0.0.1"})), url)
    assert words in str(error)
    assert 400 <= error.status < 500


def test_too_many_bytes_are_refused_wherever_they_come_from(tmp_path, web):
    (tmp_path / "big").write_bytes(b"x" * 11)
    sources = ImageSources(frozenset({"127.0.0.1"}), (tmp_path,), most_bytes=4)
    for url in (data_url(b"x" * 11), f"file://{tmp_path}/big", web.url + "/cat"):
        error = refusal(sources, url)
        assert error.status == 413
        assert "at most 4 bytes" in str(error)


def test_a_message_does_not_repeat_a_whole_image():
    assert len(str(refusal(ImageSources(), "data:image/png;base64," + "%" * 100_000))) < 300
