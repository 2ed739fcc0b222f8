"""Does the right object light up? Localisation in mosaics of four photos, for every class-specific method.

``python benchmarks/mosaics.py --data TAR_OR_FOLDER [--images N] [--methods ...]``. The data are photos in one folder a
class, named by WordNet id, as in Imagenette; of them the tenth that the bundled model was not trained on is used.

A mosaic holds four photos of four classes, at half their size, each of which the model knows with confidence when it
sees it alone (grid pointing, Böhle, Fritz and Schiele, CVPR 2021). Each of the four classes is explained.
*Localisation* is the share of the map's positive relevance that lies in that class's cell, zero for a map without any.
*Right cell first*: how often no other cell of the map holds a larger share. *Right class first*: how often no other
class's map has a larger share in that cell, which a part that all four maps have in common cannot change. Chance is a
quarter for each of the three.
"""

from __future__ import annotations

import argparse
import io
import itertools
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from vit_explain import Explainer, list_methods
from vit_explain.image import prepare
from vit_explain.registry import METHODS, Method

sys.path.append(str(Path(__file__).parents[1] / "training"))
from data import CLASSES, split

BASELINES = ("random", "uniform", "centred_gaussian")
CELLS = 4
BATCH = 8
RESAMPLED = 2000
INTERVAL = (2.5, 97.5)


def photos(source: Path, seed: int) -> Iterator[tuple[Image.Image, int]]:
    """(photo, class) of the held-out tenth, in random order."""
    if source.is_dir():
        files = {str(file.relative_to(source)): file for file in source.rglob("*.JPEG")}
        read = {name: file.read_bytes for name, file in files.items()}
        yield from _shuffled(read, seed)
    else:
        with tarfile.open(source) as tar:
            members = [member for member in tar.getmembers() if member.isfile()]
            yield from _shuffled({m.name: lambda m=m: tar.extractfile(m).read() for m in members}, seed)  # type: ignore[union-attr]


def _shuffled(read: dict[str, Any], seed: int) -> Iterator[tuple[Image.Image, int]]:
    names = sorted(read)
    _, held_out = split(len(names))
    for row in np.random.default_rng(seed).permutation(held_out):
        name = names[row]
        yield Image.open(io.BytesIO(read[name]())).convert("RGB"), list(CLASSES).index(Path(name).parent.name)


def confident(
    explainer: Explainer, source: Path, each: int, least: float, seed: int
) -> dict[int, list[NDArray[np.float32]]]:
    """So many photos of each class, as pixels (3, H, W), that the model classifies rightly with this probability."""
    found: dict[int, list[NDArray[np.float32]]] = {number: [] for number in range(len(CLASSES))}
    stream = photos(source, seed)
    while any(len(own) < each for own in found.values()):
        # Classes that have enough are not looked at again.
        wanted = ((photo, number) for photo, number in stream if len(found[number]) < each)
        some = list(itertools.islice(wanted, BATCH))
        if not some:
            short = [list(CLASSES.values())[number] for number, own in found.items() if len(own) < each]
            raise SystemExit(f"not enough photos with {least:.0%} confidence of: {', '.join(short)}")
        pixels = np.stack([prepare(photo, explainer.preprocessing)[0] for photo, _ in some])
        with torch.inference_mode():
            sure = explainer.model(torch.from_numpy(pixels)).softmax(1)
        for picture, (_, number), own in zip(pixels, some, sure, strict=True):
            if own[number] >= least and len(found[number]) < each:
                found[number].append(picture)
    return found


def mosaics(explainer: Explainer, source: Path, number: int, least: float, seed: int) -> tuple[torch.Tensor, Any]:
    """Pixels (n, 3, H, W) and the classes (n, 4) of their cells, row by row from the upper left."""
    each = -(-number * CELLS // len(CLASSES)) + 1
    stock = confident(explainer, source, each, least, seed)
    random = np.random.default_rng(seed)
    pictures, classes = [], []
    for _ in range(number):
        # The classes with most photos left, else the last mosaics would find fewer than four.
        order = sorted(stock, key=lambda one: (-len(stock[one]), random.random()))[:CELLS]
        cells = random.permutation(order)
        height, width = stock[int(cells[0])][0].shape[1:]
        quarters = torch.from_numpy(np.stack([stock[int(one)].pop() for one in cells]))
        halves = torch.nn.functional.interpolate(quarters, (height // 2, width // 2), mode="area")
        pictures.append(halves.view(2, 2, 3, height // 2, width // 2).permute(2, 0, 3, 1, 4).reshape(3, height, width))
        classes.append(cells)
    return torch.stack(pictures), np.stack(classes)


def shares(relevance: NDArray[np.floating]) -> NDArray[np.float64]:
    """Maps (n, h, w) -> each quarter's share of the positive relevance, (n, 4); zeros where nothing is positive."""
    positive = np.maximum(relevance.astype(np.float64), 0)
    (n, h, w) = positive.shape
    cells = positive.reshape(n, 2, h // 2, 2, w // 2).sum((2, 4)).reshape(n, CELLS)
    total = cells.sum(1, keepdims=True)
    return np.divide(cells, total, out=np.zeros_like(cells), where=total > 0)


def measure(
    explainer: Explainer, method: Method, pictures: torch.Tensor, classes: Any, options: dict[str, Any]
) -> NDArray[np.float64]:
    """(localisation, right cell first, right class first) of each map, (n, maps, 3).

    A map of no class is asked for one cell of each mosaic, one after the other: over all four it would always have a
    quarter.
    """
    found = []
    for first in range(0, len(pictures), BATCH):
        some = pictures[first : first + BATCH]
        targets = classes[first : first + BATCH].tolist() if method.class_specific else None
        found.append(shares(explainer.attribute(some, targets, method.name, **options).numpy()))
    held = np.concatenate(found)
    if not method.class_specific:
        rows, cells = np.arange(len(held)), np.arange(len(held)) % CELLS
        right, cell_first = held[rows, cells], first_of(held)[rows, cells]
        return np.stack([right, cell_first, np.full(len(held), np.nan)], 1)[:, None]
    held = held.reshape(-1, CELLS, CELLS)  # (mosaic, class explained, cell)
    right, cell_first = (np.diagonal(one, axis1=1, axis2=2) for one in (held, first_of(held)))
    class_first = np.diagonal(first_of(held.swapaxes(1, 2)), axis1=1, axis2=2)
    return np.stack([right, cell_first, class_first], 2)


def first_of(held: NDArray[np.float64]) -> NDArray[np.float64]:
    """One where no other of the last dimension is larger; equal ones share."""
    best = held == held.max(-1, keepdims=True)
    return best / best.sum(-1, keepdims=True)


def interval(values: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """The middle 95 % of means over mosaics drawn again and again; ``values`` (n,), a mosaic's own mean each."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLED, len(values)))
    low, high = np.percentile(values[drawn].mean(1), INTERVAL)
    return float(low), float(high)


def cheaper(method: Method, most: int | None) -> dict[str, Any]:
    """Options that take no more than so many samples, where the default takes more."""
    if most is None or "samples" not in method.options:
        return {}
    default = method.options["samples"].default
    # What a sample costs differs: an order of players takes a forward for every player.
    least = max(1, round(most * default / method.forwards))
    return {"samples": least} if least < default else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a tar or a folder of photos, one folder a class")
    parser.add_argument("--images", type=int, default=25, help="mosaics")
    parser.add_argument("--methods", nargs="*", help="by default every class-specific one, and baselines")
    parser.add_argument("--passes", type=int, default=4000, help="about so many forwards a method; a backward is two")
    parser.add_argument("--samples", type=int, help="methods that sample get no more than about so many forwards a map")
    parser.add_argument("--confidence", type=float, default=0.85, help="least probability of each photo by itself")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    names = given.methods or [*(m.name for m in list_methods() if m.class_specific), *BASELINES]
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        parser.error(f"no method {', '.join(unknown)}")
    explainer = Explainer()
    pictures, classes = mosaics(explainer, given.data, given.images, given.confidence, given.seed)
    console = Console(width=120)
    with torch.inference_mode():
        sure = torch.cat([explainer.model(some) for some in pictures.split(BATCH)]).softmax(1).numpy()
    among = np.take_along_axis(sure, classes, 1).sum(1)
    console.print(f"{len(pictures)} mosaics; the model gives their four classes together {among.mean():.0%}")
    rows = []
    for method in (METHODS[name] for name in names):
        began = time.perf_counter()
        options = cheaper(method, given.samples)
        cost = (CELLS if method.class_specific else 1) * (method.forwards + 2 * method.backwards)
        if options:
            cost = cost * options["samples"] / method.options["samples"].default
        number = int(np.clip(given.passes // cost, 1, len(pictures)))
        values = measure(explainer, method, pictures[:number], classes[:number], options)
        localisation, cell_first, class_first = values.mean((0, 1))
        low, high = interval(values[..., 0].mean(1), given.seed)
        words = ", ".join(f"{name}={value}" for name, value in options.items())
        rows.append((localisation, [
            method.name, words, str(number), f"{localisation:.1%}", f"{low:.0%} to {high:.0%}", f"{cell_first:.0%}",
            f"{class_first:.0%}" if method.class_specific else "", f"{time.perf_counter() - began:.0f}",
        ]))  # fmt: skip
        print(*rows[-1][1], sep="\t", file=sys.stderr, flush=True)
    table = Table(title="Localisation in 2 × 2 mosaics; chance is 25 %", title_justify="left")
    for column in ("method", "options", "mosaics", "localisation", "95 % interval", "right cell first",
                   "right class first", "seconds"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("method", "options") else "right")
    for _, row in sorted(rows, key=lambda one: -one[0]):
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
