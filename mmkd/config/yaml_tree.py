"""YAML as a tree whose every value knows the file and line that it came from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmkd.errors import ConfigError

Key = str | int


class Loader(yaml.SafeLoader):
    """The safe loader, which also reads 1e-4 as a number (YAML 1.1 wants 1.0e-4).

    Args:
        file: names the text in messages.
    """

    def __init__(self, text: str, file: str):
        super().__init__(text)
        self.file = file
        self._flat = set[int]()  # ids of mappings whose `<<` is resolved; their nodes live as long as the root

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Resolve `<<: *anchor` in place, once: what it brought would look like repeated keys to an alias of `node`."""
        if id(node) not in self._flat:
            self._flat.add(id(node))
            _refuse_repeated_keys(node, self.file)
            super().flatten_mapping(node)


class Dumper(yaml.SafeDumper):
    """The safe dumper, which quotes a text that the Loader would read as a number."""


for _one in (Loader, Dumper):
    _one.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


@dataclass
class Node:
    """One value. `value` is a dict of nodes, a list of nodes, or a plain scalar."""

    value: Any
    file: str
    line: int | None  # of the key for a value in a mapping, of the value itself in a list; None for an override

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def plain(self) -> Any:
        """The tree as ordinary Python data."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, key: Key) -> Node | None:
        if isinstance(self.value, dict) and isinstance(key, str):
            return self.value.get(key)
        if isinstance(self.value, list) and isinstance(key, int) and -len(self.value) <= key < len(self.value):
            return self.value[key]
        return None

    def nearest(self, path: tuple[Key, ...]) -> Node:
        """The node at `path`, or the deepest one on the way there."""
        node = self
        for key in path:
            found = node.child(key)
            if found is None:
                break
            node = found
        return node


def read(path: Path) -> Node:
    """Read one file. Raises ConfigError for a file that cannot be read, is no YAML mapping or names a key twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: {path} cannot be read: {error}") from error
    tree = parse(text, str(path))
    if tree.value is None:
        tree.value = {}
    if not isinstance(tree.value, dict):
        raise ConfigError(f"config: a config is a mapping of sections, found a {type(tree.value).__name__}. ({path}:1)")
    return tree


def parse(text: str, file: str) -> Node:
    """Parse YAML text; `file` names it in messages."""
    loader = Loader(text, file)
    try:
        root = loader.get_single_node()
        return Node(None, file, 1) if root is None else _convert(loader, root, 1, frozenset())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"config: not valid YAML: {error.problem or error.context}. ({file}{line})") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: e.g. a date that does not exist
        raise ConfigError(f"config: not valid YAML: {error}. ({file})") from error
    finally:
        loader.dispose()


def _convert(loader: Loader, node: yaml.Node, line: int, above: frozenset[int]) -> Node:
    file = loader.file
    if id(node) in above:
        raise ConfigError(f"config: an alias (*) contains itself. ({file}:{line})")
    above = above | {id(node)}
    plain_tags = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
    if not isinstance(node, yaml.ScalarNode) and node.tag not in plain_tags:
        raise ConfigError(f"config: the tag {node.tag} is not allowed; only plain values are. ({file}:{line})")
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        children = {}
        for key, value in node.value:
            at = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"config: a key has to be a word, found a {key.id}. ({file}:{at})")
            children[key.value] = _convert(loader, value, at, above)
        return Node(children, file, line)
    if isinstance(node, yaml.SequenceNode):
        items = [_convert(loader, item, item.start_mark.line + 1, above) for item in node.value]
        return Node(items, file, line)
    return Node(loader.construct_object(node), file, line)


def _refuse_repeated_keys(node: yaml.MappingNode, file: str) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        at = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in seen:
                raise ConfigError(
                    f"config: {key.value} stands twice in one mapping, first in line {seen[key.value]}; "
                    f"remove one. ({file}:{at})"
                )
            seen[key.value] = at


def merge(base: Node, over: Node) -> Node:
    """`over` on top of `base`: mappings are merged key by key, everything else (lists too) is replaced."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(base.value)
    for key, child in over.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return Node(merged, over.file, over.line)


_STEP = re.compile(r"\.?([^.\[\]]+)|\[(-?\d+)\]")


def parse_path(text: str) -> tuple[Key, ...]:
    """`stages[0].steps` -> ("stages", 0, "steps"). Raises ValueError for anything else."""
    path: list[Key] = []
    end = 0
    while end < len(text):
        found = _STEP.match(text, end)
        if not found or (end == 0 and text[0] in ".["):
            raise ValueError(text)
        path.append(found[1] if found[1] is not None else int(found[2]))
        end = found.end()
    if not path:
        raise ValueError(text)
    return tuple(path)


def format_path(path: tuple[Key, ...]) -> str:
    """("stages", 0, "steps") -> `stages[0].steps`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")


def apply_override(tree: Node, override: str) -> None:
    """Set one `dotted.path=value` in place; the value is read as YAML. Raises ConfigError if the path leads nowhere."""
    source = f"override {override}"
    name, equals, text = override.partition("=")
    try:
        path = parse_path(name.strip())
    except ValueError:
        path = ()
    if not equals or not path:
        raise ConfigError(
            f"config: override {override!r} is not of the form path=value, "
            "e.g. student.voco.tokens=4 or stages[0].steps=10."
        )
    value = _set_origin(parse(text, source), source)
    node = tree
    for depth, key in enumerate(path):
        last = depth == len(path) - 1
        if node.value is None and isinstance(key, str):
            node.value = {}
        if isinstance(node.value, dict) and isinstance(key, str):
            if last:
                node.value[key] = value
            else:
                node = node.value.setdefault(key, Node({}, source, None))
        elif isinstance(node.value, list) and isinstance(key, int):
            if node.child(key) is None:
                raise ConfigError(
                    f"config: {format_path(path[:depth])} has {len(node.value)} items, no [{key}]. ({source})"
                )
            if last:
                node.value[key] = value
            else:
                node = node.value[key]
        else:
            kind = {dict: "a mapping: give a key", list: "a list: give an index like [0]"}.get(
                type(node.value), f"the value {node.value!r}, with nothing below it"
            )
            raise ConfigError(f"config: {format_path(path[:depth]) or 'a config'} is {kind}. ({source})")


def _set_origin(node: Node, source: str) -> Node:
    children = (
        node.value.values() if isinstance(node.value, dict) else node.value if isinstance(node.value, list) else ()
    )
    for child in children:
        _set_origin(child, source)
    node.file, node.line = source, None
    return node
