"""Whether a server reads the pictures that it is sent: some drop them without a word."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.errors import ConfigError
from mmkd.synthesis.requests import Request, Usage
from mmkd.whole_files import write_whole

OFF = "If this server counts no image tokens but reads images all the same, say check_images: false."


class ImageCheck:
    """By the prompt tokens that a server counts. An Asker has one, and so sees to it for whoever asks with pictures.

    The first request with pictures is asked with and without them; that they are read is then written down in the
    folder of the store, for this server and model. Every reply is looked at, too.
    """

    def __init__(self, section: EndpointSection, folder: Path):
        self.section, self.file = section, folder / "reads_images.json"

    @property
    def passed(self) -> bool:
        """Whether this server and model were found to read pictures, now or in an earlier run."""
        return self.file.exists() and json.loads(self.file.read_text()) == self._who()

    def pair(self, request: Request) -> tuple[Request, Request]:
        """With the pictures, as it will be asked anyway; and without them."""
        return request, replace(request, id="without", images=())

    def decide(self, pictures: int, seen: Usage | None, blind: Usage | None) -> None:
        """The tokens of the pictures are the difference of both prompts.

        Args:
            seen, blind: of the first replies with and without the pictures; None without a reply, which says nothing.

        Raises: ConfigError.
        """
        if seen is None or blind is None:
            return
        if seen.estimated or blind.estimated:
            raise ConfigError(f"{self.section.url} does not say how many tokens a prompt has. {OFF}")
        more = seen.prompt_tokens - blind.prompt_tokens
        if more < pictures:
            raise ConfigError(
                f"{self.section.url}: {pictures} image(s) in a prompt add {more} tokens to it, so "
                f"{self.section.model!r} does not read them. Serve a vision-language model. {OFF}"
            )
        write_whole(self.file, [json.dumps(self._who()), "\n"])

    def check(self, request: Request, usage: Usage) -> None:
        """Of one reply: a prompt has at least one token for each of its pictures, and one for the text.

        Raises: ConfigError.
        """
        pictures = len(request.images)
        if usage.prompt_tokens and not usage.estimated and usage.prompt_tokens <= pictures:
            raise ConfigError(
                f"{self.section.url} counted {usage.prompt_tokens} tokens for a prompt with {pictures} images "
                f"(request {request.id}): they were not read. {OFF}"
            )

    def _who(self) -> dict[str, str]:
        return {"url": self.section.url, "model": self.section.model}
