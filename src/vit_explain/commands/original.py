"""The original script's own command line (``vit_explain.py`` of jacobgil/vit-explain), flag for flag."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ..arguments import BUNDLED, ORIGINAL_DEFAULT, open_explainer
from ..errors import OptionError

FLAGS = ("--image_path", "--head_fusion", "--discard_ratio", "--category_index", "--use_cuda")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like every other command here."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message} (see python -m vit_explain --image_path --help)")


def parser() -> Parser:
    """The flags and defaults of the original, and two of ours."""
    made = Parser(prog="python -m vit_explain", description=__doc__, allow_abbrev=False)
    made.add_argument("--image_path", required=True, help="input image")
    made.add_argument("--head_fusion", default="max", help="how the heads become one: mean, max or min")
    made.add_argument("--discard_ratio", type=float, default=0.9, help="share of the lowest attention to discard")
    made.add_argument("--category_index", type=int, help="class for gradient rollout; without it, attention rollout")
    made.add_argument("--use_cuda", action="store_true", help="use the GPU where there is one")
    made.add_argument("--model", help=f"default: {BUNDLED}; the original's was {ORIGINAL_DEFAULT}")
    made.add_argument("--legacy", action="store_true", help="the original's arithmetic to the letter, faults included")
    return made


def original(arguments: Sequence[str]) -> int:
    """Explain one image as the original did and leave its picture, under the original's name, in this directory."""
    if "--help" in arguments or "-h" in arguments:
        parser().print_help()
        return 0
    asked = parser().parse_args(arguments)
    import torch

    gpu = asked.use_cuda and torch.cuda.is_available()
    print("Using GPU" if gpu else "Using CPU")
    device, category = "cuda" if gpu else "cpu", asked.category_index
    explainer = open_explainer(asked.model or BUNDLED, None, None, device)
    if asked.model is None:
        known = explainer.labels or []
        if category is not None and not 0 <= category < len(known):
            print(
                f"The bundled model knows {len(known)} classes, and {category} is none of them; "
                f"using the original's {ORIGINAL_DEFAULT} (1000 ImageNet classes)"
            )
            explainer = open_explainer(ORIGINAL_DEFAULT, None, None, device)
        else:
            print(f"Model: {BUNDLED}, ten classes; the original's is --model {ORIGINAL_DEFAULT}")
    options = {"head_fusion": asked.head_fusion, "discard_ratio": asked.discard_ratio, "legacy": asked.legacy}
    if category is None:
        print("Doing Attention Rollout")
        method, name = "rollout", f"attention_rollout_{asked.discard_ratio:.3f}_{asked.head_fusion}"
    else:
        print("Doing Gradient Attention Rollout")
        method, name = "gradient_rollout", f"grad_rollout_{category}_{asked.discard_ratio:.3f}_{asked.head_fusion}"
    explanation = explainer.explain(asked.image_path, method=method, target=category, **options)
    from .. import render, store

    files = {f"{name}.png": render.png(explanation.overlay(0))}
    store.write_folder(Path(), files, explanation.as_dict(), f"{name}.json")
    print(f"Wrote {name}.png" + (f" (class {explanation.targets[0]})" if category is not None else ""))
    return 0
