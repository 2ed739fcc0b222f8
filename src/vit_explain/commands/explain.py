"""``vit-explain explain``: pictures and numbers for photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..arguments import BUNDLED, ORIGINAL_DEFAULT, open_explainer, read_pairs, read_prompts, read_settings
from ..errors import ContrastError, ImageError
from ..registry import BEST, choose_method, find
from ..terminal import complain, print_json, progress, screen

if TYPE_CHECKING:
    from rich.console import Console

    from ..explainer import Explainer
    from ..explanation import Explanation

# What several commands take, worded once.
Model = Annotated[
    str, typer.Option(metavar="NAME", help="Model to explain: 'bundled', or any name that `vit-explain models` lists.")
]
Checkpoint = Annotated[
    str | None, typer.Option(metavar="FILE", help="Weights for --model: .safetensors, or a .pth holding tensors only.")
]
Labels = Annotated[
    str | None, typer.Option(metavar="FILE", help="Class names: one a line, or JSON; by default the model's own.")
]
Against = Annotated[
    str | None,
    typer.Option(
        metavar="CLASS",
        help="Explain --target rather than this class, or --text than this text; 'top2' is the second best.",
    ),
]
Text = Annotated[
    list[str] | None,
    typer.Option(metavar="PROMPT", help="Of an image-text model: a text that the photo is to match. Repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps, or auto.")]
Extra = Annotated[
    list[str] | None,
    typer.Option("--option", "-O", metavar="KEY=VALUE", help="Any other option of the method. Repeatable."),
]
Colormap = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Colours of the map; by default perceptually uniform, diverging if signed."),
]
Opacity = Annotated[float | None, typer.Option(metavar="0..1", help="Opacity of the strongest relevance.")]
MethodList = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        help="Names with commas between them; 'fast' stands for all that take one forward and at most one "
        "backward, 'all' for all.",
    ),
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option("--option", "-O", metavar="METHOD.KEY=VALUE", help="An option of one of the methods. Repeatable."),
]
MaxPixels = Annotated[int | None, typer.Option(metavar="N", min=1, help="Refuse pictures of more pixels than this.")]


def explain(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Photos to explain.")],
    model: Model = BUNDLED,
    checkpoint: Checkpoint = None,
    labels: Labels = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="One of `vit-explain methods`; by default rollout, and gradient_rollout where a --target is given. "
            "'best' is the head of the leaderboard of methods of one forward and at most one backward.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS", help="Class to explain: a number, a label, 'top1' or 'top3'. Repeatable."),
    ] = None,
    text: Text = None,
    against: Against = None,
    head_fusion: Annotated[str | None, typer.Option(metavar="mean|max|min", help="How heads become one.")] = None,
    discard_ratio: Annotated[
        str | None, typer.Option(metavar="0..1", help="Share of the lowest attention to discard; below 1.")
    ] = None,
    layer: Annotated[str | None, typer.Option(metavar="N", help="Layer, from 0; -1 is the last.")] = None,
    head: Annotated[str | None, typer.Option(metavar="N", help="Head, from 0, or how heads become one.")] = None,
    option: Extra = None,
    colormap: Colormap = None,
    opacity: Opacity = None,
    max_pixels: MaxPixels = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Test on each photo whether its map can be believed; takes some seconds.")
    ] = False,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where a folder for each photo is made.")] = "vit-explain-out",
    as_json: AsJson = False,
    device: Device = "cpu",
) -> int:
    """Explain photos: overlay.png, side_by_side.png, explanation.npz and manifest.json for each."""
    texts = given(head_fusion=head_fusion, discard_ratio=discard_ratio, layer=layer, head=head)
    texts |= read_pairs(option or [], texts)
    prompts, wanted = read_prompts(text or [], target or [], against)
    name = method if method == BEST else choose_method(method, wanted)
    settings = {} if name == BEST else read_settings(name, texts)  # what cannot be is said before a model is loaded
    console = screen()
    if not as_json:
        announce(console, model, checkpoint)
    explainer = open_explainer(model, checkpoint, labels, device, prompts)
    if not as_json:
        introduce(console, explainer)
    if name == BEST:
        from ..leaderboard import said

        found = explainer.best(wanted)
        if not as_json:
            console.print(f"Method: {said(found)}.")
        name, settings = found.name, read_settings(found.name, texts)
    if prompts and not target and not find(name).class_specific:
        wanted = None
    settings |= given(max_pixels=max_pixels)

    done: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    with progress("Explaining", len(images)) as bars:
        for image, folder in zip(images, folders(images, Path(out)), strict=True):
            try:
                explanation = explainer.explain(
                    image, method=name, target=wanted, progress=bars.watch(name), **settings
                )
                if verify:
                    explanation = verified(explainer, explanation)
                files = explanation.save(folder, **given(colormap=colormap, opacity=opacity))
            except (ImageError, ContrastError) as error:
                complain(str(error) if isinstance(error, ImageError) else f"{image}: {error}")
                failed.append({"image": image, "error": str(error)})
            else:
                if not as_json:
                    describe(console, image, explanation, files)
                done.append({"image": image, "files": [str(file) for file in files], **explanation.as_dict()})
            bars.step()
    if as_json and done:
        print_json({"explanations": done, "failed": failed})
    if not failed:
        return 0
    return 1 if done else 2


def given(**named: Any) -> dict[str, Any]:
    """The keywords that are not None."""
    return {name: value for name, value in named.items() if value is not None}


def announce(console: Console, model: str, checkpoint: str | None) -> None:
    """Why it may take a while before anything else is said."""
    if model != BUNDLED and checkpoint is None:
        console.print(f"Loading {model}; its weights come from the hub the first time ...")


def introduce(console: Console, explainer: Explainer) -> None:
    """Which model it is, and how to choose another."""
    console.print(f"Model: {explainer.model_name}", end="")
    if explainer.model_name == BUNDLED:
        known = ", ".join(explainer.labels or [])
        console.print(f" (knows {known}).")
        console.print(
            f"Other models: `vit-explain models` lists them; --model {ORIGINAL_DEFAULT} is the original project's."
        )
    else:
        console.print()


def describe(console: Console, image: str, explanation: Explanation, files: Sequence[Path]) -> None:
    """What was found in one photo, in words."""
    options = ", ".join(f"{name}={value}" for name, value in explanation.options.items())
    console.print(f"\n{image}: {explanation.method}" + (f" ({options})" if options else ""))
    if best := likeliest(explanation):
        console.print(f"  The model says   {best}")
    for row, name in enumerate(explanation.targets):
        console.print(f"  Explained        {name or 'no class in particular: where the model looked'}")
        console.print(f"  Where            {explanation.where(row)}")
        for name, values in explanation.facts.items():
            console.print(f"  {name.replace('_', ' ').capitalize():<16} {float(values[row]):.4g}")
        for warning in explanation.warnings[row]:
            console.print(f"  Take care        {warning}")
        if explanation.verdicts:
            console.print(f"  Verdict          {explanation.verdicts[row]['summary']}")
            for finding in explanation.verdicts[row]["findings"]:
                console.print(f"  {finding['test'].capitalize():<16} {finding['says']}")
    console.print(f"  Time             {explanation.seconds:.2f} s")
    console.print(f"  Files            {files[0].parent}/: {', '.join(file.name for file in files)}")


def verified(explainer: Explainer, explanation: Explanation) -> Explanation:
    """With a verdict beside the map."""
    from ..verdict import verify

    return verify(explainer, explanation)


def likeliest(explanation: Explanation) -> str:
    """The classes that the model finds likeliest, with probabilities; empty for a model without classes.

    Of a single class there is only its score.
    """
    if explanation.logits.shape[1] == 1 and explanation.labels:
        return f"{explanation.labels[0]}: score {float(explanation.logits[0, 0]):.4g}"
    return "   ".join(f"{label} {probability:.1%}" for label, _, probability in explanation.top(0, 3))


def folders(images: Sequence[str], out: Path) -> list[Path]:
    """A folder for each image, named after its file; a second file of the same name gets -2, and so on."""
    taken: set[str] = set()
    made = []
    for image in images:
        stem = Path(image).stem.strip(". ") or "image"
        name, number = stem, 1
        while name.lower() in taken:  # some file systems hold A and a for the same name
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        made.append(out / name)
    return made
