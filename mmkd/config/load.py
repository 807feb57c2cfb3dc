"""From a YAML file to a checked Config: `extends:`, dotted overrides, and errors that say where and what to do."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import PrivateAttr, TypeAdapter, ValidationError

from mmkd.config.problems import explain, near, near_or_all, option_problems
from mmkd.config.schema import Config
from mmkd.config.sections import Section
from mmkd.config.vision_schema import VisionConfig
from mmkd.config.yaml_tree import Dumper, Node, apply_override, merge, parse_path, read
from mmkd.errors import ConfigError


class LoadedConfig(Config):
    """A Config that remembers where each value was written; see `where`."""

    _tree: Node = PrivateAttr()


class LoadedVisionConfig(VisionConfig):
    """As LoadedConfig, for a run of `kind: vision`."""

    _tree: Node = PrivateAttr()


Loaded = TypeVar("Loaded", LoadedConfig, LoadedVisionConfig)
Schema = TypeVar("Schema", bound=Section)


def packaged(folder: str, package: Path = Path(__file__).parents[1]) -> Path:
    """`configs` or `eval_suites`: beside the package in a checkout, inside it in an installed wheel."""
    checkout = package.parent / folder
    return checkout if (package.parent / "pyproject.toml").is_file() else package / "_share" / folder


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read, merge and check a config.

    Args:
        path: a YAML file, a run folder, or the name of a packaged config such as `demo/teacher`.
        overrides: `dotted.path=value` strings, applied last, in order.

    Raises:
        ConfigError: listing every problem, each with key path, value, what is allowed, and file:line.
    """
    return _checked(_read(path, overrides), LoadedConfig, Config)


def load_run(path: str | Path, overrides: Iterable[str] = ()) -> Config | VisionConfig:
    """As `load_config`, for either kind of run: one with `kind: vision` gives a VisionConfig."""
    tree = _read(path, overrides)
    kind = tree.child("kind")
    if kind is None:
        return _checked(tree, LoadedConfig, Config)
    if kind.plain() != "vision":
        raise ConfigError(
            f"config: kind is {kind.plain()!r}; allowed: 'vision', or no kind for a vision-language model. ({kind})"
        )
    return _checked(tree, LoadedVisionConfig, VisionConfig)


def load_as(path: str | Path, overrides: Iterable[str], schema: type[Schema]) -> Schema:
    """As `load_config`, for a YAML of another shape, e.g. that of `mmkd select`."""
    tree = _read(path, overrides)
    try:
        return schema.model_validate(tree.plain())
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, tree, schema))) from error


def _read(path: str | Path, overrides: Iterable[str]) -> Node:
    tree = _read_extended(find_config(path), ())
    for override in overrides:
        apply_override(tree, override)
    return tree


def _checked(tree: Node, loaded: type[Loaded], schema: type[Config | VisionConfig]) -> Loaded:
    try:
        config = loaded.model_validate(tree.plain())
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, tree, schema))) from error
    config._tree = tree
    return config


def find_config(name: str | Path, beside: Path | None = None) -> Path:
    """The file that `name` means: as a path (relative to the folder `beside`), else among the packaged configs.

    Raises ConfigError with the nearest names.
    """
    roots = [beside or Path(), packaged("configs")]
    for root in roots:
        for candidate in (root / name, root / f"{name}.yaml", root / name / "config.yaml"):
            if candidate.is_file():
                return candidate
    known = sorted(str(file.relative_to(roots[1]).with_suffix("")) for file in roots[1].rglob("*.yaml"))
    raise ConfigError(
        f"config: no file {name}, and no packaged config of that name.{near(str(name), known)} "
        f"Packaged: {', '.join(known) or 'none'}."
    )


def dump_config(config: Config | VisionConfig) -> str:
    """The resolved config as YAML; loading it again gives an equal Config."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def json_schema(config: type[Section] = Config) -> dict[str, Any]:
    """JSON schema of a kind of config, for editors. Sections may be partial, since a file may extend another; list
    items are whole."""
    schema = config.model_json_schema()
    items = set(re.findall(r"'items': \{'\$ref': '#/\$defs/(\w+)'\}", str(schema)))
    for name, section in [(config.__name__, schema), *schema["$defs"].items()]:
        if name not in items:
            section.pop("required", None)
    text = {"type": "string"}
    schema["properties"]["extends"] = {
        "description": "Config or configs that this one is laid over: paths relative to this file, or packaged names.",
        "anyOf": [text, {"type": "array", "items": text}],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def where(config: Config | VisionConfig, path: str) -> str:
    """`file:line` of the value at `path` (e.g. `objectives[1].temperature`), or of the section nearest to it."""
    if not isinstance(config, (LoadedConfig, LoadedVisionConfig)):
        return ""
    return str(config._tree.nearest(parse_path(path)))


def check_options(
    name: str,
    options: Mapping[str, Any],
    target: Callable | inspect.Signature,
    *,
    at: str = "",
    config: Config | VisionConfig | None = None,
    given: tuple[str, ...] = ("self",),
) -> dict[str, Any]:
    """Check the options of an open section against the keyword arguments of what it builds.

    Args:
        name: of the registry entry, for the message, e.g. `forward_kl`.
        options: the section's extra keys.
        target: a class, function or signature; its annotations, if any, check the values too.
        at: key path of the section, e.g. `objectives[1]`.
        config: the loaded config, for file and line.
        given: arguments that the caller passes itself.

    Returns:
        The options, with values converted to the annotated types.

    Raises:
        ConfigError: for an unknown option (with the nearest name), a missing one, or a value of a wrong type.
    """
    signature = target if isinstance(target, inspect.Signature) else inspect.signature(target)
    hints = {} if isinstance(target, inspect.Signature) else _hints(target)
    parameters = {
        key: parameter
        for key, parameter in signature.parameters.items()
        if key not in given and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    checked, problems = dict(options), []

    def problem(key: str, text: str) -> None:
        path = f"{at}.{key}" if at else key
        place = where(config, path) if config is not None else ""
        problems.append(f"config: {path} {text}" + (f" ({place})" if place else ""))

    for key, value in options.items():
        if key not in parameters:
            if not takes_any:
                problem(key, f"is not a field of {name}.{near_or_all(key, parameters)}")
        elif key in hints:
            try:
                checked[key] = TypeAdapter(hints[key]).validate_python(value)
            except ValidationError as error:
                for place, text in option_problems(key, value, error, hints[key]):
                    problem(place, text)
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in options:
            problem(key, f"is missing; {name} needs it.")
    if problems:
        raise ConfigError("\n".join(problems))
    return checked


def _hints(target: Callable) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # an annotation imported only for type checkers: then only names are checked
        return {}


def _read_extended(path: Path, above: tuple[Path, ...]) -> Node:
    """The file laid over the ones it extends."""
    path = path.resolve() if path.is_absolute() else path
    real = path.resolve()
    if real in above:
        circle = " -> ".join(str(file.name) for file in (*above[above.index(real) :], real))
        raise ConfigError(f"config: extends goes round in a circle: {circle}. Remove one of them. ({path})")
    tree = read(path)
    extends = tree.value.pop("extends", None)
    base = None
    for item in _extended(extends):
        try:
            file = find_config(item.value, path.parent)
        except ConfigError as error:
            raise ConfigError(f"{error} (extends in {item})") from error
        parent = _read_extended(file, (*above, real))
        base = parent if base is None else merge(base, parent)
    return tree if base is None else merge(base, tree)


def _extended(extends: Node | None) -> list[Node]:
    if extends is None:
        return []
    items = extends.value if isinstance(extends.value, list) else [extends]
    for item in items:
        if not isinstance(item.value, str):
            raise ConfigError(f"config: extends is {extends.plain()!r}; allowed: a path or a list of paths. ({item})")
    return items
