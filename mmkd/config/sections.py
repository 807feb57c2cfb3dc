"""What every section of a YAML is made of."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class OpenSection(BaseModel):
    """A section whose extra keys belong to a registry entry."""

    model_config = ConfigDict(extra="allow", validate_default=True)

    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})
