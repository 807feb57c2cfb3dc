"""JSON schemas as those who hold a model to them want them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BY_NAME = ("properties", "$defs")  # their keys are names of whoever wrote the schema


def closed(schema: Any) -> Any:
    """A JSON schema whose objects have no fields but those that it names: pydantic would ignore others, and a model
    could go on adding them."""
    return _changed(schema, lambda one: {"additionalProperties": False} | one if _has_fields(one) else one)


def strict(schema: Any) -> Any:
    """As servers demand it with `strict: true`: objects closed, all of their fields required, and no defaults."""

    def change(one: dict[str, Any]) -> dict[str, Any]:
        one.pop("default", None)
        return one | {"additionalProperties": False, "required": list(one["properties"])} if _has_fields(one) else one

    return _changed(schema, change)


def _has_fields(schema: dict[str, Any]) -> bool:
    return isinstance(schema.get("properties"), dict)


def _changed(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A copy in which each schema is changed, those inside first."""
    if isinstance(schema, list):
        return [_changed(one, change) for one in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {}
    for key, value in schema.items():
        if key in BY_NAME and isinstance(value, dict):
            copy[key] = {name: _changed(one, change) for name, one in value.items()}
        else:
            copy[key] = _changed(value, change)
    return change(copy)
