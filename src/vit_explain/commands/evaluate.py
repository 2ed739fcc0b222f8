"""``vit-explain evaluate``: scores of methods on a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..arguments import BUNDLED, open_explainer, read_list, read_metric_options, read_options
from ..terminal import complain, print_json, progress, screen
from .explain import (
    AsJson,
    Checkpoint,
    Device,
    Labels,
    MaxPixels,
    MethodList,
    MethodOption,
    Model,
    Text,
    announce,
    given,
    introduce,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from ..results import Evaluation


def evaluate(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Folder with one folder of photos a class; list (.csv, .json, .jsonl) of photos with classes, boxes "
            "or masks; or a dataset that Hugging Face's datasets saved.",
        ),
    ],
    methods: MethodList = "fast",
    metrics: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="Names with commas between them; 'fast' for those that need no further maps, or 'all'."
        ),
    ] = "fast",
    model: Model = BUNDLED,
    checkpoint: Checkpoint = None,
    labels: Labels = None,
    text: Text = None,
    images: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="So many images, evenly over classes; by default all.")
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Which images, and all other chance but that of the intervals.")
    ] = 0,
    target: Annotated[str, typer.Option(metavar="predicted|label", help="Which class is explained.")] = "predicted",
    mosaic: Annotated[int, typer.Option(metavar="N", min=2, help="Photos a side of a mosaic, for grid_pointing.")] = 2,
    option: MethodOption = None,
    metric_option: Annotated[
        list[str] | None,
        typer.Option(
            "--metric-option", "-M", metavar="METRIC.KEY=VALUE", help="An option of one of the metrics. Repeatable."
        ),
    ] = None,
    max_pixels: MaxPixels = None,
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Where results go. Stopped anywhere, the same command goes on.")
    ] = "vit-explain-evaluation",
    as_json: AsJson = False,
    device: Device = "cpu",
) -> int:
    """Evaluate methods on a dataset: report.html, scores.csv and numbers.csv, with random maps beside the methods."""
    from .. import methods as _registers_methods  # noqa: F401
    from .. import metrics as _registers_metrics  # noqa: F401
    from ..evaluation import evaluate as run
    from ..metric_registry import choose_metrics
    from ..registry import choose_methods
    from ..report import save

    names = [one.name for one in choose_methods(read_list(methods, "--methods"))]
    measures = [one.name for one in choose_metrics(read_list(metrics, "--metrics"))]
    options = read_options(option or [], names)
    metric_options = read_metric_options(metric_option or [], measures)
    console = screen()
    if not as_json:
        announce(console, model, checkpoint)
    explainer = open_explainer(model, checkpoint, labels, device, text)
    if not as_json:
        introduce(console, explainer)
    with progress("Evaluating", 1) as bars:
        found = run(
            data,
            explainer,
            names,
            measures,
            images=images,
            seed=seed,
            out=out,
            target=target,  # type: ignore[arg-type]  # checked there
            mosaic=mosaic,
            options=options,
            metric_options=metric_options,
            progress=bars.watch("Evaluating, in forwards"),
            complain=complain,
            **given(max_pixels=max_pixels),
        )
    files = save(found, Path(out))
    if as_json:
        print_json({"files": [str(file) for file in files], "refused": dict(found.refused), "scores": found.table()})
    else:
        describe(console, found, files)
    return 1 if found.refused else 0


def describe(console: Console, found: Evaluation, files: Sequence[Path]) -> None:
    """The methods in the order of their standing, and where everything is."""
    from ..catalogue import passes
    from ..metric_registry import METRICS

    width = max(len("method"), *map(len, found.methods))
    counts = ((len(found.methods), "method"), (found.images, "image"), (len(found.scores), "metric"))
    console.print("\n" + ", ".join(f"{count} {what}{'s' if count != 1 else ''}" for count, what in counts) + "\n")
    console.print(f"  {'method':{width}}  standing  {'passes':<9}  seconds  best in")
    for name in found.order:
        first = [metric for metric, scores in found.scores.items() if name in scores and scores[name].rank == 1]
        cost = passes(found.methods[name])
        standing = f"{found.standing[name]:.2f}" if name in found.standing else "–"
        console.print(
            f"  {name:{width}}  {standing:>8}  {cost:<9}  {found.seconds.get(name, 0):7.3f}  {', '.join(first)}"
        )
    missing = [metric for metric in found.metrics if metric not in found.scores]
    console.print(
        "\n  Standing is the mean place among the methods, from 0 (last) to 1 (first), over families of metrics."
    )
    for metric in missing:
        needs = ", ".join(sorted(METRICS[metric].needs)) or "a method that states what it needs"
        console.print(f"  Not measured     {metric}, which needs {needs}")
    console.print(f"  Files            {files[0].parent}/: {', '.join(file.name for file in files)}")
