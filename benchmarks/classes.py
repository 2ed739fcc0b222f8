"""B images × K classes in one call, beside B·K calls of one: one forward and K backwards, or where a method asks about
many other pictures, the forwards of one class."""

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
MANY_FORWARDS = ("rise", "kernel_shap")  # of one picture
OPTIONS, IMAGES, CLASSES = {"samples": 24}, 1, 5
LEAST_OF_MANY = 0.9 * CLASSES


def one_by_one(explainer: Explainer, pixels: Tensor, targets: list[int], method: str, options: dict[str, Any]) -> None:
    for image in pixels:
        for target in targets:
            explainer.attribute(image[None], target, method, **options)


def classes(rounds: int) -> Table:
    rows = table("Several classes of several images: one call beside one call each", "method", "model", "images",
                 "classes", "forwards", "single calls ms", "one call ms", "faster", "at least", "met")  # fmt: skip
    cases: list[tuple[str, int, int, str, dict[str, Any], float]] = [
        *((title, *size, method, {}, LEAST) for title, size in CASES.items() for method in METHODS),
        *(("DeiT-Ti", IMAGES, CLASSES, method, OPTIONS, LEAST_OF_MANY) for method in MANY_FORWARDS),
    ]
    for title, batch, number, method, options, least in cases:
        model, pixels, targets = build(MODELS[title]), images(batch), list(range(number))
        explainer = Explainer(model)
        together = partial(explainer.attribute, pixels, [targets] * batch, method, **options)
        (found,) = in_turns(together, [partial(one_by_one, explainer, pixels, targets, method, options)], rounds)
        rows.add_row(method, title, str(batch), str(number), str(forwards(model, together)),
                     milliseconds(found.work), milliseconds(found.bare), *at_least(found.ratio, least))  # fmt: skip
    return rows


def forwards(model: Any, work: Any) -> int:
    seen: list[None] = []
    with model.register_forward_pre_hook(lambda *_: seen.append(None)):
        work()
    return len(seen)
