"""Class activation maps beside pytorch-grad-cam's, at the same layer, on the token grid before it upsamples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from alike import assert_same_map, bundled, photo
from small_models import SIZE, small

from vit_explain import Explainer

pytestmark = pytest.mark.peers

CLASSES = [1, 3]
FEATURES, SCALE = 1e-3, 1000.0


@pytest.fixture(scope="module")
def trained() -> Any:
    return bundled()


def small_pixels() -> torch.Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(2))


def theirs(kind: str, model: Any, pixels: torch.Tensor, targets: Any) -> torch.Tensor:
    """Their map of each image on the token grid, (B, h, w), before they take its positive part."""
    import pytorch_grad_cam

    grid, prefix = model.patch_embed.grid_size, model.num_prefix_tokens

    def on_grid(tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)

    seen = []
    with getattr(pytorch_grad_cam, kind)(model, [model.blocks[-1].norm1], on_grid) as cam:
        before = cam.get_cam_image
        cam.get_cam_image = lambda *given: seen.append(before(*given)) or seen[-1]
        cam(pixels, targets)
    model.zero_grad()  # they call backward()
    return torch.from_numpy(seen[0])


def classes() -> list[Any]:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    return [ClassifierOutputTarget(number) for number in CLASSES]


@pytest.mark.parametrize(
    ("method", "kind"), [("gradcam", "GradCAM"), ("xgradcam", "XGradCAM"), ("layercam", "LayerCAM")]
)
def test_maps_of_gradients(trained, method, kind):
    pixels = photo()
    ours = Explainer(trained).attribute(pixels, CLASSES, method)
    assert_same_map(ours, theirs(kind, trained, pixels, classes()).clamp(min=0))


def test_hirescam(trained):
    pixels = photo()
    ours = Explainer(trained).attribute(pixels, CLASSES, "hirescam")
    assert_same_map(ours, theirs("HiResCAM", trained, pixels, classes()))


def test_eigencam_apart_from_its_sign(trained):
    pixels = photo()
    ours = Explainer(trained).attribute(pixels, None, "eigencam")
    found = theirs("EigenCAM", trained, pixels, classes())
    furthest = found.flatten(1).gather(1, found.abs().flatten(1).argmax(1, keepdim=True))
    assert_same_map(ours, (found * furthest.sign()[:, :, None]).clamp(min=0))


def test_gradcam_plus_plus_where_their_stabiliser_is_small():
    """Features that are never negative, as the paper has them, and a score scaled until gradients are not tiny."""
    model = small("class token")
    with torch.no_grad():
        model.blocks[-1].norm1.weight.fill_(FEATURES / 5)
        model.blocks[-1].norm1.bias.fill_(FEATURES)
    # S G stays between -0.5 and 0.3 then, so no denominator is held, and G between 0.3 and 31, so 1e-6 is nothing.
    targets = [lambda out, number=number: SCALE * out[..., number] for number in CLASSES]
    ours = Explainer(model).attribute(small_pixels(), targets, "gradcam_plus_plus")
    assert_same_map(ours, theirs("GradCAMPlusPlus", model, small_pixels(), targets))


def test_scorecam_with_our_upsampling(monkeypatch):
    """Theirs aligns the corners of token grid and image."""
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", lambda size: torch.nn.Upsample(size, mode="bilinear"))
    model = small("class token")
    ours = Explainer(model).attribute(small_pixels(), CLASSES, "scorecam", channels="all")
    found = theirs("ScoreCAM", model, small_pixels(), classes())
    assert_same_map(ours, found.clamp(min=0))
