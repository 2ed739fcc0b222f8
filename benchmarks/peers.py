"""Other packages over ours, per image, for methods that both have: never slower.

Each is called as its users call it. Theirs ends in maps of the input's size, which most of them cannot leave out; ours
in the raw map. ``tests/peers`` shows that the maps are the same.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from measuring import MODELS, Work, at_least, build, images, in_turns, milliseconds, table
from rich.table import Table
from torch import Tensor, nn

from vit_explain import Explainer

LEAST = 1.0
BATCHES = {"ViT-B/16": 4, "DeiT-Ti": 8}
CAMS = {
    "gradcam": "GradCAM",
    "gradcam_plus_plus": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "eigencam": "EigenCAM",
}
STEPS = 16
CLASS = 1

Case = tuple[str, str, str, int, Work, Work]  # method, peer, model, images, ours, theirs


def peers(rounds: int) -> Table | str:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, about their dependencies
        try:
            import captum  # noqa: F401
            import legrad  # noqa: F401
            import pytorch_grad_cam  # noqa: F401
            import torchcam  # noqa: F401
        except ImportError as error:
            return f"peers: {error}; `make peers`, or pip install 'vit-explain[bench]', installs what to compare with"
        rows = table("Other packages over ours, per image", "method", "peer", "model", "images", "theirs ms", "ours ms",
                     "times faster", "at least", "met")  # fmt: skip
        for method, peer, title, number, ours, theirs in (*legrads(), *cams(), *scorecam(), *gradients()):
            with contextlib.redirect_stderr(io.StringIO()):  # their progress bars
                (found,) = in_turns(ours, [theirs], rounds)
            rows.add_row(method, peer, title, str(number), milliseconds(found.work / number),
                         milliseconds(found.bare / number), *at_least(found.ratio, LEAST))  # fmt: skip
    return rows


def legrads() -> Iterator[Case]:
    """All layers. The authors' package takes one image at a time."""
    from legrad import LeWrapper
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
    from torchcam.methods import LeGrad
    from torchvision.models import vit_b_16

    pixels = images(BATCHES["ViT-B/16"])
    ours = partial(Explainer(build("vit_base_patch16_224")).attribute, pixels, CLASS, "legrad")
    model = vit_b_16().eval()

    def torchcam_map() -> None:
        with LeGrad(model, list(model.encoder.layers)) as extractor:
            extractor(CLASS, model(pixels))

    yield "legrad", "torchcam", "ViT-B/16", len(pixels), ours, torchcam_map

    vision = CLIPVisionCfg(layers=12, width=768, patch_size=16, image_size=224)
    text = CLIPTextCfg(context_length=4, vocab_size=8, width=8, heads=1, layers=1)
    wrapped = LeWrapper(CLIP(512, vision, text).eval(), layer_index=0)
    words = nn.functional.normalize(torch.randn(1, 512), dim=1)
    ours = partial(
        Explainer(build("vit_base_patch16_clip_224", num_classes=512)).attribute,
        pixels[:1],
        lambda out: nn.functional.normalize(out, dim=1) @ words[0],
        "legrad",
    )
    yield "legrad", "legrad-torch", "CLIP ViT-B/16", 1, ours, partial(wrapped.compute_legrad, words, pixels[:1])


def cams() -> Iterator[Case]:
    for (title, name), (method, kind) in ((model, cam) for model in MODELS.items() for cam in CAMS.items()):
        model, pixels = build(name), images(BATCHES[title])
        target = None if method == "eigencam" else CLASS
        ours = partial(Explainer(model).attribute, pixels, target, method)
        yield method, "grad-cam", title, len(pixels), ours, partial(theirs, kind, model, pixels)


def scorecam() -> Iterator[Case]:
    model, pixels = build(MODELS["DeiT-Ti"]), images(1)
    ours = partial(Explainer(model).attribute, pixels, CLASS, "scorecam", channels="all")
    yield "scorecam", "grad-cam", "DeiT-Ti", 1, ours, partial(theirs, "ScoreCAM", model, pixels)


def theirs(kind: str, model: Any, pixels: Tensor) -> None:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def on_grid(tokens: Tensor) -> Tensor:
        return tokens[:, model.num_prefix_tokens :].unflatten(1, model.patch_embed.grid_size).permute(0, 3, 1, 2)

    with getattr(pytorch_grad_cam, kind)(model, [model.blocks[-1].norm1], on_grid) as cam:
        cam(pixels, [ClassifierOutputTarget(CLASS)] * len(pixels))


def gradients() -> Iterator[Case]:
    from captum.attr import IntegratedGradients, Saliency

    for title, name in MODELS.items():
        model, pixels = build(name), images(1)
        explain = Explainer(model).attribute
        # With its completeness gap, which ours always tells.
        told = {"n_steps": STEPS, "internal_batch_size": 8, "return_convergence_delta": True}
        path = partial(IntegratedGradients(model).attribute, pixels, 0.0, CLASS, **told)
        ours = partial(explain, pixels, CLASS, "integrated_gradients", steps=STEPS, level="pixels")
        yield "integrated_gradients", "captum", title, 1, ours, path
        batch = images(BATCHES[title])
        at_once = partial(Saliency(model).attribute, batch.clone().requires_grad_(), CLASS)
        yield "saliency", "captum", title, len(batch), partial(explain, batch, CLASS, "saliency"), at_once
