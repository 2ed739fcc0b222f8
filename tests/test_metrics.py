"""Metrics against loops over plain forwards, definitions read aloud, and a model whose truth is known."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import GRID, PATCH, SIZE, Memory, planted, planted_picture, small
from torch import Tensor

from vit_explain import Explainer, list_methods
from vit_explain import metrics as _registers_them  # noqa: F401
from vit_explain.cases import Case
from vit_explain.errors import ModelError, OptionError
from vit_explain.judging import Judge
from vit_explain.likeness import rank_correlation, structural_similarity
from vit_explain.metric_registry import METRICS, Measured, choose_metrics
from vit_explain.randomised import Randomised
from vit_explain.registry import find
from vit_explain.removal import Part, ranked, steps
from vit_explain.seeds import own_generator

PATCHES = GRID[0] * GRID[1]
TARGET = 2


@pytest.fixture(scope="module")
def model() -> Any:
    return small("class token")


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def maps() -> Tensor:
    return torch.randn(3, *GRID, generator=torch.Generator().manual_seed(8))


def case_of(model: Any, pixels: Tensor, maps: Tensor, target: int = TARGET, **more: Any) -> Case:
    judge = Judge(Explainer(model), seed=0)
    pictures = judge.pictures(pixels)
    return Case(maps, torch.full((len(pixels),), target), pictures, judge.whole(pictures), **more)


def measured(name: str, case: Case, **options: Any) -> Tensor:
    metric = METRICS[name]
    found = metric.run(case, **metric.settings(options))
    return found.values if isinstance(found, Measured) else found


# By hand -------------------------------------------------------------------------------------------------------------


def scores_by_hand(model: Any, picture: Tensor, keep: np.ndarray, fill: str) -> np.ndarray:
    """(classes,) of one picture (C, H, W) of which only some patches (h, w) or pixels (H, W) are left."""
    with torch.no_grad():
        if fill == "drop":
            tokens = model._pos_embed(model.patch_embed(picture[None]))
            stay = [0, *(1 + n for n, kept in enumerate(keep.flatten()) if kept)]
            return model.forward_head(model.norm(model.blocks(model.norm_pre(tokens[:, stay]))))[0].double().numpy()
        if keep.shape == GRID:
            keep = np.kron(keep, np.ones((PATCH, PATCH), bool))
        painted = picture.clone()
        behind = {"mean": picture.mean((1, 2)), "zero": torch.zeros(3)}[fill]
        painted[:, ~torch.from_numpy(keep)] = behind[:, None]
        return model(painted[None])[0].double().numpy()


def order_by_hand(values: Tensor, level: str, ties: Tensor) -> list[int]:
    """Places of one map (h, w), the most relevant first, on patches or on pixels, in the given order where equal: a map
    that is resized is even in its corners."""
    if level == "pixel":
        values = F.interpolate(values[None, None], SIZE, mode="bilinear")[0, 0]
    return sorted(range(values.numel()), key=lambda n: (-float(values.flatten()[n]), int(ties[n])))


def curve_by_hand(model: Any, case: Case, image: int, removed: list[float], level: Any, fill: str, *,
                  most_first: bool = True) -> np.ndarray:  # fmt: skip
    """(points, classes) with these shares removed, the most or the least relevant first."""
    picture = case.pictures.pixels[image]
    order = order_by_hand(case.maps[image], level, case.ranks(level)[image])
    found = []
    for share in removed:
        keep = np.ones(len(order), bool)
        relevant = math.floor((share if most_first else 1 - share) * len(order) + 0.5 + 1e-9)
        keep[order[:relevant] if most_first else order[relevant:]] = False
        found.append(scores_by_hand(model, picture, keep.reshape(GRID if level == "patch" else SIZE), fill))
    return np.stack(found)


def probability(scores: np.ndarray, target: int = TARGET) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True))[..., target]


WAYS = [("patch", "drop"), ("patch", "mean"), ("pixel", "zero")]


@pytest.mark.parametrize(("level", "fill"), WAYS)
def test_deletion_and_insertion(model, pictures, maps, level, fill):
    case = case_of(model, pictures, maps)
    away = measured("deletion", case, steps=5, level=level, fill=fill)
    put_in = measured("insertion", case, steps=5, level=level, fill=fill)
    for image in range(3):
        shares = [0, 0.2, 0.4, 0.6, 0.8, 1]
        falling = probability(curve_by_hand(model, case, image, shares, level, fill))
        rising = probability(curve_by_hand(model, case, image, shares[::-1], level, fill, most_first=False))
        assert float(away[image]) == pytest.approx(np.trapezoid(falling, dx=0.2), abs=1e-5)
        assert float(put_in[image]) == pytest.approx(np.trapezoid(rising, dx=0.2), abs=1e-5)


def test_a_head_that_reads_patches_has_no_answer_without_any(pictures, maps):
    case = case_of(small("mean pooling"), pictures, maps)
    with pytest.raises(OptionError, match="reads patches, so it has no answer without any; fill them"):
        measured("deletion", case, fill="drop")
    assert measured("aopc", case, fill="drop").isfinite().all()  # up to 90 % removed


@pytest.mark.parametrize(("level", "fill"), WAYS)
def test_metrics_of_ten_steps(model, pictures, maps, level, fill):
    labels = torch.tensor([0, 2, 3])
    case = case_of(model, pictures, maps, labels=labels)
    options = {"level": level, "fill": fill}
    found = {
        name: measured(name, case, **options)
        for name in ("positive_perturbation", "negative_perturbation", "abpc", "aopc", "log_odds")
    }
    tenths = [i / 10 for i in range(11)]
    for image in range(3):
        most = curve_by_hand(model, case, image, tenths, level, fill)
        least = curve_by_hand(model, case, image, tenths, level, fill, most_first=False)
        right = (most[1:10].argmax(1) == int(labels[image])).mean()
        assert float(found["positive_perturbation"][image]) == pytest.approx(right)
        right = (least[1:10].argmax(1) == int(labels[image])).mean()
        assert float(found["negative_perturbation"][image]) == pytest.approx(right)
        area = (probability(least) - probability(most)).sum() / 11
        assert float(found["abpc"][image]) == pytest.approx(area, abs=1e-5)
        fall = probability(most[0]) - probability(most[1:10])
        assert float(found["aopc"][image]) == pytest.approx(fall.sum() / 10, abs=1e-5)
        odds = np.log(probability(most[1:10]) / probability(most[0])).mean()
        assert float(found["log_odds"][image]) == pytest.approx(odds, rel=1e-4)


def test_images_without_a_class_have_no_accuracy(model, pictures, maps):
    known = measured("positive_perturbation", case_of(model, pictures, maps, labels=torch.tensor([-1, 2, 3])))
    assert known.isnan().tolist() == [True, False, False]
    assert measured("positive_perturbation", case_of(model, pictures, maps)).isnan().all()
    assert measured("positive_perturbation", case_of(model, pictures, maps), reference="target").isfinite().all()


@pytest.mark.parametrize("fill", ("drop", "mean"))
def test_saco(model, pictures, maps, fill):
    case = case_of(model, pictures, maps)
    found = measured("saco", case, groups=5, fill=fill)
    for image in range(3):
        order, values = (
            order_by_hand(maps[image], "patch", case.ranks("patch")[image]),
            maps[image].flatten().double().numpy(),
        )
        salience, effect = [], []
        for group in range(5):
            keep = np.ones(PATCHES, bool)
            keep[order[group * 3 : group * 3 + 3]] = False
            salience.append(values[~keep].sum())
            effect.append(-probability(scores_by_hand(model, pictures[image], keep.reshape(GRID), fill)))
        total = weight = 0.0
        for i, j in itertools.combinations(range(5), 2):
            difference = salience[i] - salience[j]
            total += difference if effect[i] >= effect[j] else -difference
            weight += abs(difference)
        assert float(found[image]) == pytest.approx(total / weight, abs=1e-5)


def test_pixels_are_not_dropped(model, pictures, maps):
    with pytest.raises(OptionError, match="level=pixel: pixels are no tokens"):
        measured("deletion", case_of(model, pictures, maps), level="pixel", fill="drop")


@pytest.mark.parametrize("fill", ("drop", "mean"))
def test_where_memory_runs_out_fewer_pictures_are_asked_about_at_once(model, pictures, maps, fill, monkeypatch):
    def found() -> list[Tensor]:
        case = case_of(model, pictures, maps)
        asked = [measured(name, case, fill=fill) for name in ("deletion", "saco", "faithfulness_correlation")]
        return [case.whole, *asked, measured("average_drop", case)]

    expected = found()
    memory = Memory(monkeypatch, model, 2)
    for again, one in zip(found(), expected, strict=True):
        torch.testing.assert_close(again, one, rtol=1e-4, atol=1e-5)
    assert max(memory.sizes) > memory.most
    memory.most = 0
    with pytest.raises(ModelError, match="no memory for one image of 24x40 pixels"):
        found()


def test_sums_over_random_patches(model, pictures, maps):
    case = case_of(model, pictures, maps)
    found = {name: measured(name, case, samples=12) for name in ("faithfulness_correlation", "infidelity")}
    curve = measured("sensitivity_n", case, sizes=2, samples=6)
    for image in range(3):

        def drawn(share: float, samples: int, image: int = image) -> tuple[np.ndarray, np.ndarray]:
            removed, _ = case.pictures.at_random(share, samples, "auto")
            sums, falls = [], []
            for row in removed[image].numpy():
                left = scores_by_hand(model, pictures[image], ~row.reshape(GRID), "drop")[TARGET]
                whole = scores_by_hand(model, pictures[image], np.ones(GRID, bool), "drop")[TARGET]
                sums.append(float(maps[image].flatten()[row].double().sum()))
                falls.append(whole - left)
            return np.array(sums), np.array(falls)

        sums, falls = drawn(0.2, 12)
        assert float(found["faithfulness_correlation"][image]) == pytest.approx(
            np.corrcoef(sums, falls)[0, 1], abs=1e-4
        )
        scale = np.linalg.lstsq(sums[:, None], falls, rcond=None)[0]
        assert float(found["infidelity"][image]) == pytest.approx(((scale * sums - falls) ** 2).mean(), rel=1e-3)
        means = [np.corrcoef(*drawn(share, 6))[0, 1] for share in (1 / 3, 2 / 3)]
        assert float(curve[image]) == pytest.approx(np.mean(means), abs=1e-4)


def test_random_patches_are_the_same_for_every_method_and_batch(model, pictures, maps):
    first, _ = case_of(model, pictures, maps).pictures.at_random(0.2, 7, "auto")
    other, _ = case_of(model, pictures[1:], -maps[1:]).pictures.at_random(0.2, 7, "auto")
    assert torch.equal(first[1:], other)
    assert (first.sum(-1) == 3).all() and not torch.equal(first[0], first[1])


def test_average_drop_and_increase(model, pictures, maps):
    case = case_of(model, pictures, maps)
    drop, increase = measured("average_drop", case), measured("average_increase", case)
    large = F.interpolate(maps[:, None], SIZE, mode="bilinear")
    flat = large.flatten(1)
    mask = ((flat - flat.amin(1, keepdim=True)) / (flat.amax(1) - flat.amin(1))[:, None]).view_as(large)
    with torch.no_grad():
        before, after = (probability(model(x).numpy()) for x in (pictures, pictures * mask))
    np.testing.assert_allclose(drop.numpy(), np.maximum(0, before - after) / before, atol=1e-5)
    np.testing.assert_array_equal(increase.numpy(), after > before)


def test_complexity(model, pictures):
    maps = torch.zeros(3, *GRID)
    maps[0] = 1
    maps[1, 1, 2] = -3
    case = case_of(model, pictures, maps)
    gini, entropy = measured("gini", case), measured("entropy", case)
    assert float(gini[0]) == pytest.approx(0, abs=1e-6) and float(gini[1]) == pytest.approx(1 - 1 / PATCHES)
    assert float(entropy[0]) == pytest.approx(1) and float(entropy[1]) == pytest.approx(0)
    assert gini[2].isnan() and entropy[2].isnan()


def test_localisation(model, pictures, maps):
    truth = torch.zeros(3, *SIZE, dtype=torch.bool)
    truth[0, 4:20, 8:31] = True
    truth[1, :, 20:] = True  # of the third picture nothing is known
    case = case_of(model, pictures, maps, truth=truth)
    found = {
        name: measured(name, case)
        for name in ("pointing_game", "energy_pointing", "pixel_accuracy", "mean_iou", "average_precision")
    }
    sums = np.zeros(4)
    for image in range(2):
        where = truth[image].numpy()
        coarse = np.kron(np.maximum(maps[image].numpy(), 0), np.ones((PATCH, PATCH)))
        assert float(found["energy_pointing"][image]) == pytest.approx(coarse[where].sum() / coarse.sum(), abs=1e-5)
        fine = F.interpolate(maps[image : image + 1, None], SIZE, mode="bilinear")[0, 0].double().numpy()
        assert float(found["pointing_game"][image]) == where[np.unravel_index(fine.argmax(), SIZE)]
        above = fine > fine.mean()
        right, pixels = found["pixel_accuracy"][image].tolist()
        assert (right, pixels) == ((above == where).sum(), where.size)
        sums += [(above & where).sum(), (above | where).sum(), (~above & ~where).sum(), (~above | ~where).sum()]
        unit = (fine - fine.min()) / (fine.max() - fine.min())
        scores = np.concatenate([unit.ravel(), 1 - unit.ravel()])
        wanted = np.concatenate([where.ravel(), ~where.ravel()])
        precision = recall = 0.0
        for threshold in np.unique(scores)[::-1]:  # as scikit-learn defines it
            told = scores >= threshold
            new = (told & wanted).sum() / wanted.sum()
            precision, recall = precision + (new - recall) * (told & wanted).sum() / told.sum(), new
        assert float(found["average_precision"][image]) == pytest.approx(precision, abs=1e-6)
    assert all(values[2].isnan().all() for values in found.values())
    rows = found["mean_iou"][:2].numpy()
    expected = (sums[0] / sums[1] + sums[2] / sums[3]) / 2
    assert float(METRICS["mean_iou"].combine(rows[None])[0]) == pytest.approx(expected)
    rows = found["pixel_accuracy"][:2].numpy()
    assert float(METRICS["pixel_accuracy"].combine(rows[None])[0]) == pytest.approx(rows[:, 0].sum() / rows[:, 1].sum())


def test_pointing_within_a_tolerance(model, pictures):
    maps = torch.zeros(1, *GRID)
    maps[0, 1, 1] = 1  # the largest value of its resized map is at its centre, (12, 12)
    truth = torch.zeros(1, *SIZE, dtype=torch.bool)
    truth[0, 8:16, 20:] = True
    case = case_of(model, pictures[:1], maps, truth=truth)
    assert [float(measured("pointing_game", case, tolerance=t)) for t in (0, 5, 9)] == [0, 0, 1]
    even = case_of(model, pictures[:1], torch.ones(1, *GRID), truth=truth)
    assert float(measured("pointing_game", even)) == pytest.approx(float(truth.float().mean()))


# Further maps --------------------------------------------------------------------------------------------------------


def judged(model: Any, pictures: Tensor, name: str, **options: Any) -> Case:
    judge = Judge(Explainer(model), seed=0)
    seen = judge.pictures(pictures)
    target = torch.full((len(pictures),), TARGET)
    return judge.case(find(name), find(name).settings(options), seen, judge.whole(seen), target)


def test_max_sensitivity_sees_every_draw(model, pictures):
    case = judged(model, pictures, "saliency")
    asked: list[Tensor] = []
    explain = case.explain
    assert explain is not None

    def recorded(pixels: Tensor, targets: Tensor) -> Tensor:
        asked.append(pixels)
        return explain(pixels, targets)

    case.explain = recorded
    found = measured("max_sensitivity", case, samples=3, radius=0.1)
    assert len(asked) == 3 and all(float((pixels - pictures).abs().max()) <= 0.1 for pixels in asked)
    changes = [(explain(pixels, case.targets) - case.maps).flatten(1).norm(dim=1) for pixels in asked]
    torch.testing.assert_close(found, torch.stack(changes).amax(0) / case.maps.flatten(1).norm(dim=1))
    assert float(measured("max_sensitivity", judged(model, pictures, "uniform"), samples=2).max()) == 0


def test_class_sensitivity_is_one_without_a_class(model, pictures):
    torch.testing.assert_close(measured("class_sensitivity", judged(model, pictures, "rollout")), torch.ones(3))
    case = judged(model, pictures, "gradient_rollout")
    scores = case.whole.clone()
    scores[:, TARGET] = -torch.inf
    other = Explainer(model).attribute(pictures, scores.argmax(1).tolist(), "gradient_rollout")
    torch.testing.assert_close(measured("class_sensitivity", case), rank_correlation(case.maps, other))


def test_randomised_models(model, pictures):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    case = judged(model, pictures, "gradient_rollout")
    found = measured("model_randomisation", case, stages=2)
    half, whole = case.rerandomised(0.5), case.rerandomised(1.0)
    alike = [rank_correlation(case.maps, maps).abs() for maps in (half, whole)]
    torch.testing.assert_close(found, (alike[0] + alike[1]) / 2)
    torch.testing.assert_close(measured("model_randomisation", judged(model, pictures, "edges")), torch.ones(3))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_weights_are_drawn_from_the_top_and_come_back(model, pictures):
    randomised = Randomised(model, seed=0, scores=lambda copied: copied(pictures))
    names = [name for name, _ in model.named_parameters()]
    with randomised.last(0.25) as other:
        changed = [n for n, p in other.named_parameters() if not torch.equal(p, model.get_parameter(n))]
        assert changed and set(changed) <= set(names[-round(0.25 * len(names)) :])
        assert "head.weight" in changed
        weight = other.get_parameter("head.weight")
        assert weight.detach().std().item() == pytest.approx(model.head.weight.detach().std().item(), rel=0.3)
    assert all(torch.equal(p, model.get_parameter(n)) for n, p in randomised.model.named_parameters())


def test_weights_that_nothing_depends_on_are_not_drawn(model, pictures):
    """As a text tower's, which come last among the weights of some models."""
    model.unused = torch.nn.Linear(3, 3)
    model.head.weight.requires_grad_(False)
    randomised = Randomised(model, seed=0, scores=lambda copied: copied(pictures))
    changed = {}
    for share in (1 / 64, 1.0):
        with randomised.last(share) as other:
            changed[share] = {n for n, p in other.named_parameters() if not torch.equal(p, model.get_parameter(n))}
    assert changed[1 / 64] == {"head.bias"} and {"cls_token", "head.weight"} < changed[1.0]
    assert not any(one.requires_grad for one in randomised._drawn)  # which would keep the noise for as long
    assert not {"unused.weight", "unused.bias"} & changed[1.0]
    assert not randomised.model.head.weight.requires_grad and randomised.model.head.bias.requires_grad


def test_structural_similarity():
    maps = torch.rand(4, 12, 14, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(structural_similarity(maps, 3 * maps + 1), torch.ones(4))
    other = torch.rand(4, 12, 14, generator=torch.Generator().manual_seed(1))
    found = structural_similarity(maps, other)
    a, b = (((x - x.amin((1, 2), True)) / (x.amax((1, 2), True) - x.amin((1, 2), True))).numpy() for x in (maps, other))
    for image in range(4):  # window by window
        values = []
        for row, column in itertools.product(range(6), range(8)):
            x, y = (m[image, row : row + 7, column : column + 7].ravel().astype(np.float64) for m in (a, b))
            covariance = np.cov(x, y)
            top = (2 * x.mean() * y.mean() + 1e-4) * (2 * covariance[0, 1] + 9e-4)
            values.append(top / ((x.mean() ** 2 + y.mean() ** 2 + 1e-4) * (covariance[0, 0] + covariance[1, 1] + 9e-4)))
        assert float(found[image]) == pytest.approx(np.mean(values), abs=1e-5)


def test_completeness_gap_is_what_the_method_says(model, pictures):
    judge = Judge(Explainer(model), seed=0)
    seen = judge.pictures(pictures)
    for name, options in (("integrated_gradients", {"steps": 3}), ("kernel_shap", {"samples": 20, "players": 2})):
        case = judge.case(find(name), find(name).settings(options), seen, judge.whole(seen), torch.full((3,), TARGET))
        found = measured("completeness_gap", case).numpy()
        if name == "integrated_gradients":
            np.testing.assert_allclose(found, case.facts["completeness_gap"])
        else:
            assert (found < 1e-4).all()
    assert measured("completeness_gap", judged(model, pictures, "rollout")).isnan().all()


# Where the truth is known --------------------------------------------------------------------------------------------

ORDERING = ("deletion", "insertion", "positive_perturbation", "negative_perturbation", "abpc", "aopc", "log_odds",
            "saco", "faithfulness_correlation", "sensitivity_n", "average_drop", "pointing_game", "energy_pointing",
            "grid_pointing", "pixel_accuracy", "mean_iou", "average_precision", "infidelity")  # fmt: skip


@pytest.mark.parametrize("fill", ("auto", "mean"))
@pytest.mark.parametrize("name", ORDERING)
def test_a_perfect_map_beats_a_random_one_and_that_an_inverted_one(name, fill):
    patch = 7
    model, picture = planted(patch), planted_picture(patch)
    row, column = divmod(patch, GRID[1])
    perfect = torch.zeros(1, *GRID)
    perfect[0, row, column] = 1
    truth = torch.zeros(1, *SIZE, dtype=torch.bool)
    truth[0, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = True
    metric = METRICS[name]
    options = {"fill": fill} if "fill" in metric.options else {}

    def value(maps: Tensor) -> float:
        case = case_of(model, picture, maps, target=1, truth=truth, labels=torch.ones(1, dtype=torch.long))
        found = measured(name, case, **options).reshape(1, 1, -1).double().numpy()
        return float(metric.combine(found)[0]) * (1 if metric.higher_is_better else -1)

    generator = torch.Generator().manual_seed(0)
    random = float(np.mean([value(torch.rand(1, *GRID, generator=generator)) for _ in range(10)]))
    assert value(perfect) > random
    if name != "infidelity":  # whose best scale of an inverted map is a negative one
        assert random > value(1 - perfect)


# Those of few passes that are about a class, or about where the model looked.
FAITHFUL = [
    method.name
    for method in list_methods()
    if method.fast and method.family in ("attention", "attention × gradient", "class activation maps", "gradients",
                                         "relevance propagation")
]  # fmt: skip


# These say something else than which patch the class reads, by their definitions.
ELSEWHERE = {
    "attn_gradcam": "it reads the last attention alone, and the planted model reads the patch in its first block",
}


@pytest.mark.parametrize("name", FAITHFUL)
def test_faithful_methods_rank_the_planted_patch_first(name):
    if name in ELSEWHERE:
        pytest.skip(ELSEWHERE[name])
    firsts = []
    for patch in (0, 7, 13):
        explainer = Explainer(planted(patch, block=-1))  # the last is the one that all of them read
        found = explainer.attribute(planted_picture(patch), 1 if find(name).class_specific else None, name)
        found = F.avg_pool2d(found, PATCH) if tuple(found.shape[1:]) == SIZE else found
        firsts.append(int(found.flatten().argmax()) == patch)
    assert all(firsts)


def test_a_random_map_does_not():
    firsts = []
    for seed in range(60):
        found = Explainer(planted(7)).attribute(planted_picture(7), None, "random", seed=seed)
        firsts.append(int(found.flatten().argmax()) == 7)
    assert np.mean(firsts) < 0.25


# How answers are asked for -------------------------------------------------------------------------------------------


def test_equal_numbers_have_an_order_of_chance(pictures):
    flat = torch.zeros(3, PATCHES)
    ranks = ranked(flat, [own_generator(one, 0) for one in pictures])
    assert all(sorted(row.tolist()) == list(range(PATCHES)) for row in ranks)
    assert not torch.equal(ranks[0], ranks[1])
    assert torch.equal(ranks[2:], ranked(flat[2:], [own_generator(one, 0) for one in pictures[2:]]))
    assert not torch.equal(ranks, ranked(flat, [own_generator(one, 1) for one in pictures]))


def test_each_answer_is_asked_for_once(model, pictures, maps):
    case = case_of(model, pictures, maps)
    rows: list[int] = []
    with model.norm.register_forward_pre_hook(lambda _, given: rows.append(len(given[0]))):
        case.prepare([Part(most, steps(5)) for most in (True, False)])
        asked = sum(rows)
        measured("deletion", case, steps=5)
        measured("insertion", case, steps=5)
    # 4 points each between nothing and all, which both curves share.
    assert asked == 3 * (2 * 4 + 2) and sum(rows) == asked


def test_names_of_metrics():
    assert {one.name for one in choose_metrics(["all"])} == set(METRICS)
    assert all(not one.maps for one in choose_metrics(["fast"]))
    with pytest.raises(OptionError, match="near matches: deletion"):
        choose_metrics(["deletoin"])
    with pytest.raises(OptionError, match="deletion has no option 'step'"):
        METRICS["deletion"].settings({"step": 3})


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_what_it_is(name):
    metric = METRICS[name]
    assert metric.summary.endswith("is better.") or "; " in metric.summary
    assert f"{metric.direction} is" in metric.summary
    assert metric.paper and metric.means and metric.does_not_mean
