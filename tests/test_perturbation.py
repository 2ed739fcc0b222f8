"""Perturbation methods against loops over masks and plain forwards, exact Shapley values, and planted evidence."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from small_models import CLASSES, GRID, PATCH, SIZE, SMALL, lively, planted, planted_picture, small
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vit_explain import Contrast, Explainer
from vit_explain.errors import OptionError
from vit_explain.family import family_of
from vit_explain.image import Preprocessing, prepare
from vit_explain.inquiry import CHUNK, ModelInquiry, Subject
from vit_explain.perturb import answers, at_pixels
from vit_explain.superpixels import superpixels
from vit_explain.targets import Target
from vit_explain.types import Trace

METHODS = ("occlusion", "rise", "vit_cx", "tis", "kernel_shap", "shapley_sampling")
FEW: dict[str, dict[str, Any]] = {
    "occlusion": {},
    "rise": {"samples": 20},
    "vit_cx": {},
    "tis": {"samples": 10},
    "kernel_shap": {"samples": 20},
    "shapley_sampling": {"samples": 3},
}
DROPPABLE = ("class token", "distilled", "registers", "mean pooling", "attention pooling", "qk norm")
TARGET = 2


def tiny(**options: Any) -> nn.Module:
    """Eight patches, two rows of four."""
    torch.manual_seed(0)
    return lively(VisionTransformer(**{**SMALL, "img_size": (16, 32), **options}))


@pytest.fixture
def few_pixels() -> Tensor:
    return torch.randn(2, 3, 16, 32, generator=torch.Generator().manual_seed(5))


def trace_of(model: nn.Module, pixels: Tensor, target: int = TARGET) -> Trace:
    family = family_of(model)
    subject = Subject(model, family, family.anatomy(model, tuple(pixels.shape[1:])))
    needs = frozenset({"probe"})
    trace, output = subject.look(pixels, needs)
    return subject.about(trace, output, [Target(str(target), target)] * len(pixels), needs, keep_graph=False)


def explained(model: nn.Module, pixels: Tensor, name: str, **options: Any) -> Any:
    return Explainer(model).explain(pixels, name, TARGET, **options)


# What the methods ask, asked by hand ---------------------------------------------------------------------------------


def dropped_by_hand(model: Any, picture: Tensor, keep: np.ndarray, probability: bool = True) -> float:
    """The class's score of one picture (C, H, W) when the tokens of other patches are removed behind the positions."""
    with torch.no_grad():
        tokens = model._pos_embed(model.patch_embed(picture[None]))
        prefix = tokens.shape[1] - keep.size
        stay = [*range(prefix), *(prefix + n for n, kept in enumerate(keep.flatten()) if kept)]
        logits = model.forward_head(model.norm(model.blocks(model.norm_pre(tokens[:, stay]))))
    return float((logits.softmax(-1) if probability else logits)[0, TARGET])


def painted_by_hand(picture: Tensor, keep: np.ndarray, fill: str) -> Tensor:
    """The picture with the other patches painted over, patch by patch."""
    planes = picture.numpy()
    behind = {
        "mean": np.stack([np.full_like(plane, plane.astype(np.float64).mean()) for plane in planes]),
        "zero": np.zeros_like(planes),
        "darkest": np.stack([np.full_like(plane, plane.min()) for plane in planes]),
        "blur": np.stack([gaussian_filter(plane, PATCH, mode="nearest", truncate=3.0) for plane in planes]),
    }[fill]
    painted = planes.copy()
    for row, column in np.argwhere(~keep):
        where = np.s_[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
        painted[where] = behind[where]
    return torch.from_numpy(painted)


def plain(model: nn.Module, picture: Tensor, probability: bool = True) -> float:
    with torch.no_grad():
        logits = model(picture[None])
    return float((logits.softmax(-1) if probability else logits)[0, TARGET])


def by_hand(model: nn.Module, picture: Tensor, keep: np.ndarray, fill: str, probability: bool = True) -> float:
    if fill == "drop":
        return dropped_by_hand(model, picture, keep, probability)
    return plain(model, painted_by_hand(picture, keep, fill), probability)


# Occlusion -----------------------------------------------------------------------------------------------------------


def occlusion_by_hand(model: nn.Module, picture: Tensor, fill: str, window: int, probability: bool) -> np.ndarray:
    whole = by_hand(model, picture, np.ones(GRID, bool), fill, probability)
    sums, times = np.zeros(GRID), np.zeros(GRID)
    height, width = min(window, GRID[0]), min(window, GRID[1])
    for top in range(GRID[0] - height + 1):
        for left in range(GRID[1] - width + 1):
            keep = np.ones(GRID, bool)
            keep[top : top + height, left : left + width] = False
            sums[~keep] += whole - by_hand(model, picture, keep, fill, probability)
            times[~keep] += 1
    return sums / times


@pytest.mark.parametrize(("name", "window"), list(itertools.product(DROPPABLE, (1, 2, 3))))
def test_occlusion_drops_tokens(name, window, pixels):
    """By default, wherever tokens can be dropped, they are."""
    model = small(name)
    found = explained(model, pixels[:2], "occlusion", window=window, score="logit")
    for image in range(2):
        expected = occlusion_by_hand(model, pixels[image], "drop", window, probability=False)
        np.testing.assert_allclose(found.relevance[image], expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    assert (found.facts["tokens_dropped"] == 1).all() and found.warnings == [[], []]
    np.testing.assert_allclose(found.facts["score"], found.logits[:, TARGET], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "fill"),
    [
        *itertools.product(("class token", "eva with rotary positions"), ("mean", "zero", "darkest", "blur")),
        ("beit with relative position bias", "mean"),
    ],
)
def test_occlusion_paints_patches(name, fill, pixels):
    model = small(name)
    found = explained(model, pixels[:2], "occlusion", window=2, fill=fill)
    for image in range(2):
        expected = occlusion_by_hand(model, pixels[image], fill, 2, probability=True)
        np.testing.assert_allclose(found.relevance[image], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert (found.facts["tokens_dropped"] == 0).all() and found.warnings == [[], []]


def test_black_is_the_pictures_black(vit):
    """As if the patch had been painted black in the picture itself, before its preprocessing."""
    preprocessing = Preprocessing(SIZE, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    photo = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    found = Explainer(vit, preprocessing=preprocessing).explain(photo, "occlusion", TARGET, fill="black")

    def score(picture: np.ndarray) -> float:
        return plain(vit, torch.from_numpy(prepare(Image.fromarray(picture), preprocessing)[0]))

    for row, column in np.ndindex(GRID):
        painted = photo.copy()
        painted[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = 0
        assert found.relevance[0, row, column] == pytest.approx(score(photo) - score(painted), rel=1e-3, abs=1e-6)


def test_black_of_other_than_three_channels_is_not_known():
    model = lively(VisionTransformer(**SMALL, in_chans=4))
    for name in ("occlusion", "kernel_shap"):
        with pytest.raises(OptionError, match="inputs of 4 channels is not known; take fill='darkest'"):
            explained(model, torch.randn(1, 4, *SIZE), name, fill="black")
    assert explained(model, torch.randn(1, 4, *SIZE), "occlusion", fill="darkest").relevance.any()


def test_pixels_that_no_patch_covers_stay(pixels):
    """37 pixels hold four patches of 8: painting works on what they cover."""
    model = lively(VisionTransformer(**{**SMALL, "img_size": (37, 24)}))
    found = explained(model, torch.randn(1, 3, 37, 24), "occlusion", fill="zero")
    assert found.relevance.shape == (1, 4, 3) and found.relevance.std() > 0
    mask = at_pixels(trace_of(model, torch.randn(1, 3, 37, 24)), torch.zeros(1, 12, dtype=torch.bool))[0, 0]
    assert not mask[:32].any() and mask[32:].all()


@pytest.mark.parametrize("name", DROPPABLE)
def test_one_patch_alone_is_a_forward_on_its_token(name, pixels):
    model = small(name)
    one = torch.eye(GRID[0] * GRID[1], dtype=torch.bool).unflatten(1, GRID)
    found = answers(trace_of(model, pixels), one, "drop")
    for image, patch in itertools.product(range(3), range(len(one))):
        expected = dropped_by_hand(model, pixels[image], one[patch].numpy())
        assert float(found[image, patch]) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_masks_may_differ_from_image_to_image(vit, pixels):
    """Masks in any order and repeated, of many sizes, an image's own."""
    keep = torch.rand(3, 30, *GRID, generator=torch.Generator().manual_seed(0)) > 0.5
    keep[:, 20:] = keep[:, :10]
    found = answers(trace_of(vit, pixels), keep, "drop", probability=False)
    for image, mask in itertools.product(range(3), range(30)):
        expected = dropped_by_hand(vit, pixels[image], keep[image, mask].numpy(), probability=False)
        assert float(found[image, mask]) == pytest.approx(expected, rel=1e-3, abs=1e-5)


# RISE ----------------------------------------------------------------------------------------------------------------


def rise_mask(grid: Tensor, top: int, left: int, size: tuple[int, int]) -> Tensor:
    """A grid of zeros and ones, enlarged to one cell more than the picture, cut out at (top, left)."""
    cells = len(grid)
    cell = [math.ceil(side / cells) for side in size]
    enlarged = F.interpolate(grid[None, None], [(cells + 1) * side for side in cell], mode="bilinear")[0, 0]
    return enlarged[top : top + size[0], left : left + size[1]]


@pytest.mark.parametrize(("name", "cells"), [("class token", 7), ("eva with rotary positions", 3)])
def test_rise_is_a_loop_over_masks(name, cells, pixels):
    model, samples = small(name), 21
    found = explained(model, pixels[:2], "rise", samples=samples, cells=cells, kept=0.4, seed=3)
    generator = torch.Generator().manual_seed(3)
    grids = (torch.rand(samples, cells, cells, generator=generator) < 0.4).float()
    tops, lefts = (torch.randint(math.ceil(side / cells), (samples, 1), generator=generator) for side in SIZE)
    for image in range(2):
        expected = torch.zeros(SIZE)
        for number in range(samples):
            mask = rise_mask(grids[number], int(tops[number]), int(lefts[number]), SIZE)
            expected += plain(model, pixels[image] * mask) * mask
        np.testing.assert_allclose(found.relevance[image], expected / (samples * 0.4), rtol=1e-4, atol=1e-6)


def test_rise_estimates_its_expectation(few_pixels):
    """Against all grids of two by two cells at all shifts, weighed by how likely they are."""
    model, picture, kept = tiny(), few_pixels[0], 0.4
    size = (16, 32)
    terms, chances = [], []
    for cells in itertools.product((0.0, 1.0), repeat=4):
        masks = [
            rise_mask(torch.tensor(cells).view(2, 2), top, left, size)
            for top, left in itertools.product(range(8), range(16))
        ]
        with torch.no_grad():
            y = model(torch.stack([picture * mask for mask in masks])).softmax(-1)[:, TARGET]
        terms += [float(score) * mask / kept for score, mask in zip(y, masks, strict=True)]
        chances += [kept ** sum(cells) * (1 - kept) ** (4 - sum(cells)) / len(masks)] * len(masks)
    weights, each = torch.tensor(chances)[:, None, None], torch.stack(terms)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-4)
    expected = (weights * each).sum(0)
    samples = 3000
    error = ((weights * (each - expected) ** 2).sum(0) / samples).sqrt()
    found = torch.from_numpy(explained(model, picture, "rise", samples=samples, cells=2, kept=kept).relevance[0])
    assert ((found - expected).abs() < 5 * error).all()
    assert expected.max() - expected.min() > 10 * error.max()  # so that a flat map would have failed


# ViT-CX --------------------------------------------------------------------------------------------------------------


def scaled(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())


def complete_linkage(apart: np.ndarray, threshold: float) -> list[list[int]]:
    """Merge the two clusters whose farthest members are closest, until those are further apart than allowed."""
    clusters = [[number] for number in range(len(apart))]
    while len(clusters) > 1:
        distance, i, j = min(
            (max(apart[a, b] for a in clusters[i] for b in clusters[j]), i, j)
            for i, j in itertools.combinations(range(len(clusters)), 2)
        )
        if distance > threshold:
            break
        clusters[i] += clusters.pop(j)
    return clusters


@pytest.mark.parametrize(
    ("name", "distance"), [("class token", 0.1), ("class token", 0.0), ("eva with rotary positions", 0.2)]
)
def test_vit_cx_is_a_loop_over_clusters(name, distance, pixels):
    model: Any = small(name)
    found = explained(model, pixels[:2], "vit_cx", distance=distance, noise=0.3, seed=4)
    for image in range(2):
        seen: list[Tensor] = []
        hook = model.blocks[-1].norm1.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
        whole = plain(model, pixels[image])
        hook.remove()
        channels = seen[0][0, -GRID[0] * GRID[1] :].T.double().numpy()
        maps = np.stack([scaled(channel) for channel in channels])
        apart = 1 - maps @ maps.T / np.outer(np.linalg.norm(maps, axis=1), np.linalg.norm(maps, axis=1))
        clusters = complete_linkage(apart, distance)
        order = {tuple(sorted(cluster)) for cluster in clusters}
        assert found.facts["masks"][image] == len(order)
        # The noise is drawn mask by mask, so which mask comes when matters; the package's numbering is scipy's.
        numerators, total = [], np.zeros(SIZE)
        generator = torch.Generator().manual_seed(4)
        draws = [torch.randn(3, *SIZE, generator=generator) for _ in clusters]
        for cluster, draw in zip(in_scipys_order(apart, distance), draws, strict=True):
            assert tuple(sorted(cluster)) in order
            small_mask = torch.from_numpy(maps[cluster].sum(0).reshape(1, 1, *GRID)).float()
            mask = scaled(F.interpolate(small_mask, SIZE, mode="bilinear")[0, 0].numpy())
            noise = 0.3 * draw.numpy() * (1 - mask)
            masked = plain(model, torch.from_numpy(pixels[image].numpy() * mask + noise))
            numerators.append((masked - plain(model, pixels[image] + torch.from_numpy(noise)) + whole) * mask)
            total += mask
        expected = np.sum(numerators, 0) / total / len(clusters)
        np.testing.assert_allclose(found.relevance[image], expected, rtol=1e-3, atol=1e-5)


def in_scipys_order(apart: np.ndarray, threshold: float) -> list[list[int]]:
    from scipy.cluster.hierarchy import fcluster, linkage

    condensed = [max(0.0, apart[pair]) for pair in itertools.combinations(range(len(apart)), 2)]
    labels = fcluster(linkage(condensed, "complete"), threshold, "distance")
    return [list(np.flatnonzero(labels == label)) for label in range(1, labels.max() + 1)]


def test_vit_cx_needs_no_varying_channel():
    """Patches that are all the same make no masks; the map is then what one even mask says."""
    model = small("class token")
    with torch.no_grad():
        model.pos_embed.zero_()
    found = explained(model, torch.zeros(1, 3, *SIZE), "vit_cx")
    assert np.isfinite(found.relevance).all() and found.facts["masks"] == [1]


# TIS -----------------------------------------------------------------------------------------------------------------


def k_means(points: np.ndarray, start: np.ndarray) -> np.ndarray:
    centres = points[start].copy()
    for _ in range(20):
        nearest = np.array([np.argmin([np.sum((point - centre) ** 2) for centre in centres]) for point in points])
        for number in range(len(centres)):
            if (nearest == number).any():
                centres[number] = points[nearest == number].mean(0)
    return centres


@pytest.mark.parametrize(("name", "kept"), [("class token", 0.5), ("registers", 0.2), ("mean pooling", 0.5)])
def test_tis_is_a_loop_over_centres(name, kept, pixels):
    model: Any = small(name)
    found = explained(model, pixels[:2], "tis", samples=9, kept=kept, seed=1)
    patches = GRID[0] * GRID[1]
    for image in range(2):
        seen: list[Tensor] = []
        hooks = [block.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out)) for block in model.blocks]
        plain(model, pixels[image])
        for hook in hooks:
            hook.remove()
        points = torch.cat([out[0, -patches:] for out in seen], 1).T.double().numpy()
        start = torch.randperm(len(points), generator=torch.Generator().manual_seed(1))[:9].numpy()
        sums, times, scores = np.zeros(patches), np.zeros(patches), []
        for centre in k_means(points, start):
            keep = np.zeros(patches, bool)
            keep[np.argsort(-centre)[: int(kept * patches)]] = True
            scores.append(dropped_by_hand(model, pixels[image], keep))
            sums[keep] += scores[-1]
            times[keep] += 1
        expected = np.where(times > 0, sums / np.maximum(times, 1), np.mean(scores)).reshape(GRID)
        np.testing.assert_allclose(found.relevance[image], expected, rtol=1e-3, atol=1e-6)
        assert found.facts["patches_unseen"][image] == (times == 0).sum()


# Shapley values ------------------------------------------------------------------------------------------------------


def shapley_by_definition(value: Callable[[frozenset[int]], float], count: int) -> np.ndarray:
    """``φ_i = Σ_S |S|! (n − |S| − 1)! / n! (v(S ∪ i) − v(S))`` over all subsets without i."""
    known = {
        frozenset(chosen): value(frozenset(chosen))
        for size in range(count + 1)
        for chosen in itertools.combinations(range(count), size)
    }
    result = np.zeros(count)
    for player in range(count):
        for chosen, worth in known.items():
            if player not in chosen:
                size = len(chosen)
                weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
                result[player] += weight * (known[chosen | {player}] - worth)
    return result


CASES = {
    "class token, dropped": ({}, "auto", "drop", "probability"),
    "class token, dropped, logits": ({}, "drop", "drop", "logit"),
    "class token, painted": ({}, "blur", "blur", "probability"),
    "mean pooling, painted": ({"class_token": False, "global_pool": "avg"}, "auto", "mean", "probability"),
}


@pytest.mark.parametrize("case", CASES)
def test_shapley_values_are_those_of_all_subsets(case, few_pixels):
    options, asked, fill, score = CASES[case]
    model = tiny(**options)
    found = explained(model, few_pixels, "kernel_shap", players="patches", fill=asked, score=score)
    drawn = explained(model, few_pixels, "shapley_sampling", players="patches", fill=asked, score=score, samples=3000)
    fewer = explained(model, few_pixels, "kernel_shap", players="patches", fill=asked, score=score, samples=200)
    for image in range(2):

        def value(chosen: frozenset[int], image: int = image) -> float:
            keep = np.isin(np.arange(8), list(chosen)).reshape(2, 4)
            return by_hand(model, few_pixels[image], keep, fill, score == "probability")

        expected = shapley_by_definition(value, 8).reshape(2, 4)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found.relevance[image], expected, rtol=1e-4, atol=1e-4 * scale)
        error = drawn.facts["standard_error"][image]
        assert error < 0.05 * scale
        assert np.abs(drawn.relevance[image] - expected).max() < 5 * error
        assert np.abs(fewer.relevance[image] - expected).max() < 0.25 * scale
        whole, none = value(frozenset(range(8))), value(frozenset())
        for each in (found, drawn, fewer):
            assert each.relevance[image].sum() == pytest.approx(whole - none, rel=1e-3, abs=1e-5)
            assert each.facts["score"][image] == pytest.approx(whole, rel=1e-3, abs=1e-6)
            assert each.facts["score_of_nothing"][image] == pytest.approx(none, rel=1e-3, abs=1e-6)
            assert abs(each.facts["efficiency_gap"][image]) < 1e-6 * max(1, scale)


def test_players_are_rectangles_of_patches(few_pixels):
    """Two a side on two rows of four patches: four players, two patches wide, which share their value equally."""
    model = tiny()
    found = explained(model, few_pixels[0], "kernel_shap", players=2).relevance[0]

    def value(chosen: frozenset[int]) -> float:
        keep = np.isin([[0, 0, 1, 1], [2, 2, 3, 3]], list(chosen))
        return dropped_by_hand(model, few_pixels[0], keep)

    expected = shapley_by_definition(value, 4).reshape(2, 2).repeat(2, 1) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    for name in ("kernel_shap", "shapley_sampling"):  # one player gets everything
        alone = explained(model, few_pixels[0], name, players=1).relevance[0]
        np.testing.assert_allclose(alone, expected.sum() / 8, rtol=1e-4)


def connected(group: set[int], columns: int) -> bool:
    """Whether one can walk from any patch of the group to any other over sides."""
    reached, rest = set(), [min(group)]
    while rest:
        patch = rest.pop()
        if patch in group - reached:
            reached.add(patch)
            sides = [patch - columns, patch + columns]
            rest += sides + [patch - 1] * (patch % columns > 0) + [patch + 1] * ((patch + 1) % columns > 0)
    return reached == group


def grown(colours: np.ndarray, seeds: list[int]) -> np.ndarray:
    """Simple non-iterative clustering without a queue: of all open offers the cheapest, again and again."""
    h, w, _ = colours.shape
    flat = colours.reshape(h * w, -1)
    deviation = np.sqrt(((flat - flat.mean(0)) ** 2).sum(1).mean())
    owner, members = {}, [[] for _ in seeds]
    offers = [(0.0, seed, number) for number, seed in enumerate(seeds)]
    while len(owner) < h * w:
        _, patch, number = offers.pop(offers.index(min(offers)))
        if patch in owner:
            continue
        owner[patch] = number
        members[number].append(patch)
        colour = np.mean([flat[one] for one in members[number]], 0)
        place = np.mean([divmod(one, w) for one in members[number]], 0)
        for other in range(h * w):
            if other not in owner and np.abs(np.subtract(divmod(other, w), divmod(patch, w))).sum() == 1:
                far = ((flat[other] - colour) ** 2).sum() / deviation**2
                far += ((np.array(divmod(other, w)) - place) ** 2).sum() / (h * w / len(seeds))
                offers.append((far, other, number))
    return np.array([owner[patch] for patch in range(h * w)]).reshape(h, w)


def test_superpixels_grow_from_their_seeds():
    """Against the same growth without a queue; the seeds of 2x3 rectangles on 6x9 patches are their middles."""
    colours = torch.randn(6, 9, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rectangles = (torch.arange(6)[:, None] // 3) * 3 + torch.arange(9) // 3
    found = superpixels(colours, rectangles)
    seeds = [row * 9 + column for row, column in itertools.product((1, 4), (1, 4, 7))]
    np.testing.assert_array_equal(found, grown(colours.numpy(), seeds))
    for scaled in (5 * colours + 2, colours.float()):  # contrast and brightness do not matter
        np.testing.assert_array_equal(superpixels(scaled, rectangles), found)
    assert len(found.unique()) == 6
    assert all(connected(set(np.flatnonzero(found == number).tolist()), 9) for number in range(6))


def test_superpixels_follow_edges_that_rectangles_cross():
    """A slanted edge between two colours: no superpixel lies on both sides, though every row of rectangles does."""
    side = torch.arange(12)[:, None] + 2 * torch.arange(12) < 17
    colours = torch.stack([side.double(), 1 - side.double()], 2)
    rectangles = (torch.arange(12)[:, None] // 3) * 4 + torch.arange(12) // 3
    sides = [set(side[superpixels(colours, rectangles) == number].tolist()) for number in range(16)]
    assert all(len(one) == 1 for one in sides)
    assert any(len(set(side[rectangles == number].tolist())) == 2 for number in range(16))


def test_superpixels_of_nothing_to_tell_apart():
    flat = torch.full((4, 6, 3), 0.3)
    each = torch.arange(24).view(4, 6)
    np.testing.assert_array_equal(superpixels(torch.randn(4, 6, 3), each), each)  # every patch its own
    assert not superpixels(flat, torch.zeros(4, 6, dtype=torch.long)).any()
    halves = (torch.arange(6) // 3).expand(4, 6)
    np.testing.assert_array_equal(superpixels(flat, halves), halves)


@pytest.mark.parametrize("fill", ["drop", "mean"])
def test_superpixels_may_be_players(fill, few_pixels):
    """Each image has its own; their values are Shapley's, shared equally by their patches, and add up."""
    model = tiny()
    pictures = few_pixels * 0.1
    pictures[0, :, :8, :24] += 2  # an L and what it encloses,
    pictures[1, :, :, 24:] += 2  # and the last column
    options = {"players": 2, "superpixels": True, "fill": fill}
    found = explained(model, pictures, "kernel_shap", **options)
    drawn = explained(model, pictures, "shapley_sampling", samples=400, **options)
    rectangles = torch.tensor([[0, 0, 1, 1], [2, 2, 3, 3]])
    for image in range(2):
        patches = pictures[image].unflatten(1, (2, 8)).unflatten(3, (4, 8)).mean((2, 4)).permute(1, 2, 0)
        players = superpixels(patches, rectangles).numpy()
        assert (players != rectangles.numpy()).any()

        def value(chosen: frozenset[int], image: int = image, players: np.ndarray = players) -> float:
            return by_hand(model, pictures[image], np.isin(players, list(chosen)), fill)

        shares = shapley_by_definition(value, 4) / np.bincount(players.flatten())
        scale = np.abs(shares).max()
        np.testing.assert_allclose(found.relevance[image], shares[players], rtol=1e-3, atol=1e-4 * scale)
        np.testing.assert_allclose(drawn.relevance[image], shares[players], rtol=0, atol=0.1 * scale)
        for each in (found, drawn):
            whole = value(frozenset(range(4))) - value(frozenset())
            assert each.relevance[image].sum() == pytest.approx(whole, rel=1e-3, abs=1e-5)
    alone = explained(model, pictures[1], "kernel_shap", **options).relevance[0]
    np.testing.assert_array_equal(alone, found.relevance[1])


def test_sampling_converges(pixels):
    """More orders, less error: at sixteen times as many about a quarter, as the standard error says it."""
    model, picture = small("class token"), pixels[:1]
    errors = [explained(model, picture, "shapley_sampling", samples=n).facts["standard_error"] for n in (12, 192)]
    assert 0.15 < errors[1] / errors[0] < 0.4
    exact = explained(model, picture, "shapley_sampling", samples=192, seed=7).relevance
    far, near = (
        np.abs(explained(model, picture, "kernel_shap", samples=samples).relevance - exact).mean()
        for samples in (60, 1500)
    )
    assert near < 0.5 * far


@pytest.mark.parametrize("name", ("kernel_shap", "shapley_sampling"))
def test_values_add_up_on_every_model(name, model, pixels):
    found = explained(model, pixels, name, **FEW[name])
    whole, none = found.facts["score"], found.facts["score_of_nothing"]
    np.testing.assert_allclose(found.relevance.astype(np.float64).sum((1, 2)), whole - none, rtol=0, atol=1e-6)
    assert (np.abs(found.facts["efficiency_gap"]) < 1e-6).all()
    np.testing.assert_allclose(whole, F.softmax(torch.from_numpy(found.logits), -1)[:, TARGET], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("players", [np.array([2, 3]), torch.tensor([2, 3]), [2], "tokens", 0, 2.5, True, None])
def test_players_that_are_none_are_refused(players, few_pixels):
    with pytest.raises(OptionError, match="players must be 'patches' or a whole number in"):
        explained(tiny(), few_pixels, "kernel_shap", players=players)


def test_too_few_subsets_are_named(few_pixels):
    found = explained(tiny(), few_pixels, "kernel_shap", samples=10)
    assert found.warnings == [["10 subsets do not tell 8 players apart: take more samples or fewer players"]] * 2
    assert explained(tiny(), few_pixels, "kernel_shap", samples=60).warnings == [[], []]


# What every method promises ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "patch"), list(itertools.product(METHODS, (0, 7, 13))))
def test_planted_evidence_is_found(name, patch):
    picture = planted_picture(patch)
    options = {"rise": {"samples": 400}, "tis": {"samples": 64}}.get(name, {})
    found = torch.from_numpy(Explainer(planted(patch)).explain(picture, name, 1, **options).relevance)
    if found.shape[1:] == SIZE:
        found = F.avg_pool2d(found, PATCH)
    assert int(found.flatten().argmax()) == patch
    other = torch.from_numpy(Explainer(planted(patch)).explain(picture, name, 0, **options).relevance)
    other = F.avg_pool2d(other, PATCH) if other.shape[1:] == SIZE else other
    assert int(other.flatten().argmin()) == patch  # what speaks for one of two classes speaks against the other


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_is_its_images_to_the_last_bit(name, model, pixels):
    targets = [0, 1, 3]
    together = Explainer(model).explain(pixels, name, targets, **FEW[name])
    for image, target in enumerate(targets):
        alone = Explainer(model).explain(pixels[image], name, target, **FEW[name])
        np.testing.assert_array_equal(alone.relevance[0], together.relevance[image])
        assert all(alone.facts[fact][0] == together.facts[fact][image] for fact in together.facts)


@pytest.mark.parametrize("name", METHODS)
def test_draws_depend_on_the_seed_alone(name, vit, pixels):
    before = torch.get_rng_state()
    first, again = (explained(vit, pixels[:1], name, **FEW[name]).relevance for _ in range(2))
    assert (torch.get_rng_state() == before).all()
    np.testing.assert_array_equal(first, again)
    if name != "occlusion":
        assert (explained(vit, pixels[:1], name, **FEW[name], seed=1).relevance != first).any()


@pytest.mark.parametrize("name", METHODS)
def test_functions_and_contrasts_have_their_say(name, few_pixels):
    """A function of the output is taken as it is; a contrast is the difference of two probabilities."""
    model = tiny()

    def found(target: Any) -> np.ndarray:
        return Explainer(model).explain(few_pixels, name, target, **FEW[name]).relevance

    def probability(output: Tensor) -> Tensor:
        return output.softmax(-1)[:, TARGET]

    np.testing.assert_allclose(found(probability), found(TARGET), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found(Contrast(0, 3)), found(0) - found(3), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [*METHODS, "scorecam"])
def test_several_classes_cost_the_forwards_of_one(name, few_pixels):
    """Each has the map that it has alone, also where the pictures are the same and their classes are not."""
    model, pixels = tiny(), few_pixels[[0, 1, 0]]
    forwards: list[int] = []
    model.blocks[-1].register_forward_hook(lambda _module, args, _out: forwards.append(len(args[0])))
    explainer, options = Explainer(model), FEW.get(name, {})
    columns = ([0, 1, 2], [3, 3, 0], [1, 0, 1])
    alone, costs = [], []
    for column in columns:
        forwards.clear()
        alone.append(explainer.attribute(pixels, column, name, **options))
        costs.append(sum(forwards))
    forwards.clear()
    together = explainer.attribute(pixels, [list(own) for own in zip(*columns, strict=True)], name, **options)
    torch.testing.assert_close(together.unflatten(0, (3, 3)), torch.stack(alone, 1), rtol=0, atol=0)
    if name in ("vit_cx", "tis"):  # which look for their masks anew
        assert sum(forwards) <= costs[0] + 3 * len(pixels)
    else:
        assert sum(forwards) == costs[0]


def test_a_method_may_ask_something_else_about_each_class(few_pixels):
    """What is kept for other classes answers the same question, and no other."""
    model = tiny()
    family = family_of(model)
    subject = Subject(model, family, family.anatomy(model, (3, 16, 32)))
    columns = tuple((Target(str(n), n),) for n in (0, 3))
    inquiries = [ModelInquiry(subject, 1, columns, number) for number in (0, 1)]
    shared = dataclasses.replace(inquiries[1], known=inquiries[0].known)
    keep = torch.tensor([[True] * 6 + [False] * 2, [False] * 2 + [True] * 6])
    other, picture = keep.flip(0), few_pixels[:1]
    inquiries[0].probe(picture, keep)
    inquiries[0].probe(picture)
    for asked in ((picture, keep), (picture, other), (picture,), (picture + 1e-6,), (picture.flip(3),)):
        plain = ModelInquiry(subject, 1, columns[1:]).probe(*asked)
        torch.testing.assert_close(shared.probe(*asked), plain, rtol=0, atol=0)
        logit = ModelInquiry(subject, 1, columns[1:]).probe(*asked, probability=False)
        torch.testing.assert_close(shared.probe(*asked, probability=False), logit, rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_models_are_explained(name, few_pixels):
    found = explained(tiny().bfloat16(), few_pixels, name, **FEW[name])
    assert found.relevance.dtype == np.float32 and np.isfinite(found.relevance).all()


@pytest.mark.parametrize("name", ["eva with rotary positions", "beit with relative position bias"])
def test_where_tokens_cannot_be_dropped(name, pixels):
    """The default paints, and says so; who insists on dropping is told what works."""
    for method in ("occlusion", "tis", "kernel_shap", "shapley_sampling"):
        found = explained(small(name), pixels, method, **FEW[method])
        assert (found.facts["tokens_dropped"] == 0).all()
        for own in found.warnings:
            assert "to attention" in own[0] and "painted in the image's mean colour instead" in own[0]
        painted = explained(small(name), pixels, method, fill="mean", **FEW[method])
        np.testing.assert_array_equal(painted.relevance, found.relevance)
        with pytest.raises(OptionError, match="cannot be left out as tokens; fill them instead"):
            explained(small(name), pixels, method, fill="drop", **FEW[method])


@pytest.mark.parametrize("name", ["mean pooling", "attention pooling", "mean pooling beside a class token"])
def test_heads_that_read_patches_need_some(name, pixels):
    words = "The head reads patches alone, so it has no answer without any"
    found = explained(small(name), pixels, "kernel_shap", samples=20)
    assert words in found.warnings[0][0] and (found.facts["tokens_dropped"] == 0).all()
    for method, options in (("kernel_shap", {}), ("shapley_sampling", {}), ("occlusion", {"window": 5})):
        with pytest.raises(OptionError, match=f"{words}; fill them instead"):
            explained(small(name), pixels, method, fill="drop", **options)
    assert (explained(small(name), pixels, "occlusion", window=4, fill="drop").facts["tokens_dropped"] == 1).all()


@pytest.mark.parametrize("name", METHODS)
def test_progress_goes_up_and_ends_at_the_total(name, few_pixels):
    """Also over more images than a chunk, of which the last is not full, and over several targets."""
    explainer, told = Explainer(tiny()), []

    def tell(*now: int) -> None:
        told.append(now)

    many = torch.randn(2 * CHUNK + 3, 3, 16, 32, generator=torch.Generator().manual_seed(6))
    for images, target in ((few_pixels, TARGET), (many, [[0, 1]] * len(many))):
        told.clear()
        explainer.attribute(images, target, name, progress=tell, **FEW[name])
        done, totals = zip(*told, strict=True)
        assert all(a < b for a, b in itertools.pairwise(done)) and done[0] > 0
        assert done[-1] == totals[-1] and all(a <= b for a, b in told)
        assert len(set(totals)) == 1 or name in ("vit_cx", "tis")  # how many masks there are is seen image by image
    quiet = explainer.attribute(few_pixels, TARGET, name, **FEW[name])
    told.clear()
    again = explainer.explain(few_pixels, name, TARGET, progress=tell, **FEW[name])
    np.testing.assert_array_equal(again.relevance, quiet.numpy())
    assert told


def test_progress_may_end_an_explanation(few_pixels):
    model = tiny()
    before = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Explainer(model).explain(few_pixels, "occlusion", TARGET, progress=stop)
    assert before == [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]


def test_methods_of_one_forward_tell_nothing(vit, pixels):
    Explainer(vit).explain(pixels, "rollout", progress=lambda *_: pytest.fail("there is nothing to tell"))


def test_forwards_are_full_and_no_fuller(vit, pixels, monkeypatch):
    """A picture is embedded once for all masks of a forward; painted pictures exist a forward's worth at a time."""
    inputs, blocks = [], []
    plain_forward, plain_block = type(vit).forward, type(vit.blocks[0]).forward
    monkeypatch.setattr(type(vit), "forward", lambda self, x: inputs.append(len(x)) or plain_forward(self, x))
    monkeypatch.setattr(
        type(vit.blocks[0]),
        "forward",
        lambda self, x, *a, **k: blocks.append(tuple(x.shape[:2])) or plain_block(self, x, *a, **k),
    )
    threes = torch.zeros(40, GRID[0] * GRID[1], dtype=torch.bool)
    for mask, kept in zip(threes, itertools.combinations(range(GRID[0] * GRID[1]), 3), strict=False):
        mask[list(kept)] = True
    trace = trace_of(vit, pixels[:1])
    blocks.clear()
    answers(trace, threes.unflatten(1, GRID), "drop")
    assert set(inputs) == {1}
    # Three patches and the class token: 32 such rows have as many tokens as eight whole pictures.
    assert set(blocks) == {(CHUNK * (1 + GRID[0] * GRID[1]) // 4, 4), (8, 4)}
    inputs.clear()
    explained(vit, pixels[:1], "occlusion", fill="mean")
    assert inputs == [1, 8, 8]  # the look; the whole picture and 15 masks


def test_class_numbers_reach_every_class(vit, pixels):
    """The probabilities of all classes sum to one, so that their occlusion maps sum to zero."""
    maps = [Explainer(vit).explain(pixels, "occlusion", number).relevance for number in range(CLASSES)]
    np.testing.assert_allclose(np.sum(maps, 0), 0, atol=1e-6)
