"""Attention flow of one picture: every patch's maximum flow, in seconds of this machine, beside the bare forward."""

from __future__ import annotations

import statistics
from functools import partial

from measuring import at_most, build, forward, images, seconds, table
from rich.table import Table

from vit_explain import Explainer

# (model, pixels a side, most seconds of the flow on 2 cores)
CASES = (
    ("deit_tiny_patch16_224", 224, 0.6),
    ("vit_base_patch16_224", 224, 0.6),
    ("vit_base_patch16_224", 384, 4.0),
)


def flow(rounds: int) -> Table:
    rows = table("Attention flow beyond the bare forward, one picture (seconds)", "model", "tokens", "last_blocks",
                 "bare", "with map", "flow", "at most", "met")  # fmt: skip
    for name, side, most in CASES:
        model, pixels = build(name, img_size=side), images(1, side)
        explainer = Explainer(model)
        for last_blocks in (3, None):
            work = partial(explainer.attribute, pixels, None, "attention_flow", last_blocks=last_blocks)
            work()
            pairs = [(seconds(partial(forward, model, pixels)), seconds(work)) for _ in range(rounds)]
            bare, mapped = (statistics.median(column) for column in zip(*pairs, strict=True))
            beyond = statistics.median(b - a for a, b in pairs)
            tokens = str((side // 16) ** 2 + 1)
            rows.add_row(name, tokens, str(last_blocks), f"{bare:.2f}", f"{mapped:.2f}", *at_most(beyond, most))
    return rows
