"""Strict configuration: YAML and dotted overrides into the frozen dataclasses that live beside their code."""

import copy
import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from foreword.errors import ConfigError, nearest

C = TypeVar("C")

LARGEST_SEED = 2**63 - 1


class _StrictLoader(yaml.SafeLoader):
    """YAML without the rule that the last of two equal keys wins in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping, or raise where a key occurs twice."""
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(problem=f"key {twice!r} occurs twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, names a key twice, or is not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config file {str(path)!r} does not exist; give the path of a YAML file")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except (yaml.YAMLError, ValueError) as error:  # not UTF-8, or a date that there is not
        raise ConfigError(f"config file {str(path)!r} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"config file {str(path)!r} holds {type(tree).__name__}, not a mapping of fields")
    return tree


def override(tree: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Return a copy of `tree` with dotted `key.path=value` assignments applied, values read as YAML.

    Text with a colon needs no quotes: `prompt.init.text=table-to-text:` is those words, not a mapping.

    Raises:
        ConfigError: an assignment has no `=`, its value is no YAML, or it walks through a field that is not a mapping.
    """
    tree = copy.deepcopy(tree)
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        if not equals or not dotted:
            raise ConfigError(f"override {assignment!r} is not of the form field.path=value")
        put(tree, dotted, _assigned(assignment, text))
    return tree


def put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted field of a tree of mappings in place.

    Raises:
        ConfigError: it walks through a field that is not a mapping.
    """
    *parents, leaf = dotted.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {dotted!r}: {parent!r} is a value, not a group of fields")
    tree[leaf] = value


def _assigned(assignment: str, text: str) -> Any:
    """Return the value of an assignment: YAML, or plain text where YAML sees a mapping without braces."""
    braced = text.lstrip()[:1] in ("{", "[", "'", '"')
    try:
        value = yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, ValueError) as error:
        if not braced and ":" in text:
            return text
        said = " ".join(str(error).split())
        raise ConfigError(f"override {assignment!r} has no valid YAML value ({said}); put the text in quotes") from None
    return text if isinstance(value, dict) and not braced else value


def check_seed(seed: int, name: str = "seed") -> None:
    """Raise unless a seed is one that every generator of random numbers takes.

    Raises:
        ConfigError: it is negative, or has more than 63 bits.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ConfigError(f"{name} = {seed!r} must be a whole number from 0 to 2**63 - 1")


def check_least(name: str, value: float | None, least: int) -> None:
    """Raise where a number is too small; None is no number and passes.

    Raises:
        ConfigError: it is below `least`.
    """
    if value is not None and value < least:
        raise ConfigError(f"{name} = {value!r} must be at least {least}")


def build(kind: type[C], tree: dict[str, Any], where: str = "") -> C:
    """Return the dataclass `kind` filled from a mapping; nested dataclasses, lists and tuples are built too.

    Args:
        kind: a dataclass whose fields are plain types, Literals, dataclasses, or lists/tuples/dicts of them.
        tree: field name to value.
        where: dotted path of `tree` inside the whole config, for messages.

    Raises:
        ConfigError: an unknown key (names the nearest), a missing field, or a value of the wrong type.
    """
    if not isinstance(tree, dict):
        raise ConfigError(f"{where or kind.__name__} = {tree!r} must be a mapping of fields")
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for key in tree:
        if key not in fields:
            raise ConfigError(f"unknown field {_join(where, key)!r}{nearest(key, fields)}")
    values = {}
    for name, field in fields.items():
        if name in tree:
            values[name] = _coerce(hints[name], tree[name], _join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"missing field {_join(where, name)!r}; add it to the config")
    return kind(**values)


def to_dict(config: Any) -> Any:
    """Return a dataclass (or a container of them) as plain dicts, lists and scalars, ready for YAML or JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init}
    if isinstance(config, dict):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def dump_yaml(config: Any, path: str | Path) -> None:
    """Write a config to a YAML file that `load_yaml` and `build` read back to an equal one."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _join(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """Return `value` as the annotated type; only lossless conversions (int to float, list to tuple) are made."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Union or origin is types.UnionType:
        return _coerce_union(args, value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} = {value!r} is not a valid choice{nearest(value, map(str, args))}")
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)
    if origin in (list, tuple):
        return _coerce_sequence(origin, args, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} = {value!r} must be a mapping")
        return {_coerce(args[0], k, where): _coerce(args[1], v, _join(where, k)) for k, v in value.items()}
    return _coerce_scalar(hint, value, where)


def _coerce_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    failures = []
    for choice in args:
        if choice is type(None):
            continue
        try:
            return _coerce(choice, value, where)
        except ConfigError as error:
            failures.append(error)
    raise failures[0]


def _coerce_sequence(origin: type, args: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} = {value!r} must be a list")
    item = args[0] if args else Any
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(value) != len(args):
            raise ConfigError(f"{where} = {value!r} must have {len(args)} items")
        return tuple(_coerce(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    return origin(_coerce(item, v, f"{where}[{i}]") for i, v in enumerate(value))


def _coerce_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as a string
        try:
            return float(value)
        except ValueError:
            pass
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    name = getattr(hint, "__name__", str(typing.cast(Any, hint)))
    raise ConfigError(f"{where} = {value!r} must be {name}, not {type(value).__name__}")
