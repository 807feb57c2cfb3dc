"""Whether a server reads the pictures that it is sent: some drop them without a word."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

from PIL import Image

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.data.images import BROKEN, FORMATS, read_image
from mmkd.errors import ConfigError
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.requests import Answer, Request, Usage

OFF = "If this server counts no image tokens but reads images all the same, say check_images: false."
SAFE = 0.5  # of what a prompt is expected to count: words, sizes and shapes differ from the probe's
BYTES_A_TOKEN = 16  # of text beyond the probe's: few tokenizers put more into one, on average


class ImageCheck:
    """By the prompt tokens that the server counts. Models in this process need no check: None, or switched off.

    Attributes:
        image_tokens: of one picture of the probe, 0 where it told nothing; pixels: of those pictures, their mean.
        blind_tokens, blind_bytes: of the probe's text alone.

    Raises (both methods): ConfigError.
    """

    def __init__(self, section: EndpointSection | None):
        self.section = section if section is not None and section.check_images else None
        self.image_tokens, self.pixels, self.blind_tokens, self.blind_bytes = 0, 1.0, 0, 1

    def probe(self, asker: Asker, request: Request | None) -> None:
        """Ask once with and once without pictures: the tokens of the pictures are the difference."""
        if self.section is None or request is None:
            return
        pair = [replace(request, id=f"{request.id} with its pictures"), replace(request, id="without", images=())]
        used = {answer.request.id: _first_usage(asker, answer) for answer in asker.answer(pair)}
        seen, blind = (used[one.id] for one in pair)
        if seen is None or blind is None:
            return  # a probe without a reply says nothing; the answers themselves are checked below
        if seen.estimated or blind.estimated:
            raise ConfigError(f"{self.section.url} does not say how many tokens a prompt has. {OFF}")
        self.image_tokens = (seen.prompt_tokens - blind.prompt_tokens) // len(request.images)
        self.pixels = max(sum(map(_pixels, request.images)) / len(request.images), 1.0)
        self.blind_tokens, self.blind_bytes = blind.prompt_tokens, max(_text_bytes(request), 1)
        if self.image_tokens < 1:
            raise ConfigError(
                f"{self.section.url}: {len(request.images)} image(s) in a prompt add "
                f"{seen.prompt_tokens - blind.prompt_tokens} tokens to it, so {self.section.model!r} does not read "
                f"them. Serve a vision-language model. {OFF}"
            )

    def check(self, answer: Answer) -> None:
        """Each answer: its prompt has at least `least` tokens."""
        if self.section is None or not answer.done or answer.usage.estimated:
            return
        least = self.least(answer.request)
        if answer.usage.prompt_tokens < least:
            raise ConfigError(
                f"{self.section.url} counted {answer.usage.prompt_tokens} tokens for a prompt with "
                f"{len(answer.request.images)} images (request {answer.request.id}), {least} are the least that the "
                f"first one and its text let expect: not all were read. {OFF}"
            )

    def least(self, request: Request) -> int:
        """Fewest prompt tokens of a request whose pictures are all read: one for each and one for the text, and half of
        what the probe lets expect. Many servers give a small picture fewer tokens, so those of a picture fall with its
        pixels and never rise."""
        pictures = len(request.images)
        if not self.image_tokens or not pictures:
            return pictures + 1
        text = _text_bytes(request)
        expected = self.blind_tokens * min(1.0, text / self.blind_bytes)
        expected += max(0, text - self.blind_bytes) / BYTES_A_TOKEN
        expected += sum(self.image_tokens * min(1.0, _pixels(image) / self.pixels) for image in request.images)
        return max(pictures + 1, int(SAFE * expected))


def _text_bytes(request: Request) -> int:
    return sum(len(turn.text.encode()) for turn in request.turns)


def _pixels(image: str | bytes) -> int:
    """By its header alone; 0, of which nothing is expected, for what the server alone can read."""
    try:
        with Image.open(BytesIO(read_image(image)), formats=FORMATS) as opened:
            return opened.width * opened.height
    except (*BROKEN, Image.DecompressionBombError):
        return 0


def _first_usage(asker: Asker, answer: Answer) -> Usage | None:
    """Of the first reply: later tries may have longer prompts."""
    return next((entry.usage for entry in asker.store.entries(answer.key) if entry.usage.prompt_tokens), None)
