"""Requests whose limit of tokens was raised: an answer that ended within the old one is not asked for again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmkd.data.rejected import BadRow
from mmkd.synthesis.asking import Asker
from mmkd.synthesis.requests import Request, Status


def as_known(asker: Asker, request: Request, limits: Sequence[int]) -> Request:
    """The request as it was asked under an earlier limit, where the store has an answer that ended by itself; else as
    it is.

    Args:
        limits: earlier values of max_tokens, none above the request's own.
    """
    if not limits:
        return request
    try:
        content = request.content()
    except BadRow:  # which the asker will tell
        return request
    for limit in limits:
        sampling = content["sampling"] | {"max_tokens": limit}
        final = asker.store.final(asker.key(content | {"sampling": sampling, "may_be_cut": False}))
        if final is not None and final.status is Status.DONE:
            return replace(request, sampling=replace(request.sampling, max_tokens=limit), may_be_cut=False)
    return request
