"""Dataclasses from YAML: every key and value is checked, every mistake is one line.

Types of fields: `int`, `float`, `bool`, `str`, `Literal`, unions, `tuple[X, ...]` for lists,
`Mapping[str, X]`, nested dataclasses, and `Annotated[int, least]` for numbers with a least value.
"""

import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

Count = Annotated[int, 1]  # a whole number, at least 1
Whole = Annotated[int, 0]  # a whole number, at least 0
Real = Annotated[float, 0.0]  # a number, at least 0


class ConfigError(ValueError):
    """A value of `params.yaml` that cannot be used, with its key and how to mend it."""


def build(config: type, section: Any, key: str) -> Any:
    """Make the dataclass `config` of a mapping.

    Args:
        config: the dataclass.
        section: its fields by name.
        key: where the section stands, for messages: `experiments.quick.data`.

    Raises:
        ConfigError: a key is unknown or missing, or a value is of the wrong type or too small.
    """
    required = {f.name for f in fields(config) if f.default is f.default_factory is MISSING}
    check_keys(section, {f.name for f in fields(config)}, required, key)
    hints = get_type_hints(config, include_extras=True)
    values = {k: check_value(v, hints[k], f"{key}.{k}") for k, v in section.items()}
    try:
        return config(**values)
    except ConfigError as error:  # from __post_init__, which names the last part of the key
        raise ConfigError(f"{key}.{error}") from None


def check_keys(section: Any, known: set[str], required: set[str], key: str) -> None:
    """Make sure that a section has all required keys and none that are not known."""
    if not isinstance(section, Mapping):
        raise ConfigError(f"{key} is {section!r}; expected keys {sorted(known)}")
    for unknown in section.keys() - known:
        raise ConfigError(f"{key}.{unknown} is not a known key{suggest(unknown, known)}")
    for missing in sorted(required - section.keys()):
        raise ConfigError(f"{key}.{missing} is missing; add it")


def check_value(value: Any, hint: Any, key: str) -> Any:
    """Return `value` as the type that `hint` asks for, or raise a `ConfigError`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return build(hint, value, key)
    if origin is Literal:
        if value in arguments and type(value) in map(type, arguments):
            return value
        raise ConfigError(f"{key} is {value!r}; expected one of {list(arguments)}")
    if origin in (Union, types.UnionType):
        return _check_union(value, arguments, key)
    if origin is tuple:
        if not isinstance(value, list | tuple) or not value:
            raise ConfigError(f"{key} is {value!r}; expected a list such as [1, 2]")
        return tuple(check_value(v, arguments[0], f"{key}[{i}]") for i, v in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise ConfigError(f"{key} is {value!r}; expected a mapping such as {{name: value}}")
        return {k: check_value(v, arguments[1], f"{key}.{k}") for k, v in value.items()}
    return _check_scalar(value, hint, key)


def _check_scalar(value: Any, hint: Any, key: str) -> Any:
    annotated = get_origin(hint) is Annotated
    kind, least = get_args(hint)[:2] if annotated else (hint, None)
    if kind is Any:
        return value
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        advice = " (write 1.0e-3 rather than 1e-3)" if kind is float and "e" in str(value) else ""
        raise ConfigError(f"{key} is {value!r}; expected {_NAMES.get(kind, kind)}{advice}")
    if kind is float and value - value != 0:
        raise ConfigError(f"{key} is {value!r}; expected a finite number")
    if least is not None and value < least:
        raise ConfigError(f"{key} is {value!r}; expected at least {least}")
    return value


def _check_union(value: Any, hints: tuple, key: str) -> Any:
    errors = []
    for hint in hints:
        try:
            return check_value(value, hint, key)
        except ConfigError as error:
            errors.append(str(error).split("expected ")[-1])
    raise ConfigError(f"{key} is {value!r}; expected {', or '.join(errors)}")


_NAMES = {
    type(None): "null",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
}


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message on an unknown name: what it may have been meant to be."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; expected one of {sorted(known)}"
