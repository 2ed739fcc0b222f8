"""Relevance propagation beside lxt and zennit, on the same weights."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from alike import as_torchvision, assert_same_map, square, square_pixels
from torch import Tensor, nn

from vit_explain import Explainer

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:.*already patched")]

EPSILON = 1e-12  # zennit's and lxt's stabilisers, as good as none
CLASSES = [1, 3]


@pytest.fixture
def lxt(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """``lxt.efficient``, with zennit adapted to it; what it patches, for whole classes, is put back afterwards.

    Its models of language need an older transformers than other packages do; the one for images does not.
    """
    found = importlib.util.find_spec("lxt")
    assert found is not None and found.origin is not None
    models = ModuleType("lxt.efficient.models")
    models.__path__ = [str(Path(found.origin).parent / "efficient" / "models")]
    models.get_default_map = None
    monkeypatch.setitem(sys.modules, models.__name__, models)
    from lxt.efficient import monkey_patch, patches, zennit_patches
    from lxt.efficient.models import vit_torch
    from zennit.core import BasicHook

    for changed in (nn.GELU, nn.LayerNorm, nn.MultiheadAttention, BasicHook):
        monkeypatch.setattr(changed, "forward", changed.forward)
        monkeypatch.setattr(changed, "original_forward", None, raising=False)
    monkeypatch.setattr(BasicHook, "backward", BasicHook.backward)
    zennit_patches.monkey_patch_zennit()
    return SimpleNamespace(monkey_patch=monkey_patch, patches=patches, cp_lrp=vit_torch.cp_LRP)


def relevance(model: nn.Module, pixels: Tensor) -> Tensor:
    """Input × gradient at the pixels, summed over colours; the rules are in the backward."""
    pixels = pixels.clone().requires_grad_()
    value = model(pixels)[torch.arange(len(pixels)), CLASSES].sum()
    (gradient,) = torch.autograd.grad(value, pixels)
    return (pixels * gradient).sum(1).detach()


def gamma_rules(linear: float, conv: float) -> Any:
    from zennit.composites import LayerMapComposite
    from zennit.rules import Gamma

    return LayerMapComposite([(nn.Conv2d, Gamma(conv, EPSILON)), (nn.Linear, Gamma(linear, EPSILON))])


def plain_norms(**options: Any) -> Any:
    """lxt changes torch's own LayerNorm, so the model has that one."""
    return square(norm_layer=partial(nn.LayerNorm, eps=1e-6), **options)


def test_lxt_on_torchvision(lxt):
    model, pixels = square(), square_pixels()
    ours = Explainer(model).attribute(
        pixels, CLASSES, "attn_lrp", level="pixels", attention="detach", linear_gamma=0.0, conv_gamma=0.0
    )
    theirs = as_torchvision(model)
    lxt.monkey_patch(None, lxt.cp_lrp)
    assert_same_map(ours, relevance(theirs, pixels), tolerance=1e-5)


@pytest.mark.parametrize("attention", ["detach", "uniform"])
@pytest.mark.parametrize(("linear", "conv"), [(0.0, 0.0), (0.05, 0.25), (0.25, 0.0), (1.0, 100.0)])
def test_lxt_and_zennit_with_gamma(lxt, monkeypatch, attention, linear, conv):
    """On our own model, since zennit's rules are for nn.Linear, which is not what nn.MultiheadAttention calls."""
    model, pixels = plain_norms(), square_pixels()
    ours = Explainer(model).attribute(
        pixels, CLASSES, "attn_lrp", level="pixels", attention=attention, linear_gamma=linear, conv_gamma=conv
    )
    lxt.monkey_patch(None, {kind: rule for kind, rule in lxt.cp_lrp.items() if kind is not nn.MultiheadAttention})
    fused = F.scaled_dot_product_attention
    wrap = {"detach": lxt.patches.cp_wrap_attention_forward, "uniform": lxt.patches.wrap_attention_forward}[attention]
    wrapped = wrap(lambda _module, q, k, v: fused(q, k, v))
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **_: wrapped(None, q, k, v))
    with gamma_rules(linear, conv).context(model) as modified:
        theirs = relevance(modified, pixels)
    assert_same_map(ours, theirs, tolerance=1e-5)
