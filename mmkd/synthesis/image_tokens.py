"""Whether a server reads the pictures that it is sent: some drop them without a word."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path

from filelock import FileLock
from PIL import Image

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.data.images import BROKEN, FORMATS, read_image
from mmkd.errors import ConfigError
from mmkd.synthesis.requests import Request, Usage
from mmkd.whole_files import write_whole

OFF = "If this server counts no image tokens but reads images all the same, say check_images: false."
SAFE = 0.5  # of what a prompt is expected to count: words, sizes and shapes differ from the probe's
BYTES_A_TOKEN = 16  # of text beyond the probe's: few tokenizers put more into one, on average


@dataclass(frozen=True)
class Probe:
    """What a server and model counted for the first request with pictures.

    image_tokens: of one of its pictures; pixels: of these pictures, their mean; blind_tokens, blind_bytes: of its text
    alone.
    """

    url: str
    model: str
    image_tokens: int
    pixels: float
    blind_tokens: int
    blind_bytes: int


class ImageCheck:
    """By the prompt tokens that a server counts. An Asker has one, and so sees to it for whoever asks with pictures.

    The first request with pictures is asked with and without them, and the next one where that got no replies. What
    that told is written down in the folder of the store, for this server and model. Every reply is held against it: one
    to a prompt too short for its pictures is no answer.
    """

    def __init__(self, section: EndpointSection, folder: Path):
        self.section, self.file = section, folder / "reads_images.json"
        self.probe = self._kept()

    @property
    def passed(self) -> bool:
        """Whether this server and model were found to read pictures, now or in an earlier run."""
        return self.probe is not None

    def pair(self, request: Request) -> tuple[Request, Request]:
        """With the pictures, as it will be asked anyway; and without them."""
        return request, replace(request, id="without", images=())

    def decide(self, request: Request, seen: Usage | None, blind: Usage | None) -> None:
        """The tokens of the pictures are the difference of both prompts.

        Args:
            seen, blind: of the first replies with and without the pictures; None without a reply, which says nothing.

        Raises: ConfigError.
        """
        if seen is None or blind is None:
            return
        if any(used.estimated or not used.prompt_tokens for used in (seen, blind)):
            raise ConfigError(f"{self.section.url} does not say how many tokens prompt and answer have. {OFF}")
        pictures = len(request.images)
        more = seen.prompt_tokens - blind.prompt_tokens
        if more < pictures:
            raise ConfigError(
                f"{self.section.url}: {pictures} image(s) in a prompt add {more} tokens to it, so "
                f"{self.section.model!r} does not read them. Serve a vision-language model. {OFF}"
            )
        pixels = max(sum(map(_pixels, request.images)) / pictures, 1.0)
        self.probe = Probe(*self._who(), more // pictures, pixels, blind.prompt_tokens, max(_text_bytes(request), 1))
        with FileLock(self.file.with_suffix(".lock")):  # workers of a fleet may find out at once
            write_whole(self.file, [json.dumps(asdict(self.probe)), "\n"])

    def unread(self, request: Request, usage: Usage) -> str | None:
        """Why its pictures cannot have been read for this reply: the prompt had fewer than `least` tokens."""
        least = self.least(request)
        if not usage.prompt_tokens or usage.estimated or usage.prompt_tokens >= least:
            return None
        return (
            f"{self.section.url} counted {usage.prompt_tokens} tokens for a prompt with {len(request.images)} images, "
            f"{least} are the least that the first one and its text let expect: not all were read. {OFF}"
        )

    def least(self, request: Request) -> int:
        """Fewest prompt tokens of a request whose pictures are all read: one for each and one for the text, and half of
        what the probe lets expect. Many servers give a small picture fewer tokens, so those of a picture fall with its
        pixels and never rise."""
        pictures, probe = len(request.images), self.probe
        if probe is None or not pictures:
            return pictures + 1
        text = _text_bytes(request)
        expected = probe.blind_tokens * min(1.0, text / probe.blind_bytes)
        expected += max(0, text - probe.blind_bytes) / BYTES_A_TOKEN
        expected += sum(probe.image_tokens * min(1.0, _pixels(image) / probe.pixels) for image in request.images)
        return max(pictures + 1, int(SAFE * expected))

    def _who(self) -> tuple[str, str]:
        return self.section.url, self.section.model

    def _kept(self) -> Probe | None:
        """Of an earlier run; another server or model tells nothing of this one, nor does a file that cannot be read."""
        try:
            probe = Probe(**json.loads(self.file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return probe if (probe.url, probe.model) == self._who() else None


def _text_bytes(request: Request) -> int:
    return sum(len(turn.text.encode()) for turn in request.turns)


def _pixels(image: str | bytes) -> int:
    """By its header alone; 0, of which nothing is expected, for what the server alone can read."""
    try:
        with Image.open(BytesIO(read_image(image)), formats=FORMATS) as opened:
            return opened.width * opened.height
    except (*BROKEN, Image.DecompressionBombError):
        return 0
