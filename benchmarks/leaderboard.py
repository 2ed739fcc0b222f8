"""The leaderboard: every method and some of other packages, by every metric, on photos that the model never saw.

``python benchmarks/leaderboard.py PHOTOS --out FOLDER [--device cuda] [--processes 8] [--images 300]`` works on parts
of the photos in as many processes; stopped anywhere, the same command goes on; ``--go-on`` begins with what is
published. ``... --publish`` then puts the parts together, and writes docs/leaderboard.md, its numbers beside it, and
what ``--method best`` reads.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import shutil
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from methods import LONG
from outside import others

from vit_explain import Explainer, __version__
from vit_explain.datasets import chosen, read_dataset
from vit_explain.evaluation import evaluate
from vit_explain.metric_registry import choose_metrics
from vit_explain.registry import METHODS, choose_methods
from vit_explain.scoring import BASELINES

SEED = 0
HUNDREDS = 100  # a method of more passes either way has further maps of the fewest photos
# Fewer steps and draws an image than the defaults; intervals say how much is left to chance.
OPTIONS: dict[str, dict[str, Any]] = {
    "deletion": {"steps": 10},
    "insertion": {"steps": 10},
    "faithfulness_correlation": {"samples": 30},
    "infidelity": {"samples": 30},
    "sensitivity_n": {"samples": 10},
    "max_sensitivity": {"samples": 2},
    "model_randomisation": {"stages": 1},
    "model_randomisation_ssim": {"stages": 1},
}


@dataclass(frozen=True)
class Stage:
    """Some methods by some metrics, on a share of the photos."""

    title: str
    methods: Sequence[str]
    metrics: Sequence[str]
    share: float = 1.0


def stages() -> list[Stage]:
    """What is cheap comes first, so that a run that is stopped is of most use. What takes further maps of methods that
    take long for one is measured on a share of the photos."""
    every = choose_methods(["all"])
    quick = [one.name for one in every if one.fast and one.name not in LONG]
    slow = [one.name for one in every if one.name not in quick]
    slowest = [one.name for one in every if max(one.forwards, one.backwards) > HUNDREDS]
    strangers, long = ([one.name for one in others() if one.fast == fast] for fast in (True, False))
    # Photos of single objects without boxes or masks.
    usable = [one for one in choose_metrics(["all"]) if "truth" not in one.needs]
    mosaics = [one.name for one in usable if "mosaic" in one.needs]
    further = [one.name for one in usable if one.maps]
    answers = [one.name for one in usable if one.name not in (*further, *mosaics)]
    return [
        Stage("fast methods, the model's answers", quick, answers),
        Stage("fast methods, further maps", quick, further),
        Stage("fast methods, mosaics", quick, mosaics, 0.6),
        Stage("fast methods of other packages", strangers, [*answers, *further, *mosaics], 0.4),
        Stage("slow methods of other packages", long, answers, 0.1),
        Stage("slow methods, the model's answers", slow, answers),
        Stage("slow methods, mosaics", slow, mosaics, 0.3),
        Stage("slow methods, further maps", [name for name in slow if name not in slowest], further, 0.1),
        Stage("methods of hundreds of passes, further maps", slowest, further, 0.05),
    ]


def prepare(photos: Path, out: Path, images: int, parts: int) -> list[Path]:
    """A folder of photos for each part, copied once."""
    explainer = Explainer()
    items = chosen(read_dataset(photos, explainer.labels, len(explainer.labels or [])), images, SEED)
    folders = [out / f"part-{number:02}" for number in range(parts)]
    for number, folder in enumerate(folders):
        # In a row, for they come class by class in turn: mosaics need several classes.
        for item in items[number * len(items) // parts : (number + 1) * len(items) // parts]:
            file = folder / "photos" / item.name
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(item.source, file)
    return folders


def work(folder: Path, device: str, todo: Sequence[Stage]) -> None:
    """All stages on the photos of one part; one that fails is told of, and the others go on."""
    if device != "cpu":
        torch.set_num_threads(1)  # processes that share a device would get into each other's way
        torch.set_float32_matmul_precision("high")  # TF32, several times as fast
    explainer, strangers = Explainer(device=device), others()
    number = sum(1 for _ in (folder / "photos").rglob("*.*"))
    for stage in todo:
        began = time.monotonic()
        try:
            evaluate(
                folder / "photos",
                explainer,
                [name for name in stage.methods if name in METHODS] or BASELINES,
                list(stage.metrics),
                images=max(1, round(stage.share * number)),
                seed=SEED,
                out=folder,
                others=[one for one in strangers if one.name in stage.methods],
                metric_options={name: OPTIONS.get(name, {}) for name in stage.metrics},
                complain=lambda text: print(f"{folder.name}: {text}", flush=True),
            )
        except Exception:
            traceback.print_exc()
        print(f"{folder.name}: {stage.title}, {time.monotonic() - began:.0f} s", flush=True)


def run(folders: Sequence[Path], device: str, todo: Sequence[Stage]) -> None:
    """Each part in a process of its own."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(folder, device, todo)) for folder in folders]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--publish", action="store_true", help="write the page from what is in --out")
    parser.add_argument("--go-on", action="store_true", help="begin with the numbers that are published")
    given = parser.parse_args()
    file = given.out / "about.json"
    if given.publish:
        from leaderboard_page import gathered, publish

        folders = sorted(given.out.glob("part-*"))
        for written in publish(gathered(folders, given.photos), json.loads(file.read_text(encoding="utf-8"))):
            print(written)
        return
    folders = prepare(given.photos, given.out, given.images, given.processes)
    file.write_text(json.dumps(about(given)), encoding="utf-8")
    if given.go_on:
        from leaderboard_page import restore

        restore(folders)
    run(folders, given.device, stages())


def about(given: argparse.Namespace) -> dict[str, Any]:
    """What the page says of the run."""
    cuda = given.device.startswith("cuda")
    return {
        "command": "python benchmarks/held_out.py --data imagenette-train.tar --half report --out photos\n"
        f"python benchmarks/leaderboard.py photos --out numbers --device {given.device} "
        f"--processes {given.processes} --images {given.images}",
        "device": f"{torch.cuda.get_device_name()}, float32 with TF32 products" if cuda else platform.processor(),
        "versions": {"vit_explain": __version__, "torch": torch.__version__, "timm": timm.__version__},
    }


if __name__ == "__main__":
    main()
