"""An evaluation on disk, above all as one HTML file: table, a plot a metric, each method's best and worst images."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from . import plots, render, store
from .catalogue import passes
from .errors import ImageError
from .image import denormalise, prepare
from .metric_registry import FAMILIES, METRICS
from .photos import load_image
from .records import Record
from .results import Evaluation, Score

NOISE = "random"  # the baseline whose curve is drawn beside the best
EXAMPLES = 3  # best and worst images of each method
SIDE = 150  # of a picture, in pixels
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #202124; max-width: 1200px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.25rem; margin-top: 2.5rem } h3 { font-size: 1rem; margin: 1.5rem 0 .3rem }
table { border-collapse: collapse; font-size: 13px } th, td { padding: 3px 8px; text-align: right; white-space: nowrap }
th { position: sticky; top: 0; background: #fff; vertical-align: bottom }
th:first-child, td:first-child { text-align: left }
tr:nth-child(even) td { background: #f6f7f8 } .base td { color: #6e7278; font-style: italic } .best { font-weight: 700 }
small, .soft { color: #6e7278 } .wide { overflow-x: auto }
figure { display: inline-block; margin: 4px; vertical-align: top }
figcaption { font-size: 12px; color: #6e7278; width: 150px }
.plots { display: grid; gap: 1.5rem } svg { max-width: 100%; height: auto }
"""


def save(found: Evaluation, folder: Path) -> list[Path]:
    """Write report.html, scores.csv, numbers.csv, where pyarrow is installed numbers.parquet, and the manifest."""
    files = {
        "report.html": page(found).encode("utf-8"),
        "scores.csv": found.csv(found.table()),
        "numbers.csv": found.csv(found.rows()),
    }
    parquet = found.parquet()
    if parquet is not None:
        files["numbers.parquet"] = parquet
    return store.write_folder(folder, files, {**found.settings, "refused": dict(found.refused)})


def page(found: Evaluation) -> str:
    """The whole report, with everything that it shows inside it."""
    parts = [
        f"<h1>Which map can be trusted: {_text(found.settings['model'])}</h1>",
        f"<p>{len(found.methods)} methods on {found.images} images of "
        f"<i>{_text(Path(found.settings['data']).name)}</i>, the {_text(found.settings['target'])} class explained, "
        f"seed {found.settings['seed']}. "
        "Means over images with 95 % bootstrap intervals. Random and centred Gaussian maps stand beside the methods: "
        "what does not beat them says nothing.</p>",
        *([_refused(found)] if found.refused else []),
        "<h2>Methods</h2>",
        _table(found),
        "<h2>Metrics</h2>",
        *_plots(found),
        "<h2>Best and worst images</h2>",
        *_examples(found),
    ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>vit-explain evaluation</title><style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _is_baseline(found: Evaluation, name: str) -> bool:
    return found.methods[name].family == "baselines"


def _text(value: object) -> str:
    return html.escape(str(value))


def _refused(found: Evaluation) -> str:
    lines = "".join(f"<li>{_text(name)}: {_text(reason)}</li>" for name, reason in found.refused.items())
    return f"<p>Left out:</p><ul>{lines}</ul>"


def _table(found: Evaluation) -> str:
    heads = "".join(
        f"<th>{_text(metric)}<br><small>{METRICS[metric].direction} is better</small></th>" for metric in found.scores
    )
    most = {metric: max(score.images for score in scores.values()) for metric, scores in found.scores.items()}
    rows = []
    for name in found.order:
        cells = "".join(_cell(scores.get(name), most[metric]) for metric, scores in found.scores.items())
        style = ' class="base"' if _is_baseline(found, name) else ""
        about = (
            _text(name),
            f"{found.standing[name]:.2f}" if name in found.standing else "–",
            passes(found.methods[name]),
            f"{found.seconds[name]:.3f}",
        )
        rows.append(f"<tr{style}>{''.join(f'<td>{text}</td>' for text in about)}{cells}</tr>")
    return (
        '<div class="wide"><table><tr><th>method</th><th>standing</th><th>passes</th><th>seconds<br><small>an image'
        f"</small></th>{heads}</tr>{''.join(rows)}</table></div>"
        "<p class=soft>Standing: the mean place from 0 (last) to 1 (first) in each family of metrics but complexity, "
        "and the mean of these; metrics that say something of half of the methods or fewer are left out. In each cell: "
        "mean, half of the interval's width, and rank: one more than the methods that are better on the images that "
        "both have. Where a method has fewer images than others, their number. A dash: not measured, or nothing to say "
        "of it, as of the order in a map that is the same everywhere.</p>"
    )


def _cell(score: Score | None, most: int) -> str:
    if score is None:
        return "<td>–</td>"
    best = ' class="best"' if score.rank == 1 else ""
    of = "" if score.images == most else f" of {score.images} images"
    give = "" if score.interval is None else f"± {(score.interval[1] - score.interval[0]) / 2:.2g} · "
    return f"<td{best}>{score.value:.3g} <small>{give}{score.rank}{of}</small></td>"


def _plots(found: Evaluation) -> Iterator[str]:
    for family in FAMILIES:
        for metric, scores in found.scores.items():
            about = METRICS[metric]
            if about.family != family:
                continue
            yield f"<h3>{_text(metric)} <small>{family}, {about.direction} is better</small></h3>"
            yield f"<p>{_text(about.summary)} {_text(about.means)}"
            yield f"<span class=soft>{_text(about.does_not_mean)}</span></p>"
            yield '<div class="plots">'
            baselines = [name for name in scores if _is_baseline(found, name)]
            yield plots.intervals(scores, baselines, "mean and 95 % interval")
            drawn = {name: found.curves(metric, name) for name in found.methods}
            drawn = {name: values for name, values in drawn.items() if values.size}
            if drawn:
                best = sorted(drawn, key=lambda name: scores[name].rank)
                coloured = [name for name in best if not _is_baseline(found, name)][: plots.SHOWN - 1]
                coloured += [NOISE] if NOISE in drawn else []
                yield plots.curves(drawn, coloured, "mean curve and 95 % band", about.along)
            yield "</div>"


def _examples(found: Evaluation) -> Iterator[str]:
    """For each method the images on which its curves are best and worst."""
    curved = [metric for metric in found.scores if any(found.curves(metric, name).size for name in found.methods)]
    # Of one number an image: ratios of sums have none of their own.
    single = [metric for metric in found.scores if all(len(r.numbers.get(metric, [0])) == 1 for r in found.records)]
    ruling = curved or single[:1]
    if not ruling:
        yield "<p>None of these metrics has a number of its own for each image.</p>"
        return
    yield f"<p>By {_text(' and '.join(ruling))}, of images that can still be read.</p>"
    thumbnails: dict[str, np.ndarray | None] = {}
    for name in found.order:
        usable = [r for r in found.of(name) if r.image in found.items and _known(r, ruling)]
        ranked = sorted(usable, key=lambda r: -_value(r, ruling))
        chosen = [*ranked[:EXAMPLES], *ranked[max(EXAMPLES, len(ranked) - EXAMPLES) :]]
        yield f"<h3>{_text(name)}</h3>"
        for number, record in enumerate(chosen):
            if record.image not in thumbnails:
                thumbnails[record.image] = _thumbnail(found, record.image)
            picture = thumbnails[record.image]
            if picture is not None:
                said = "best" if number < EXAMPLES else "worst"
                yield _figure(found, record, picture, said, ruling)


def _known(record: Record, ruling: Sequence[str]) -> bool:
    return all(record.numbers.get(metric, [None])[0] is not None for metric in ruling)


def _value(record: Record, ruling: Sequence[str]) -> float:
    """The sum of the ruling metrics, what is better when lower turned around."""
    signs = [1 if METRICS[metric].higher_is_better else -1 for metric in ruling]
    return sum(sign * (record.numbers[metric][0] or 0.0) for sign, metric in zip(signs, ruling, strict=True))


def _thumbnail(found: Evaluation, image: str) -> np.ndarray | None:
    """What the model sees of an image, small; None where it cannot be read any more."""
    how = found.preprocessing
    try:
        pixels, _ = prepare(load_image(found.items[image].picture()), how)
    except ImageError:
        return None
    picture = Image.fromarray(denormalise(pixels, how.mean, how.std))
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)


def _figure(found: Evaluation, record: Record, picture: np.ndarray, said: str, ruling: Sequence[str]) -> str:
    heat = Image.fromarray(np.asarray(record.map, dtype=np.float32) / 255)
    large = np.asarray(heat.resize((picture.shape[1], picture.shape[0]), Image.Resampling.BILINEAR))
    file = io.BytesIO()
    signed = found.methods[record.method].signed_with(found.settings["options"].get(record.method, {}))
    Image.fromarray(render.overlay(picture, large, signed)).save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    label = found.labels[record.target] if found.labels else f"class {record.target}"
    numbers = ", ".join(f"{metric} {record.numbers[metric][0]:.2f}" for metric in ruling)
    caption = f"{said}: {label}, {record.probability:.0%}; {numbers}"
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{_text(caption)}" title="{_text(record.image)}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )
