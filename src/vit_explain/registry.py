"""Methods by name: what each is, costs and takes, as data beside its code.

A method is a function ``(trace, *, option=default, ...) -> (B, h, w)``, or an ``Attribution``, decorated with
``@method(...)`` in a module of ``vit_explain.methods``. Its keyword defaults are its options; their annotations say
what is allowed, and the command line, the docs and the checks below read them from there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import OptionError, near
from .options import Option, options_of, settled

if TYPE_CHECKING:
    from .types import Attends  # loads torch, which naming a method needs not


@dataclass(frozen=True)
class Method:
    """A registered method and the facts about it."""

    name: str
    run: Callable[..., Any]
    summary: str
    paper: str
    family: str
    means: str
    does_not_mean: str
    forwards: int
    backwards: int
    class_specific: bool
    hardly_class_specific: str
    signs: Callable[..., bool]
    needs: frozenset[str]
    options: dict[str, Option]
    read_rows_suffice: Callable[..., bool]
    within: Callable[..., AbstractContextManager[Any]] | None
    needs_also: Callable[..., Iterable[str]]
    beyond_passes: str
    any_layout: bool

    @property
    def about_class(self) -> str:
        """Whether its maps are about the class that is asked for: yes, hardly, or no."""
        return "no" if not self.class_specific else "hardly" if self.hardly_class_specific else "yes"

    @property
    def signed(self) -> bool:
        """Whether, with the default options, maps have numbers below zero, which mean the opposite of those above."""
        return self.signed_with({})

    def signed_with(self, given: dict[str, Any], *, of_class: bool = True) -> bool:
        """The same with these options; ``of_class``: whether each target is a class, no contrast or function."""
        return self.signs(of_class=of_class, **self.settings(given))

    @property
    def fast(self) -> bool:
        """Whether one forward and at most one backward are all it takes."""
        return self.forwards == 1 and self.backwards <= 1

    def needed(self, settings: dict[str, Any]) -> frozenset[str]:
        """What a look must keep with these options."""
        return self.needs | frozenset(self.needs_also(**settings))

    def explains(self, attends: Attends, needs: frozenset[str] | None = None) -> bool:
        """Whether it is defined for models of such attention; ``needs``: what it needs, with its options."""
        if attends == "everywhere":
            return True
        needs = self.needed(self.settings({})) if needs is None else needs
        plain = bool(needs & PLAIN_NEEDS or self.within is not None)
        return not plain or (self.any_layout and attends == "in places")

    def settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """All options: the given ones checked, defaults for the others."""
        return settled(self.options, given, self.name)


METHODS: dict[str, Method] = {}
# What kinds of methods there are, in the order in which lists show them.
FAMILIES = (
    "attention",
    "attention × gradient",
    "relevance propagation",
    "class activation maps",
    "gradients",
    "perturbation",
    "looking inside",
    "baselines",
)
OTHERS = "others"  # maps that a caller makes, of which nothing but numbers is known here
# What a look may have to keep for a method.
NEEDS = {
    "attention": "attention of every block",
    "values": "the values that attention mixes (with gradients they come along)",
    "tokens": "the residual stream before and after every block",
    "attended": "what attention adds to the residual stream in every block",
    "features": "the tokens as the last attention gets them",
    "pixels": "the gradient at the pixels",
    "biases": "what the biases of the blocks and of the last norm say of y at every token",
    "gradient": "the gradient of y at what is asked for",
    "graph": "the autograd graph, for gradients of other numbers",
    "probe": "further looks at other pixels or fewer patches",
    "blocks": "blocks of attention from every token to every token, one after the other",
}


# What only blocks of attention from every token to every token leave.
PLAIN_NEEDS = frozenset({"attention", "values", "tokens", "attended", "biases", "blocks"})


def method(
    *,
    paper: str,
    family: str,
    means: str,
    does_not_mean: str,
    needs: Iterable[str],
    forwards: int = 1,
    backwards: int = 0,
    class_specific: bool,
    hardly_class_specific: str = "",
    signed: bool | Callable[..., bool] = False,
    read_rows_suffice: Callable[..., bool] = lambda **_: False,
    within: Callable[..., AbstractContextManager[Any]] | None = None,
    needs_also: Callable[..., Iterable[str]] = lambda **_: (),
    beyond_passes: str = "",
    any_layout: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function under its own name; the first line of its docstring is the summary.

    ``family``: one of ``FAMILIES``. ``means``, ``does_not_mean``: in a sentence or two each, what a reader may take the
    map for, and what not. ``hardly_class_specific``: why its maps do not tell the classes of a mosaic apart although it
    takes a class, for methods that were found not to. ``signed``: whether numbers below zero mean the opposite of those
    above, which is against the class where the map is about one; where that depends, a function of the options and of
    ``of_class``, see ``Method.signed_with``. ``read_rows_suffice``: from the options, whether of the last
    block's queries only those that the head reads matter; where they are single tokens, the others are then not kept.
    ``within``: from the options, what the look happens in, for methods that change how gradients flow. ``needs_also``:
    from the options, what is needed on top. ``beyond_passes``: what takes much time besides the passes, where a
    method's definition asks for it. ``any_layout``: whether it understands attention that is windowed or pooled
    (``Layer.place``), for methods that need attention.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        if unknown := set(needs) - set(NEEDS):
            raise ValueError(f"{name}: unknown needs {sorted(unknown)}")
        if family not in FAMILIES:
            raise ValueError(f"{name}: unknown family {family!r}")
        if name in METHODS and METHODS[name].run.__module__ != function.__module__:
            raise ValueError(f"two methods are called {name}")
        always = bool(signed)
        summary = (inspect.getdoc(function) or "").splitlines()[0]
        METHODS[name] = Method(
            name,
            function,
            summary,
            paper,
            family,
            means,
            does_not_mean,
            forwards,
            backwards,
            class_specific,
            hardly_class_specific,
            signed if callable(signed) else lambda **_: always,
            frozenset(needs),
            options_of(function),
            read_rows_suffice,
            within,
            needs_also,
            beyond_passes,
            any_layout,
        )
        return function

    return register


def other_method(
    name: str,
    maps: Callable[[Any, Any, Any], Any],
    *,
    signed: bool = False,
    class_specific: bool = True,
    forwards: int = 0,
    backwards: int = 0,
) -> Method:
    """A method of your own, or of another package, for ``evaluate(..., others=[...])`` beside the registered ones.

    ``maps``: called as ``maps(model, pixels, classes)`` with the ``torch.nn.Module``, preprocessed pixels (B, C, H, W)
    and class numbers (B,), on the model's device; it returns relevance (B, h, w), a number a patch or a pixel, larger
    for what matters more. It is also called with a copy of the model that has random weights, so it must keep nothing
    of a model from call to call. An evaluation that goes on finds its numbers by the method's name, so a method that
    was changed needs another. ``signed``: whether numbers below zero speak against the class. ``forwards``,
    ``backwards``: what an image takes, for the table.
    """
    return Method(
        name=name,
        run=maps,
        summary=(inspect.getdoc(maps) or name).splitlines()[0],
        paper="",
        family=OTHERS,
        means="",
        does_not_mean="",
        forwards=forwards,
        backwards=backwards,
        class_specific=class_specific,
        hardly_class_specific="",
        signs=lambda **_: signed,
        needs=frozenset(),
        options={},
        read_rows_suffice=lambda **_: False,
        within=None,
        needs_also=lambda **_: (),
        beyond_passes="",
        any_layout=True,
    )


BEST = "best"  # the head of the leaderboard, see ``leaderboard``


def choose_method(name: str | None, target: Any) -> str:
    """As the original project has it: no class means attention rollout, a class means gradient rollout."""
    return name or ("rollout" if target is None else "gradient_rollout")


def by_family(methods: Iterable[Method]) -> list[tuple[str, list[Method]]]:
    """The methods in the order of ``FAMILIES``, by name within each; families without any are left out."""
    found = sorted(methods, key=lambda method: method.name)
    grouped = [(family, [method for method in found if method.family == family]) for family in FAMILIES]
    return [(family, members) for family, members in grouped if members]


def choose_methods(names: Sequence[str]) -> list[Method]:
    """Each method once, in the order named. ``"all"`` stands for every method, by family, and ``"fast"`` for those
    that take one forward and at most one backward."""
    everything = [method for _, members in by_family(METHODS.values()) for method in members]
    lists = {"all": everything, "fast": [method for method in everything if method.fast]}
    chosen = {method.name: method for name in names for method in lists.get(name) or [find(name)]}
    if not chosen:
        raise OptionError('name at least one method, or "fast" or "all"')
    return list(chosen.values())


def find(name: str) -> Method:
    """The method of this name; an error with near matches otherwise."""
    if not isinstance(name, str) or name not in METHODS:
        raise OptionError(f"there is no method {name!r}; {near(str(name), METHODS)}")
    return METHODS[name]
