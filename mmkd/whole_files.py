"""Files that a kill or a full disk leaves as they were or makes as they should be."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from mmkd.errors import DataError

# What a disk says; an OSError of another kind comes from the making of what is written.
NO_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES}


def write_whole(path: Path, pieces: Iterable[str | bytes]) -> int:
    """Write a file, text as UTF-8; it appears under its name when its last piece is on disk.

    Args:
        pieces: taken one by one, so that they need not fit in memory.

    Returns: how many pieces.

    Raises: DataError where the disk takes no more; what stood there before still does.
    """
    partial, count = path.with_name(f".{path.name}.partial"), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            for piece in pieces:
                file.write(piece.encode() if isinstance(piece, str) else piece)
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise (_refused(path, error) if error.errno in NO_WRITING else error) from error
    return count


def append_whole(file: int, data: bytes, size: int, path: Path) -> int:
    """Append to an open file of `size` bytes. Returns its new size.

    Raises: DataError where the disk takes no more; the file is then as it was before.
    """
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(file, left) :]
    except OSError as error:
        os.ftruncate(file, size)
        raise _refused(path, error) from error
    return size + len(data)


def whole_lines(file: int) -> int:
    """Bytes up to the last newline; what stands behind it was torn by a kill, and is cut away."""
    size = end = os.fstat(file).st_size
    while end:
        start = max(0, end - 65536)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(file, end)
    return end


def _refused(path: Path, error: OSError) -> DataError:
    mend = "Make it writable" if error.errno in (errno.EACCES, errno.EROFS) else "Make room"
    return DataError(f"{path} cannot be written ({error}). {mend} and run again.")
