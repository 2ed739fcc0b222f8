"""Rollout and gradient rollout over the bare model, for every fusion, with and without discarding."""

from __future__ import annotations

import itertools
from functools import partial

from measuring import MODELS, at_most, backward, build, forward, images, in_turns, milliseconds, table
from rich.table import Table

from vit_explain import Explainer

LIMITS = {
    ("rollout", "ViT-B/16"): 1.1,
    ("rollout", "DeiT-Ti"): 1.3,
    ("gradient_rollout", "ViT-B/16"): 1.1,
    ("gradient_rollout", "DeiT-Ti"): 1.2,
}
BATCHES = (4, 8)
OPTIONS = tuple(itertools.product((0.0, 0.9), ("mean", "min", "max")))


def speed(rounds: int) -> Table:
    rows = table("Cost over the bare model at 224 pixels", "method", "model", "batch", "fusion", "discard", "bare ms",
                 "with map ms", "ratio", "limit", "met")  # fmt: skip
    for (method, limit), batch in itertools.product(LIMITS.items(), BATCHES):
        name, title = method
        model = build(MODELS[title])
        explainer, pixels = Explainer(model), images(batch)
        bare = partial(forward if name == "rollout" else backward, model, pixels)
        maps = [
            partial(explainer.attribute, pixels, None, name, head_fusion=fusion, discard_ratio=discard)
            for discard, fusion in OPTIONS
        ]
        for (discard, fusion), found in zip(OPTIONS, in_turns(bare, maps, rounds), strict=True):
            rows.add_row(name, title, str(batch), fusion, f"{discard:g}", milliseconds(found.bare),
                         milliseconds(found.work), *at_most(found.ratio, limit))  # fmt: skip
    return rows
