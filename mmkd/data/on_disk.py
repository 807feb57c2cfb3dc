"""Long sequences of which memory holds places alone: what a job makes on the way lies in a file."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from mmkd.whole_files import append_whole

T = TypeVar("T")


class Named(Protocol):
    @property
    def id(self) -> str: ...


N = TypeVar("N", bound=Named)


class Spool:
    """JSON values by number, put in any order. The file has no name, and goes with the object.

    Args:
        count: how many numbers there are, from 0.
    """

    def __init__(self, count: int = 0):
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed when nobody reads it any more)
        self._starts, self._ends = array("q", [-1]) * count, array("q", [-1]) * count
        self._size = 0

    def __len__(self) -> int:
        return len(self._starts)

    def append(self, value: Any) -> None:
        self._starts.append(-1)
        self._ends.append(-1)
        self.put(len(self) - 1, value)

    def put(self, number: int, value: Any) -> None:
        """Raises DataError where the disk takes no more."""
        line = json.dumps(value, ensure_ascii=False).encode()
        end = append_whole(self._file.fileno(), line, self._size, Path(tempfile.gettempdir()))
        self._starts[number], self._ends[number], self._size = self._size, end, end

    def get(self, number: int) -> Any:
        """None where nothing was put."""
        start, end = self._starts[number], self._ends[number]
        if start < 0:
            return None
        return json.loads(os.pread(self._file.fileno(), end - start, start))  # no place is kept: threads may read


class Made(Sequence[T]):
    """A sequence whose elements are made when they are asked for.

    Args:
        numbers: of the elements, in order; make: an element of its number.
    """

    def __init__(self, numbers: Sequence[int], make: Callable[[int], T]):
        self.numbers, self.make = numbers, make

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Made(self.numbers[place], self.make)
        return self.make(self.numbers[place])


class ById(Mapping[str, N], Generic[N]):
    """Elements of a sequence by their id, read anew each time; the last one of an id."""

    def __init__(self, elements: Sequence[N]):
        self.elements = elements
        self._places = {one.id: place for place, one in enumerate(elements)}

    def __getitem__(self, name: str) -> N:
        return self.elements[self._places[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
