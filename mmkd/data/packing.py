"""Several samples in one row."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], image_counts: Sequence[int], max_length: int, images_per_row: int) -> list[list[int]]:
    """Put samples into as few rows as first-fit-decreasing finds.

    Args:
        lengths: tokens of each sample, its sink and full-vision image tokens included.
        image_counts: images of each sample.
        max_length: most tokens of a row; images_per_row: most images of a row.

    Returns: sample numbers of each row. Every sample once; ascending within a row, rows by their first sample; the
        same for the same arguments. At most 11/9 of the best possible number of rows, plus one, while images are not
        the limit (Johnson 1973).

    Raises: ValueError where one sample alone is over a limit; such samples are set aside before.
    """
    for sample, (length, images) in enumerate(zip(lengths, image_counts, strict=True)):
        if length > max_length or images > images_per_row:
            raise ValueError(
                f"sample {sample} has {length} tokens, {images} images; a row takes {max_length} and {images_per_row}."
            )
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # tokens and images that still fit into each row
    for sample in sorted(range(len(lengths)), key=lambda s: (-lengths[s], s)):
        length, images = lengths[sample], image_counts[sample]
        row = next((r for r, (tokens, slots) in enumerate(free) if length <= tokens and images <= slots), len(rows))
        if row == len(rows):
            rows.append([])
            free.append((max_length, images_per_row))
        rows[row].append(sample)
        free[row] = (free[row][0] - length, free[row][1] - images)
    return sorted(sorted(row) for row in rows)
