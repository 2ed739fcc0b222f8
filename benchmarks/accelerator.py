"""Every method of one forward and at most one backward over the bare passes, on a CUDA device, with as many images as
one look takes there.

``python benchmarks/accelerator.py [--rounds N] [--models ...] [--sides ...] [--dtypes ...] [--csv FILE]`` says each
number as soon as it is known, so that whoever runs out of time keeps what there is. Quick cases come first.
"""

from __future__ import annotations

import argparse
import csv
import gc
import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from measuring import MAPS_A_BARE_RUN, Work, at_most, backward, build, forward, images, in_turns, milliseconds, table
from methods import LONG, cases, cost
from rich.table import Table

from vit_explain import Explainer
from vit_explain.registry import Method

DEVICE = "cuda"
NO_DEVICE = "accelerator: there is no CUDA device here, so this table is left out"
MODELS = ["base", "large"]
# At 518 pixels the models that are run at that size: DINOv2's, with registers and without.
NAMES = {
    ("base", 224): "vit_base_patch16_224",
    ("base", 518): "vit_base_patch14_reg4_dinov2",
    ("base", 1024): "vit_base_patch16_224",
    ("large", 224): "vit_large_patch16_224",
    ("large", 518): "vit_large_patch14_dinov2",
}
SIDES = sorted({side for _, side in NAMES})
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ONLY = {1024: {"rollout", "gradient_rollout", "gae", "legrad", "attn_lrp"}}
WIDTHS = {"method": 20, "passes": 7, "model": 28, "side": 4, "dtype": 8, "batch": 5, "bare ms": 8, "with map ms": 11,
          "ratio": 6, "limit": 5, "met": 3, "peak/bare": 9}  # fmt: skip

Chosen = list[tuple[Method, float | None]]


class Watched:
    """Work that remembers the memory it took at most and, where it fails, why; what failed is not tried again."""

    def __init__(self, work: Work) -> None:
        self.work, self.peak, self.failure = work, 0, ""

    def __call__(self) -> None:
        if self.failure:
            return
        torch.cuda.reset_peak_memory_stats()
        try:
            self.work()
        except torch.cuda.OutOfMemoryError:
            self.failure = "out of memory"
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}".splitlines()[0][:80]
        self.peak = torch.cuda.max_memory_allocated()
        if self.failure:
            free()


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def lots(side: int, with_backward: bool) -> Iterator[Chosen]:
    """Methods that are timed beside the same bare run; those without a limit, which may take long, each alone."""
    chosen = [
        (one, limit)
        for one, limit in cases(with_backward)
        if one.fast and one.name not in LONG and one.name in ONLY.get(side, {one.name})
    ]
    limited = [case for case in chosen if case[1] is not None]
    for first in range(0, len(limited), MAPS_A_BARE_RUN):
        yield limited[first : first + MAPS_A_BARE_RUN]
    yield from ([case] for case in chosen if case[1] is None)


def rows_of(name: str, side: int, dtype: str, rounds: int) -> Iterator[list[str]]:
    with torch.device(DEVICE):  # where random weights take no time
        model: Any = build(name, img_size=side, num_classes=1000).to(DTYPES[dtype])
    batch = Explainer(model).subject(images(1, side))[0].together
    pixels = images(batch, side).to(DEVICE, DTYPES[dtype])
    for with_backward, passes in ((False, forward), (True, backward)):
        for lot in lots(side, with_backward):
            explainer = Explainer(model)  # anew, for it remembers what memory ran out for
            bare = Watched(partial(passes, model, pixels))
            works = [Watched(partial(explainer.attribute, pixels, None, one.name)) for one, _ in lot]
            for work in works[1:]:  # the first is warmed up by what follows
                work()
            timings = in_turns(bare, works, rounds if lot[0][1] else 1)
            for (one, limit), work, found in zip(lot, works, timings, strict=True):
                ratio, most, met = at_most(found.ratio, limit)
                numbers = (milliseconds(found.bare, 1), milliseconds(found.work, 1), ratio, most, met)
                failure = f"bare: {bare.failure}" if bare.failure else work.failure
                measured = ("", "", "", most, failure, "") if failure else (*numbers, f"{work.peak / bare.peak:.2f}")
                yield [one.name, cost(one), name, str(side), dtype, str(len(pixels)), *measured]


def all_rows(models: Sequence[str], sides: Sequence[int], dtypes: Sequence[str], rounds: int) -> Iterator[list[str]]:
    for size, side, dtype in itertools.product(models, sides, dtypes):
        if (size, side) in NAMES:
            yield from rows_of(NAMES[size, side], side, dtype, rounds)
            free()


def accelerator(rounds: int) -> Table | str:
    if not torch.cuda.is_available():
        return NO_DEVICE
    rows = table(f"Cost over the bare passes on {torch.cuda.get_device_name()}", *WIDTHS)
    for row in all_rows(MODELS, SIDES, list(DTYPES), rounds):
        rows.add_row(*row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--sides", nargs="+", type=int, choices=SIDES, default=SIDES)
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--csv", type=Path, metavar="FILE")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(NO_DEVICE)
        return
    versions = f"torch {torch.__version__}, timm {timm.__version__}"
    print(f"{versions}, {torch.cuda.get_device_name()}, {options.rounds} rounds", flush=True)
    rows = all_rows(options.models, options.sides, options.dtypes, options.rounds)
    with options.csv.open("w", newline="", encoding="utf-8") if options.csv else nullcontext() as file:
        for row in itertools.chain([list(WIDTHS)], rows):
            print(*(cell.rjust(width) for cell, width in zip(row, WIDTHS.values(), strict=True)), flush=True)
            if file:
                csv.writer(file).writerow(row)
                file.flush()


if __name__ == "__main__":
    main()
