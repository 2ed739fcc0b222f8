"""Methods of many forwards over the bare model doing the same forwards: as many, of as many rows and tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from measuring import MODELS, Work, at_least, build, images, in_turns, milliseconds, table, words
from rich.table import Table

from vit_explain import Explainer

LEAST = 0.9
# Few samples, so that the table is quick; work that does not grow with them then weighs more than it usually does.
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("occlusion", {"window": 10}),
    ("occlusion", {"window": 10, "fill": "mean"}),
    ("rise", {"samples": 32}),
    ("kernel_shap", {"samples": 32}),
    ("kernel_shap", {"samples": 32, "fill": "mean"}),
    ("shapley_sampling", {"samples": 1}),
    ("tis", {"samples": 32}),
    ("scorecam", {"channels": 32}),
)
# As many forwards as a model's channels fall into groups, several hundred on a wide one.
NARROW: tuple[tuple[str, dict[str, Any]], ...] = (("vit_cx", {}),)

Call = tuple[int, tuple[int, int]]  # pictures; rows and tokens that go through the blocks


def recorded(model: Any, work: Work) -> list[Call]:
    """What the model is asked for meanwhile."""
    pictures: list[int] = []
    rows: list[tuple[int, int]] = []
    with (
        model.register_forward_pre_hook(lambda _, given: pictures.append(len(given[0]))),
        model.blocks[0].norm1.register_forward_pre_hook(lambda _, given: rows.append(tuple(given[0].shape[:2]))),
    ):
        work()
    return list(zip(pictures, rows, strict=True))


def replayed(model: Any, calls: Sequence[Call], pixels: torch.Tensor) -> None:
    """The same forwards of nothing in particular."""
    with torch.inference_mode():
        for pictures, (rows, tokens) in calls:

            def shape(_: object, given: Any, rows: int = rows, tokens: int = tokens) -> Any:
                return (given[0][:1].expand(rows, -1, -1)[:, :tokens],)

            with model.blocks[0].register_forward_pre_hook(shape):
                model(pixels[:pictures])


def perturbation(rounds: int) -> Table:
    rows = table("Throughput of methods of many forwards over the bare model's on the same ones, one image", "method",
                 "options", "model", "rows", "bare ms", "method ms", "throughput", "at least", "met")  # fmt: skip
    narrow = "DeiT-Ti"
    cases = [*itertools.product(MODELS, CASES), *((narrow, case) for case in NARROW)]
    for title, (method, options) in cases:
        model = build(MODELS[title])
        ours = partial(Explainer(model).attribute, images(1), 0, method, **options)
        calls = recorded(model, ours)
        most = max(pictures for pictures, _ in calls)
        (found,) = in_turns(partial(replayed, model, calls, images(most)), [ours], rounds)
        rows.add_row(method, words(options), title, str(sum(rows for _, (rows, _) in calls)), milliseconds(found.bare),
                     milliseconds(found.work), *at_least(1 / found.ratio, LEAST))  # fmt: skip
    return rows
