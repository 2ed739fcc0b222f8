"""Class activation maps against loops over patches and channels on plain autograd, and what their papers promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_models import CLASSES, GRID, PATCH, SIZE, SMALL, lively, small
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer
from timm.models.vision_transformer_relpos import ResPostRelPosBlock, VisionTransformerRelPos
from torch import Tensor, nn

from vit_explain import Explainer
from vit_explain.cams import SILENT
from vit_explain.errors import OptionError, TargetError
from vit_explain.methods.eigencam import eigencam
from vit_explain.methods.gradcam import gradcam
from vit_explain.methods.gradcam_plus_plus import gradcam_plus_plus
from vit_explain.methods.hirescam import hirescam
from vit_explain.methods.layercam import layercam
from vit_explain.methods.scorecam import scorecam
from vit_explain.methods.xgradcam import xgradcam
from vit_explain.types import Anatomy, Attribution, Readout, Trace

Array = NDArray[np.float64]
ANATOMIES = ("class token", "registers", "mean pooling", "attention pooling", "eva with rotary positions")
GRADIENT_METHODS = ("gradcam", "gradcam_plus_plus", "xgradcam", "hirescam", "layercam")
PREFIX = {"class token": 1, "registers": 5, "mean pooling": 0, "attention pooling": 0, "eva with rotary positions": 3}


def features_by_hand(
    model: nn.Module, image: Tensor, target: int, prefix: int, where: str = "blocks.2.norm1"
) -> tuple[Array, Array]:
    """(Z, ∂logit/∂Z) of one image's patch tokens, by an ordinary hook and backward: what a module puts out, by default
    the last block's first norm; what enters it, where its name is all of a block's."""
    seen: list[Tensor] = []

    def see(_module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor | None = None) -> None:
        seen.append(inputs[0] if out is None else out)
        seen[0].retain_grad()

    module = model.get_submodule(where)
    enters = where.split(".")[-1].isdigit()
    hook = module.register_forward_pre_hook(see) if enters else module.register_forward_hook(see)
    try:
        model(image[None])[0, target].backward()
    finally:
        hook.remove()
        model.zero_grad()
    assert seen[0].grad is not None
    return seen[0].detach()[0, prefix:].numpy().astype(float), seen[0].grad[0, prefix:].numpy().astype(float)


def cam_by_hand(name: str, z: Array, g: Array) -> Array:
    """(patches,) from Z and G (patches, channels), entry by entry as the papers write it."""
    n, channels = z.shape
    cam = np.zeros(n)
    for k in range(channels):
        total = sum(z[j, k] for j in range(n))
        if name == "gradcam":
            weights = [sum(g[j, k] for j in range(n)) / n] * n
        elif name == "xgradcam":
            weights = [sum(z[j, k] / total * g[j, k] for j in range(n))] * n
        elif name == "gradcam_plus_plus":
            weight = 0.0
            for j in range(n):
                if g[j, k] > 0:
                    alpha = g[j, k] ** 2 / (2 * g[j, k] ** 2 + total * g[j, k] ** 3)
                    # The paper's feature maps are never negative, which keeps α in (0, 1].
                    weight += (alpha if 0 < alpha <= 1 else 1.0) * g[j, k]
            weights = [weight] * n
        elif name == "hirescam":
            weights = list(g[:, k])
        else:
            weights = [max(entry, 0.0) for entry in g[:, k]]
        for i in range(n):
            cam[i] += weights[i] * z[i, k]
    return cam if name == "hirescam" else np.maximum(cam, 0)


# Models whose last attention does not get its tokens from a norm of that name, and where it gets them.
OTHERS = {
    "post norm": (lambda: VisionTransformer(**SMALL, block_fn=ResPostBlock), "blocks.2"),
    "post norm eva": (lambda: Eva(**SMALL, use_post_norm=True, global_pool="token"), "blocks.2"),
    "post norm, relative positions": (
        lambda: VisionTransformerRelPos(**SMALL, block_fn=ResPostRelPosBlock, class_token=True, global_pool="token"),
        "blocks.2",
    ),
    "attention beside an MLP": (lambda: VisionTransformer(**SMALL, block_fn=ParallelScalingBlock), "blocks.2.in_norm"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_class_activation_maps_read_what_the_last_attention_gets(name, pixels):
    build, where = OTHERS[name]
    torch.manual_seed(0)
    model = lively(build())
    found = Explainer(model).attribute(pixels[:1], 2, "hirescam")
    by_hand = cam_by_hand("hirescam", *features_by_hand(model, pixels[0], 2, 1, where))
    assert np.abs(by_hand).max() > 0
    np.testing.assert_allclose(found[0].flatten(), by_hand, rtol=1e-3, atol=1e-5 * np.abs(by_hand).max())


def test_class_activation_maps_of_a_single_block_with_norms_after_attention(pixels):
    model = lively(VisionTransformer(**{**SMALL, "depth": 1}, block_fn=ResPostBlock))
    found = Explainer(model).attribute(pixels[:1], 2, "hirescam")
    by_hand = cam_by_hand("hirescam", *features_by_hand(model, pixels[0], 2, 1, "blocks.0"))
    np.testing.assert_allclose(found[0].flatten(), by_hand, rtol=1e-3, atol=1e-5 * np.abs(by_hand).max())


@pytest.mark.parametrize("anatomy", ANATOMIES)
@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_gradient_cams_are_the_sums_by_hand(name, anatomy, pixels):
    model = small(anatomy)
    targets = [0, 2, 3]
    found = Explainer(model).explain(pixels, name, targets).relevance
    for image, target in enumerate(targets):
        z, g = features_by_hand(model, pixels[image], target, PREFIX[anatomy])
        expected = cam_by_hand(name, z, g).reshape(GRID)
        np.testing.assert_allclose(found[image], expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_eigencam_is_the_leading_component_by_power_iteration(anatomy, pixels):
    model = small(anatomy)
    found = Explainer(model).explain(pixels, "eigencam").relevance
    for image in range(3):
        z, _ = features_by_hand(model, pixels[image], 0, PREFIX[anatomy])
        centred = z - z.mean(0)
        axis = np.ones(z.shape[1]) + np.arange(z.shape[1])
        for _ in range(5000):
            axis = centred.T @ (centred @ axis)
            axis /= np.linalg.norm(axis)
        component = centred @ axis
        component *= np.sign(component[np.abs(component).argmax()])
        expected = np.maximum(component, 0).reshape(GRID)
        np.testing.assert_allclose(found[image], expected, atol=1e-3 * expected.max())
        assert found[image].max() == pytest.approx(np.abs(component).max(), rel=1e-3)


def upsampled_by_hand(grid: Array) -> Array:
    """(h, w) -> the pixels, bilinear between the centres of patches and constant beyond the outermost."""
    out = np.zeros((GRID[0] * PATCH, GRID[1] * PATCH))
    for row, column in np.ndindex(*out.shape):
        y = min(max((row + 0.5) / PATCH - 0.5, 0), GRID[0] - 1)
        x = min(max((column + 0.5) / PATCH - 0.5, 0), GRID[1] - 1)
        top, left = min(int(y), GRID[0] - 2), min(int(x), GRID[1] - 2)
        dy, dx = y - top, x - left
        corners = grid[top : top + 2, left : left + 2]
        out[row, column] = np.array([1 - dy, dy]) @ corners @ np.array([1 - dx, dx])
    return out


@pytest.mark.parametrize("score", ["logit", "probability"])
@pytest.mark.parametrize("channels", [1, 5, 24, 500, "all"])
def test_scorecam_masks_one_channel_at_a_time(channels, score, pixels):
    for anatomy in ("class token", "mean pooling"):
        model = small(anatomy)
        found = Explainer(model).explain(pixels[:2], "scorecam", [1, 2], channels=channels, score=score).relevance
        for image, target in enumerate((1, 2)):
            z, _ = features_by_hand(model, pixels[image], target, PREFIX[anatomy])
            order = sorted(range(24), key=lambda k: -np.var(z[:, k]))
            values = {}
            for k in order[: 24 if channels == "all" else channels]:
                mask = upsampled_by_hand(z[:, k].reshape(GRID))
                mask = (mask - mask.min()) / (mask.max() - mask.min())
                with torch.no_grad():
                    logits = model((pixels[image] * torch.from_numpy(mask).float())[None])[0].double()
                values[k] = float((logits if score == "logit" else logits.softmax(0))[target])
            total = sum(np.exp(value) for value in values.values())
            expected = sum(np.exp(value) / total * z[:, k] for k, value in values.items())
            expected = np.maximum(expected, 0).reshape(GRID)
            np.testing.assert_allclose(found[image], expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_scorecam_needs_no_empty_image(vit, pixels):
    """The paper's score of an empty image is one number for all channels, and so is a head's bias."""
    before = Explainer(vit).explain(pixels, "scorecam", 1).relevance
    with torch.no_grad():
        vit.head.bias += 3.0
    after = Explainer(vit).explain(pixels, "scorecam", 1).relevance
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-6 * before.max())


def test_scorecam_masks_only_what_patches_cover():
    """37 pixels hold four patches of 8: the map of the model is that of the 32 pixels alone."""
    tall = lively(VisionTransformer(**{**SMALL, "img_size": (37, 24)}))
    cut = lively(VisionTransformer(**{**SMALL, "img_size": (32, 24)}))
    cut.load_state_dict(tall.state_dict())
    image = torch.randn(1, 3, 37, 24, generator=torch.Generator().manual_seed(5))
    found = Explainer(tall).explain(image, "scorecam", 0).relevance
    expected = Explainer(cut).explain(image[:, :, :32], "scorecam", 0).relevance
    assert expected.max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_flat_channel_lets_nothing_through():
    class Seen:
        def __init__(self) -> None:
            self.seen: list[Tensor] = []
            self.told: list[tuple[int, int]] = []

        def rows(self) -> int:
            return 2

        def progress(self, done: int, total: int) -> None:
            self.told.append((done, total))

        def probe(self, pixels: Tensor, *, probability: bool) -> Tensor:
            assert not probability
            self.seen.append(pixels)
            return torch.zeros(len(pixels))

    features = torch.rand(1, 10, 3)
    features[:, :, 1] = 0.25
    trace = synthetic(features, None)
    trace.inquiry = inquiry = Seen()  # type: ignore[assignment]
    scorecam(trace, channels="all")
    rows = torch.cat(inquiry.seen)
    assert [len(batch) for batch in inquiry.seen] == [2, 1] and inquiry.told == [(2, 3), (3, 3)]
    assert (rows[1] == 0).all() and rows[0].max() == rows[2].max() == 1 and rows[0].min() == 0


def test_scorecam_checks_its_channels(vit, pixels):
    with pytest.raises(OptionError, match="channels must be 'all' or a whole number"):
        Explainer(vit).explain(pixels, "scorecam", channels=0)


# Invariants ---------------------------------------------------------------------------------------------------------


def synthetic(features: Tensor, gradient: Tensor | None) -> Trace:
    """A trace with a class token before a 3x3 grid, and these numbers where CAMs read."""
    anatomy = Anatomy(("",), (3, 3), (6, 6), 1, Readout(tokens=(0,)), "")
    batch = len(features)
    return Trace(
        [], None, anatomy, torch.ones(batch, 3, 6, 6), torch.zeros(batch, 2), None,  # type: ignore[arg-type]
        features=features, feature_gradient=gradient,
    )  # fmt: skip


def draw(*size: int, seed: int = 7) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def shown(found: Tensor | Attribution) -> Tensor:
    return found.map if isinstance(found, Attribution) else found


def test_where_the_gradient_is_the_same_everywhere_cams_agree():
    """As behind a mean over patches: HiResCAM, Grad-CAM and XGrad-CAM are then the same weighting (CAM)."""
    features, gradient = draw(2, 10, 6), draw(2, 1, 6, seed=8).expand(2, 10, 6)
    trace = synthetic(features, gradient)
    expected = shown(hirescam(trace)).clamp(min=0)
    assert (expected > 0).any((1, 2)).all()
    torch.testing.assert_close(shown(gradcam(trace)), expected)
    torch.testing.assert_close(shown(xgradcam(trace)), expected, rtol=1e-4, atol=1e-5)
    positive = synthetic(features, gradient.abs())
    torch.testing.assert_close(shown(layercam(positive)), shown(gradcam(positive)))


def test_xgradcam_adds_up_to_features_times_gradient():
    trace = synthetic(draw(2, 10, 6).abs(), draw(2, 10, 6, seed=8).abs())
    torch.testing.assert_close(shown(xgradcam(trace)).sum((1, 2)), shown(hirescam(trace)).sum((1, 2)))
    assert (shown(xgradcam(trace)) - shown(hirescam(trace))).abs().max() > 1e-2


def test_xgradcam_gives_a_channel_that_sums_to_zero_no_weight():
    features = draw(1, 10, 2).abs()
    features[:, 1:, 1] = torch.tensor([1.0, -1, 2, -2, 3, -3, 4, -4, 0])
    trace = synthetic(features, draw(1, 10, 2, seed=8).abs())
    alone = synthetic(features[:, :, :1], draw(1, 10, 2, seed=8).abs()[:, :, :1])
    torch.testing.assert_close(shown(xgradcam(trace)), shown(xgradcam(alone)))


def test_gradcam_plus_plus_keeps_alpha_bounded():
    """A denominator of the paper's formula that is zero or negative would make a weight of any size and sign."""
    features, gradient = torch.ones(1, 10, 1), torch.zeros(1, 10, 1)
    features[:, 2:5] = -4.0  # S = 6 - 12 = -6
    gradient[:, 1] = 1 / 3  # 2 + S G = 0
    found = shown(gradcam_plus_plus(synthetic(features, gradient)))
    torch.testing.assert_close(found.flatten()[0], torch.tensor(1 / 3))
    gradient[:, 1] = 1 / 12  # 2 + S G = 1.5
    found = shown(gradcam_plus_plus(synthetic(features, gradient)))
    torch.testing.assert_close(found.flatten()[0], torch.tensor(1 / 18))


@pytest.mark.parametrize("run", [gradcam, gradcam_plus_plus, xgradcam, hirescam, layercam, eigencam])
def test_prefix_tokens_and_the_order_of_patches_do_not_matter(run):
    features, gradient = draw(2, 10, 6), draw(2, 10, 6, seed=8)
    plain = shown(run(synthetic(features, gradient)))
    features[:, 0], gradient[:, 0] = 100.0, -100.0
    torch.testing.assert_close(shown(run(synthetic(features, gradient))), plain)
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(9)])
    shuffled = shown(run(synthetic(features[:, order], gradient[:, order])))
    torch.testing.assert_close(shuffled.flatten(1), plain.flatten(1)[:, order[1:] - 1], rtol=1e-4, atol=1e-5)


def test_eigencam_does_not_depend_on_the_basis_or_on_a_shift():
    features = draw(2, 10, 6)
    turn = torch.linalg.qr(draw(6, 6, seed=9)).Q
    expected = eigencam(synthetic(features, None))
    torch.testing.assert_close(eigencam(synthetic(features @ turn + 5, None)), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(eigencam(synthetic(-features, None)), expected, rtol=1e-4, atol=1e-4)


def test_a_map_with_nothing_positive_says_so():
    trace = synthetic(draw(2, 10, 6).abs(), torch.cat([-torch.ones(1, 10, 6), torch.ones(1, 10, 6)]))
    for run in (gradcam, xgradcam, layercam):
        found = run(trace)
        assert found.warnings == [[SILENT], []]
        assert (found.map[0] == 0).all() and (found.map[1] > 0).all()


@pytest.mark.parametrize("name", [*GRADIENT_METHODS, "scorecam"])
def test_swapping_two_classes_swaps_their_maps(name, vit, pixels):
    before = [Explainer(vit).explain(pixels, name, target).relevance for target in (0, 1)]
    order = torch.tensor([1, 0, *range(2, CLASSES)])
    with torch.no_grad():
        vit.head.weight.copy_(vit.head.weight[order])
        vit.head.bias.copy_(vit.head.bias[order])
    after = [Explainer(vit).explain(pixels, name, target).relevance for target in (1, 0)]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6 * np.abs(one).max())
    assert np.abs(before[0] - before[1]).max() > 1e-3 * np.abs(before[0]).max()


def test_eigencam_knows_no_classes(vit, pixels):
    with pytest.raises(TargetError, match="does not depend on a class"):
        Explainer(vit).explain(pixels, "eigencam", 1)


def test_scores_of_a_linear_read_out_are_hirescam(pixels):
    """Where the score is linear in the features, HiResCAM's map and the rest that is no patch's add up to it."""
    model = small("mean pooling")
    weights = draw(24, seed=10)

    class Readout(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return (tokens @ weights).mean(1, keepdim=True).expand(-1, CLASSES)

    # The last block's features are all that is read: y = mean over patches of features · weights.
    read = Readout()
    plain = model.blocks[-1].norm1
    model.blocks[-1].forward = lambda tokens: plain(tokens)
    model.norm = model.fc_norm = nn.Identity()
    model.forward_head = lambda tokens: read(tokens)
    found = Explainer(model).explain(pixels, "hirescam", 0)
    np.testing.assert_allclose(found.relevance.sum((1, 2)), found.logits[:, 0], rtol=1e-4, atol=1e-5)
    assert pixels.shape[2:] == SIZE
