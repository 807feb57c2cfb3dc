"""The bytes of an image that a request names: data: URLs, and only what the server was started with beyond them.

A server that opens any path or URL it is sent reads its owner's files, and calls machines behind its firewall, for
whoever can reach it. So files and hosts are listed when it starts, and nothing else is touched.
"""

from __future__ import annotations

import base64
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mmkd.errors import MmkdError

FETCH_SECONDS = 20
CHUNK = 64 * 1024


class RequestError(MmkdError):
    """A request that is not answered; `status` is its HTTP status, 4xx."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ImageSources:
    """Where images may come from.

    Attributes:
        hosts: host names from which http:// and https:// URLs are fetched; redirects are not followed.
        folders: folders below which file:// URLs are read, links resolved.
        most_bytes: of one encoded image.
    """

    hosts: frozenset[str] = frozenset()
    folders: tuple[Path, ...] = ()
    most_bytes: int = 20 * 2**20

    def read(self, url: str) -> bytes:
        """The encoded bytes.

        Raises: RequestError: 403 where the server may not read from there, 413 where it is too large, else 400.
        """
        scheme = url[:16].partition(":")[0].lower() if ":" in url[:16] else ""
        if scheme == "data":
            data = _decoded(url)
        elif scheme in ("http", "https"):
            data = self._fetched(url)
        elif scheme == "file":
            data = self._from_file(url)
        else:
            raise RequestError(
                f"image_url {_short(url)} is no data: URL. This server reads images from data:image/...;base64,... "
                "only, never from a path.",
                403,
            )
        if len(data) > self.most_bytes:
            raise self._too_large(f"{len(data):,} bytes")
        return data

    def _fetched(self, url: str) -> bytes:
        host = _host(url)
        if host not in self.hosts:
            raise RequestError(
                f"image_url {_short(url)}: this server does not fetch from {host}. Send the image as a data: URL, or "
                f"start the server with --allow-host {host}.",
                403,
            )
        deadline, data = time.monotonic() + FETCH_SECONDS, bytearray()
        try:
            with _opener.open(url, timeout=FETCH_SECONDS) as answer:
                while chunk := answer.read1(CHUNK):  # what has come; read() waits for all of it
                    data += chunk
                    if len(data) > self.most_bytes:
                        raise self._too_large("more")
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"not finished after {FETCH_SECONDS} s")
        except (OSError, ValueError, HTTPException) as error:  # URLError is an OSError
            raise RequestError(f"image_url {_short(url)} could not be fetched ({error}).") from error
        return bytes(data)

    def _from_file(self, url: str) -> bytes:
        try:
            path = Path(unquote(urlsplit(url).path))
            place = path.resolve()
        except (OSError, ValueError) as error:  # a null byte, say, or a loop of links
            raise RequestError(f"image_url {_short(url)} is not a URL ({error}).") from error
        # The same words whether a file exists or not: a refusal must not tell.
        allowed = path.is_absolute() and any(place.is_relative_to(folder.resolve()) for folder in self.folders)
        if not allowed:
            raise RequestError(
                f"image_url {_short(url)}: this server does not read files there. Send the image as a data: URL, or "
                "start the server with --allow-folder and a folder above it.",
                403,
            )
        try:
            if path.stat().st_size > self.most_bytes:
                raise self._too_large(f"{path.stat().st_size:,} bytes")
            if not path.is_file():
                raise RequestError(f"image_url {_short(url)} is no file.")
            return path.read_bytes()
        except OSError as error:
            raise RequestError(f"image_url {_short(url)} cannot be read ({error.strerror}).") from error

    def _too_large(self, found: str) -> RequestError:
        return RequestError(f"an image has {found}; at most {self.most_bytes:,} bytes are read. Resize it.", 413)


def _decoded(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise RequestError(f"image_url {_short(url)} is not of the form data:image/png;base64,....")
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:  # binascii.Error, or letters that are not ASCII
        raise RequestError(f"image_url {_short(url)} is not base64 ({error}).") from error


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError as error:
        raise RequestError(f"image_url {_short(url)} is not a URL ({error}).") from error


def _short(url: str) -> str:
    return repr(url if len(url) <= 60 else url[:57] + "...")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """A redirect would lead past the list of hosts; None makes it an HTTPError."""


_opener = urllib.request.build_opener(_NoRedirects)
