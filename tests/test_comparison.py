"""Several methods from one look: the numbers of one by one, no more forwards than needed, nothing kept too long."""

from __future__ import annotations

import dataclasses
import gc
import json
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from small_models import GRID, SIZE, SMALL, lively
from timm.models.vision_transformer import VisionTransformer

from vit_explain import Contrast, Explainer, Explanation, capture, charts, list_methods, registry
from vit_explain.comparison import Comparison, seconds
from vit_explain.errors import OptionError, TargetError, VitExplainError
from vit_explain.image import Geometry
from vit_explain.ranks import ranks, spearman
from vit_explain.sharing import narrowed
from vit_explain.types import Trace

METHODS = {method.name: method for method in list_methods()}
QUICK = {
    name: {option: value for option, value in {"samples": 6, "steps": 3}.items() if option in method.options}
    for name, method in METHODS.items()
}


# One look ------------------------------------------------------------------------------------------------------------


def assert_alike(one: Explanation, other: Explanation) -> None:
    """The same to rounding: 1e-5 of the largest value."""
    assert (one.targets, one.image_of, one.options) == (other.targets, other.image_of, other.options)
    assert one.geometries == other.geometries and one.facts.keys() == other.facts.keys()
    assert [len(own) for own in one.warnings] == [len(own) for own in other.warnings]
    np.testing.assert_allclose(one.relevance, other.relevance, rtol=0, atol=1e-5 * np.abs(other.relevance).max())
    np.testing.assert_allclose(one.logits, other.logits, rtol=1e-5, atol=1e-5)
    for name, values in other.facts.items():
        np.testing.assert_allclose(one.facts[name], values, rtol=1e-4, atol=1e-5, err_msg=f"{other.method} {name}")


def test_all_methods_together_say_what_each_says_alone(any_model, pixels):
    explainer = Explainer(any_model)
    together, refusals = explainer.compare(pixels[:2], "all", [1, 3], options=QUICK), {}
    for name, method in METHODS.items():
        target = [1, 3] if method.class_specific else None
        try:
            alone = explainer.explain(pixels[:2], name, target, **QUICK[name])
        except VitExplainError as error:
            refusals[name] = str(error)
        else:
            assert_alike(together.explanations[name], alone)
    assert together.refused == refusals and set(together.names) == METHODS.keys() - refusals.keys()


def test_several_targets_and_more_images_than_a_chunk(vit):
    names = ["rollout", "gae", "legrad", "logit_lens", "gradcam", "occlusion", "cp_lrp"]
    many = torch.randn(11, 3, *SIZE, generator=torch.Generator().manual_seed(3))
    explainer, targets = Explainer(vit), [[n % 4, (n + 1) % 4] for n in range(11)]
    together = explainer.compare(many, names, targets)
    assert together.names == names and together.rows == 22
    for name in names:
        target = targets if METHODS[name].class_specific else None
        assert_alike(together.explanations[name], explainer.explain(many, name, target))
    assert [together.row_of("rollout", row) for row in (0, 1, 2, 21)] == [0, 0, 1, 10]
    assert [together.row_of("gae", row) for row in (0, 1, 2, 21)] == [0, 1, 2, 21]
    assert [together.target(row) for row in (0, 1, 2)] == ["class 0", "class 1", "class 1"]


def test_contrasts_and_functions_as_targets(vit, pixels):
    explainer = Explainer(vit)

    def smooth(logits: torch.Tensor) -> torch.Tensor:
        return logits.logsumexp(1)

    for target in (Contrast(1, 3), smooth):
        names = ["gae", "legrad", "saliency", "logit_lens"]
        together = explainer.compare(pixels[:1], names, target)
        for name in names:
            assert_alike(together.explanations[name], explainer.explain(pixels[:1], name, target))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_model_is_as_it_was(frozen, vit, pixels):
    vit.requires_grad_(not frozen).train()
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    Explainer(vit).compare(pixels[:1], "fast", 1)
    assert vit.training and all(parameter.grad is None for parameter in vit.parameters())
    assert all(parameter.requires_grad is not frozen for parameter in vit.parameters())
    assert all((value == before[name]).all() for name, value in vit.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.modules())


@pytest.fixture
def passes(vit, monkeypatch) -> Iterator[list[str]]:
    """Every forward and backward of ``vit``, in order."""
    seen: list[str] = []
    forward, differentiate = type(vit).forward, capture.torch.autograd.grad
    monkeypatch.setattr(type(vit), "forward", lambda self, x: seen.append("forward") or forward(self, x))
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *args, **kwargs: seen.append("backward") or differentiate(*args, **kwargs)
    )
    return seen


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["rollout", "attention", "alti", "eigencam", "random"], ["forward"]),
        (["rollout", "gae", "gradcam", "saliency", "attcat", "token_pca"], ["forward", "backward"]),
        (["gae", "cp_lrp"], ["forward", "backward"] * 2),
        (["attn_lrp", "cp_lrp", "libra_grad"], ["forward", "backward"] * 3),
    ],
)
def test_a_look_is_shared_by_all_that_can_share_it(names, expected, passes, vit, pixels):
    Explainer(vit).compare(pixels[:1], names)
    assert passes == expected


def test_each_target_costs_one_more_backward(passes, vit, pixels):
    Explainer(vit).compare(pixels[:1], ["gae", "hirescam", "rollout"], [[0, 1, 2]])
    assert passes == ["forward"] + ["backward"] * 3


def spied(monkeypatch: pytest.MonkeyPatch, name: str, see: Any) -> None:
    """``see(trace)`` is called before the method runs."""
    method = METHODS[name]

    def run(trace: Trace, **options: Any) -> Any:
        see(trace)
        return method.run(trace, **options)

    monkeypatch.setitem(registry.METHODS, name, dataclasses.replace(method, run=run))


def test_each_method_sees_what_it_asked_for_and_nothing_else(vit, pixels, monkeypatch):
    seen: dict[str, Trace] = {}
    names = ["rollout", "gae", "gradcam", "saliency", "logit_lens", "random", "alti"]
    for name in names:
        spied(monkeypatch, name, lambda trace, name=name: seen.__setitem__(name, trace))
    Explainer(vit).compare(pixels[:1], names, 1)
    fields = ("layers", "tokens", "attended", "features", "feature_gradient", "pixel_gradient", "norms", "y")
    values = {name: {field: getattr(trace, field) for field in fields} for name, trace in seen.items()}
    present = {
        name: {field for field, value in own.items() if not (value is None or (isinstance(value, list) and not value))}
        for name, own in values.items()
    }
    assert present == {
        "rollout": {"layers", "norms"},
        "gae": {"layers", "norms", "y"},
        "gradcam": {"features", "feature_gradient", "norms", "y"},
        "saliency": {"pixel_gradient", "norms", "y"},
        "logit_lens": {"tokens", "norms", "y"},
        "random": set(),
        "alti": {"layers", "tokens", "attended", "norms"},
    }
    assert all(layer.grad_out is None and layer.out is None for layer in seen["rollout"].layers)
    assert not any(trace.pixels.requires_grad for trace in seen.values())
    assert narrowed(seen["alti"], frozenset()).layers == [] and narrowed(seen["alti"], frozenset()).norms is None


def test_what_a_look_keeps_is_gone_when_nobody_needs_it_any_more(vit, pixels, monkeypatch):
    """The graph before any method without gradients begins, everything before methods of many forwards do."""
    graph: dict[str, int] = {}
    kept: list[weakref.ref[torch.Tensor]] = []
    alive: dict[str, int] = {}

    def count() -> int:
        gc.collect()
        return sum(type(one) is torch.Tensor and one.grad_fn is not None for one in gc.get_objects())

    def see(name: str, trace: Trace) -> None:
        graph[name] = count()
        kept.extend(weakref.ref(layer.k) for layer in trace.layers if layer.k is not None)
        alive[name] = sum(one() is not None for one in kept)

    for name in ("legrad", "gae", "logit_lens", "rise"):
        spied(monkeypatch, name, lambda trace, name=name: see(name, trace))
    before = count()
    names = ["rise", "logit_lens", "legrad", "gae"]
    Explainer(vit).compare(pixels[:1], names, [0, 1], options={"rise": {"samples": 4}})
    assert graph["legrad"] > before and graph["logit_lens"] == graph["rise"] == before
    assert alive["gae"] > 0 and alive["rise"] == 0


# Who cannot be asked -------------------------------------------------------------------------------------------------


def test_a_method_that_refuses_is_left_out(vit, pixels):
    found = Explainer(vit).compare(pixels[:1], ["gae", "transformer_attribution", "rollout"], Contrast(0, 1))
    assert found.names == ["gae", "rollout"]
    assert "contrasts" in found.refused["transformer_attribution"]
    with pytest.raises(VitExplainError, match="contrasts"):
        Explainer(vit).compare(pixels[:1], ["transformer_attribution"], Contrast(0, 1))


class Hidden(torch.nn.Module):
    """Tokens are mixed, but not by an attention that can be seen."""

    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        return x.mean(1, keepdim=True).expand_as(x)


def test_a_look_that_fails_for_some_serves_the_others(vit, pixels):
    explainer = Explainer(vit)
    vit.blocks[1].attn = Hidden()
    names = ["rollout", "gradcam", "gae", "saliency"]
    found = explainer.compare(pixels[:1], names, 1)
    assert found.names == ["gradcam", "saliency"]
    assert set(found.refused) == {"rollout", "gae"}
    assert all("2 attention calls were seen" in reason for reason in found.refused.values())
    for name in found.names:
        assert_alike(found.explanations[name], explainer.explain(pixels[:1], name, 1))


def test_a_model_without_classes_is_explained_by_methods_that_need_none(pixels):
    explainer = Explainer(lively(VisionTransformer(**{**SMALL, "num_classes": 0})))
    found = explainer.compare(pixels[:1], ["rollout", "gae", "token_pca"])
    assert found.names == ["rollout", "token_pca"] and "classifier head" in found.refused["gae"]
    with pytest.raises(TargetError, match="classifier head"):
        explainer.compare(pixels[:1], ["rollout", "gae"], 1)


@pytest.mark.parametrize(
    ("methods", "settings", "error", "words"),
    [
        (["rollot"], {}, OptionError, "near matches: rollout"),
        ([], {}, OptionError, "at least one method"),
        (["rollout"], {"target": 1}, TargetError, "none of these methods depends on a class"),
        (["gae"], {"target": 9}, TargetError, "class 9 does not exist"),
        (["gae"], {"options": {"rise": {}}}, OptionError, "'rise', which is not among"),
        (["gae"], {"options": {"gae": {"layer": 1}}}, OptionError, "gae has no option 'layer'"),
    ],
)
def test_bad_arguments(methods, settings, error, words, vit, pixels):
    with pytest.raises(error, match=words):
        Explainer(vit).compare(pixels, methods, **settings)


def test_progress_names_the_methods(vit, pixels):
    heard: list[tuple[str, int, int]] = []
    names = ["rise", "rollout", "occlusion"]
    Explainer(vit).compare(
        pixels[:1], names, options={"rise": {"samples": 20}}, progress=lambda *said: heard.append(said)
    )
    begun = [name for name, done, _ in heard if done == 0]
    assert sorted(begun) == sorted(names)
    assert list(dict.fromkeys(name for name, _, _ in heard)) == begun  # one after the other
    assert ("rise", 20, 20) in heard and ("occlusion", 16, 16) in heard


def test_times_are_told_apart(vit, pixels):
    found = Explainer(vit).compare(pixels[:1], ["rollout", "gae", "cp_lrp"], 1)
    assert found.look_seconds > 0 and all(one.seconds > 0 for one in found.explanations.values())
    alone = Explainer(vit).compare(pixels[:1], ["gae"], 1)
    assert alone.look_seconds == 0 and alone.explanations["gae"].seconds > 0
    assert [seconds(value) for value in (0.0004, 0.0996, 0.1, 9.994, 92.4)] == [
        "0 ms",
        "100 ms",
        "0.10 s",
        "9.99 s",
        "92 s",
    ]


# Agreement -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 3, 7, 1000])
def test_ranks_and_spearman_are_scipys(levels):
    rows = np.random.default_rng(levels).integers(0, levels, (6, 40)).astype(np.float32) - levels / 2
    for row in rows:
        np.testing.assert_array_equal(ranks(row), scipy.stats.rankdata(row))
    np.testing.assert_allclose(spearman(rows), scipy.stats.spearmanr(rows, axis=1).statistic, rtol=0, atol=1e-12)


def test_rank_agreement_knows_no_scale_and_flat_rows_have_none():
    row = np.random.default_rng(0).normal(size=30)
    found = spearman(np.stack([row, np.exp(row), -row, np.full(30, 2.5)]))
    np.testing.assert_allclose(found[:3, :3], [[1, 1, -1], [1, 1, -1], [-1, -1, 1]], atol=1e-12)
    assert np.isnan(found[3]).all() and np.isnan(found[:, 3]).all()


def explanation(name: str, relevance: np.ndarray, images: int = 1, targets: bool = True) -> Explanation:
    rows = len(relevance)
    photo = np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)
    return Explanation(
        relevance=relevance.astype(np.float32),
        image_of=[row * images // rows for row in range(rows)],
        targets=[f"class {row}" if targets else "" for row in range(rows)],
        target_numbers=[row if targets else None for row in range(rows)],
        logits=np.zeros((images, 3), np.float32),
        labels=None,
        method=name,
        signed=METHODS[name].signed,
        options={},
        model="a model",
        photos=[photo] * images,
        geometries=[Geometry.identity(30, 50)] * images,
        sources=["a.jpg"] * images,
        facts={},
        warnings=[[]] * rows,
        seconds=0.5,
        versions={},
    )


def compared(**maps: np.ndarray) -> Comparison:
    return Comparison(
        {name: explanation(name, relevance) for name, relevance in maps.items()}, {}, 0.1, (3, 5), (24, 40)
    )


def test_maps_at_pixels_are_averaged_over_the_patches_they_are_on():
    """27 by 44 pixels, of which three rows of five patches of eight by eight cover 24 by 40."""
    pixels = np.random.default_rng(1).normal(size=(2, 27, 44))
    found = compared(rise=pixels, gae=np.ones((2, 3, 5))).on_patches("rise")
    for row in range(3):
        for column in range(5):
            patch = pixels[:, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
            np.testing.assert_allclose(found[:, row, column], patch.mean((1, 2)), atol=1e-6)


def test_agreement_is_that_of_rows_that_belong_together():
    draw = np.random.default_rng(2).normal
    free, bound, flat = draw(size=(2, 3, 5)), draw(size=(4, 3, 5)), np.ones((4, 3, 5))
    flat[0] = bound[0]
    found = Comparison(
        {
            "rollout": explanation("rollout", free, images=2, targets=False),
            "gae": explanation("gae", bound, images=2),
            "legrad": explanation("legrad", flat, images=2),
        },
        {}, 0.1, (3, 5), (24, 40),
    )  # fmt: skip
    expected = [scipy.stats.spearmanr(free[row // 2].ravel(), bound[row].ravel()).statistic for row in range(4)]
    assert [found.agreement(row)[0, 1] for row in range(4)] == pytest.approx(expected)
    assert found.agreement()[0, 1] == pytest.approx(np.mean(expected))
    # Three of four rows of legrad rank nothing: the one that does is what the mean is of.
    assert found.agreement()[1, 2] == pytest.approx(1)
    nearest = found.nearest()
    assert nearest["gae"][1] == "legrad" and nearest["gae"][0] == pytest.approx((1 + np.mean(expected)) / 2)
    assert found.target(3) == "class 3"


def test_a_map_that_ranks_nothing_agrees_with_none():
    draw = np.random.default_rng(3).normal
    found = compared(gae=draw(size=(1, 3, 5)), uniform=np.ones((1, 3, 5)), legrad=draw(size=(1, 3, 5)))
    assert np.isnan(found.agreement()[1]).all() and np.isfinite(found.agreement()[[0, 0, 2], [0, 2, 2]]).all()
    assert set(found.nearest()) == {"gae", "legrad"} and found.nearest()["gae"][1] == "legrad"
    document = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert document["agreement"][1] == [None] * 3 and document["agreement"][0][1] is None
    assert [method["most_like"] for method in document["methods"]] == ["legrad", None, "gae"]


# Pictures and files --------------------------------------------------------------------------------------------------


def test_a_comparison_is_saved_whole(vit, tmp_path, monkeypatch):
    captions: list[Any] = []
    draw = charts.gallery
    monkeypatch.setattr(charts, "gallery", lambda p, c, *rest: captions.append((len(p), c)) or draw(p, c, *rest))
    explainer = Explainer(vit, labels=["ant", "bee", "cat", "dog"])
    Image.fromarray((np.random.default_rng(0).random((60, 90, 3)) * 255).astype(np.uint8)).save(tmp_path / "p.png")
    names = ["rollout", "gae", "saliency", "uniform"]
    found = explainer.compare(tmp_path / "p.png", names, "cat", options={"saliency": {"level": "pixels"}})
    files = [path.name for path in found.save(tmp_path / "out")]
    assert sorted(files) == ["agreement.png", "comparison.npz", "comparison.png", "manifest.json", "maps.png"]
    assert files[-1] == "manifest.json"
    # The photo first, then every method, by name and time.
    times = [seconds(found.explanations[name].seconds) for name in names]
    assert captions == [(5, [("photo", "90 × 60"), *zip(names, times, strict=True)])] * 2
    with np.load(tmp_path / "out" / "comparison.npz") as arrays:
        assert list(arrays["methods"]) == names and arrays["seconds"].shape == (4,)
        np.testing.assert_array_equal(arrays["agreement"], found.agreement())
        assert arrays["relevance_saliency"].shape == (1, *SIZE) and arrays["relevance_gae"].shape == (1, *GRID)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert [method["method"] for method in manifest["methods"]] == names
    assert manifest["methods"][1]["backwards"] == 1 and manifest["methods"][1]["rows"][0]["target"] == "cat"
    assert manifest["patches"] == list(GRID) and manifest["methods"][2]["options"] == {"level": "pixels"}
    assert found.title() == "p.png, VisionTransformer, cat"


def test_rows_have_pictures_of_their_own(vit, tmp_path):
    images = [np.full((40, 40, 3), value, np.uint8) + np.arange(40, dtype=np.uint8)[:, None] for value in (10, 90)]
    found = Explainer(vit).compare(images, ["rollout", "gae"], [[0, 1], [2, 3]])
    names = {path.name for path in found.save(tmp_path)}
    assert {f"{kind}-{row}.png" for kind in ("comparison", "maps") for row in range(4)} < names
    assert "agreement.png" in names and "agreement-0.png" not in names


def test_overlays_in_a_gallery_are_those_of_a_small_photo():
    large = np.zeros((1, 3, 5))
    large[0, 1, 2] = 1
    found = compared(gae=large, legrad=large)
    picture = np.asarray(found.picture(cell=50, colormap="jet", opacity=1.0)).astype(int)
    bare = np.asarray(found.picture(cell=50, overlay=False, colormap="jet")).astype(int)
    assert picture.shape == bare.shape
    hot = (picture[..., 0] > 100) & (picture[..., 2] < 60) & (picture[..., 1] < 60)
    assert hot.any()  # jet's red end, on the photo
    assert (bare[..., 2] > 100).sum() > (picture[..., 2] > 200).sum() > 0


def test_no_name_of_a_gallery_is_cut_off():
    """Ink of each caption lies within its own column, for tall thin photos too."""
    names = ["transformer_attribution", "integrated_gradients", "i"]
    sheet = charts.gallery([np.zeros((300, 30, 3), np.uint8)] * 3, [(name, "12 s") for name in names], cell=100)
    ink = (np.asarray(sheet.convert("L")) < 200)[-2 * charts.LINE - charts.GAP :]
    runs = np.flatnonzero(ink.any(0))
    assert runs[0] >= charts.GAP - 1 and runs[-1] < sheet.width - charts.GAP + 1
    gaps = np.diff(runs)
    assert (gaps >= charts.GAP).sum() == 2  # three captions, apart from each other


def test_a_gallery_is_wider_than_high_and_a_few_pictures_stand_in_a_row():
    for count in range(1, 60):
        colours = [np.full((80, 80, 3), 255 - 2 * n, np.uint8) for n in range(1, count + 1)]
        sheet = charts.gallery(colours, [("n", "s")] * count, cell=80)
        columns, rest = divmod(sheet.width - charts.GAP, 80 + charts.GAP)
        assert rest == 0
        assert columns == count if count <= 6 else sheet.height < sheet.width < 3 * sheet.height
        pixels = np.asarray(sheet)
        shown = [(pixels == 255 - 2 * n).all(2).sum() for n in range(1, count + 1)]
        assert min(shown) >= 80 * 80  # nothing is lost


@pytest.mark.parametrize("count", [2, 9, 51])
def test_a_matrix_shows_every_number(count):
    names = sorted(METHODS)[:count]
    values = np.linspace(-1, 1, count * count).reshape(count, count)
    values[0, 1] = np.nan
    sheet = np.asarray(charts.matrix(values, names, "A title", "A note.")).astype(int)
    cell = min(64, max(42, 480 // count))
    # Cells are the only coloured parts: the first is blue, the last red, the one without a number grey.
    coloured = np.argwhere(np.abs(sheet[..., 0] - sheet[..., 2]) > 60)
    top, left = coloured.min(0)
    assert sheet.shape[0] >= top + count * cell and sheet.shape[1] >= left + count * cell + charts.GAP - 2
    assert (sheet[top + 3, left + cell + 3] == charts.NOTHING).all()
    corner = sheet[top + (count - 1) * cell + 3, left + (count - 1) * cell + 3]
    assert corner[0] > corner[2] + 60
    for row in range(count):
        for column in range(count):
            y, x = top + row * cell, left + column * cell
            inside = sheet[y + 2 : y + cell - 4, x + 2 : x + cell - 4]
            assert inside.reshape(-1, 3).std(0).max() > 5, "no number"
            frame = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
            assert frame.std(0).max() < 1, "a number that does not fit its cell"


def test_matrix_dashes_have_a_place_in_the_font():
    """A letter that a font does not know is a box, the same for all of them."""
    from vit_explain.paper import get_font

    boxes = [get_font(20).getmask(letter) for letter in "–×é\U0010ffff"]
    assert len({bytes(box) for box in boxes}) == 4
