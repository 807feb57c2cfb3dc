"""What a score means."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, Field, create_model


@dataclass(frozen=True)
class Scale:
    """Whole numbers from `low` to `high`, with what they stand for; part of every judge's prompt."""

    low: int
    high: int
    rubric: tuple[str, ...]

    def schema(self, *scores: str) -> type[BaseModel]:
        """A reply with a reason, then these scores. The reason comes first, so that the scores follow from it."""
        number = (int, Field(ge=self.low, le=self.high, strict=True))
        fields = {"reason": (str, Field(min_length=1, max_length=4000)), **dict.fromkeys(scores, number)}
        return create_model("Grades", **fields)  # pyright: ignore[reportCallIssue]


CORRECTNESS = Scale(
    1,
    10,
    (
        "1 to 2: wrong, or about something that is not in the image",
        "3 to 4: mostly wrong, with some true part",
        "5 to 6: true in part, with a mistake that matters",
        "7 to 8: right, with a small mistake or something needed left out",
        "9 to 10: right and complete; 10 where nothing could be said against it",
    ),
)
