"""What is captured is what happened, and looking leaves no trace on the model."""

from __future__ import annotations

import copy
import dataclasses
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import SIZE, small, unfused_attention
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from vit_explain import Explainer
from vit_explain.capture import look
from vit_explain.compiled import as_written
from vit_explain.errors import CaptureError, ModelError, TargetError
from vit_explain.family import family_of
from vit_explain.layer import BLOCK_ELEMENTS
from vit_explain.modules import evaluation_mode, modules_of
from vit_explain.tap import AttentionTap


def test_attention_and_its_gradient_are_those_of_the_unfused_model(vit, pixels):
    attentions, gradients = unfused_attention(vit, pixels, target=2)
    seen = look(vit, pixels, {"attention", "gradient"})
    layers, logits = seen.layers, seen.output
    grads = torch.autograd.grad(logits[:, 2].sum(), [layer.out for layer in layers])
    assert len(layers) == len(attentions) == 3
    for layer, grad, attention, gradient in zip(layers, grads, attentions, gradients, strict=True):
        layer.grad_out = grad
        torch.testing.assert_close(layer.attention(), attention)
        torch.testing.assert_close(layer.attention_gradient(), gradient)


def test_blocks_cover_everything_whatever_their_size(vit, pixels, monkeypatch):
    layers = look(vit, pixels, {"attention"}).layers
    whole = layers[0].attention()
    for elements in (1, 40, 300, 10**9):
        monkeypatch.setitem(BLOCK_ELEMENTS, "cpu", elements)
        seen = torch.zeros_like(whole)
        for images, rows in layers[0].blocks():
            seen[images, :, rows] += layers[0].attention(images, rows)
        torch.testing.assert_close(seen, whole)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.randn(1, 2, 7, 7)},
        {"attn_mask": torch.rand(3, 1, 7, 7) > 0.4},
        {"attn_mask": torch.zeros(7, 7, dtype=torch.bool)},  # every key masked: fused attention answers zero
        {"enable_gqa": True},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_derived_attention_times_values_is_the_fused_output(options):
    heads = 1 if options.get("enable_gqa") else 2
    q, k, v = torch.randn(3, 2, 7, 5), torch.randn(3, heads, 7, 5), torch.randn(3, heads, 7, 6)
    with AttentionTap(gradient=False, values=True) as tap:
        out = F.scaled_dot_product_attention(q, k, v, **options)
    layer = tap.layers[0]
    assert layer.v is not None
    torch.testing.assert_close(layer.attention() @ layer.v, out)
    torch.testing.assert_close(layer.attention(slice(1, 3), slice(2, 5)), layer.attention()[1:3, :, 2:5])


def test_a_softmax_that_is_no_attention_is_not_taken_for_one():
    with AttentionTap(gradient=False, values=True) as tap:
        weights = torch.randn(2, 3, 4, 4).softmax(-1)
        weights.sum()
        torch.randn(2, 3, 4, 4) @ torch.randn(2, 3, 4, 4)
    assert tap.layers == []


def test_fused_and_unfused_give_one_map(vit, pixels):
    fused = {m: Explainer(vit).explain(pixels, m, **o).relevance for m, o in METHODS}
    for block in vit.blocks:
        block.attn.fused_attn = False
    for name, options in METHODS:
        unfused = Explainer(vit).explain(pixels, name, **options).relevance
        torch.testing.assert_close(torch.from_numpy(unfused), torch.from_numpy(fused[name]), rtol=1e-4, atol=1e-7)


METHODS = (("rollout", {}), ("gradient_rollout", {"head_fusion": "max"}), ("attention", {"head": 1}))


def snapshot(model: nn.Module) -> dict[str, object]:
    return {
        "training": [module.training for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "requires": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "classes": [type(module) for module in model.modules()],
        "values": [p.detach().clone() for p in model.parameters()],
        "fused": [getattr(m, "fused_attn", None) for m in model.modules()],
    }


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, dict)) and isinstance(b, type(a)):
        pairs = zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else zip(a, b, strict=True)
        return len(a) == len(b) and all(same(x, y) for x, y in pairs)
    return a == b


@pytest.mark.parametrize("mode", ["eval", "training", "partly training", "frozen", "with gradients"])
def test_the_model_is_left_as_it_was(vit, pixels, mode):
    if mode == "training":
        vit.train()
    elif mode == "partly training":
        vit.blocks[1].train()
    elif mode == "frozen":
        vit.requires_grad_(False)
    elif mode == "with gradients":
        vit(pixels).sum().backward()
    before = snapshot(vit)
    expected = Explainer(vit).explain(pixels, target=1).relevance
    assert same(before, snapshot(vit))
    # The same numbers whatever state it was in: dropout and gradients of parameters play no part.
    vit.eval().requires_grad_(True)
    assert (Explainer(vit).explain(pixels, target=1).relevance == expected).all()


def test_the_model_is_left_as_it_was_after_an_error(vit, pixels):
    vit.train()
    before = snapshot(vit)

    def failing(_output: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the target failed")

    with pytest.raises(TargetError, match="the target failed"):
        Explainer(vit).explain(pixels, target=failing)
    assert same(before, snapshot(vit))
    # No mode is left on the stack: an attention call outside is seen by nobody.
    F.scaled_dot_product_attention(*torch.randn(3, 1, 1, 2, 2))


def test_looking_does_not_change_the_output(model, pixels):
    plain = model(pixels)
    anatomy = family_of(model).anatomy(model, (3, *SIZE))
    for needs in ({"attention"}, {"attention", "tokens", "features", "gradient"}, {"tokens", "graph"}, set()):
        output = look(model, pixels, needs, anatomy).output
        torch.testing.assert_close(output.detach(), plain.detach())


def test_inside_inference_mode_gradients_still_come(vit, pixels):
    expected = Explainer(vit).explain(pixels, target=0).relevance
    with torch.inference_mode():
        assert (Explainer(vit).explain(pixels, target=0).relevance == expected).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_handled_in_float32(vit, pixels, dtype):
    exact = Explainer(vit).explain(pixels, target=0).relevance
    half = Explainer(vit.to(dtype)).explain(pixels, target=0).relevance
    assert half.dtype == exact.dtype == "float32"
    assert next(vit.parameters()).dtype == dtype
    for a, b in zip(exact, half, strict=True):
        assert torch.corrcoef(torch.stack([torch.from_numpy(a).flatten(), torch.from_numpy(b).flatten()]))[0, 1] > 0.98


def test_compiled_models_are_looked_through(vit, pixels):
    expected = Explainer(vit).explain(pixels, target=0).relevance
    compiled = torch.compile(vit, backend="eager")
    assert abs(Explainer(compiled).explain(pixels, target=0).relevance - expected).max() < 1e-6


def test_attention_is_derived_in_float32_under_autocast(vit, pixels):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layers = look(vit, pixels, {"attention", "gradient"}).layers
        layer = dataclasses.replace(layers[0], grad_out=torch.ones_like(layers[0].out))
        found = layer.attention(), layer.attention_gradient()
    for one, expected in zip(found, (layer.attention(), layer.attention_gradient()), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, expected, rtol=0, atol=0)


def test_models_loaded_inside_inference_mode_can_be_differentiated_through():
    with torch.inference_mode():
        explainer = Explainer("bundled")
        assert explainer.attribute(torch.randn(1, 3, *explainer.preprocessing.size), 1, "gradcam").any()


def test_models_made_inside_inference_mode(pixels):
    with torch.inference_mode():
        model = small("class token")
    assert Explainer(model).attribute(pixels, method="rollout").any()
    assert Explainer(model).attribute(pixels, 1, "rise", samples=4).any()
    with pytest.raises(ModelError, match=r"made inside torch.inference_mode\(\), so nothing can be differentiated"):
        Explainer(model).attribute(pixels, 1, "gradcam")
    assert Explainer(copy.deepcopy(model)).attribute(pixels, 1, "gradcam").any()


def test_traced_models_are_refused(vit, pixels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says tracing is deprecated; people hold traced models all the same
        traced = torch.jit.trace(vit, pixels)
    with pytest.raises(ModelError, match="not a supported transformer"):
        Explainer(traced)


def test_threads_do_not_see_each_other(vit, pixels):
    vit.train()
    explainer = Explainer(vit)
    expected = [explainer.explain(pixels[i], target=i).relevance for i in range(3)]
    results: dict[int, list[bool]] = {0: [], 1: [], 2: []}

    def work(number: int) -> None:
        for _ in range(5):
            found = explainer.explain(pixels[number], target=number).relevance
            results[number].append(bool((found == expected[number]).all()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: [True] * 5, 1: [True] * 5, 2: [True] * 5}
    assert vit.training


def test_threads_share_a_model_in_training_mode(vit, pixels):
    """While one thread looks, another one comes and leaves: the first still sees no dropout."""
    for block in vit.blocks:
        block.mlp.drop1.p = 0.5
    expected = vit(pixels)
    vit.train()
    inside, left = threading.Event(), threading.Event()

    def enter() -> None:
        with evaluation_mode(vit):
            inside.set()
            left.wait()

    other = threading.Thread(target=enter)
    other.start()
    inside.wait()
    with evaluation_mode(vit):
        left.set()
        other.join()
        torch.testing.assert_close(vit(pixels), expected)
    assert all(module.training for module in vit.modules())


def test_a_submodule_may_be_looked_at_beside_the_model(vit):
    vit.train()
    with evaluation_mode(vit.blocks[0]):
        with evaluation_mode(vit):
            pass
        assert not any(module.training for module in vit.blocks[0].modules())
        assert vit.blocks[1].training
    assert all(module.training for module in vit.modules())


class Remembers(nn.Linear):
    """Keeps what it computes in eval mode until it is put into training mode, as timm's LeViT does."""

    known: Tensor | None = None

    def train(self, mode: bool = True) -> nn.Module:
        self.known = None if mode else self.known
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.known is None:
            self.known = self.weight.detach().clone()
        return F.linear(x, self.weight if self.known is None else self.known, self.bias)


def test_what_modules_keep_in_eval_mode_does_not_outlast_a_look(vit, pixels):
    vit.head = Remembers(vit.head.in_features, vit.head.out_features)
    vit.train()
    vit.blocks[0].eval()
    flags = [module.training for module in vit.modules()]
    explainer = Explainer(vit)
    before = explainer.attribute(pixels, 1, "gradcam")
    assert vit.head.known is None
    assert flags == [module.training for module in vit.modules()]
    with torch.no_grad():
        vit.head.weight.mul_(-2)
    assert not torch.allclose(explainer.attribute(pixels, 1, "gradcam"), before)


def compile_blocks(model: Any) -> None:
    for number, block in enumerate(model.blocks):
        model.blocks[number] = torch.compile(block, backend="eager")


def compile_forwards(model: Any) -> None:
    for block in model.blocks:
        block.forward = torch.compile(block.forward, backend="eager")


COMPILE: dict[str, Callable[[Any], object]] = {
    "the model in place": lambda model: model.compile(backend="eager"),
    "blocks in place": lambda model: [block.compile(backend="eager") for block in model.blocks],
    "wrapped blocks": compile_blocks,
    "forwards of blocks": compile_forwards,
}


@pytest.mark.filterwarnings("ignore")  # the compiler's own, about what it makes of this
@pytest.mark.parametrize("how", COMPILE)
def test_compiled_parts_are_looked_at_as_they_were_written(vit, pixels, how):
    methods = {"rollout": None, "gradcam": 1, "attn_lrp": 1, "alti": None}
    expected = {name: Explainer(vit).attribute(pixels, target, name) for name, target in methods.items()}
    COMPILE[how](vit)
    vit(pixels)  # so that there is compiled code, which knows nothing of hooks
    for name, target in methods.items():
        torch.testing.assert_close(Explainer(vit).attribute(pixels, target, name), expected[name])
    torch._dynamo.reset()


def test_other_threads_keep_compiled_code_away_until_the_last_is_done(vit):
    compiled = torch.compile(lambda x: torch.compiler.is_compiling() or x, backend="eager")
    vit.blocks[0].compile(backend="eager")
    assert compiled(False) is True
    with as_written(modules_of(vit)):
        with as_written(modules_of(vit)):
            pass
        assert compiled(False) is False
    assert compiled(False) is True
    torch._dynamo.reset()


def test_blocks_that_are_not_called_as_modules_are_refused(vit, pixels):
    vit.forward_features = lambda x, **_: vit.norm(vit.blocks[0].forward(vit._pos_embed(vit.patch_embed(x))))
    with pytest.raises(CaptureError, match="tokens were seen 0 times, but the model family says 4"):
        look(vit, pixels, {"tokens"}, family_of(vit).anatomy(vit, tuple(pixels.shape[1:])))


class Twice(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return self.attention(x, **given) + self.attention(x.flip(1), **given)


def test_two_attentions_a_block_are_counted_and_refused(vit, pixels):
    vit.blocks[1].attn = Twice(vit.blocks[1].attn)
    with pytest.raises(CaptureError, match="4 attention calls were seen, but the model has 3 blocks"):
        Explainer(vit).explain(pixels)


def test_gradient_checkpointing_is_refused_with_the_remedy(vit, pixels):
    vit.set_grad_checkpointing(True)
    with pytest.raises(ModelError, match=r"set_grad_checkpointing\(False\)"):
        Explainer(vit).explain(pixels, target=0)


@pytest.mark.parametrize("trained", [True, False])
def test_gradient_checkpointing_matters_where_gradients_are_needed(vit, pixels, trained):
    swin = SwinTransformer(img_size=SIZE, patch_size=4, window_size=2, embed_dim=12, depths=(2, 2), num_heads=(2, 3))
    for model in (vit, swin.eval()):
        model.requires_grad_(trained)
        expected = Explainer(model).attribute(pixels, method="rollout")
        model.set_grad_checkpointing(True)
        torch.testing.assert_close(Explainer(model).attribute(pixels, method="rollout"), expected)
        for method in ("gradcam", "saliency", "gae"):
            with pytest.raises(ModelError, match=r"set_grad_checkpointing\(False\)"):
                Explainer(model).attribute(pixels, 1, method)


def test_a_target_that_attention_does_not_reach_is_refused(vit, pixels):
    with pytest.raises(TargetError, match="does not depend on what the model sees"):
        Explainer(vit).explain(pixels, target=lambda output: torch.zeros(len(output)))


def test_a_wrong_input_size_is_refused(vit):
    with pytest.raises(ModelError, match=f"takes {SIZE[0]}x{SIZE[1]} pixels"):
        Explainer(vit).explain(torch.randn(1, 3, SIZE[1], SIZE[0]))


def test_lively_models_are_lively(vit, pixels):
    """The fixtures would hide errors if attention were uniform or gradients all of one sign."""
    attentions, gradients = unfused_attention(vit, pixels, target=0)
    assert all(a.std(-1).mean() > 0.01 for a in attentions)
    assert all((g > 0).any() and (g < 0).any() for g in gradients)


def test_models_in_double_precision_give_the_same_maps_in_single(vit, pixels):
    expected = Explainer(vit).attribute(pixels, 2, "gradient_rollout")
    found = Explainer(vit.double()).attribute(pixels, 2, "gradient_rollout")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
