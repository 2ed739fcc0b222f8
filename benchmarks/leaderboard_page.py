"""docs/leaderboard.md, the numbers behind it, and what ``--method best`` reads, from the parts of a run."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from methods import LONG
from numpy.typing import NDArray
from outside import BESIDE, others

from vit_explain import Explainer, __version__
from vit_explain.catalogue import passes
from vit_explain.datasets import chosen, read_dataset
from vit_explain.metric_registry import FAMILIES, METRICS, choose_metrics
from vit_explain.places import INTERVAL, RESAMPLES
from vit_explain.records import NUMBERS, SETTINGS, Record, Records
from vit_explain.registry import OTHERS, choose_methods
from vit_explain.results import Evaluation, Score
from vit_explain.scoring import MOSAIC

ROOT = Path(__file__).parents[1]
PAGE, TABLE = ROOT / "docs" / "leaderboard.md", ROOT / "docs" / "leaderboard.csv.gz"
MADE = ROOT / "docs" / "leaderboard.json"  # how: settings, command, device, versions
ASSET = ROOT / "src" / "vit_explain" / "assets" / "leaderboard.json"
OWN, BEFORE = "depth_lrp", "attn_lrp"  # the method of this package's own, and the one it is made of


def gathered(folders: Sequence[Path], photos: Path) -> Evaluation:
    """All parts of a run as one evaluation."""
    explainer = Explainer()
    found: list[Record] = []
    settings: dict[str, Any] = {}
    for folder in folders:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        settings.pop("files", None)
        found += Records(folder, settings)
    settings["data"] = photos.name
    items = chosen(read_dataset(photos, explainer.labels, len(explainer.labels or [])), None, 0)
    scored = {one.method for one in found}
    return Evaluation(
        found,
        {one.name: one for one in (*choose_methods(["all"]), *others()) if one.name in scored},
        [one.name for one in choose_metrics(list(settings["metrics"]))],
        settings,
        {},
        {item.name: item for item in items},
        explainer.preprocessing,
        explainer.labels,
    )


def publish(found: Evaluation, about: dict[str, Any]) -> list[Path]:
    """Write all three; ``about``: command, device, versions, seconds."""
    fast = quick(found)
    ours = [name for name in fast.order if fast.methods[name].family not in ("baselines", OTHERS)]
    board = {
        "order": ours,
        "standing": {name: round(fast.standing[name], 4) for name in ours},
        "model": found.settings["model"],
        "images": found.images,
        "seed": found.settings["seed"],
        "versions": about["versions"],
    }
    ASSET.write_text(json.dumps(board, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text("\n".join(page(found, about)) + "\n", encoding="utf-8")
    TABLE.write_bytes(gzip.compress(numbers(found), mtime=0))
    MADE.write_text(json.dumps({"about": about, "settings": found.settings}, indent=1) + "\n", encoding="utf-8")
    return [PAGE, TABLE, ASSET, MADE]


def restore(folders: Sequence[Path]) -> None:
    """Give the parts of a run what the table knows of their photos, so that a run goes on from what is published.

    Curves, maps, seconds and digits beyond the fourth are not in the table. Mosaics belong to the part that has their
    first photo, and are made anew where parts are others than they were.
    """
    settings = json.loads(MADE.read_text(encoding="utf-8"))["settings"]
    labels = Explainer().labels or []
    of = {file.relative_to(one / "photos").as_posix(): one for one in folders for file in (one / "photos").rglob("*.*")}
    lines: dict[Path, list[str]] = {folder: [] for folder in folders}
    for row in csv.DictReader(io.StringIO(gzip.decompress(TABLE.read_bytes()).decode("utf-8"))):
        folder = of.get(row["image"].removeprefix(MOSAIC).split(" | ")[0])
        if folder is not None:
            target = int(row["target"])
            label = target if row["image"].startswith(MOSAIC) else labels.index(row["image"].split("/")[0])
            numbers = {
                metric: [float(v) for v in row[metric].split(":")] if row[metric] != "-" else [None]
                for metric in settings["metrics"]
                if row.get(metric)
            }
            record = Record(
                row["image"], row["method"], target, label, target == label, float(row["probability"]), 0.0, numbers
            )
            lines[folder].append(json.dumps(dataclasses.asdict(record)))
    settings["version"] = __version__  # whoever goes on says that the numbers are still the same
    for folder, known in lines.items():
        settings["data"] = str((folder / "photos").resolve())
        (folder / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
        (folder / NUMBERS).write_text("".join(f"{line}\n" for line in known), encoding="utf-8")


def quick(found: Evaluation) -> Evaluation:
    """Methods of one forward and at most one backward, and the baselines, which have been through every metric."""
    methods = {name: one for name, one in found.methods.items() if one.fast and one.family != OTHERS}
    return dataclasses.replace(found, methods={name: methods[name] for name in methods if name not in LONG})


def numbers(found: Evaluation) -> bytes:
    """A row an image and method, a column a metric: a dash where it says nothing, no text where it was not measured;
    ratios of sums have their sums with a colon between them."""
    file = io.StringIO()
    metrics = found.metrics
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["image", "method", "target", "probability", *metrics])
    for one in sorted(found.records, key=lambda record: (record.image, record.method)):
        cells = [":".join("-" if v is None else f"{v:.4g}" for v in one.numbers.get(metric, [])) for metric in metrics]
        table.writerow([one.image, one.method, one.target, f"{one.probability:.4g}", *cells])
    return file.getvalue().encode("utf-8")


def page(found: Evaluation, about: dict[str, Any]) -> Iterator[str]:
    """The page in Markdown, a paragraph or a table at a time."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    yield "# Leaderboard\n"
    yield (
        f"{len(found.methods)} methods on {found.images} photos that the bundled model was not trained on "
        f"({len(found.labels or [])} classes of Imagenette), the class that it finds likeliest explained, every method "
        "with its default options, patches removed as tokens. It says which maps can be trusted *of this model*; "
        "`vit-explain evaluate` makes the same table of yours.\n"
    )
    yield "```\n" + about["command"] + "\n```\n"
    yield f"Seed {found.settings['seed']}; {versions}; {about['device']}. Intervals: 95 %, bootstrap of "
    yield (
        f"{RESAMPLES} draws over images. Options of metrics that are not the defaults: {_options(found)}. "
        "Every number of every photo: `leaderboard.csv.gz` beside this page.\n"
    )
    yield "## Standing of methods of one forward and at most one backward\n"
    yield (
        "The mean place among the methods, from 0 (last) to 1 (first), in each family of metrics; a family's metrics "
        "count alike, and so do the families, complexity left out. Places say nothing of distances: look at the "
        "numbers below, where methods of many passes stand beside these. `--method best` takes the first that can "
        "explain the model at hand.\n"
    )
    yield from standing(quick(found))
    for family in FAMILIES:
        metrics = [metric for metric in found.scores if METRICS[metric].family == family]
        if metrics:
            yield f"\n## {family.capitalize()}\n"
            yield (
                "Mean ± half of the interval's width, and place: one more than the methods that are better on the "
                "photos that both were measured on. The second column says on how many photos, or mosaics, a method "
                "was. A dash: not measured, or nothing to say of it, as of the order in a map that is the same "
                "everywhere.\n"
            )
            yield from family_table(found, metrics)
    yield "\n## Other packages beside ours\n"
    yield from beside(found)
    yield f"\n## Our own: {OWN}\n"
    yield from own(found)


def _options(found: Evaluation) -> str:
    said = []
    for metric, options in found.settings["metrics"].items():
        usual = METRICS[metric].settings({})
        said += [f"`{metric}.{key}={value}`" for key, value in options.items() if usual[key] != value]
    return ", ".join(said)


def standing(found: Evaluation) -> Iterator[str]:
    yield "| | method | standing | passes | first in |\n|---|---|---|---|---|"
    for place, name in enumerate(found.order, 1):
        first = [metric for metric, scores in found.scores.items() if name in scores and scores[name].rank == 1]
        yield (
            f"| {place} | {_name(found, name)} | {found.standing[name]:.2f} | {passes(found.methods[name])} | "
            f"{', '.join(first)} |"
        )


def _name(found: Evaluation, name: str) -> str:
    return f"*{name}*" if found.methods[name].family in ("baselines", OTHERS) else f"`{name}`"


def family_table(found: Evaluation, metrics: Sequence[str]) -> Iterator[str]:
    heads = " | ".join(f"{metric}, {METRICS[metric].direction}" for metric in metrics)
    yield f"| method | photos | {heads} |\n|---|---|{'---|' * len(metrics)}"
    places = {
        name: [found.scores[metric][name].rank for metric in metrics if name in found.scores[metric]]
        for name in found.methods
    }
    for name in sorted((name for name in places if places[name]), key=lambda name: float(np.mean(places[name]))):
        photos = sorted({found.scores[metric][name].images for metric in metrics if name in found.scores[metric]})
        cells = [str(photos[0]) if photos[0] == photos[-1] else f"{photos[0]}–{photos[-1]}"]
        for metric in metrics:
            score = found.scores[metric].get(name)
            cells.append("–" if score is None else _cell(score))
        yield f"| {_name(found, name)} | {' | '.join(cells)} |"


def _cell(score: Score) -> str:
    give = "" if score.interval is None else f" ± {(score.interval[1] - score.interval[0]) / 2:.1g}"
    text = f"{score.value:.3g}{give} · {score.rank}"
    return f"**{text}**" if score.rank == 1 else text


def beside(found: Evaluation) -> Iterator[str]:
    yield "Means over the photos that both were measured on.\n"
    yield "| theirs | ours | photos | metric | theirs | ours |\n|---|---|---|---|---|---|"
    for theirs, (ours, _) in BESIDE.items():
        for metric in ("deletion", "insertion", "saco", "grid_pointing", "class_sensitivity"):
            rows = common(found, metric, theirs, ours)
            if rows.size:
                means = " | ".join(f"{mean:.4f}" for mean in rows.mean(1))
                yield f"| {theirs} | `{ours}` | {rows.shape[1]} | {metric} | {means} |"
    yield ""
    for theirs, (ours, why) in BESIDE.items():
        yield f"- {theirs} and `{ours}`: {why}."


def own(found: Evaluation) -> Iterator[str]:
    yield (
        f"`{OWN}` was chosen among some fifty variants (layer ranges, rules, contrast with other classes, products "
        "with attention maps) on one half of the held-out photos; what is shown here is of the other half. Differences "
        f"`{OWN}` − `{BEFORE}`, image by image, with the 95 % interval of their mean:\n"
    )
    yield "| metric | family | difference | interval | |\n|---|---|---|---|---|"
    verdicts: Counter[str] = Counter()
    for metric in found.scores:
        rows = paired(found, metric)
        if rows is None:
            continue
        mean, low, high = rows
        better = (low > 0) if METRICS[metric].higher_is_better else (high < 0)
        worse = (high < 0) if METRICS[metric].higher_is_better else (low > 0)
        said = "better" if better else "worse" if worse else "no clear difference"
        verdicts[said] += 1
        yield f"| {metric} | {METRICS[metric].family} | {mean:+.4f} | {low:+.4f} … {high:+.4f} | {said} |"
    yield "\n" + ", ".join(f"{count} {said}" for said, count in verdicts.items()) + "."


def paired(found: Evaluation, metric: str) -> tuple[float, float, float] | None:
    """The mean difference over images and its interval; None for ratios of sums, and where either says nothing."""
    rows = common(found, metric, OWN, BEFORE)
    if not rows.size:
        return None
    differences = rows[0] - rows[1]
    drawn = np.random.default_rng(0).integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = np.percentile(differences[drawn].mean(1), INTERVAL)
    return float(differences.mean()), float(low), float(high)


def common(found: Evaluation, metric: str, *names: str) -> NDArray[np.float64]:
    """(methods, photos or mosaics): the numbers of several methods on those that all have one of; of ratios of sums
    none."""
    known = [found.rows_of(metric, name) for name in names]
    images = [image for image in known[0] if all(image in one for one in known)]
    rows = np.array([[one[image] for image in images] for one in known])
    return rows[..., 0] if rows.ndim == 3 and rows.shape[2] == 1 else np.empty((len(names), 0))
