"""Whether a server reads the pictures that it is sent: some drop them without a word."""

from __future__ import annotations

from dataclasses import replace

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.errors import ConfigError
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.requests import Answer, Request, Usage

OFF = "If this server counts no image tokens but reads images all the same, say check_images: false."


class ImageCheck:
    """By the prompt tokens that the server counts. Models in this process need no check: None, or switched off.

    Raises (both methods): ConfigError.
    """

    def __init__(self, section: EndpointSection | None):
        self.section = section if section is not None and section.check_images else None
        self.image_tokens = 0  # of the first picture

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
        if self.image_tokens < 1:
            raise ConfigError(
                f"{self.section.url}: {len(request.images)} image(s) in a prompt add "
                f"{seen.prompt_tokens - blind.prompt_tokens} tokens to it, so {self.section.model!r} does not read "
                f"them. Serve a vision-language model. {OFF}"
            )

    def check(self, answer: Answer) -> None:
        """Each answer: a prompt has at least one token for each of its pictures, and one for the text."""
        if self.section is None or not answer.done or answer.usage.estimated:
            return
        pictures = len(answer.request.images)
        if answer.usage.prompt_tokens <= pictures:
            raise ConfigError(
                f"{self.section.url} counted {answer.usage.prompt_tokens} tokens for a prompt with {pictures} images "
                f"(request {answer.request.id}): they were not read. {OFF}"
            )


def _first_usage(asker: Asker, answer: Answer) -> Usage | None:
    """Of the first reply: later tries may have longer prompts."""
    return next((entry.usage for entry in asker.store.entries(answer.key) if entry.usage.prompt_tokens), None)
