"""Deletion and insertion over the bare model doing the same forwards: as many, of as many rows and tokens.

A whole ``evaluate()``, from reading the images to writing the numbers, of one method and the two baselines that are
always there. Eight images stand for any number of them: they are worked on eight at a time.
"""

from __future__ import annotations

import itertools
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from measuring import at_most, build, images, in_turns, milliseconds, table
from perturbation import recorded, replayed
from PIL import Image
from rich.table import Table

from vit_explain import Explainer, evaluate

MODEL, METHOD, STEPS, IMAGES = "vit_small_patch16_224", "rollout", 28, 8
LIMIT = 1.2
CURVES = {"deletion": {"steps": STEPS}, "insertion": {"steps": STEPS}}


def evaluation(rounds: int) -> Table:
    rows = table("Evaluation by deletion and insertion over the bare model's forwards", "method", "model", "images",
                 "steps", "rows", "bare ms", "evaluation ms", "ratio", "limit", "met")  # fmt: skip
    model = build(MODEL)
    explainer, fresh = Explainer(model), itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for number in range(IMAGES):
            noise = np.random.default_rng(number).integers(0, 255, (224, 224, 3), np.uint8)
            Image.fromarray(noise).save(photos / f"{number}.png")

        def ours() -> None:
            evaluate(photos, explainer, METHOD, list(CURVES), out=Path(folder) / str(next(fresh)),
                     metric_options=CURVES)  # fmt: skip

        calls = recorded(model, ours)
        bare = partial(replayed, model, calls, images(IMAGES))
        (found,) = in_turns(bare, [ours], rounds)
    rows.add_row(f"{METHOD} and 2 baselines", MODEL, str(IMAGES), str(STEPS), str(sum(n for _, (n, _) in calls)),
                 milliseconds(found.bare), milliseconds(found.work), *at_most(found.ratio, LIMIT))  # fmt: skip
    return rows
