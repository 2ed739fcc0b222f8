"""Every method of few passes over the bare passes; which they are and what they cost beyond comes from the registry."""

from __future__ import annotations

from functools import partial

from measuring import MODELS, at_most, backward, build, forward, images, in_turns, milliseconds, table
from rich.table import Table

from vit_explain import Explainer, list_methods
from vit_explain.registry import Method

BATCHES = {"ViT-B/16": 4, "DeiT-Ti": 8}
LIMIT = 1.15  # of one forward and one backward
LIMIT_FORWARD = 1.3  # of one forward alone, in which all layers' attention, worked out again, weighs more
MOST = 2  # passes either way of what is shown
LONG = {"attention_flow"}  # one forward, and then a second of the processor for each picture; see the table `flow`


def cases(with_backward: bool) -> list[tuple[Method, float | None]]:
    """(method, limit); methods of more passes, or whose definition asks for more than passes, have none."""
    few = [one for one in list_methods() if max(one.forwards, one.backwards) <= MOST]
    few = [one for one in few if bool(one.backwards) == with_backward]
    limit = LIMIT if with_backward else LIMIT_FORWARD
    return [(one, limit if max(one.forwards, one.backwards) == 1 and not one.beyond_passes else None) for one in few]


def cost(one: Method) -> str:
    """Its passes, and a plus where its definition asks for more."""
    return f"{one.forwards}F {one.backwards}B{' +' if one.beyond_passes else ''}"


def methods(rounds: int) -> Table:
    rows = table("Cost over one bare forward, or over one forward and backward to the pixels", "method", "passes",
                 "model", "batch", "bare ms", "with map ms", "ratio", "limit", "met")  # fmt: skip
    for title, name in MODELS.items():
        model = build(name)
        explainer, pixels = Explainer(model), images(BATCHES[title])
        for bare, chosen in ((forward, cases(False)), (backward, cases(True))):
            maps = [partial(explainer.attribute, pixels, None, one.name) for one, _ in chosen]
            timings = in_turns(partial(bare, model, pixels), maps, rounds)
            for (one, limit), found in zip(chosen, timings, strict=True):
                rows.add_row(one.name, cost(one), title, str(len(pixels)), milliseconds(found.bare),
                             milliseconds(found.work), *at_most(found.ratio, limit))  # fmt: skip
    return rows
