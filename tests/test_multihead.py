"""What goes on inside ``nn.MultiheadAttention`` is seen, and nothing about it changes."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import lively
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vit_explain import Explainer
from vit_explain.biases import BiasTap
from vit_explain.layer import Layer
from vit_explain.multihead import ASKS, OPENED, WHOLE
from vit_explain.tap import AttentionTap

B, N, M, D, H = 3, 7, 5, 8, 2


def attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(D, H, **options).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def seen(module: nn.Module, *inputs: Tensor, gradient: bool = False, **options: Any) -> tuple[Any, list[Layer]]:
    with AttentionTap(gradient=gradient, values=True, images=B) as tap:
        output = module(*inputs, **options)
    return output, tap.layers


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no weights wanted": {"need_weights": False},
    "weights of each head": {"average_attn_weights": False},
    "padded keys": {"key_padding_mask": torch.arange(M).expand(B, M) >= torch.tensor([[5], [3], [1]])},
    "a mask": {"attn_mask": torch.randn(N, M)},
    "a mask a head": {"attn_mask": torch.randn(B * H, N, M)},
    "both masks": {
        "attn_mask": torch.ones(N, M, dtype=torch.bool).triu(2),
        "key_padding_mask": torch.arange(M).expand(B, M) >= torch.tensor([[5], [4], [2]]),
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch_first", [True, False])
def test_what_is_captured_is_what_the_module_returns(case, batch_first):
    module, options = attention(batch_first=batch_first), CASES[case]
    q, k, v = torch.randn(B, N, D), torch.randn(B, M, D), torch.randn(B, M, D)
    inputs = [q, k, v] if batch_first else [x.transpose(0, 1) for x in (q, k, v)]
    plain, weights = module(*inputs, **options)
    every = module(*inputs, **{**options, "need_weights": True, "average_attn_weights": False})[1]
    (output, returned), (layer,) = seen(module, *inputs, **options)
    torch.testing.assert_close(output, plain)
    torch.testing.assert_close(layer.attention(), every, rtol=1e-4, atol=1e-4)
    assert (returned is None) == (weights is None)
    if weights is not None:
        torch.testing.assert_close(returned, weights)


def test_fullgrad_is_that_of_the_same_model_that_spells_attention_out():
    """torchvision's ViT, and timm's with the same weights, which calls linear layers where it could be seen anyway."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    opened = lively(torchvision.models.VisionTransformer(40, 8, 2, 2, 24, 48, num_classes=4))
    plain = VisionTransformer(40, 8, embed_dim=24, depth=2, num_heads=2, mlp_ratio=2, num_classes=4).eval()
    names = {
        "class_token": "cls_token", "conv_proj": "patch_embed.proj", "encoder.pos_embedding": "pos_embed",
        "encoder.layers.encoder_layer_": "blocks.", "encoder.ln": "norm", "heads.head": "head", "ln_1": "norm1",
        "ln_2": "norm2", "self_attention.in_proj_": "attn.qkv.", "self_attention.out_proj": "attn.proj",
        "mlp.0": "mlp.fc1", "mlp.3": "mlp.fc2",
    }  # fmt: skip
    state = {}
    for name, value in opened.state_dict().items():
        for theirs, timms in names.items():
            name = name.replace(theirs, timms)
        state[name] = value
    plain.load_state_dict(state)
    pixels = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(opened(pixels), plain(pixels), rtol=1e-4, atol=1e-5)
    for combine in ("sum", "rescaled"):
        found, expected = (Explainer(one).explain(pixels, "fullgrad", 1, combine=combine) for one in (opened, plain))
        scale = np.abs(expected.relevance).max()
        np.testing.assert_allclose(found.relevance, expected.relevance, rtol=1e-3, atol=1e-4 * scale)
        np.testing.assert_allclose(found.facts["completeness_gap"], expected.facts["completeness_gap"], rtol=1e-3)


def test_one_sequence_without_a_batch():
    module, x = attention(), torch.randn(N, D)
    (output, weights), (layer,) = seen(module, x, x, x)
    torch.testing.assert_close(output, module(x, x, x)[0])
    torch.testing.assert_close(layer.attention().mean(1)[0], weights)


def test_a_text_that_looks_only_back():
    module, x = attention(batch_first=True), torch.randn(B, N, D)
    later = nn.Transformer.generate_square_subsequent_mask(N)
    for options in ({}, {"is_causal": True}):
        (output, _), (layer,) = seen(module, x, x, x, attn_mask=later, need_weights=False, **options)
        torch.testing.assert_close(output, module(x, x, x, attn_mask=later)[0])
        torch.testing.assert_close(layer.attention().mean(1), module(x, x, x, attn_mask=later)[1])
        assert (layer.attention().triu(1) == 0).all()


def test_the_gradient_is_that_of_the_weights():
    """∂y/∂A from the gradient at the output, beside a module of the same arithmetic whose weights have a gradient."""
    module, x = attention(batch_first=True), torch.randn(B, N, D)
    direction = torch.randn(B, N, D)
    (output, _), (layer,) = seen(module, x, x, x, gradient=True)
    assert layer.out is not None
    (layer.grad_out,) = torch.autograd.grad((output * direction).sum(), layer.out)
    q, k, v = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
    q, k, v = (part.unflatten(-1, (H, -1)).transpose(1, 2) for part in (q, k, v))
    weights = (q @ k.mT / (D // H) ** 0.5).softmax(-1)
    weights.retain_grad()
    by_hand = module.out_proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(output, by_hand)
    (by_hand * direction).sum().backward()
    torch.testing.assert_close(layer.attention_gradient(), weights.grad)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_the_fast_paths_of_encoders_hide_nothing(grad, padded):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, H, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    x = torch.randn(B, N, D)
    options = {"src_key_padding_mask": torch.arange(N).expand(B, N) >= torch.tensor([[7], [4], [2]])} if padded else {}
    with torch.set_grad_enabled(grad):
        output, layers = seen(model, x, **options)
        torch.testing.assert_close(output, model(x, **options), rtol=1e-4, atol=1e-5)
    assert len(layers) == 3


class Listening(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.heard.append(func)
        return func(*args, **(kwargs or {}))


def test_other_modes_around_and_inside():
    module, x = attention(batch_first=True), torch.randn(B, N, D)
    with Listening() as outer, AttentionTap(gradient=False, values=True) as tap, Listening() as inner:
        output = module(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(output, module(x, x, x)[0])
    assert len(tap.layers) == 1
    assert WHOLE in inner.heard and F.scaled_dot_product_attention in outer.heard
    F.scaled_dot_product_attention(*torch.randn(3, 1, 1, 2, 2))
    assert len(tap.layers) == 1  # and none is left on the stack
    with AttentionTap(gradient=False, values=True) as outside, AttentionTap(gradient=False, values=True) as within:
        module(x, x, x)
    assert len(outside.layers) == len(within.layers) == 1


def test_biases_inside_are_counted():
    """Their share in y, by pulling at each of them: y is linear in the output here, and in v's bias."""
    module, x = attention(batch_first=True), torch.randn(B, N, D)
    direction = torch.randn(B, N, D)
    share = torch.zeros(B, N, requires_grad=True)
    with BiasTap(share, N) as tap:
        tap.armed = True
        output = module(x, x, x)[0]
    (found,) = torch.autograd.grad((output * direction).sum(), share)
    outs: list[Tensor] = []

    def keep(out: Tensor) -> Tensor:
        outs.append(out)
        return out

    projected = keep(F.linear(x, module.in_proj_weight, module.in_proj_bias))
    q, k, v = (part.unflatten(-1, (H, -1)).transpose(1, 2) for part in projected.chunk(3, -1))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    y = (keep(module.out_proj(mixed)) * direction).sum()
    gradients = torch.autograd.grad(y, outs)
    assert module.in_proj_bias is not None
    expected = gradients[0] @ module.in_proj_bias + gradients[1] @ module.out_proj.bias
    torch.testing.assert_close(found, expected)


def test_pytorch_still_has_what_this_leans_on():
    """A PyTorch that asks for modes by another name, or computes attention otherwise, fails here first."""
    names = OPENED.__code__.co_names
    assert ASKS in names and ASKS in WHOLE.__globals__ and not OPENED.__globals__[ASKS](())
    assert "scaled_dot_product_attention" in names
    parameters = inspect.signature(WHOLE).parameters
    assert {"need_weights", "average_attn_weights"} <= set(parameters)
    assert all(one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for one in parameters.values())
    assert ASKS in WHOLE.__globals__ and WHOLE.__globals__[ASKS] is torch.overrides.has_torch_function
