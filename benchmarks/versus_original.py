"""The original script's rollout over ours. Without discarding there is no limit: the bare forward bounds the ratio."""

from __future__ import annotations

import itertools
from functools import partial

from measuring import MODELS, at_least, build, forward, images, in_turns, milliseconds, table
from original import OriginalRollout
from rich.table import Table
from torch import Tensor, nn

from vit_explain import Explainer

LIMITS = {"ViT-B/16": 1.35, "DeiT-Ti": 2.5}
OPTIONS = {("mean", 0.9): "script's default", ("max", 0.9): "its README's", ("mean", 0.0): "no discarding"}
BATCH = 8


def theirs(model: nn.Module, pixels: Tensor, fusion: str, discard: float) -> None:
    with OriginalRollout(model, fusion, discard) as rollout:
        for image in pixels:
            rollout(image[None])


def versus_original(rounds: int) -> Table:
    rows = table(f"The original (one image at a time, unfused, N×N×N products) over ours, per image, batch {BATCH}",
                 "model", "options", "fusion", "discard", "original ms", "ours ms", "over the bare forward",
                 "times faster", "at least", "met")  # fmt: skip
    for (title, name), ((fusion, discard), what) in itertools.product(MODELS.items(), OPTIONS.items()):
        model, pixels = build(name), images(BATCH)
        explainer = Explainer(model)
        ours = partial(explainer.attribute, pixels, None, "rollout", head_fusion=fusion, discard_ratio=discard)
        works = [partial(theirs, model, pixels, fusion, discard), partial(forward, model, pixels)]
        original, bare = in_turns(ours, works, rounds)
        limit = LIMITS[title] if discard else None
        rows.add_row(title, what, fusion, f"{discard:g}", milliseconds(original.work / BATCH),
                     milliseconds(original.bare / BATCH), f"{original.ratio / bare.ratio:.2f}",
                     *at_least(original.ratio, limit))  # fmt: skip
    return rows
