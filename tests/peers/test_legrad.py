"""LeGrad beside torchcam and the authors' own package, on one model's weights in all three."""

from __future__ import annotations

import copy
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from alike import SIDE, as_open_clip, as_siglip, as_torchvision, assert_same_map, square, square_pixels
from small_models import PATCH
from torch import Tensor, nn

from vit_explain import Explainer

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:Importing from timm.models.layers")]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="torchcam needs Python 3.11")
@pytest.mark.parametrize("last", [1, 2, 3])
def test_torchcam(last):
    from torchcam.methods import LeGrad

    model, pixels = square(), square_pixels()
    theirs = as_torchvision(model)
    torch.testing.assert_close(theirs(pixels), model(pixels))
    with LeGrad(theirs, list(theirs.encoder.layers)[-last:]) as extractor:
        (found,) = extractor([1, 3], theirs(pixels), normalized=False)
    ours = Explainer(model).attribute(pixels, [1, 3], "legrad", last=last)
    assert_same_map(ours / last, found, tolerance=1e-6)


def stretched(maps: Tensor) -> Tensor:
    """The authors' package ends in 0 … 1."""
    return (maps - maps.min()) / (maps.max() - maps.min())


def on_pixels(maps: Tensor) -> Tensor:
    """The authors' package upsamples to the input: of CLIP before stretching, of SigLIP after it."""
    return F.interpolate(maps.unsqueeze(1), scale_factor=PATCH, mode="bilinear")


@pytest.mark.parametrize("last", [2, 3])
def test_the_authors_package_on_clip(last):
    from legrad import LeWrapper

    model, pixels = square(pre_norm=True, norm_layer=partial(nn.LayerNorm, eps=1e-5)), square_pixels()[:1]
    with torch.no_grad():
        model.head.bias.zero_()  # a projection has none
    clip = as_open_clip(model)
    torch.testing.assert_close(clip.encode_image(pixels), model(pixels))
    words = F.normalize(torch.randn(1, model.num_classes, dtype=torch.float64), dim=1)
    theirs = LeWrapper(clip, layer_index=-last).compute_legrad(words, pixels)
    ours = Explainer(model).attribute(pixels, lambda out: F.normalize(out, dim=1) @ words[0], "legrad", last=last)
    assert_same_map(stretched(on_pixels(ours)), theirs, tolerance=1e-6)


@pytest.mark.parametrize("last", [2, 3])
def test_the_authors_package_on_siglip(last):
    """Without the model's final norm, which the authors leave out in front of the pooling attention."""
    from legrad import LeWrapper

    model = square(class_token=False, global_pool="map", final_norm=False, num_classes=0)
    pixels = square_pixels()[:1]
    words = F.normalize(torch.randn(1, model.embed_dim, dtype=torch.float64), dim=1)
    theirs = LeWrapper(as_siglip(copy.deepcopy(model)), layer_index=-last)
    found = theirs.compute_legrad(words, pixels, apply_correction=False)
    ours = Explainer(model).attribute(pixels, lambda out: F.normalize(out, dim=1) @ words[0], "legrad", last=last)
    assert found.shape[-1] == SIDE
    assert_same_map(on_pixels(stretched(ours)), found, tolerance=1e-6)
