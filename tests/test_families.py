"""What a family says of a model is what the model does: grid, prefix, readout, head; and looking changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, example, pictures
from small_models import PATCH
from test_explainer import says_what_works
from torch import Tensor, nn

from vit_explain import Explainer
from vit_explain.capture import look
from vit_explain.errors import ModelError, VitExplainError
from vit_explain.family import family_of
from vit_explain.matching import match
from vit_explain.modules import evaluation_mode
from vit_explain.types import Trace

every_family = pytest.mark.parametrize("name", FAMILIES)
# Some of each kind of what is read from a model: attention, gradients of it, tokens, features, biases, rules, probes.
METHODS = (
    "rollout",
    "attention",
    "gradient_rollout",
    "legrad",
    "alti",
    "token_tm",
    "libra_grad",
    "attn_lrp",
    "transformer_attribution",
    "layercam",
    "logit_lens",
    "occlusion",
)


def anatomy_of(name: str, model: nn.Module) -> Any:
    return family_of(model).anatomy(model, (3, *FAMILIES[name].size))


def target_of(explainer: Explainer, method: str) -> Any:
    """A class; of a model without any, a direction of what it pools."""
    from vit_explain.registry import METHODS as KNOWN

    if not KNOWN[method].class_specific:
        return None
    family, model = explainer.family, explainer.model
    if family.classes(model):
        return 1
    return lambda output: family.logits(output) @ torch.linspace(-1, 1, family.logits(output).shape[1])


@every_family
def test_capture_is_complete_and_changes_nothing(name):
    model, pixels = example(name), pictures(name)
    family, anatomy = family_of(model), anatomy_of(name, model)
    plain = family.logits(model(pixels)).detach()
    for needs in ({"attention"}, {"attention", "tokens", "features", "attended", "gradient"}, set()):
        seen = look(model, pixels, needs, anatomy)
        torch.testing.assert_close(family.logits(seen.output).detach(), plain, rtol=1e-4, atol=1e-5)
        if "attention" in needs:
            layers, pool = match(seen.layers, anatomy)
            assert len(layers) == 3 and (pool is not None) == anatomy.readout.attention
            for layer in layers:
                rows = layer.attention().sum(-1)
                torch.testing.assert_close(rows, torch.ones_like(rows))
    assert anatomy.prefix == FAMILIES[name].prefix
    assert anatomy.grid == tuple(side // PATCH for side in FAMILIES[name].size)
    assert anatomy.covers == FAMILIES[name].size


@every_family
def test_a_bright_patch_is_the_token_that_the_family_says(name):
    model, anatomy = example(name), anatomy_of(name, example(name))
    dark = pictures(name, 1)
    for row, column in ((0, 0), (1, 3), (2, 4)):
        bright = dark.clone()
        bright[..., row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] += 1
        one, other = (look(model, pixels, {"tokens"}, anatomy).tokens[0] for pixels in (dark, bright))
        changed = (one != other).any(2)[0].nonzero()[:, 0].tolist()
        assert changed == [anatomy.prefix + row * anatomy.grid[1] + column]


@every_family
def test_a_bright_patch_lights_its_place(name):
    """Where all other pixels are zero, only that patch has any relevance."""
    explainer = Explainer(example(name))
    pixels = torch.zeros_like(pictures(name, 1))
    pixels[..., PATCH : 2 * PATCH, 3 * PATCH : 4 * PATCH] = 1
    found = explainer.attribute(pixels, target_of(explainer, "input_x_gradient"), "input_x_gradient")
    if found.shape[1:] == pixels.shape[2:]:
        found = torch.nn.functional.avg_pool2d(found.abs(), PATCH)
    assert found[0].nonzero().tolist() == [[1, 3]]


@every_family
def test_the_readout_is_what_the_head_reads(name):
    """By the derivative of the output at the tokens that leave the last block."""
    model, pixels = example(name), pictures(name)
    family, anatomy = family_of(model), anatomy_of(name, model)
    seen = look(model, pixels, {"tokens", "gradient"}, anatomy)
    output = family.logits(seen.output)
    (gradient,) = torch.autograd.grad((output * torch.randn_like(output)).sum(), seen.tokens[-1])
    read = gradient.abs().sum((0, 2)) > 0
    expected = torch.zeros_like(read)
    expected[list(anatomy.readout.tokens)] = True
    # A pooling attention may read the prefix tokens as well.
    expected[anatomy.prefix :] = anatomy.readout.patches or anatomy.readout.attention
    if not anatomy.readout.attention:
        assert read.tolist() == expected.tolist()
        trace = Trace([], None, anatomy, pixels, output.detach(), None)  # type: ignore[arg-type]
        row = trace.read_row()
        assert (row > 0).tolist() == expected.expand(len(pixels), -1).tolist()
        torch.testing.assert_close(row.sum(1), torch.ones(len(pixels)))
    assert read[anatomy.prefix :].tolist() == expected[anatomy.prefix :].tolist()


@every_family
def test_the_lens_is_the_models_own_head(name):
    model, pixels = example(name), pictures(name)
    family, anatomy = family_of(model), anatomy_of(name, model)
    seen = look(model, pixels, {"tokens"}, anatomy)
    with evaluation_mode(model):
        found = family.lens(model, seen.tokens[-1])
    assert type(found) is type(seen.output)
    torch.testing.assert_close(family.logits(found), family.logits(seen.output), rtol=1e-4, atol=1e-5)


@every_family
def test_values_through_the_projection_are_what_attention_adds(name):
    """``W_O A v`` is what joins the tokens, up to one vector that is the same for all: the biases."""
    model, pixels = example(name), pictures(name)
    family, anatomy = family_of(model), anatomy_of(name, model)
    if "Gemma" in name:
        with pytest.raises(ModelError, match="normalises its projection"):
            family.projection(model, 0)
        return
    seen = look(model, pixels, {"attention", "values", "attended"}, anatomy)
    layers, _ = match(seen.layers, anatomy)
    assert len(seen.attended) == len(layers)
    for number, (layer, added) in enumerate(zip(layers, seen.attended, strict=True)):
        assert layer.v is not None
        mixed = (layer.attention() @ layer.v).transpose(1, 2).flatten(2)
        rest = added - mixed @ family.projection(model, number).detach().T
        torch.testing.assert_close(rest, rest[:1, :1].expand_as(rest), rtol=1e-4, atol=1e-4)


@every_family
def test_methods_of_each_kind(name):
    """Finite, of the right shape, a batch equals singles; or a refusal that offers something else."""
    explainer, pixels = Explainer(example(name)), pictures(name)
    grid = anatomy_of(name, example(name)).grid
    explained = 0
    for method in METHODS:
        target = target_of(explainer, method)
        found = map_or_refusal(explainer, pixels, target, method)
        if isinstance(found, VitExplainError):
            assert says_what_works(method, found), f"{method}: {found}"
            continue
        explained += 1
        assert found.shape in ((2, *grid), (2, *FAMILIES[name].size)), method
        assert found.isfinite().all() and (found.std((1, 2)) > 0).all(), method
        for image in range(2):
            alone = explainer.attribute(pixels[image : image + 1], target, method)
            scale = float(found.abs().max())
            torch.testing.assert_close(alone[0], found[image], rtol=1e-3, atol=1e-4 * scale)
    assert explained >= len(METHODS) - 3


def map_or_refusal(explainer: Explainer, pixels: Tensor, target: Any, method: str) -> Tensor | VitExplainError:
    try:
        return explainer.attribute(pixels, target, method)
    except VitExplainError as refusal:
        return refusal


@every_family
def test_wrong_sizes_are_refused_in_one_line(name):
    model = example(name)
    explainer = Explainer(model)
    height, width = FAMILIES[name].size
    wrong = [torch.randn(1, 2, height, width)]
    if not any(word in name for word in ("DINO", "torch.hub", "DeepSeek", "Qwen3", "Gemma")):  # take any multiple
        wrong.append(torch.randn(1, 3, height + PATCH, width))
    for pixels in wrong:
        with pytest.raises(ModelError, match=r"takes \d") as caught:
            explainer.explain(pixels)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["transformers ViT", "torchvision"])
def test_half_precision(name):
    model, pixels = example(name), pictures(name)
    exact = Explainer(model).attribute(pixels, 1, "gradient_rollout")
    half = Explainer(model.bfloat16()).attribute(pixels, 1, "gradient_rollout")
    for one, other in zip(exact, half, strict=True):
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.95


def test_sdpa_and_eager_have_one_map():
    pixels = pictures("transformers ViT")
    one, other = (
        Explainer(example(name)).attribute(pixels, 1, "gradient_rollout")
        for name in ("transformers ViT", "transformers ViT, eager")
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    half = Explainer(example("transformers ViT, eager").half()).attribute(pixels, 1, "gradient_rollout")
    assert torch.corrcoef(torch.stack([one.flatten(), half.flatten()]))[0, 1] > 0.95


def test_ways_to_compute_attention_that_cannot_be_seen_are_refused():
    model: Any = example("transformers ViT")
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match=r'flash_attention_2, which cannot be seen: .*attn_implementation\("sdpa"\)'):
        Explainer(model).explain(pictures("transformers ViT"))


def test_models_of_transformers_in_training():
    model: Any = example("transformers ViT")
    pixels = pictures("transformers ViT")
    expected = Explainer(model).attribute(pixels, 1, "gradient_rollout")
    # Version 6 of transformers drops the older name.
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
    model.train()
    torch.testing.assert_close(Explainer(model).attribute(pixels, 1, "gradient_rollout"), expected)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_looking_leaves_nothing_behind_that_a_gradient_cannot_pass():
    """Some models keep tensors between calls; one made in inference mode would break the owner's next training step."""
    for name in ("transformers BEiT", "transformers DINOv3"):
        model, pixels = example(name), pictures(name)
        with torch.inference_mode():
            Explainer(model).explain(pixels, "rollout")
        family_of(model).logits(model(pixels)).sum().backward()
        assert any(parameter.grad is not None for parameter in model.parameters())


def test_outputs_that_are_tuples():
    model: Any = example("transformers ViT")
    pixels = pictures("transformers ViT")
    expected = Explainer(model).explain(pixels, "gradient_rollout", 1)
    plain = type(model).forward
    model.forward = lambda x: plain(model, x).to_tuple()
    found = Explainer(model).explain(pixels, "gradient_rollout", 1)
    np.testing.assert_array_equal(found.relevance, expected.relevance)
    np.testing.assert_array_equal(found.logits, expected.logits)
