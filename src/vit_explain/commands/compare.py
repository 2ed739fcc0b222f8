"""``vit-explain compare``: one photo by many methods, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..arguments import BUNDLED, open_explainer, read_list, read_options, read_prompts
from ..errors import TargetError
from ..terminal import complain, print_json, progress, screen
from .explain import (
    Against,
    AsJson,
    Checkpoint,
    Colormap,
    Device,
    Labels,
    MaxPixels,
    MethodList,
    MethodOption,
    Model,
    Opacity,
    Text,
    announce,
    folders,
    given,
    introduce,
    likeliest,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from ..comparison import Comparison


def compare(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Photo to explain.")],
    methods: MethodList = "fast",
    model: Model = BUNDLED,
    checkpoint: Checkpoint = None,
    labels: Labels = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="Class to explain, for methods that depend on one: a number, a label, 'top1' (the default) or 'top3'. "
            "Repeatable.",
        ),
    ] = None,
    text: Text = None,
    against: Against = None,
    option: MethodOption = None,
    colormap: Colormap = None,
    opacity: Opacity = None,
    max_pixels: MaxPixels = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the photo's folder is made.")] = "vit-explain-out",
    as_json: AsJson = False,
    device: Device = "cpu",
) -> int:
    """Compare methods on one photo: comparison.png, maps.png, agreement.png, comparison.npz and manifest.json."""
    from .. import methods as _registers_them  # noqa: F401
    from ..registry import choose_methods

    chosen = choose_methods(read_list(methods, "--methods"))
    names = [method.name for method in chosen]
    options = read_options(option or [], names)
    prompts, wanted = read_prompts(text or [], target or [], against)
    if prompts and not target and not any(method.class_specific for method in chosen):
        wanted = None
    if wanted is not None and not any(method.class_specific for method in chosen):
        raise TargetError("none of --methods depends on a class: leave --target out or add another method")
    console = screen()
    if not as_json:
        announce(console, model, checkpoint)
    explainer = open_explainer(model, checkpoint, labels, device, prompts)
    if not as_json:
        introduce(console, explainer)
    with progress("Comparing", len(names)) as bars:
        comparison = explainer.compare(
            image, names, wanted, options=options, progress=bars.watch_each(), **given(max_pixels=max_pixels)
        )
    folder = folders([f"{Path(image).stem}-comparison.png"], Path(out))[0]
    files = comparison.save(folder, **given(colormap=colormap, opacity=opacity))
    for line in left_out(comparison.refused):
        complain(line)
    if as_json:
        print_json({"image": image, "files": [str(file) for file in files], **comparison.as_dict()})
    else:
        describe(console, image, comparison, files)
    return 1 if comparison.refused else 0


def left_out(refused: dict[str, str]) -> list[str]:
    """One line for each reason, with the methods that it concerns."""
    reasons: dict[str, list[str]] = {}
    for name, reason in refused.items():
        reasons.setdefault(reason, []).append(name)
    return [f"left out {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def describe(console: Console, image: str, comparison: Comparison, files: Sequence[Path]) -> None:
    """What each method cost and which other it is most like, and what to take care of."""
    from ..catalogue import passes
    from ..comparison import seconds
    from ..registry import METHODS

    first = next(iter(comparison.explanations.values()))
    targets = [comparison.target(row) for row in range(comparison.rows)]
    console.print(f"\n{image}: {len(comparison.names)} methods" + (f", for {'; '.join(targets)}" if targets[0] else ""))
    if best := likeliest(first):
        console.print(f"  The model says   {best}")
    console.print(f"  Shared looks     {seconds(comparison.look_seconds)}, beside the methods' own times\n")
    nearest = comparison.nearest()
    width = max(len("method"), *map(len, comparison.names))
    console.print(f"  {'method':{width}}  {'time':>7}  {'passes':<9}  {'agreement':>9}  most like")
    for name, one in comparison.explanations.items():
        mean, like = nearest.get(name, (None, "-"))
        agreement = "-" if mean is None else f"{mean:.2f}"
        cost = passes(METHODS[name])
        console.print(f"  {name:{width}}  {seconds(one.seconds):>7}  {cost:<9}  {agreement:>9}  {like}")
    console.print("\n  Agreement is the mean rank correlation with the other methods on patches, from -1 to 1.")
    for name, one in comparison.explanations.items():
        for warning in dict.fromkeys(text for own in one.warnings for text in own):
            console.print(f"  Take care        {name}: {warning}")
    console.print(f"  Files            {files[0].parent}/: {', '.join(file.name for file in files)}")
