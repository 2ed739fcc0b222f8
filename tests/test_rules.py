"""Backward rules against hand derivations with loops, conservation in float64, and the methods made of them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import GRID, MODELS, SIZE, SMALL, lively, small
from timm.layers import GluMlp, SwiGLU
from timm.layers.norm import RmsNorm, SimpleNorm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vit_explain import Explainer
from vit_explain.errors import OptionError
from vit_explain.rules import Rules

LIBRA: dict[str, Any] = {
    "attention": "detach",
    "normalisation": "detach_std",
    "activation": "identity",
    "gate": "half",
}
CP: dict[str, Any] = {"attention": "detach", "normalisation": "detach_std"}
ATTN: dict[str, Any] = {**LIBRA, "attention": "uniform"}
METHODS = ("cp_lrp", "attn_lrp", "libra_grad")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def swapped(run: Callable[..., Tensor], rules: dict[str, Any], *inputs: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """(output, modified gradients of the inputs, gradient that came in), for a gradient that is not constant."""
    leaves = [one.clone().requires_grad_() for one in inputs]
    with Rules(**rules):
        out = run(*leaves)
    incoming = draw(*out.shape, seed=9)
    torch.testing.assert_close(out.detach(), run(*inputs), rtol=1e-12, atol=1e-12)
    return out.detach(), list(torch.autograd.grad(out, leaves, incoming)), incoming


# Single rules, from their definitions --------------------------------------------------------------------------------


def linear_by_hand(x: Tensor, w: Tensor, b: Tensor, incoming: Tensor, gamma: float, epsilon: float) -> Tensor:
    """Relevance (rows, in) of a linear layer, summand by summand."""
    found = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for k in range(w.shape[0]):
            parts = [float(x[row, i] * w[k, i]) for i in range(x.shape[1])] + [float(b[k])]
            z = sum(parts)
            sign = math.copysign(1, z)
            stressed = [part * (1 + gamma) if part * sign > 0 else part for part in parts]
            for i in range(x.shape[1]):
                found[row, i] += stressed[i] / (sum(stressed) + epsilon * sign) * z * incoming[row, k]
    return found


@pytest.mark.parametrize(("gamma", "epsilon"), [(0.3, 0.0), (100.0, 0.0), (0.0, 0.5), (0.3, 0.5)])
def test_linear_rule(gamma, epsilon):
    x, w, b = draw(3, 5), draw(4, 5, seed=1), draw(4, seed=2)
    _, (found,), incoming = swapped(lambda x: F.linear(x, w, b), {"linear_gamma": gamma, "epsilon": epsilon}, x)
    torch.testing.assert_close(x * found, linear_by_hand(x, w, b, incoming, gamma, epsilon))


def test_gamma_is_the_textbook_rule_where_that_is_defined():
    """Inputs and outputs above zero: z_k = Σ x_i (w + γ w⁺)."""
    gamma, x, w = 0.25, draw(1, 6).abs(), draw(4, 6, seed=1)
    w = torch.where((x @ w.T).T > 0, w, -w)
    _, (found,), incoming = swapped(lambda x: F.linear(x, w), {"linear_gamma": gamma}, x)
    expected = torch.zeros_like(x)
    for k in range(4):
        stressed = [x[0, i] * (w[k, i] + gamma * max(float(w[k, i]), 0)) for i in range(6)]
        for i in range(6):
            expected[0, i] += stressed[i] / sum(stressed) * (x[0] @ w[k]) * incoming[0, k]
    torch.testing.assert_close(x * found, expected)


@pytest.mark.parametrize(("gamma", "epsilon"), [(0.3, 0.0), (0.3, 0.5), (0.0, 0.5)])
def test_convolution_rule_is_the_linear_rule_of_every_window(gamma, epsilon):
    x, w, b = draw(1, 2, 5, 4), draw(3, 2, 3, 2, seed=1), draw(3, seed=2)
    stride, padding = (2, 1), (1, 0)
    rules = {"conv_gamma": gamma, "epsilon": epsilon}
    _, (found,), incoming = swapped(lambda x: F.conv2d(x, w, b, stride, padding), rules, x)
    windows = F.unfold(x, (3, 2), stride=stride, padding=padding)[0].T
    of_windows = linear_by_hand(windows, w.flatten(1), b, incoming[0].flatten(1).T, gamma, epsilon)
    expected = F.fold(of_windows.T[None], (5, 4), (3, 2), stride=stride, padding=padding)
    torch.testing.assert_close(x * found, expected)


def test_dead_units_pass_no_gradient_that_is_not_finite():
    _, (found,), _ = swapped(lambda x: F.linear(x, draw(3, 4)), {"linear_gamma": 0.3}, torch.zeros(2, 4).double())
    assert found.isfinite().all()
    _, (found,), incoming = swapped(F.gelu, {"activation": "identity"}, torch.zeros(2, 4).double())
    torch.testing.assert_close(found, incoming / 2)  # the limit of Φ(x)


def test_convolutions_padded_by_name_are_refused():
    x, w = draw(1, 1, 4, 4).requires_grad_(), draw(1, 1, 2, 2)
    with Rules(conv_gamma=0.1), pytest.raises(OptionError, match="padded by name"):
        F.conv2d(x, w, padding="same")


class Whole(nn.Module):
    """The same attention as timm's, in PyTorch's one module."""

    def __init__(self, attn: Any) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(attn.qkv.in_features, attn.num_heads, batch_first=True)
        self.inner.load_state_dict(
            {
                "in_proj_weight": attn.qkv.weight,
                "in_proj_bias": attn.qkv.bias,
                "out_proj.weight": attn.proj.weight,
                "out_proj.bias": attn.proj.bias,
            }
        )

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("method", [*METHODS, "transformer_attribution", "partial_lrp"])
def test_attention_in_one_module_follows_the_same_rules(method, vit: Any, pixels):
    """Else its linear layers and its softmax would go without their rules, and nobody would be told."""
    expected = Explainer(vit).attribute(pixels, 0, method)
    for block in vit.blocks:
        block.attn = Whole(block.attn)
    found = Explainer(vit.eval()).attribute(pixels, 0, method)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_large_gammas_of_sums_that_fill_half_precision():
    """γ times a sum of sizes may be above 65504, the largest number of half precision; its share is not."""
    x, w, options = draw(3, 64) * 20, draw(4, 64, seed=1), {"linear_gamma": 1000.0}
    _, (expected,), incoming = swapped(lambda x: F.linear(x, w), options, x)
    leaf = x.half().requires_grad_()
    with Rules(**options):
        out = F.linear(leaf, w.half())
    (found,) = torch.autograd.grad(out, leaf, incoming.half())
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


def attention(q: Tensor, k: Tensor, v: Tensor, *, fused: bool) -> Tensor:
    if fused:
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.softmax(dim=-1) @ v


@pytest.mark.parametrize("fused", [True, False])
def test_uniform_attention_by_hand(fused):
    """AttnLRP's rules for two matrix products and a softmax, in relevances, entry by entry."""
    q, k, v = draw(1, 1, 3, 2), draw(1, 1, 4, 2, seed=1), draw(1, 1, 4, 2, seed=2)
    out, found, incoming = swapped(lambda *x: attention(*x, fused=fused), {"attention": "uniform"}, q, k, v)
    scores = (q @ k.transpose(-2, -1))[0, 0] * 2**-0.5
    weights = scores.softmax(-1)
    of_out = (out * incoming)[0, 0]
    of_weights, of_scores = torch.zeros_like(weights), torch.zeros_like(weights)
    of_q, of_k, of_v = (torch.zeros_like(one[0, 0]) for one in (q, k, v))
    for i in range(3):
        for j in range(4):
            for d in range(2):
                part = weights[i, j] * v[0, 0, j, d] / (2 * out[0, 0, i, d]) * of_out[i, d]
                of_weights[i, j] += part
                of_v[j, d] += part
    torch.testing.assert_close(of_weights.sum() + of_v.sum(), of_out.sum())
    for i in range(3):
        for j in range(4):
            of_scores[i, j] = scores[i, j] * (of_weights[i, j] - weights[i, j] * of_weights[i].sum())
            # The rule's bias form: s(x) ≈ J x + rest, J from the relevance of each output.
    # R_i = Σ_j J_ji x_i R_j / s_j with J the softmax's Jacobian, as a check of the line above.
    for i in range(3):
        for j in range(4):
            jacobian = [weights[i, o] * (float(o == j) - weights[i, j]) for o in range(4)]
            direct = sum(jacobian[o] * scores[i, j] * of_weights[i, o] / weights[i, o] for o in range(4))
            torch.testing.assert_close(of_scores[i, j], direct)
            for d in range(2):
                part = q[0, 0, i, d] * k[0, 0, j, d] * 2**-0.5 / (2 * scores[i, j]) * of_scores[i, j]
                of_q[i, d] += part
                of_k[j, d] += part
    for x, gradient, expected in zip((q, k, v), found, (of_q, of_k, of_v), strict=True):
        torch.testing.assert_close((x * gradient)[0, 0], expected)


@pytest.mark.parametrize("fused", [True, False])
def test_constant_attention_by_hand(fused):
    q, k, v = draw(1, 1, 3, 2), draw(1, 1, 4, 2, seed=1), draw(1, 1, 4, 2, seed=2)
    leaves = [one.clone().requires_grad_() for one in (q, k, v)]
    with Rules(attention="detach"):
        out = attention(*leaves, fused=fused)
    incoming = draw(*out.shape, seed=9)
    found = torch.autograd.grad(out, leaves, incoming, allow_unused=True)
    weights = ((q @ k.transpose(-2, -1)) * 2**-0.5).softmax(-1)
    expected = torch.stack([sum(weights[0, 0, i, j] * incoming[0, 0, i] for i in range(3)) for j in range(4)])
    torch.testing.assert_close(found[2][0, 0], expected)
    assert all(one is None or not one.any() for one in found[:2])


@pytest.mark.parametrize("rules", [{"attention": "detach"}, {"attention": "uniform"}])
def test_fused_and_unfused_attention_agree_under_a_mask(rules):
    q, k, v = draw(2, 3, 5, 4), draw(2, 3, 5, 4, seed=1), draw(2, 3, 5, 4, seed=2)
    bias = draw(1, 3, 5, 5, seed=3)

    def unfused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.matmul(torch.softmax(q @ k.transpose(-2, -1) / 2 + bias, -1), v)

    def found(run: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [one.clone().requires_grad_() for one in (q, k, v)]
        with Rules(**rules):
            out = run(*leaves)
        gradients = torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)
        return [torch.zeros(()) if one is None or not one.any() else one for one in gradients]

    for one, other in zip(found(lambda *x: F.scaled_dot_product_attention(*x, bias)), found(unfused), strict=True):
        torch.testing.assert_close(one, other, check_dtype=False)


@pytest.mark.parametrize(
    "function",
    [
        F.gelu,
        F.silu,
        nn.SiLU(inplace=True),
        nn.GELU(approximate="tanh"),
        lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: x.mul(x.sigmoid()),
        lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
        lambda x: 0.5 * x * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0)))),
    ],
)
def test_identity_rule_hands_relevance_through(function):
    x = draw(4, 6)
    out, (found,), incoming = swapped(lambda x: function(x.clone()), {"activation": "identity"}, x)
    for index in np.ndindex(4, 6):
        torch.testing.assert_close(x[index] * found[index], out[index] * incoming[index])
        torch.testing.assert_close(found[index], function(x.clone())[index] / x[index] * incoming[index])


def test_layer_norm_with_a_constant_deviation_by_hand():
    x, w, b, n = draw(3, 4), draw(4, seed=1), draw(4, seed=2), 4
    rules = {"normalisation": "detach_std"}
    _, (found,), incoming = swapped(lambda x: F.layer_norm(x, (n,), w, b, 1e-3), rules, x)
    for row in range(3):
        mean = sum(x[row]) / n
        deviation = math.sqrt(sum((x[row, i] - mean) ** 2 for i in range(n)) / n + 1e-3)
        for i in range(n):
            expected = sum(incoming[row, k] * w[k] * ((i == k) - 1 / n) / deviation for k in range(n))
            torch.testing.assert_close(found[row, i], expected)


def test_other_norms_with_a_constant_divisor_by_hand():
    """The same operations with their divisor detached, by autograd."""
    x, w, b = draw(2, 6, 4), draw(4, seed=1), draw(6, seed=2)
    rms, simple = RmsNorm(4).double(), SimpleNorm(4).double()
    with torch.no_grad():
        rms.weight.copy_(w)
        simple.weight.copy_(w)

    def grouped(x: Tensor) -> Tensor:
        parts = x.reshape(2, 3, 8)
        centred = parts - parts.mean(-1, keepdim=True)
        deviation = (parts.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt().detach()
        return (centred / deviation).view_as(x) * b[:, None] + b[:, None]

    def both(x: Tensor) -> Tensor:
        return (x - x.mean((1, 2), True)) / x.std((1, 2), correction=0, keepdim=True).detach()

    cases: list[tuple[Callable[..., Tensor], Callable[..., Tensor]]] = [
        (rms, lambda x: x / (x.square().mean(-1, keepdim=True) + rms.eps).sqrt().detach() * w),
        (simple, lambda x: x / (x.var(-1, keepdim=True) + simple.eps).sqrt().detach() * w),
        (lambda x: F.rms_norm(x, (4,)), lambda x: x / x.square().mean(-1, keepdim=True).sqrt().detach()),
        (lambda x: F.normalize(x, dim=-1), lambda x: x / x.norm(dim=-1, keepdim=True).detach()),
        (lambda x: x / x.norm(dim=-1, keepdim=True), lambda x: x / x.norm(dim=-1, keepdim=True).detach()),
        (
            lambda x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True),
            lambda x: x / x.norm(dim=-1, keepdim=True).detach(),
        ),
        (lambda x: x / x.square().sum(-1, keepdim=True) ** 0.5, lambda x: x / x.norm(dim=-1, keepdim=True).detach()),
        (lambda x: x / x.std(-1, keepdim=True), lambda x: x / x.std(-1, keepdim=True).detach()),
        (
            lambda x: x / torch.sqrt(x.var(-1, keepdim=True) + 1),
            lambda x: x / (x.var(-1, keepdim=True) + 1).sqrt().detach(),
        ),
        (lambda x: F.group_norm(x, 3, b, b), grouped),
        (lambda x: F.layer_norm(x, (6, 4)), both),
    ]
    for run, by_hand in cases:
        _, (found,), incoming = swapped(run, {"normalisation": "detach_std"}, x)
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(by_hand(leaf), leaf, incoming)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [GluMlp, SwiGLU])
def test_gated_products_are_halved(kind):
    torch.manual_seed(0)
    mlp = kind(4, 8, act_layer=nn.SiLU, **({"gate_last": False} if kind is GluMlp else {})).double()
    x = draw(2, 3, 4)

    def by_hand(x: Tensor) -> Tensor:
        gate, other = (mlp.fc1_g(x), mlp.fc1_x(x)) if kind is SwiGLU else mlp.fc1(x).chunk(2, -1)
        product = gate * torch.sigmoid(gate).detach() * other
        return mlp.fc2(product / 2 + (product / 2).detach())

    _, (found,), incoming = swapped(mlp, {"activation": "identity", "gate": "half"}, x)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(by_hand(leaf), leaf, incoming)
    torch.testing.assert_close(found, expected)


def test_tanh_by_itself_keeps_its_derivative():
    """As where a pooler ends in one."""
    x = draw(2, 6)
    _, (found,), incoming = swapped(lambda x: torch.tanh(x) + x, {"activation": "identity"}, x)
    torch.testing.assert_close(found, (2 - torch.tanh(x).square()) * incoming)


def test_scales_of_channels_are_no_gates():
    scale, x = nn.Parameter(draw(6)), draw(2, 6)
    _, (found,), incoming = swapped(lambda x: F.gelu(x) * scale, {"activation": "identity", "gate": "half"}, x)
    torch.testing.assert_close(x * found, F.gelu(x) * scale.detach() * incoming)


def test_nothing_is_left_behind():
    x = draw(3).requires_grad_()

    def plain() -> None:
        expected = torch.special.ndtr(x) + x * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        torch.testing.assert_close(torch.autograd.grad(F.gelu(x).sum(), x)[0], expected)

    def broken_model() -> None:
        with Rules(**LIBRA):
            F.gelu(x)
            raise ZeroDivisionError

    plain()
    with pytest.raises(ZeroDivisionError):
        broken_model()
    plain()
    failed: list[BaseException] = []

    def elsewhere() -> None:
        try:
            plain()
        except BaseException as error:
            failed.append(error)

    with Rules(**LIBRA):
        other = threading.Thread(target=elsewhere)
        other.start()
        other.join()
    assert not failed
    assert not torch.overrides._get_current_function_mode_stack()


# Whole models --------------------------------------------------------------------------------------------------------


def without_biases(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if "bias" in name and "table" not in name:
                parameter.zero_()
    return model.double()


def unfuse(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
    return model


def gated_attention() -> nn.Module:
    model: Any = Eva(**SMALL)
    for block in model.blocks:
        block.attn.gate = nn.Linear(SMALL["embed_dim"], SMALL["embed_dim"])
    return model


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "swiglu": lambda: Eva(**SMALL, use_rot_pos_emb=True, swiglu_mlp=True),
    "swiglu with a norm": lambda: Eva(**SMALL, swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True),
    "a norm before the blocks": lambda: VisionTransformer(**SMALL, pre_norm=True),
    "rms norms": lambda: VisionTransformer(**SMALL, norm_layer=RmsNorm, qk_norm=True),
    "gated attention": gated_attention,
}
ANATOMIES = {**MODELS, **OTHERS}


def relevance_of_tokens(model: Any, pixels: Tensor, rules: dict[str, Any], target: int = 1) -> tuple[Tensor, Tensor]:
    """(x ⊙ modified gradient of the tokens entering block 0, (B, N)), (logit of a class, (B,))."""
    seen: list[Tensor] = []
    hook = model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with Rules(**rules):
            logit = model(pixels)[:, target]
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(logit.sum(), seen[0])
    return (seen[0] * gradient).sum(-1).detach(), logit.detach()


def gap(model: Any, pixels: Tensor, rules: dict[str, Any]) -> float:
    """How far relevance is from adding up to the logit, relative to the logits' size."""
    found, logit = relevance_of_tokens(model, pixels, rules)
    return float((found.sum(1) - logit).abs().max() / logit.abs().max())


@pytest.mark.parametrize("name", ANATOMIES)
@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_libra_conserves_over_all_tokens(name, gamma, pixels):
    torch.manual_seed(0)
    model = without_biases(lively(ANATOMIES[name]()))
    assert gap(model, pixels.double(), {**LIBRA, "linear_gamma": gamma, "conv_gamma": gamma}) < 1e-9


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("libra_grad", {}),
        ("attn_lrp", {"attention": "detach"}),  # with its default γ
        ("cp_lrp", {"linear_gamma": 0.2}),  # of an MLP that is linear in pieces
    ],
)
def test_maps_sum_to_the_logit(method, options, pixels):
    """Where no token is dropped from the map and nothing has a bias, what is shown is all of y."""
    torch.manual_seed(0)
    act_layer = nn.ReLU if method == "cp_lrp" else nn.GELU
    model = without_biases(
        lively(VisionTransformer(**SMALL, class_token=False, global_pool="avg", act_layer=act_layer))
    )
    found = Explainer(model).explain(pixels.double(), method, 1, **options)
    np.testing.assert_allclose(found.relevance.sum((1, 2)), found.logits[:, 1], rtol=1e-4, atol=1e-5)


def test_what_conserves_and_what_does_not(pixels):
    pixels = pixels.double()
    torch.manual_seed(0)
    smooth = without_biases(lively(VisionTransformer(**SMALL)))
    pieces = without_biases(lively(VisionTransformer(**SMALL, act_layer=nn.ReLU)))
    assert gap(pieces, pixels, CP) < 1e-9
    assert gap(smooth, pixels, CP) > 1e-3  # GELU's own gradient
    assert gap(smooth, pixels, {**CP, "activation": "identity"}) < 1e-9
    assert gap(smooth, pixels, {**LIBRA, "attention": None}) > 1e-3
    assert gap(smooth, pixels, {**LIBRA, "normalisation": None}) > 1e-3
    assert gap(smooth, pixels, ATTN) > 1e-3  # the softmax
    assert gap(smooth, pixels, {**LIBRA, "epsilon": 0.1}) > 1e-3  # what ε absorbs
    assert gap(lively(VisionTransformer(**SMALL)).double(), pixels, LIBRA) > 1e-3  # what biases absorb
    gated = without_biases(lively(OTHERS["swiglu"]()))
    assert gap(gated, pixels, {**LIBRA, "gate": None}) > 1e-3


def test_pixels_and_embeddings_conserve_together(pixels):
    """At the pixels the class token and the position embeddings hold the rest."""
    torch.manual_seed(0)
    model: Any = without_biases(lively(VisionTransformer(**SMALL, reg_tokens=2)))
    leaf = pixels.double().requires_grad_()
    parts = [leaf, model.cls_token, model.reg_token, model.pos_embed]
    with Rules(**LIBRA, linear_gamma=0.1, conv_gamma=0.2):
        logit = model(leaf)[:, 1].sum()
    gradients = torch.autograd.grad(logit, parts)
    total = sum((part * gradient).sum() for part, gradient in zip(parts, gradients, strict=True))
    torch.testing.assert_close(total.detach(), logit.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ANATOMIES)
@pytest.mark.parametrize("rules", [CP, ATTN, LIBRA, {**ATTN, "linear_gamma": 0.1, "conv_gamma": 0.2, "epsilon": 0.01}])
def test_outputs_stay_as_they_are_and_fusing_changes_nothing(name, rules, pixels):
    torch.manual_seed(0)
    model = lively(ANATOMIES[name]()).double()
    pixels = pixels.double()
    plain = model(pixels)[:, 1].detach()
    fused, logit = relevance_of_tokens(model, pixels, rules)
    torch.testing.assert_close(logit, plain, rtol=1e-10, atol=1e-10)
    unfused, logit = relevance_of_tokens(unfuse(model), pixels, rules)
    torch.testing.assert_close(logit, plain, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(unfused, fused, rtol=1e-8, atol=1e-8 * float(fused.abs().max()))


# Methods against a transformer written out with detach() -------------------------------------------------------------


def halved(x: Tensor) -> Tensor:
    return x / 2 + (x / 2).detach()


def norm_by_hand(norm: Any, x: Tensor) -> Tensor:
    deviation = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt().detach()
    return (x - x.mean(-1, keepdim=True)) / deviation * norm.weight + norm.bias


def linear_with_gamma(layer: Any, x: Tensor, gamma: float) -> Tensor:
    """The stressed sum, times what makes it the plain one; its gradient is the rule's."""
    w, b = layer.weight, layer.bias
    z = F.linear(x, w, b)
    if not gamma:
        return z
    above = F.linear(x.clamp(min=0), w + gamma * w.clamp(min=0)) + F.linear(x.clamp(max=0), w + gamma * w.clamp(max=0))
    below = F.linear(x.clamp(min=0), w + gamma * w.clamp(max=0)) + F.linear(x.clamp(max=0), w + gamma * w.clamp(min=0))
    if b is not None:
        above, below = above + b + gamma * b.clamp(min=0), below + b + gamma * b.clamp(max=0)
    stressed = torch.where(z > 0, above, below)
    return stressed * (z / stressed).detach()


def attention_by_hand(part: Any, x: Tensor, kind: str, gamma: float) -> Tensor:
    b, n, _ = x.shape
    q, k, v = linear_with_gamma(part.qkv, x, gamma).view(b, n, 3, part.num_heads, part.head_dim).permute(2, 0, 3, 1, 4)
    if kind == "uniform":
        weights = halved((halved(q @ k.transpose(-2, -1)) * part.scale).softmax(-1))
        v = halved(v)
    else:
        weights = ((q @ k.transpose(-2, -1)) * part.scale).softmax(-1).detach()
    return linear_with_gamma(part.proj, (weights @ v).transpose(1, 2).reshape(b, n, -1), gamma)


def activation_by_hand(x: Tensor, identity: bool) -> Tensor:
    gate = (1 + torch.erf(x / math.sqrt(2))) / 2
    return x * (gate.detach() if identity else gate)


def by_hand(model: Any, pixels: Tensor, target: int, kind: str, *, identity: bool, gamma: float = 0.0) -> list[Any]:
    """[Z_l], [∂y/∂Z_l] of the tokens entering each block, of a timm ViT written out; pooling attention included."""
    x = model._pos_embed(model.patch_embed(pixels)).detach().requires_grad_()
    entering = []
    for block in model.blocks:
        entering.append(x)
        x = x + attention_by_hand(block.attn, norm_by_hand(block.norm1, x), kind, gamma)
        hidden = activation_by_hand(linear_with_gamma(block.mlp.fc1, norm_by_hand(block.norm2, x), gamma), identity)
        x = x + linear_with_gamma(block.mlp.fc2, hidden, gamma)
    x = norm_by_hand(model.norm, x)
    if model.global_pool == "map":
        pool, b = model.attn_pool, len(x)
        k, v = linear_with_gamma(pool.kv, x, gamma).view(b, -1, 2, pool.num_heads, pool.head_dim).permute(2, 0, 3, 1, 4)
        q = pool.q(pool.latent).view(1, 1, pool.num_heads, pool.head_dim).transpose(1, 2)
        if kind == "uniform":
            weights, v = halved((halved(q @ k.transpose(-2, -1)) * pool.scale).softmax(-1)), halved(v)
        else:
            weights = ((q @ k.transpose(-2, -1)) * pool.scale).softmax(-1).detach()
        x = linear_with_gamma(pool.proj, (weights @ v).transpose(1, 2).reshape(b, 1, -1), gamma)
        hidden = activation_by_hand(linear_with_gamma(pool.mlp.fc1, norm_by_hand(pool.norm, x), gamma), identity)
        x = (x + linear_with_gamma(pool.mlp.fc2, hidden, gamma))[:, 0]
    else:
        x = x[:, 0]
    logit = linear_with_gamma(model.head, x, gamma)[:, target].sum()
    gradients = torch.autograd.grad(logit, entering)
    return [[one.detach() for one in entering], list(gradients)]


def on_grid(model: Any, tokens: Tensor) -> np.ndarray:
    return tokens[:, model.num_prefix_tokens :].unflatten(1, GRID).detach().numpy()


def same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["class token", "attention pooling"])
@pytest.mark.parametrize(
    ("method", "options", "kind", "identity", "gamma"),
    [
        ("cp_lrp", {}, "detach", False, 0.0),
        ("cp_lrp", {"linear_gamma": 0.2}, "detach", False, 0.2),
        ("attn_lrp", {}, "uniform", True, 0.0),
        ("attn_lrp", {"linear_gamma": 0.2}, "uniform", True, 0.2),
        ("attn_lrp", {"linear_gamma": 0.05}, "uniform", True, 0.05),
        ("attn_lrp", {"attention": "detach", "linear_gamma": 0.0}, "detach", True, 0.0),
        ("libra_grad", {}, "detach", True, 0.0),
    ],
)
def test_methods_are_the_model_written_out(name, method, options, kind, identity, gamma, pixels):
    model = small(name)
    tokens, gradients = by_hand(model, pixels, 2, kind, identity=identity, gamma=gamma)
    expected = on_grid(model, (tokens[0] * gradients[0]).sum(-1))
    same(Explainer(model).explain(pixels, method, 2, **options).relevance, expected)


@pytest.mark.parametrize("name", ["class token", "attention pooling"])
@pytest.mark.parametrize(("attention", "start"), [("uniform", None), ("uniform", 1), ("detach", 2)])
def test_depth_lrp_is_the_mean_over_depths(name, attention, start, pixels):
    model = small(name)
    tokens, gradients = by_hand(model, pixels, 2, attention, identity=True)
    terms = [(z * g).sum(-1) for z, g in zip(tokens, gradients, strict=True)][start or 0 :]
    found = Explainer(model).explain(pixels, "depth_lrp", 2, attention=attention, start_layer=start).relevance
    same(found, on_grid(model, torch.stack(terms).mean(0)))


def test_depth_lrp_begins_at_a_block_that_there_is(model, pixels):
    with pytest.raises(OptionError, match=r"start_layer 3 does not exist; the model has blocks 0 to 2"):
        Explainer(model).explain(pixels, "depth_lrp", 2, start_layer=3)


def test_libra_over_input_x_gradient_is_cp_lrp_with_the_identity_rule(model, pixels):
    found = Explainer(model).explain(pixels, "libra_grad", 1).relevance
    expected, _ = relevance_of_tokens(model, pixels, {**CP, "activation": "identity"})
    same(found, on_grid(model, expected))
    attn = Explainer(model).explain(pixels, "attn_lrp", 1, attention="detach", linear_gamma=0.0).relevance
    np.testing.assert_allclose(attn, found, rtol=1e-4, atol=1e-6 * np.abs(found).max())


@pytest.mark.parametrize("name", ["class token", "attention pooling"])
def test_libra_over_attcat_by_hand(name, pixels):
    model: Any = small(name)
    tokens, gradients = by_hand(model, pixels, 2, "detach", identity=True)
    seen: list[Tensor] = []
    hooks = [
        block.attn.attn_drop.register_forward_hook(lambda _module, _args, out: seen.append(out.detach()))
        for block in unfuse(model).blocks
    ]
    with torch.no_grad():
        model(pixels)
    for hook in hooks:
        hook.remove()
    expected = torch.zeros(tokens[0].shape[:2])
    for z, gradient, weights in zip(tokens, gradients, seen, strict=True):
        for image in range(len(z)):
            for token in range(z.shape[1]):
                share = np.mean([float(weights[image, h, i, token]) for h in range(3) for i in range(z.shape[1])])
                expected[image, token] += share * float(z[image, token] @ gradient[image, token])
    same(Explainer(small(name)).explain(pixels, "libra_grad", 2, over="attcat").relevance, on_grid(model, expected))


def shares_by_hooks(model: Any, pixels: Tensor, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """What biases say at tokens (B, N), what those without a token say (B,), and the logit, one hook a module."""
    outs: list[tuple[Tensor, Tensor]] = []
    entered: list[Tensor] = []

    def see(module: Any, _args: object, out: Tensor) -> None:
        if entered and getattr(module, "bias", None) is not None:
            outs.append((out, module.bias))

    handles = [one.register_forward_hook(see) for one in model.modules() if isinstance(one, (nn.Linear, nn.LayerNorm))]
    handles.append(model.blocks[0].register_forward_pre_hook(lambda _, args: entered.append(args[0])))
    with Rules(**LIBRA):
        logit = model(pixels)[:, target]
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(logit.sum(), [out for out, _ in outs], allow_unused=True)
    shares, rest = logit.new_zeros(entered[0].shape[:2]), logit.new_zeros(len(pixels))
    for (_, bias), gradient in zip(outs, gradients, strict=True):
        if gradient is not None:
            share = (bias * gradient).sum(-1).detach()
            if share.ndim == 2 and share.shape[1] > 1:
                shares[:, shares.shape[1] - share.shape[1] :] += share
            else:
                rest += share.view(len(pixels))
    return shares, rest, logit.detach()


@pytest.mark.parametrize("name", [*MODELS, "swiglu", "a norm before the blocks"])
def test_libra_over_fullgrad_plus_by_hooks(name, pixels):
    torch.manual_seed(0)
    model: Any = lively(ANATOMIES[name]()).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.bias.copy_(draw(len(module.bias)) * 0.1)
    pixels = pixels.double()
    for block in model.blocks:
        if hasattr(block.attn, "q_bias"):  # added by a call that no module stands for, see below
            block.attn.q_bias = block.attn.k_bias = block.attn.v_bias = None
    shares, rest, logit = shares_by_hooks(model, pixels, 2)
    seen: list[Tensor] = []
    handles = [block.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for block in model.blocks]
    with Rules(**LIBRA):
        value = model(pixels)[:, 2]
    for handle in handles:
        handle.remove()
    terms = [(z * g).sum(-1).detach() for z, g in zip(seen, torch.autograd.grad(value.sum(), seen), strict=True)]
    # Completeness: the tokens, the biases' share in them, and the biases without a token are all there is.
    torch.testing.assert_close((terms[0] + shares).sum(1) + rest, logit, rtol=1e-9, atol=1e-9)
    same(
        Explainer(model).explain(pixels, "libra_grad", 2, over="fullgrad_plus").relevance,
        on_grid(model, torch.stack([*terms, shares]).sum(0)),
    )


def test_biases_that_belong_to_no_module_count(pixels):
    """EVA gives its vectors to a call, or adds them by themselves."""
    torch.manual_seed(0)
    model: Any = lively(Eva(**SMALL, use_rot_pos_emb=True))
    shown = Explainer(model).explain(pixels, "libra_grad", 2, over="fullgrad_plus").relevance
    for block in model.blocks:
        block.attn.qkv_bias_separate = True
    separate = Explainer(model).explain(pixels, "libra_grad", 2, over="fullgrad_plus").relevance
    same(separate, shown)
    for block in model.blocks:
        block.attn.v_bias.data.zero_()
    without = Explainer(model).explain(pixels, "libra_grad", 2, over="fullgrad_plus").relevance
    assert np.abs(without - shown).max() > 1e-3 * np.abs(shown).max()


# Options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_pixels(method, model, pixels):
    """At the pixels: input times modified gradient, by autograd to the model's input."""
    options: dict[str, Any] = {} if method == "libra_grad" else {"linear_gamma": 0.1, "conv_gamma": 0.3}
    found = Explainer(model).explain(pixels, method, 1, level="pixels", **options)
    assert found.relevance.shape == (3, *SIZE) and found.signed
    leaf = pixels.clone().requires_grad_()
    with Rules(**{"cp_lrp": CP, "attn_lrp": ATTN, "libra_grad": LIBRA}[method], **options):
        value = model(leaf)[:, 1].sum()
    (gradient,) = torch.autograd.grad(value, leaf)
    same(found.relevance, (leaf * gradient).sum(1).detach().numpy())


@pytest.mark.parametrize("method", METHODS)
def test_a_model_is_left_as_it_was(method, vit, pixels):
    vit.requires_grad_(False)
    frozen = Explainer(vit).explain(pixels, method, 0).relevance
    vit.requires_grad_(True)
    trained = Explainer(vit).explain(pixels, method, 0).relevance
    same(frozen, trained)
    assert all(parameter.grad is None for parameter in vit.parameters())
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize("method", METHODS)
def test_half_precision(method, vit, pixels):
    options: dict[str, Any] = {"over": "fullgrad_plus"} if method == "libra_grad" else {}
    full = Explainer(vit).explain(pixels, method, 0, **options).relevance
    half = Explainer(vit.bfloat16()).explain(pixels.bfloat16(), method, 0, **options).relevance
    assert half.dtype == np.float32
    assert np.corrcoef(full.ravel(), half.ravel())[0, 1] > 0.95


def test_several_classes_share_one_forward(vit, pixels):
    for over in ("attcat", "fullgrad_plus"):
        both = Explainer(vit).explain(pixels, "libra_grad", [[0, 1]] * 3, over=over).relevance
        for number in (0, 1):
            alone = Explainer(vit).explain(pixels, "libra_grad", number, over=over).relevance
            np.testing.assert_allclose(both[number::2], alone, rtol=1e-5, atol=1e-6 * np.abs(alone).max())


def test_gamma_and_epsilon_reach_every_layer(vit, pixels):
    plain = Explainer(vit).explain(pixels, "cp_lrp", 0, level="pixels").relevance
    for options in ({"linear_gamma": 0.1}, {"conv_gamma": 0.1}, {"epsilon": 0.1}):
        found = Explainer(vit).explain(pixels, "cp_lrp", 0, level="pixels", **options).relevance
        assert np.abs(found - plain).max() > 1e-3 * np.abs(plain).max()
    for method in ("attn_lrp", "cp_lrp"):  # patch tokens lie above the only convolution
        with pytest.raises(OptionError, match="take level='pixels'"):
            Explainer(vit).explain(pixels, method, 0, conv_gamma=0.1)


def test_what_is_refused(vit, pixels):
    for over in ("attcat", "fullgrad_plus"):
        with pytest.raises(OptionError, match="speaks of tokens"):
            Explainer(vit).explain(pixels, "libra_grad", 0, over=over, level="pixels")
    with pytest.raises(OptionError, match="linear_gamma must be a number in"):
        Explainer(vit).explain(pixels, "cp_lrp", 0, linear_gamma=-0.1)


def test_the_patent_note_is_where_it_is_read():
    from vit_explain.methods import attn_lrp, cp_lrp

    for module in (attn_lrp, cp_lrp):
        assert "patented" in (module.__doc__ or "")
