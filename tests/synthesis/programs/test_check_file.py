"""`mmkd programs check`: the command as a user runs it, and files that are not what they should be."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from mmkd.config.load import load_as
from mmkd.config.programs_schema import ProgramsConfig
from mmkd.errors import DataError
from mmkd.synthesis.programs.limits import Limits
from mmkd.synthesis.programs.making.check_file import check_file, in_words
from mmkd.synthesis.programs.reasons import Reason, Verdict

PROGRAM = "def answer(image):\n    return count(image, 'red')\n"


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    picture = Image.new("RGB", (64, 64), (240, 240, 240))
    picture.paste((255, 0, 0), (10, 10, 30, 30))
    picture.save(tmp_path / "image.png")
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path / "program.py", tmp_path / "image.png"


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mmkd", "programs", "check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}, check=False)


def test_verdict_trace_and_answer_as_json(files):
    program, image = files
    done = run(program, "--image", image, "--question", "how many red things are there?", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["verdict"], said["reason"], said["answer"]) == ("ran", None, 1)
    (event,) = said["events"]
    assert event["tool"] == "count"
    assert event["found"][0]["box"] == [10, 10, 30, 30]


def test_a_program_runs_with_the_tools_and_limits_of_a_config(files):
    program, image = files
    config = program.with_name("programs.yaml")
    config.write_text(
        "writer: {endpoint: {url: http://127.0.0.1:1/v1, model: none}}\ndata: [{source: scenes}]\nout: out\n"
        "tools: {names: [count]}\nlimits: {tool_calls: 1, memory: 8}\n"
    )
    loaded = load_as(config, [], ProgramsConfig)
    assert Limits.of(loaded.limits) == Limits(tool_calls=1, memory=8 * 2**20)
    assert Limits.of(ProgramsConfig.model_fields["limits"].get_default(call_default_factory=True)) == Limits()
    assert check_file(program, image, config=loaded).answer == 1
    program.write_text(PROGRAM.rstrip() + " + count(image, 'red')\n")
    done = run(program, "--image", image, "--config", config)
    assert (done.returncode, done.stdout.splitlines()[0]) == (1, "failed: too many tool calls")
    assert check_file(program, image).answer == 2
    program.write_text("def answer(image):\n    return exists(image, 'red')\n")
    assert check_file(program, image, config=loaded).reason is Reason.UNKNOWN_NAME


def test_a_refused_program_gives_its_reason_and_exit_code_1(files):
    program, image = files
    program.write_text("import os\n" + PROGRAM)
    done = run(program, "--image", image)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "refused: not allowed"
    assert "line 1, column 1: import is not allowed in a program." in done.stdout


def test_a_missing_file_is_an_error_without_a_traceback(files):
    done = run(files[0], "--image", files[1].with_name("none.png"))
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_is_told_nothing_that_it_would_obey(files):
    program, image = files
    program.write_text("def answer(image):\n    return count(image, '\\x1b[2J\\u202e')")
    outcome = check_file(program, image)
    assert outcome.reason is Reason.BAD_ARGUMENT
    program.write_text("def answer(image):\n    count(image, 'red')\n    return '\\x1b[2J\\u202e'")
    shown = in_words(check_file(program, image))
    assert all(line.isprintable() for line in shown.splitlines())
    assert "\\u202e" in shown


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def whole() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image",
        whole()[:60],
        whole()[:40] + b"\0" * 40 + whole()[80:],
        png(60_000, 60_000, zlib.compress(b"\0" * 1000)),  # a bomb
        png(0, 5, b""),
        png(2_000, 2_000, zlib.compress(b"\0" * 10)),  # too little data
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file",
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        b"GIF89a" + b"\xff" * 30,
        b"\xff\xd8\xff\xe0" + b"\0" * 50,
        b"II*\0" + b"\xff" * 60,
        b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"\xff" * 30,
        b"BM" + b"\xff" * 60,
        b"P6 99999999 99999999 255\n",
    ],
    ids=range(15),
)
def test_hostile_image_bytes_are_refused(files, data):
    program, image = files
    image.write_bytes(data)
    with pytest.raises(DataError):
        check_file(program, image)


@pytest.mark.parametrize("data", [b"\xff\xfe\0\0", b"\x80abc"])
def test_a_program_that_is_no_text_is_refused(files, data):
    program, image = files
    program.write_bytes(data)
    with pytest.raises(DataError, match="no UTF-8 text"):
        check_file(program, image)


def test_a_huge_program_file_is_not_read_whole(files):
    program, image = files
    program.write_bytes(b"#" * 10_000_000)
    outcome = check_file(program, image)
    assert (outcome.verdict, outcome.reason) == (Verdict.REFUSED, Reason.TOO_LARGE)
