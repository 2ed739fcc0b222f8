"""B images × K classes in one call, which is one forward and K backwards, beside B·K calls of one."""

from __future__ import annotations

from functools import partial
from typing import Any

from measuring import MODELS, at_least, build, images, in_turns, milliseconds, table
from rich.table import Table
from torch import Tensor

from vit_explain import Explainer

CASES = {"ViT-B/16": (4, 3), "DeiT-Ti": (8, 5)}
METHODS = ("gradient_rollout", "gae", "legrad", "gradcam", "attn_lrp")
LEAST = 1.0


def one_by_one(explainer: Explainer, pixels: Tensor, targets: list[int], method: str) -> None:
    for image in pixels:
        for target in targets:
            explainer.attribute(image[None], target, method)


def classes(rounds: int) -> Table:
    rows = table("Several classes of several images: one call beside one call each", "method", "model", "images",
                 "classes", "forwards", "single calls ms", "one call ms", "faster", "at least", "met")  # fmt: skip
    for title, (batch, number) in CASES.items():
        model, pixels, targets = build(MODELS[title]), images(batch), list(range(number))
        explainer = Explainer(model)
        for method in METHODS:
            together = partial(explainer.attribute, pixels, [targets] * batch, method)
            (found,) = in_turns(together, [partial(one_by_one, explainer, pixels, targets, method)], rounds)
            rows.add_row(method, title, str(batch), str(number), str(forwards(model, together)),
                         milliseconds(found.work), milliseconds(found.bare), *at_least(found.ratio, LEAST))  # fmt: skip
    return rows


def forwards(model: Any, work: Any) -> int:
    seen: list[None] = []
    with model.register_forward_pre_hook(lambda *_: seen.append(None)):
        work()
    return len(seen)
