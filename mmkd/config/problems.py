"""What is wrong with a config, in lines that name the place, the value, what is allowed, and the nearest name."""

from __future__ import annotations

import difflib
import inspect
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mmkd.config.schema import Config
from mmkd.config.yaml_tree import Key, Node, format_path


def explain(error: ValidationError, tree: Node, schema: type[BaseModel] = Config) -> list[str]:
    """One line for each place of `schema` that is wrong; the branches of a union are one place."""
    places: dict[tuple[Key, ...], list[ErrorDetails]] = {}
    for detail in error.errors():
        places.setdefault(_data_path(detail, tree), []).append(detail)
    return [_line(path, details, tree, schema) for path, details in places.items()]


def option_problems(key: str, value: Any, error: ValidationError, annotation: Any) -> Iterator[tuple[str, str]]:
    """(key path, what is wrong) of an option that is not what its `annotation` says; of each field in a section."""
    section = next(_models(annotation), None)
    if section is None or not isinstance(value, Mapping):
        yield key, f"is {value!r}; allowed: {either(map(allowed, error.errors()))}."
        return
    for detail in error.errors():
        path = format_path((key, *detail["loc"]))
        if detail["type"] == "extra_forbidden":
            inner = _section(detail["loc"][:-1], section)
            yield path, f"is not a field of {inner.__name__}.{near_or_all(detail['loc'][-1], inner.model_fields)}"
        elif detail["type"] == "missing":
            yield path, f"is missing; {_section(detail['loc'][:-1], section).__name__} needs it."
        elif detail["type"] == "value_error":
            yield path, f"is {_text(detail['input'])}: {detail.get('ctx', {}).get('error')}."
        else:
            yield path, f"is {_text(detail['input'])}; allowed: {allowed(detail)}."


def _data_path(detail: ErrorDetails, tree: Node) -> tuple[Key, ...]:
    """The error's location without pydantic's names of union branches, which are no keys of the YAML."""
    if detail["type"] == "missing":
        return (*_data_path({**detail, "type": "", "loc": detail["loc"][:-1]}, tree), detail["loc"][-1])
    path: tuple[Key, ...] = ()
    node: Node | None = tree
    for key in detail["loc"]:
        node = node.child(key) if node else None
        if node is None:
            break
        path = (*path, key)
    return path


def _line(path: tuple[Key, ...], details: list[ErrorDetails], tree: Node, schema: type[BaseModel]) -> str:
    first, node = details[0], tree.nearest(path)
    name, place = format_path(path), f"({node})"
    section, context = _section(path[:-1], schema), first.get("ctx", {})
    if first["type"] == "extra_forbidden":
        hint = near_or_all(path[-1], section.model_fields)
        return f"config: {name} is not a field of {section.__name__}.{hint} {place}"
    if first["type"] == "missing" and isinstance(path[-1], int):  # a pair with one item
        return f"config: {format_path(path[:-1])} is {_short(node)}; it needs more items. {place}"
    if first["type"] == "missing":
        about = section.model_fields[str(path[-1])].description
        return f"config: {name} is missing; {section.__name__} needs it{f': {about}' if about else '.'} {place}"
    if first["type"] == "value_error":  # raised by a validator of the schema; its text is whole
        return f"config: {name} {context['error']}. {place}" if name else f"config: {context['error']}. {place}"
    wanted = either(map(allowed, details))
    expected = re.findall(r"'([^']+)'", wanted)
    return f"config: {name} is {_short(node)}; allowed: {wanted}.{near(str(node.plain()), expected)} {place}"


def allowed(detail: ErrorDetails) -> str:
    """What pydantic wanted, in words."""
    context = detail.get("ctx", {})
    if "list[int]" in detail["loc"]:  # a branch of a union
        return "a list of whole numbers"
    if "constrained-str" in detail["loc"]:  # schema.Keep
        return "`every 2` (or another number)"
    if detail["type"] == "literal_error":
        return context["expected"]
    if detail["type"] == "too_short":
        return f"at least {context['min_length']} item(s)"
    if detail["type"] == "too_long":
        return f"at most {context['max_length']} item(s)"
    if detail["type"] == "string_pattern_mismatch":
        return f"text that matches {context['pattern']}"
    if detail["type"] in ("model_type", "model_attributes_type"):
        return f"a mapping with the fields of {context['class_name']}"
    if detail["type"].startswith("int_"):
        return "a whole number"
    text = re.sub(r"^(Input|Value) should be ", "", detail["msg"]).removeprefix("a valid ").split(",")[0]
    words = {
        "string": "text",
        "list": "a list",
        "dictionary": "a mapping",
        "tuple": "a list",
        "boolean": "true or false",
    }
    return words.get(text, text if text[:2] not in ("nu",) else f"a {text}")


def _short(node: Node) -> str:
    return _text(node.plain())


def _text(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def either(texts: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(texts))


def _section(path: tuple[Key, ...], section: type[BaseModel]) -> type[BaseModel]:
    """The schema class at `path` below `section`."""
    for key in path:
        if isinstance(key, str) and key in section.model_fields:
            section = next(_models(section.model_fields[key].annotation), section)
    return section


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models(inner)


def near(word: str, words: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(words), n=1)
    return f" Did you mean {found[0]}?" if found else ""


def near_or_all(word: Key, words: Iterable[str]) -> str:
    words = list(words)
    return near(str(word), words) or f" Fields: {', '.join(words) or 'none'}."
