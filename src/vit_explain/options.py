"""Options as data: what a keyword of a method may be, read from its annotation; checked and parsed in one place."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal

from .errors import OptionError


@dataclass(frozen=True)
class Range:
    """Bounds of a numeric option, for ``Annotated[float, Range(0, 1)]``; ``below``: the upper bound is excluded."""

    low: float = -math.inf
    high: float = math.inf
    below: bool = False

    def holds(self, value: float) -> bool:
        return self.low <= value < self.high if self.below else self.low <= value <= self.high

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}{')' if self.below else ']'}"


Seed = Annotated[int, Range(0, 1e9)]


@dataclass(frozen=True)
class Option:
    """One keyword of a method."""

    name: str
    default: Any
    kinds: tuple[type, ...]
    choices: tuple[Any, ...] = ()
    bounds: Range | None = None

    @property
    def allowed(self) -> str:
        """In words, for errors and tables."""
        words = [repr(choice) for choice in self.choices]
        words += [
            {int: "a whole number", float: "a number", bool: "true or false", str: "a text", tuple: "a pair"}[kind]
            + (f" in {self.bounds}" if self.bounds and kind in (int, float) else "")
            for kind in self.kinds
            if kind is not type(None)
        ]
        words += ["none"] if type(None) in self.kinds else []
        return " or ".join(words)

    def check(self, value: Any, method: str) -> Any:
        """The value, as the kind the method expects; an error that says what is allowed otherwise."""
        if isinstance(value, Real) and not isinstance(value, (int, float)):  # numpy's numbers
            value = int(value) if isinstance(value, Integral) else float(value)
        if any(type(value) is type(choice) and value == choice for choice in self.choices):
            return value
        if value is None and type(None) in self.kinds:
            return None
        if isinstance(value, bool) and bool not in self.kinds:
            value_kinds: tuple[type, ...] = ()
        else:
            value_kinds = self.kinds
        if float in value_kinds and isinstance(value, int) and not isinstance(value, bool) and int not in value_kinds:
            value = float(value)
        if isinstance(value, list) and tuple in value_kinds:
            value = tuple(value)
        if isinstance(value, value_kinds) and (
            not isinstance(value, (int, float)) or (self.bounds or Range()).holds(value)  # nan is in no range
        ):
            return value
        raise OptionError(f"{method}: {self.name} must be {self.allowed}, not {value!r}")

    def parse(self, text: str, method: str) -> Any:
        """The value that a text stands for, as written on the command line."""
        for choice in self.choices:
            if text == str(choice):
                return choice
        for kind in self.kinds:
            try:
                if kind is bool and text.lower() in ("true", "false", "yes", "no", "1", "0"):
                    return text.lower() in ("true", "yes", "1")
                if kind is type(None) and text.lower() in ("none", ""):
                    return None
                if kind in (int, float):
                    return self.check(kind(text), method)
                if kind is tuple and "," in text:  # a number alone may be another kind's
                    return tuple(int(part) for part in text.split(","))
            except ValueError:
                continue
        return self.check(text, method)


def nth(number: int, count: int, method: str, thing: str) -> int:
    """Position from the front of the block or head that an option names by number, from the end where negative."""
    if not -count <= number < count:
        raise OptionError(f"{method}: {thing} {number} does not exist; the model has {thing}s 0 to {count - 1}")
    return number % count


def options_of(function: Callable[..., Any]) -> dict[str, Option]:
    """The options of a method or a metric: its keyword-only parameters, by name."""
    hints = typing.get_type_hints(function, include_extras=True)
    return {
        parameter.name: option_of(parameter.name, parameter.default, hints[parameter.name])
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def settled(options: Mapping[str, Option], given: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """All options: the given ones checked, defaults for the others. ``owner``: whose they are, for errors."""
    for name in given:
        if name not in options:
            raise OptionError(f"{owner} has no option {name!r}; its options: {', '.join(options) or 'none'}")
    return {
        name: option.check(given[name], owner) if name in given else option.default for name, option in options.items()
    }


def option_of(name: str, default: Any, hint: Any) -> Option:
    """The option that a keyword's default and annotation describe."""
    bounds = None
    kinds: list[type] = []
    choices: list[Any] = []
    for part in _parts(hint):
        if isinstance(part, Range):
            bounds = part
        elif typing.get_origin(part) is Literal:
            choices += typing.get_args(part)
        elif isinstance(part, type):
            kinds.append(part)
        else:
            kinds.append(typing.get_origin(part))
    return Option(name, default, tuple(kinds), tuple(choices), bounds)


def _parts(hint: Any) -> Iterable[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _parts(part)
    elif typing.get_origin(hint) is typing.Annotated:
        inner, *marks = typing.get_args(hint)
        yield from _parts(inner)
        yield from marks
    else:
        yield hint
