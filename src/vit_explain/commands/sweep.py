"""``vit-explain sweep``: one photo across discard ratios and head fusions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..arguments import BUNDLED, open_explainer, read_list, read_pairs, read_settings
from ..errors import TargetError
from ..registry import choose_method
from ..terminal import progress, screen
from .explain import (
    Checkpoint,
    Colormap,
    Device,
    Extra,
    Labels,
    MaxPixels,
    Model,
    Opacity,
    announce,
    folders,
    given,
    introduce,
    likeliest,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


def sweep(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Photo to explain.")],
    model: Model = BUNDLED,
    checkpoint: Checkpoint = None,
    labels: Labels = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="rollout, gradient_rollout or attention_flow; by default gradient_rollout where a --target is given, "
            "else rollout.",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="CLASS", help="Class to explain: a number, a label, or 'top1'.")
    ] = None,
    head_fusions: Annotated[str, typer.Option(metavar="LIST", help="Rows of the picture.")] = "mean,max,min",
    discard_ratios: Annotated[str, typer.Option(metavar="LIST", help="Columns of the picture.")] = "0,0.5,0.8,0.9,0.95",
    option: Extra = None,
    colormap: Colormap = None,
    opacity: Opacity = None,
    width: Annotated[int, typer.Option(metavar="PIXELS", min=48, max=2048, help="Width of one picture.")] = 256,
    seconds: Annotated[float, typer.Option(metavar="S", min=0.02, max=60, help="Time of one frame.")] = 0.8,
    max_pixels: MaxPixels = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the photo's folder is made.")] = "vit-explain-out",
    device: Device = "cpu",
) -> int:
    """Explain one photo with every head fusion and discard ratio: sweep.png, maps.png and sweep.gif."""
    rows, columns = read_list(head_fusions, "--head-fusions"), read_list(discard_ratios, "--discard-ratios")
    texts = read_pairs(option or [], ("head_fusion", "discard_ratio"))
    method = choose_method(method, target)
    # Every combination is read before the first is run: a wrong one costs nothing and leaves nothing.
    settings = [
        [read_settings(method, {**texts, "head_fusion": row, "discard_ratio": column}) for column in columns]
        for row in rows
    ]
    console = screen()
    announce(console, model, checkpoint)
    explainer = open_explainer(model, checkpoint, labels, device)
    from .. import charts, render, store

    introduce(console, explainer)
    cells: list[list[Any]] = []
    maps: list[list[Any]] = []
    records = []
    name = best = ""
    with progress("Explaining", len(rows) * len(columns)) as bars:
        for line in settings:
            cells.append([])
            maps.append([])
            for options in line:
                explanation = explainer.explain(
                    image, method=method, target=target, **options, **given(max_pixels=max_pixels)
                )
                if len(explanation.targets) > 1:
                    raise TargetError(f"a sweep explains one class, and {target!r} is {len(explanation.targets)}")
                overlay = explanation.overlay(0, **given(colormap=colormap, opacity=opacity))
                colours = render.colorize(explanation.heatmaps()[0], render.colormap_for(explanation.signed, colormap))
                cells[-1].append(smaller(overlay, width))
                maps[-1].append(smaller(colours, width))
                name, best = explanation.targets[0], likeliest(explanation)
                records.append(explanation.as_dict())
                bars.step()
    title = f"{Path(image).name}: {method}" + (f", {name}" if name else "")
    column_names = [f"discard {column}" for column in columns]
    frames = [
        charts.grid([[line[at] for line in cells]], (), rows, f"{column}: {title}", cell=width)
        for at, column in enumerate(column_names)
    ]
    folder = folders([f"{Path(image).stem}-sweep.png"], Path(out))[0]
    files = store.write_folder(
        folder,
        {
            "sweep.png": render.png(charts.grid(cells, rows, column_names, title, cell=width)),
            "maps.png": render.png(charts.grid(maps, rows, column_names, title, cell=width)),
            "sweep.gif": render.gif(same_size(frames), seconds),
        },
        {"image": image, "head_fusions": rows, "discard_ratios": columns, "explanations": records},
    )
    console.print(f"\n{title}")
    if best:
        console.print(f"  The model says   {best}")
    console.print(f"  Rows             head fusion {', '.join(rows)}")
    console.print(f"  Columns          discard ratio {', '.join(columns)}")
    console.print(f"  Files            {folder}/: {', '.join(file.name for file in files)}")
    return 0


def smaller(picture: NDArray[np.uint8], width: int) -> Image.Image:
    """A copy that a cell of the grid can show: a large photo's overlays would not all fit into memory."""
    from PIL import Image

    copy = Image.fromarray(picture)
    copy.thumbnail((2 * width, 2 * width))
    return copy


def same_size(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """The frames on paper of one size: a longer title may take a second line."""
    from PIL import Image

    size = max(frame.width for frame in frames), max(frame.height for frame in frames)
    sheets = [Image.new("RGB", size, "white") for _ in frames]
    for sheet, frame in zip(sheets, frames, strict=True):
        sheet.paste(frame, (0, size[1] - frame.height))
    return sheets
