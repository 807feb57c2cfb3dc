"""What a killed run had from its models, in the words of the server that it asked."""

from __future__ import annotations

import json
from pathlib import Path

from mmkd.synthesis.requests import Status


def kept_calls(stores: Path) -> set[str]:
    """Calls whose reply stands in the journal of a store in `stores`, as a FaultProxy names them: key and number of
    the try."""
    calls = set()
    for file in stores.glob("*/journal.jsonl"):
        tries: dict[str, int] = {}
        for line in file.read_bytes().split(b"\n")[:-1]:
            entry = json.loads(line)
            if entry["status"] not in (Status.UNANSWERED, Status.REFUSED):
                calls.add(f"{entry['key']}-{tries.get(entry['key'], 0)}")
                tries[entry["key"]] = tries.get(entry["key"], 0) + 1
    return calls
