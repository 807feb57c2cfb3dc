"""Records of the `datasets` library: a data set of the hub, a folder of files, or one saved with save_to_disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmkd.data.grouping import grouped
from mmkd.data.record_files import import_datasets
from mmkd.data.records import Record, Turn
from mmkd.data.rejected import BadRow
from mmkd.errors import ConfigError, DataError


def hub(
    path: str,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    question: str = "question",
    answer: str = "answer",
    image: str | None = None,
    messages: str | None = None,
    task: str | None = None,
    streaming: bool = False,
    shuffle_buffer: int = 0,
    turns: int | None = None,
    seed: int = 0,
) -> Sequence[Record] | Stream:
    """A data set of the `datasets` library.

    Args:
        path: hub name or local folder; name: of its configuration; revision: of the hub repository.
        question, answer: text columns; of an answer that is a list the first entry is trained on, and all of them are
            kept as the turn's `answers`.
        image: column of an image or a list of images, "image" where there is one of that name; rows may have none.
        messages: column of chat messages, in place of question and answer.
        task: column of a label for reports.
        streaming: read rows as they come; needs a weight in the mixture. A resumed run reads past what was used.
        shuffle_buffer: with streaming, rows among which the next one is drawn; 0 keeps the order.
        turns: most questions of a record, where consecutive rows ask about one image; seed: of the order.
    """
    datasets = import_datasets("datasets")
    if streaming and turns is not None:
        raise ConfigError("datasets: turns needs to look at all rows, which streaming cannot; leave one of them out.")
    if shuffle_buffer and not streaming:
        raise ConfigError("datasets: shuffle_buffer is for streaming; without it every epoch is shuffled whole.")
    rows = load_rows(datasets, path, name, split, revision, streaming)
    columns = Columns(question, answer, image or "image", messages, task, source=Path(path).name)
    if rows.column_names is not None:
        columns.check(rows.column_names, path, image)
    if image is None:
        _refuse_unnamed_images(rows, path, datasets)
    rows = undecoded(rows, columns.image, datasets)
    if not streaming:
        return grouped(HubRows(rows, columns), turns, seed)
    return Stream(rows.shuffle(seed=seed, buffer_size=shuffle_buffer) if shuffle_buffer else rows, columns)


def load_rows(datasets: Any, path: str, name: str | None, split: str, revision: str | None, streaming: bool) -> Any:
    """The rows of a split. Raises ConfigError for a split that a saved set lacks, DataError for what cannot be read."""
    try:
        saved = Path(path, "dataset_dict.json").is_file() or Path(path, "state.json").is_file()
        if not saved:
            return datasets.load_dataset(path, name, split=split, revision=revision, streaming=streaming)
        found = datasets.load_from_disk(path)
        if isinstance(found, datasets.DatasetDict):
            if split not in found:
                raise ConfigError(f"datasets: {path} has no split {split!r}; it has {', '.join(found)}.")
            found = found[split]
        return found.to_iterable_dataset() if streaming else found
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"datasets: {path} (split {split}) cannot be loaded: {error}") from error


def _refuse_unnamed_images(rows: Any, path: str, datasets: Any) -> None:
    """Raises ConfigError where images are in columns of other names than "image" alone: nobody meant to lose them."""
    kinds = rows.features or {}
    found = [name for name, kind in kinds.items() if isinstance(getattr(kind, "feature", kind), datasets.Image)]
    if found and "image" not in kinds:
        raise ConfigError(
            f"datasets: {path} has no column image; its images are in {', '.join(found)}. Name the one to read with "
            "image."
        )


def undecoded(rows: Any, image: str, datasets: Any) -> Any:
    """Images stay encoded until a sample is prepared, where size limits apply before anything is decoded."""
    kind = (rows.features or {}).get(image)
    if isinstance(kind, datasets.Image):
        return rows.cast_column(image, datasets.Image(decode=False))
    if isinstance(kind, datasets.List) and isinstance(kind.feature, datasets.Image):
        return rows.cast_column(image, datasets.List(datasets.Image(decode=False)))
    return rows


class Columns:
    """Which column means what; turns a row into a Record."""

    def __init__(self, question: str, answer: str, image: str, messages: str | None, task: str | None, source: str):
        self.question, self.answer, self.image, self.messages, self.task = question, answer, image, messages, task
        self.source = source

    def check(self, there: list[str], path: str, image: str | None) -> None:
        """Raises ConfigError for a column that the data set lacks. `image`: as named; a data set may have no images."""
        asked = [self.messages] if self.messages else [self.question, self.answer]
        lacking = [column for column in [*asked, image, self.task] if column and column not in there]
        if lacking:
            raise ConfigError(
                f"datasets: {path} has no column {', '.join(lacking)}; it has {', '.join(there)}. Name the right ones "
                "with question, answer, image, messages and task."
            )

    def record(self, row: Mapping[str, Any], index: int) -> Record:
        place = f"{self.source}, row {index}"
        try:
            turns = self._turns(row)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise BadRow(
                f"{place}: question, answer or messages of another shape than expected ({error!r})."
            ) from error
        found = row.get(self.image)
        images = [] if found is None else found if isinstance(found, list) else [found]
        return Record(
            id=str(row.get("id", index)),
            turns=turns,
            images=[_encoded(image, place) for image in images],
            task=str(row[self.task]) if self.task else "",
            source=self.source,
        )

    def _turns(self, row: Mapping[str, Any]) -> list[Turn]:
        if self.messages is not None:
            return [Turn(message["role"], _text(message["content"])) for message in row[self.messages]]
        asked, answer = Turn("user", row[self.question]), row[self.answer]
        if not isinstance(answer, list):
            return [asked, Turn("assistant", answer)]
        said = [one["answer"] if isinstance(one, Mapping) else one for one in answer]  # VQA has objects
        return [asked, Turn("assistant", said[0], answers=said if len(said) > 1 else None)]


def _text(content: str | list[Mapping[str, Any]]) -> str:
    """A message's text; image parts are left out, since all images stand before the text."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part.get("text") is not None)


def _encoded(image: Any, place: str) -> str | bytes:
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if not isinstance(image, str | bytes):
        raise BadRow(f"{place}: an image is a {type(image).__name__}; allowed: an image column, a path, or bytes.")
    return image


class HubRows(Sequence[Record]):
    """A memory-mapped data set."""

    def __init__(self, rows: Any, columns: Columns):
        self.rows, self.columns = rows, columns

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        return self.columns.record(self.rows[index], index)


class Stream:
    """Rows in the order in which they come, by their number since the start, over and over; it has no length.

    Reading forward is cheap; the last `KEPT` rows can be read again; further back it starts again from the first row.
    """

    KEPT = 256

    def __init__(self, rows: Any, columns: Columns):
        self.rows, self.columns = rows, columns
        self._restart()

    def _restart(self) -> None:
        self._iterator: Iterator[Mapping[str, Any]] | None = None
        self._next = self._epoch = 0
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=self.KEPT)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_iterator": None, "_next": 0, "_epoch": 0, "_recent": deque(maxlen=self.KEPT)}

    def __getitem__(self, index: int) -> Record:
        if index < self._next - len(self._recent):
            self._restart()
        while self._next <= index:
            self._recent.append(self._read())
            self._next += 1
        return self.columns.record(self._recent[index - self._next], index)

    def _read(self) -> Mapping[str, Any]:
        if self._iterator is None:
            self.rows.set_epoch(self._epoch)
            self._iterator = iter(self.rows)
        row = next(self._iterator, None)
        if row is None:  # the end of an epoch
            self._epoch += 1
            self.rows.set_epoch(self._epoch)
            self._iterator = iter(self.rows)
            row = next(self._iterator, None)
        if row is None:
            raise DataError(f"the stream {self.columns.source} has no rows.")
        return row
