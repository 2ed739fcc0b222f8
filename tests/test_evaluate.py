"""Evaluations: data read and refused, every number reproduced alone, stopping anywhere, results that add up."""

from __future__ import annotations

import csv
import dataclasses
import gc
import io
import json
import re
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import CLASSES, GRID, PATCH, SIZE, small
from swin_models import SWINS, calm
from timm.data.imagenet_info import ImageNetInfo

from vit_explain import Explainer, other_method
from vit_explain.datasets import Classes, chosen, read_dataset
from vit_explain.errors import ImageError, ModelError, OptionError, OutputError
from vit_explain.evaluation import evaluate
from vit_explain.image import Geometry, Preprocessing, prepare
from vit_explain.inputs import read
from vit_explain.metric_registry import METRICS
from vit_explain.mosaics import cell, composed, grouped
from vit_explain.photos import load_image
from vit_explain.places import places, with_interval
from vit_explain.records import NUMBERS
from vit_explain.report import page, save
from vit_explain.results import Evaluation
from vit_explain.truth import Truth

LABELS = ["tench, Tinca tinca", "red fox", "gas pump", "church"]
HOW = Preprocessing(SIZE, (0.5,) * 3, (0.5,) * 3, "bilinear", crop_pct=1.0, crop_mode="squash")


def picture(seed: int, size: tuple[int, int] = (60, 48)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve photos of three classes, of which the model has four."""
    for number, name in enumerate(("church", "red_fox", "n01440764")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            picture(10 * number + i).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def explainer() -> Explainer:
    return Explainer(small("class token"), labels=LABELS, preprocessing=HOW)


def run(folder: Path, explainer: Explainer, tmp_path: Path, **options: Any) -> Evaluation:
    given: dict[str, Any] = {"methods": ["rollout", "gradient_rollout"], "metrics": ["deletion", "gini"]}
    return evaluate(folder, explainer, out=tmp_path / "out", **{**given, **options})


def numbers(found: Evaluation, metric: str, method: str = "rollout") -> np.ndarray:
    return np.array(list(found.rows_of(metric, method).values()))[:, 0]


# Data ----------------------------------------------------------------------------------------------------------------


def test_folders_are_found_by_label_number_and_wordnet_id(folder):
    items = read_dataset(folder, LABELS, CLASSES)
    assert [item.name for item in items[:2]] == ["church/0.png", "church/1.png"]
    assert {item.name.split("/")[0]: item.label for item in items} == {"church": 3, "red_fox": 1, "n01440764": 0}
    known = Classes(LABELS, CLASSES)
    assert [known.number(name) for name in ("2", "Gas-Pump", "tinca tinca", "9", "shoe", "n99999999")] == [
        2, 2, 0, None, None, None,
    ]  # fmt: skip


def test_every_wordnet_id_of_imagenet_is_its_class():
    """But for the bird and the machine that are both called crane and nothing else."""
    info = ImageNetInfo("imagenet-1k")
    synsets = info.label_names()
    known = Classes([info.label_name_to_description(one) for one in synsets], len(synsets))
    wrong = {one: known.number(one) for number, one in enumerate(synsets) if known.number(one) != number}
    assert wrong == {"n02012849": None, "n03126707": None}


def test_a_folder_of_no_class_is_refused(folder):
    (folder / "churhc").mkdir()
    picture(1).save(folder / "churhc" / "a.png")
    with pytest.raises(ImageError, match=r"no class 'churhc'; near matches: church"):
        read_dataset(folder, LABELS, CLASSES)


def test_as_many_unknown_folders_as_classes_are_numbered_by_name(tmp_path):
    for name in ("d", "a", "c", "b"):
        (tmp_path / name).mkdir()
        picture(0).save(tmp_path / name / "x.png")
    assert {item.name: item.label for item in read_dataset(tmp_path, None, 4)} == {
        "a/x.png": 0, "b/x.png": 1, "c/x.png": 2, "d/x.png": 3,
    }  # fmt: skip
    with pytest.raises(ImageError, match="no class 'a'"):  # where it is known that none of them is meant
        read_dataset(tmp_path, LABELS, 4)


def test_pictures_without_folders_have_no_class(folder):
    items = read_dataset(folder / "church", LABELS, CLASSES)
    assert len(items) == 4 and all(item.label is None for item in items)


def test_lists_with_boxes_and_masks(folder):
    Image.fromarray(np.eye(48, 60, dtype=np.uint8) * 255).save(folder / "mask.png")
    (folder / "list.csv").write_text(
        "image,label,left,top,right,bottom,mask\n"
        "church/0.png,church,1,2,30,40,\nchurch/0.png,church,40,2,50,9,\nred_fox/1.png,1,,,,,mask.png\n"
        "red_fox/2.png,,,,,,\n"
    )
    first, second, third = read_dataset(folder / "list.csv", LABELS, CLASSES)
    assert first.truth == Truth(((1, 2, 30, 40), (40, 2, 50, 9))) and first.label == 3
    assert second.truth is not None and second.truth.mask == folder / "mask.png" and second.label == 1
    assert third.truth is None and third.label is None
    rows = [{"image": "church/0.png", "label": "church", "left": 1, "top": 2, "right": 30, "bottom": 40}]
    for name, text in (("a.json", json.dumps(rows)), ("a.jsonl", json.dumps(rows[0]) + "\n\n")):
        (folder / name).write_text(text)
        assert read_dataset(folder / name, LABELS, CLASSES)[0].truth == Truth(((1, 2, 30, 40),))


@pytest.mark.parametrize(
    ("text", "message"),
    (
        ("name\nchurch/0.png\n", "row 1: there is no image"),
        ("image\nchurch/9.png\n", "row 1: there is no file 'church/9.png'"),
        ("image,left,top,right,bottom\nchurch/0.png,5,1,4,9\n", "left < right"),
        ("image,left,top,right,bottom\nchurch/0.png,5,1,,9\n", "numbers left, top, right and bottom"),
        ("image,label\nchurch/0.png,shoe\n", "no class 'shoe'"),
        ("image,left,top,right,bottom\nchurch/0.png,5,1,inf,9\n", "numbers left, top, right and bottom"),
        ("image,label\nchurch/0.png,church\nchurch/0.png,red fox\n", "row 2: 'church/0.png' has another label"),
        ("image,label\nchurch/0.png,²\n", "no class '²'"),
        (f"image\n{'x' * 200_000}\n", "cannot be read: field larger"),
        ("", "there are no pictures"),
    ),
)
def test_hostile_lists(folder, text, message):
    (folder / "list.csv").write_text(text)
    with pytest.raises(ImageError, match=message):
        read_dataset(folder / "list.csv", LABELS, CLASSES)


def test_hostile_data(folder, tmp_path):
    (tmp_path / "a.json").write_text('{"image": 3}')
    (tmp_path / "b.jsonl").write_text("{")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("nowhere", "neither a folder"), ("a.json", "one object a picture"), ("b.jsonl", "cannot be read"),
        ("empty", "no pictures"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=message):
            read_dataset(tmp_path / name, LABELS, CLASSES)


def test_labels_come_before_numbers():
    """Digits, say."""
    known = Classes(["1", "2", "3", "4"], 4)
    assert [known.number(name) for name in ("1", "4", "0")] == [0, 3, 0]


def test_results_among_the_photos_do_not_make_them_another_dataset(folder):
    (folder / "church" / "out").mkdir()
    (folder / "church" / "out" / "numbers.parquet").write_bytes(b"")
    assert len(read_dataset(folder, LABELS, CLASSES)) == 12


def test_pictures_none_of_which_can_be_read(folder, explainer, tmp_path):
    for file in folder.rglob("*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(ImageError, match="none of the 12 pictures"):
        run(folder, explainer, tmp_path)


@pytest.mark.parametrize("form", ("disk", "parts", "parquet"))
def test_saved_datasets(folder, tmp_path, form):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["church", "red fox"])})
    files = [str(folder / "church" / "0.png"), str(folder / "red_fox" / "1.png")]
    saved = datasets.Dataset.from_dict({"photo": [*files, None], "kind": [0, 1, -1]}, features=features)
    if form == "disk":
        saved.save_to_disk(str(tmp_path / "saved"))
    elif form == "parts":
        datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "saved"))
    else:
        (tmp_path / "saved").mkdir()
        saved.select([0]).to_parquet(str(tmp_path / "saved" / "part-0.parquet"))
        saved.select([1, 2]).to_parquet(str(tmp_path / "saved" / "part-1.parquet"))
    items = read_dataset(tmp_path / "saved", LABELS, CLASSES)
    assert [item.label for item in items] == [3, 1, None]
    assert [item.name.rpartition("/")[2] for item in items] == ["0", "1", "2"]
    for item, file in zip(items, files, strict=False):
        with Image.open(file) as original:
            np.testing.assert_array_equal(np.asarray(load_image(item.picture())), np.asarray(original))
    with pytest.raises(ImageError, match="no picture in this row"):
        items[2].picture()
    with pytest.raises(ImageError, match="no class 'church'"):
        read_dataset(tmp_path / "saved", ["a", "b"], 2)


@pytest.mark.parametrize("form", ("disk", "parquet"))
def test_saved_pictures_stay_on_the_disk_until_their_turn(tmp_path, form):
    datasets, pyarrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    rng, size = np.random.default_rng(0), (192, 192, 3)
    features = datasets.Features({"image": datasets.Image()})
    noise = [Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for _ in range(96)]
    saved = datasets.Dataset.from_dict({"image": noise}, features=features)
    if form == "disk":
        saved.save_to_disk(str(tmp_path / "saved"))
    else:
        (tmp_path / "saved").mkdir()
        saved.to_parquet(str(tmp_path / "saved" / "part.parquet"), batch_size=4)
    del saved
    gc.collect()
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    items = read_dataset(tmp_path / "saved", None, 4)
    for item in items:
        np.testing.assert_array_equal(
            np.asarray(load_image(item.picture())), np.asarray(noise[int(item.name.rpartition("/")[2])])
        )
    held = tracemalloc.get_traced_memory()[1] + pyarrow.total_allocated_bytes() - before
    tracemalloc.stop()
    assert len(items) == len(noise)
    assert held < len(noise) * np.prod(size) / 3


def test_rows_without_a_picture_are_left_out(folder, explainer, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = [str(folder / "church" / "0.png"), None, str(folder / "red_fox" / "1.png")]
    (tmp_path / "saved").mkdir()
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": files}, features=features).to_parquet(str(tmp_path / "saved" / "a.parquet"))
    said: list[str] = []
    found = run(tmp_path / "saved", explainer, tmp_path, complain=said.append)
    assert [line for line in said if "left out" in line] == [
        "images/1 is left out: there is no picture in this row of the dataset"
    ]
    assert {record.image for record in found.records} == {"images/0", "images/2"}
    assert "images/0" in page(found)


def test_images_are_chosen_evenly_and_the_fewer_are_among_the_more(folder):
    items = read_dataset(folder, LABELS, CLASSES)
    nine = chosen(items, 9, seed=3)
    assert sorted(item.label for item in nine) == [0, 0, 0, 1, 1, 1, 3, 3, 3]
    assert chosen(items, 4, seed=3) == nine[:4]
    assert chosen(items, 9, seed=4) != nine
    assert len(chosen(items, None, seed=0)) == len(chosen(items, 99, seed=0)) == 12


def test_truth_lies_where_the_model_sees_it():
    """A box on the original against the pixels that prepare() makes of a picture that is white there."""
    for mode in ("center", "squash", "border"):
        how = Preprocessing((40, 24), (0,) * 3, (1,) * 3, "nearest", crop_pct=0.9, crop_mode=mode)
        white = np.zeros((90, 70, 3), np.uint8)
        white[20:60, 15:50] = 255
        pixels, geometry = prepare(Image.fromarray(white), how)
        found = Truth(((15, 20, 50, 60),)).seen(geometry)
        np.testing.assert_array_equal(found, pixels[0] > 0.5)


def test_masks_must_fit_their_picture(tmp_path):
    Image.new("L", (3, 4)).save(tmp_path / "mask.png")
    with pytest.raises(ImageError, match=r"has \(4, 3\) pixels"):
        Truth((), tmp_path / "mask.png").seen(Geometry.identity(5, 5))
    with pytest.raises(ImageError, match="cannot be read"):
        Truth((), tmp_path / "none.png").seen(Geometry.identity(5, 5))


def test_mosaics():
    pictures = [torch.full((3, 9, 13), float(n)) for n in range(4)]
    whole = composed(pictures, 2)
    for number in range(4):
        top, left, bottom, right = cell(number, 2, (9, 13))
        torch.testing.assert_close(
            whole[:, top:bottom, left:right], torch.full((3, bottom - top, right - left), 1.0 * number)
        )
    confident = {f"{number}-{i}": number for number in range(5) for i in range(number + 1)}
    groups = grouped(confident, 4)
    used = [name for group in groups for name in group]
    assert len(groups) >= 2 and len(set(used)) == len(used)
    assert all(len({confident[name] for name in group}) == 4 for group in groups)


# Running -------------------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_single_images(folder, explainer, tmp_path):
    found = run(folder, explainer, tmp_path, metrics="all", images=3, metric_options=FEW)
    for record in found.records:
        if record.image.startswith("mosaic"):
            continue
        alone = evaluate(
            one_image(folder, record.image, tmp_path), explainer, [record.method], "all",
            out=tmp_path / f"alone {record.method} {record.image.replace('/', ' ')}", metric_options=FEW,
        )  # fmt: skip
        other = next(r for r in alone.records if r.method == record.method)
        for metric, values in record.numbers.items():
            for one, two in zip(values, other.numbers[metric], strict=True):
                assert (one is None) == (two is None)
                assert one is None or one == pytest.approx(two, rel=1e-3, abs=1e-4), (metric, record.method)


# Few draws: how often is no matter here.
FEW = {
    "faithfulness_correlation": {"samples": 5},
    "infidelity": {"samples": 5},
    "sensitivity_n": {"samples": 4, "sizes": 2},
    "max_sensitivity": {"samples": 1},
    "model_randomisation": {"stages": 1},
    "model_randomisation_ssim": {"stages": 1},
}


def one_image(folder: Path, name: str, tmp_path: Path) -> Path:
    label, file = name.split("/")
    target = tmp_path / f"one {label} {file}" / label
    target.mkdir(parents=True, exist_ok=True)
    (target / file).write_bytes((folder / name).read_bytes())
    return target.parent


def test_baselines_are_always_there(folder, explainer, tmp_path):
    assert list(run(folder, explainer, tmp_path, images=2).methods) == [
        "rollout", "gradient_rollout", "centred_gaussian", "random",
    ]  # fmt: skip


def test_others_are_judged_beside_the_methods(folder, explainer, tmp_path):
    """The same maps made by a caller get the same numbers, of every metric: also with other classes and weights."""

    def gae(model: Any, pixels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return Explainer(model, preprocessing=HOW).attribute(pixels, classes.tolist(), "gae")

    other = other_method("my own", gae, forwards=1, backwards=1)
    found = run(folder, explainer, tmp_path, methods="gae", metrics="all", others=[other], images=3, metric_options=FEW)
    assert found.methods["my own"] is other and len(found.of("my own")) >= 3
    for metric, scores in found.scores.items():
        if metric != "completeness_gap":
            assert scores["my own"].value == scores["gae"].value, metric
    assert "my own" in page(found)


def test_others_that_cannot_be_judged_are_refused_in_a_line(folder, explainer, tmp_path):
    bad = {
        "a shape": lambda model, pixels, classes: torch.zeros(len(pixels), 3, 3),
        "no tensor": lambda model, pixels, classes: None,
        "no numbers": lambda model, pixels, classes: torch.full((len(pixels), *GRID), torch.nan),
    }
    found = run(folder, explainer, tmp_path, images=2, others=[other_method(name, maps) for name, maps in bad.items()])
    assert found.refused.keys() == bad.keys()
    assert "not a tensor of" in found.refused["a shape"] and "NoneType" in found.refused["no tensor"]
    assert "not finite" in found.refused["no numbers"]
    with pytest.raises(OptionError, match="a method 'gae' already"):
        run(folder, explainer, tmp_path, others=[other_method("gae", bad["no tensor"])])


def test_two_at_once_do_not_write_into_one_folder(folder, explainer, tmp_path):
    def second(_done: int, _total: int) -> None:
        with pytest.raises(OutputError, match=r"another evaluation is at work in .*; wait for it, or choose another"):
            run(folder, explainer, tmp_path)

    run(folder, explainer, tmp_path, images=1, progress=second)
    run(folder, explainer, tmp_path, images=1)  # and afterwards it is free


def test_progress_is_in_forwards_of_what_is_left(folder, explainer, tmp_path):
    """A backward counts as two; deletion asks for 21 answers; the more there is known, the less is left."""
    seen: list[tuple[int, int]] = []
    each = {"rollout": 1 + 21, "gradient_rollout": 3 + 21, "random": 1 + 21, "centred_gaussian": 1 + 21}
    first = sum(each.values())
    for images, methods, expected in ((2, ["rollout"], 2 * (first - 24)), (3, [*each], first + 2 * 24)):
        run(folder, explainer, tmp_path, images=images, methods=methods, progress=lambda *two: seen.append(two))
        assert seen[0] == (0, expected) and seen[-1] == (expected, expected) and seen == sorted(seen)
        seen.clear()


def test_stopped_anywhere_it_goes_on(folder, explainer, tmp_path, monkeypatch):
    whole = run(folder, explainer, tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop_after(times: int) -> Any:
        calls = []
        result = Explainer.result

        def counted(self: Explainer, *args: Any, **options: Any) -> Any:
            calls.append(args)
            if len(calls) > times:
                raise StoppedError
            return result(self, *args, **options)

        monkeypatch.setattr(Explainer, "result", counted)
        return calls

    for times in (3, 2):
        stop_after(times)
        with pytest.raises(StoppedError):
            run(folder, explainer, tmp_path)
        monkeypatch.undo()
    file = tmp_path / "out" / NUMBERS
    file.write_bytes(file.read_bytes()[:-20])  # and a line is cut off
    calls = stop_after(99)
    found = run(folder, explainer, tmp_path)
    assert len(calls) == 4 * 2 - 5 + 1
    assert found.table() == [{**row, "seconds": pytest.approx(row["seconds"], rel=100)} for row in whole.table()]
    stop_after(0)
    assert run(folder, explainer, tmp_path).table() == found.table()


def test_more_images_and_methods_go_on_too(folder, explainer, tmp_path):
    run(folder, explainer, tmp_path, images=4)
    before = (tmp_path / "out" / NUMBERS).read_text()
    found = run(folder, explainer, tmp_path, images=6, methods=["rollout", "gae"])
    assert (tmp_path / "out" / NUMBERS).read_text().startswith(before)
    assert {record.image for record in found.records} == {i.name for i in chosen(read_dataset(folder, LABELS, 4), 6, 0)}
    assert set(found.methods) == {"rollout", "gradient_rollout", "gae", "random", "centred_gaussian"}
    assert {score.images for score in found.scores["gini"].values()} == {4, 6}


def test_more_metrics_go_on_too(folder, explainer, tmp_path, monkeypatch):
    first = run(folder, explainer, tmp_path, images=4)
    asked = []
    metric = METRICS["deletion"]
    monkeypatch.setitem(METRICS, "deletion", dataclasses.replace(metric, run=lambda *a, **o: asked.append(a)))
    found = run(folder, explainer, tmp_path, images=4, metrics=["deletion", "entropy", "insertion"])
    assert not asked
    assert list(found.scores) == ["deletion", "insertion", "entropy", "gini"]
    np.testing.assert_array_equal(numbers(found, "gini"), numbers(first, "gini"))
    assert len(numbers(found, "entropy")) == 4


def test_other_settings_need_another_folder(folder, explainer, tmp_path):
    run(folder, explainer, tmp_path, images=2)
    with pytest.raises(OutputError, match=r"other settings \(seed, options of random\)"):
        run(folder, explainer, tmp_path, images=2, seed=1)
    with pytest.raises(OutputError, match=r"other settings \(metrics of deletion\)"):
        run(folder, explainer, tmp_path, images=2, metric_options={"deletion": {"steps": 7}})
    with pytest.raises(OutputError, match=r"other settings \(options of rollout\)"):
        run(folder, explainer, tmp_path, images=2, options={"rollout": {"discard_ratio": 0.5}})
    (tmp_path / "out" / "evaluation.json").write_text("{")
    with pytest.raises(OutputError, match="is damaged"):
        run(folder, explainer, tmp_path, images=2)


def test_numbers_of_another_model_or_other_data_are_not_taken_for_these(folder, explainer, tmp_path, monkeypatch):
    run(folder, explainer, tmp_path, images=2)
    other: Any = small("class token")
    with torch.no_grad():
        other.blocks[0].mlp.fc1.bias[0] += 1e-3
    shutil.copytree(folder, tmp_path / "moved" / "photos")
    for what, data, model in (
        ("weights", folder, Explainer(other, labels=LABELS, preprocessing=HOW)),
        ("labels", folder, Explainer(explainer.model, labels=LABELS[::-1], preprocessing=HOW)),
        ("preprocessing", folder, Explainer(explainer.model, labels=LABELS, preprocessing=replace(HOW, crop_pct=0.9))),
        ("data", tmp_path / "moved" / "photos", explainer),
    ):
        with pytest.raises(OutputError, match=rf"other settings \({what}\)"):
            run(data, model, tmp_path, images=2)
    monkeypatch.setattr("vit_explain.evaluation.__version__", "0.0.1")
    with pytest.raises(OutputError, match=r"other settings \(version\)"):
        run(folder, explainer, tmp_path, images=2)


def test_numbers_of_pictures_that_changed_are_not_taken_for_these(folder, explainer, tmp_path):
    def listed(text: str) -> None:
        (folder / "list.csv").write_text(f"image,label,left,top,right,bottom\nchurch/0.png,{text}\n")

    listed("church,1,2,30,40")
    run(folder / "list.csv", explainer, tmp_path, metrics=["energy_pointing"])
    for text in ("red fox,1,2,30,40", "church,1,2,30,41"):
        listed(text)
        with pytest.raises(OutputError, match=r"'church/0\.png' changed since"):
            run(folder / "list.csv", explainer, tmp_path, metrics=["energy_pointing"])
    listed("church,1,2,30,40")
    run(folder / "list.csv", explainer, tmp_path, metrics=["energy_pointing"])
    picture(99, (70, 50)).save(folder / "church" / "0.png")
    with pytest.raises(OutputError, match="changed since"):
        run(folder / "list.csv", explainer, tmp_path, metrics=["energy_pointing"])


def test_a_damaged_line_loses_none_of_the_others(folder, explainer, tmp_path):
    run(folder, explainer, tmp_path, images=4)
    file = tmp_path / "out" / NUMBERS
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], lines[1].replace('"method"', '"means"'), *lines[2:]]))
    with pytest.raises(OutputError, match=r"line 2 of .* is damaged"):
        run(folder, explainer, tmp_path, images=4)
    assert len(file.read_text().splitlines()) == len(lines)


def test_a_metric_that_cannot_be_had_takes_no_method_along(folder, tmp_path):
    """Of a model whose head reads patches, none of which may be left out of all."""
    explainer = Explainer(small("mean pooling"), labels=LABELS, preprocessing=HOW)
    said: list[str] = []
    found = run(folder, explainer, tmp_path, metric_options={"deletion": {"fill": "drop"}}, complain=said.append)
    assert list(found.scores) == ["gini"] and len(found.scores["gini"]) == len(found.methods) == 4
    assert found.refused.keys() == {f"deletion of {name}" for name in found.methods}
    assert len(said) == 4 and said[0].startswith("deletion of ") and "fill them instead of dropping" in said[0]


def test_the_seed_is_for_all_chance(folder, explainer, tmp_path):
    options: dict[str, Any] = {"images": 12, "metrics": ["deletion"]}
    found = [
        run(folder, explainer, tmp_path / str(seed), seed=seed, **options).scores["deletion"]["random"].value
        for seed in (0, 1)
    ]
    assert found[0] != found[1]


def test_what_cannot_be_read_or_explained_is_left_out(folder, explainer, tmp_path):
    (folder / "church" / "0.png").write_bytes(b"no picture")
    said: list[str] = []
    pooled = Explainer(small("attention pooling"), labels=LABELS, preprocessing=HOW)
    found = run(
        folder, pooled, tmp_path, methods=["attention", "gae", "gradcam"], complain=said.append,
        options={"attention": {"layer": 0}},
    )  # fmt: skip
    assert len({record.image for record in found.records}) == 11
    assert any(line.startswith("church/0.png is left out") for line in said)
    assert set(found.refused) == {"attention"} and "attention" not in found.methods
    assert all(record.method != "attention" for record in found.records)


def test_boxes_are_scored_where_they_are_known(folder, explainer, tmp_path):
    (folder / "list.csv").write_text(
        "image,left,top,right,bottom\nchurch/0.png,0,0,30,48\nchurch/1.png,10,10,40,40\nred_fox/0.png,,,,\n"
    )
    found = run(folder / "list.csv", explainer, tmp_path, metrics=["energy_pointing", "pointing_game", "mean_iou"])
    assert {score.images for scores in found.scores.values() for score in scores.values()} == {2}
    record = next(r for r in found.of("rollout") if r.image == "church/0.png")
    relevance = explainer.explain(folder / "church" / "0.png", "rollout").relevance[0]
    left = relevance[:, : GRID[1] // 2].sum() + relevance[:, GRID[1] // 2].sum() / 2
    assert record.numbers["energy_pointing"][0] == pytest.approx(left / relevance.sum(), rel=1e-4)
    without = run(folder, explainer, tmp_path / "other", metrics=["energy_pointing", "gini"], images=2)
    assert list(without.scores) == ["gini"]


def test_the_true_class_can_be_explained(folder, explainer, tmp_path):
    found = run(folder, explainer, tmp_path, target="label", images=3)
    assert all(record.target == record.label for record in found.records)
    with pytest.raises(ImageError, match="have no class"):
        run(folder / "church", explainer, tmp_path / "other", target="label")


def test_wrong_arguments(folder, explainer, tmp_path):
    for options, error, message in (
        ({"target": "both"}, OptionError, "'predicted' or 'label'"),
        ({"mosaic": 1}, OptionError, "at least 2 pictures"),
        ({"images": -1}, OptionError, "at least 1 image"),
        ({"options": {"gae": {}}}, OptionError, "'gae', which is not among the methods"),
        ({"metric_options": {"saco": {}}}, OptionError, "'saco', which is not among the metrics"),
        ({"metric_options": {"gini": {"x": 1}}}, OptionError, "gini has no option 'x'"),
        ({"methods": ["rolout"]}, OptionError, "near matches: rollout"),
    ):
        with pytest.raises(error, match=message):
            run(folder, explainer, tmp_path, **options)
    for classes, message in ((0, "has no classes"), (1, "a single score")):
        with pytest.raises(ModelError, match=message):
            run(folder, Explainer(with_classes(classes), preprocessing=HOW), tmp_path)


def with_classes(number: int) -> torch.nn.Module:
    model: Any = small("class token")
    model.reset_classifier(number)
    return model


# Results -------------------------------------------------------------------------------------------------------------


def test_what_differs_by_rounding_alone_shares_a_place(folder, explainer, tmp_path):
    found = run(folder, explainer, tmp_path, images=3, methods=["rollout", "gae"], metrics=["gini"])
    numbers = {"rollout": 0.25000003, "gae": 0.25, "random": 0.2501, "centred_gaussian": 0.2}
    records = [dataclasses.replace(one, numbers={"gini": [numbers[one.method]]}) for one in found.records]
    scores = dataclasses.replace(found, records=records).scores["gini"]
    assert {name: score.rank for name, score in scores.items()} == {
        "random": 1, "rollout": 2, "gae": 2, "centred_gaussian": 4,
    }  # fmt: skip


def test_ranks_intervals_and_standing(folder, explainer, tmp_path):
    found = run(folder, explainer, tmp_path, metrics=["deletion", "insertion", "gini"])
    for metric, scores in found.scores.items():
        values = {name: numbers(found, metric, name) for name in found.methods}
        for name, score in scores.items():
            assert score.value == pytest.approx(values[name].mean()) and score.images == 12
            error = values[name].std() / np.sqrt(12)
            low, high = score.interval
            assert low <= score.value <= high
            assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.25, abs=1e-9)
        best = (max if METRICS[metric].higher_is_better else min)(scores, key=lambda n: scores[n].value)
        assert scores[best].rank == 1
    standing = {
        n: np.mean([(4 - found.scores[m][n].rank) / 3 for m in ("deletion", "insertion")]) for n in found.methods
    }
    assert found.standing == pytest.approx(standing)


def test_a_default_device_changes_nothing(folder, explainer, tmp_path):
    metrics = ["saco", "sensitivity_n", "infidelity", "insertion", "max_sensitivity", "model_randomisation"]
    options: dict[str, Any] = {"images": 2, "metrics": metrics, "methods": ["gradient_rollout"]}
    expected = run(folder, explainer, tmp_path / "without", **options).table()
    with torch.device("meta"):
        found = run(folder, explainer, tmp_path / "with", **options).table()
    times = ("seconds",)
    assert [{k: v for k, v in row.items() if k not in times} for row in found] == [
        {k: v for k, v in row.items() if k not in times} for row in expected
    ]


def test_one_image_has_no_interval():
    assert with_interval(np.array([[0.3]]), METRICS["gini"]) == (0.3, None)


def test_methods_are_compared_on_the_images_that_both_have():
    gini = METRICS["gini"]  # higher is better

    def rows(values: dict[str, float]) -> dict[str, np.ndarray]:
        return {image: np.array([value]) for image, value in values.items()}

    hard, easy = {f"h{i}": 0.1 for i in range(3)}, {f"e{i}": 0.9 for i in range(3)}
    found = {
        "good": rows({k: v + 0.05 for k, v in (hard | easy).items()}),
        "bad": rows(hard | easy),
        "lucky": rows({k: v - 0.05 for k, v in easy.items()}),  # worse than either, on easy images only
        "elsewhere": rows({"x": 0.0}),
    }
    placed = places(found, gini)
    assert {name: (one.rank, one.share) for name, one in placed.items()} == {
        "good": (1, 1.0), "bad": (2, 0.5), "lucky": (3, 0.0), "elsewhere": (1, 0.0),
    }  # fmt: skip
    lower = places(found, dataclasses.replace(gini, higher_is_better=False))
    assert [lower[name].rank for name in ("good", "bad", "lucky")] == [3, 2, 1]


def test_what_few_methods_have_is_no_matter_of_standing(folder, explainer, tmp_path):
    options: dict[str, Any] = {"images": 4, "methods": ["gae", "saliency", "integrated_gradients"]}
    without = run(folder, explainer, tmp_path, metrics=["deletion"], **options).standing
    found = run(folder, explainer, tmp_path, metrics=["deletion", "completeness_gap"], **options)
    assert list(found.scores["completeness_gap"]) == ["integrated_gradients"]
    assert found.standing == without


def test_models_with_finer_tokens_than_patches_are_judged(tmp_path):
    """Swin's maps are of its first stage's tokens, finer than what is removed."""
    torch.manual_seed(0)
    size = (32, 48)
    model = calm(SWINS["torchvision swin"](size))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights *= 100 if "qkv.weight" in name else 1  # attention that is not nearly even
    explainer = Explainer(model, preprocessing=dataclasses.replace(HOW, size=size))
    (tmp_path / "photos").mkdir()
    for number in range(4):
        picture(number).save(tmp_path / "photos" / f"{number}.png")
    lines = "\n".join(f"photos/{n}.png,{n},8,6,40,30" for n in range(4))
    (tmp_path / "list.csv").write_text("image,label,left,top,right,bottom\n" + lines)
    found = run(
        tmp_path / "list.csv", explainer, tmp_path, methods=["rollout", "gradient_rollout", "gradcam"], metrics="all",
        metric_options=FEW,
    )  # fmt: skip
    assert not found.refused
    pixels = [read(tmp_path / "photos" / f"{n}.png", explainer.preprocessing, 10**6).pixels for n in range(4)]
    fine = explainer.attribute(torch.cat(pixels), None, "rollout")
    assert fine.shape[1:] == (8, 12) and found.scores["energy_pointing"]["rollout"].images == 4
    # The box covers 8 to 40 of 60 pixels across and 6 to 30 of 48 down.
    across, down = np.arange(48) + 0.5, np.arange(32) + 0.5
    inside = torch.from_numpy(
        ((down * 48 / 32 > 6) & (down * 48 / 32 < 30))[:, None] & ((across * 60 / 48 > 8) & (across * 60 / 48 < 40))
    )
    share = inside.double().unflatten(0, (8, 4)).unflatten(2, (12, 4)).mean((1, 3))
    expected = [float((one.double() * share).sum() / one.sum()) for one in fine]
    assert max(expected) - min(expected) > 0.005
    by_name = found.rows_of("energy_pointing", "rollout")
    assert [float(by_name[f"photos/{n}.png"][0]) for n in range(4)] == pytest.approx(expected, rel=1e-4)


def test_reports_of_numbers_that_are_missing(folder, explainer, tmp_path):
    """Of an even map no order can be judged; ratios of sums have no number an image."""
    found = run(folder, explainer, tmp_path, images=4, methods=["uniform", "gae"], metrics=["saco"])
    assert "<h3>uniform</h3>" in page(found) and "uniform" not in found.scores["saco"]


def test_files_hold_every_number(folder, explainer, tmp_path):
    found = run(folder, explainer, tmp_path, images=5)
    names = {file.name for file in save(found, tmp_path / "out")}
    assert {"report.html", "scores.csv", "numbers.csv", "manifest.json"} <= names
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "numbers.csv").read_text())))
    assert len(rows) == 5 * 4 * 2
    values = [float(row["value"]) for row in rows if (row["method"], row["metric"]) == ("rollout", "deletion")]
    np.testing.assert_allclose(values, numbers(found, "deletion"))
    pandas = pytest.importorskip("pandas", reason="data frames are for those who have pandas")
    assert isinstance(found.frame(), pandas.DataFrame) and len(found.frame()) == len(rows)


def test_the_report_holds_everything_that_it_shows(folder, explainer, tmp_path):
    found = run(folder, explainer, tmp_path, metrics=["deletion", "gini"])
    text = page(found)
    assert not re.search(r'(?:src|href)="(?!data:|#)', text) and "<script" not in text
    assert text.count("<svg") == 3  # an interval plot each, and the curve of deletion
    for name in found.methods:
        assert f"<td>{name}</td>" in text
    assert text.count("data:image/jpeg") == 4 * 6


def test_mosaics_are_scored(tmp_path):
    """A model that is sure of its answers, and two pictures of each."""
    model: Any = small("class token")
    with torch.no_grad():
        model.head.weight *= 20
    explainer = Explainer(model, preprocessing=HOW)
    found: dict[int, list[Image.Image]] = {number: [] for number in range(CLASSES)}
    for seed in range(200):
        (_, number, probability), *_ = explainer.explain(picture(seed), "uniform").top()
        if probability > 0.9 and len(found[number]) < 2:
            found[number].append(picture(seed))
    (tmp_path / "photos").mkdir()
    for number, pictures in found.items():
        assert len(pictures) == 2
        for i, one in enumerate(pictures):
            one.save(tmp_path / "photos" / f"{number}-{i}.png")
    seen: list[tuple[int, int]] = []
    totals: list[int] = []
    options: dict[str, Any] = {"metrics": ["grid_pointing"], "methods": ["gae", "uniform", "rollout"]}
    for _ in range(2):  # the second time all is known already
        found = run(tmp_path / "photos", explainer, tmp_path, progress=lambda *two: seen.append(two), **options)
        scores = found.scores["grid_pointing"]
        assert scores["uniform"].value == pytest.approx(0.25, abs=1e-6) and scores["gae"].images == 2
        # A map for no class has a quarter of itself in each quarter on the mean, whatever the mosaic.
        assert scores["rollout"].interval == pytest.approx([0.25, 0.25], abs=1e-6)
        assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] and seen == sorted(seen)
        totals.append(seen[-1][1])
        seen.clear()
    # Of five methods, one of them with a backward, on eight photos and two mosaics with four classes each.
    assert totals == [(8 + 2 * 4) * (4 + 3), 0]
    own = [one for one in found.records if one.image.startswith("mosaic") and one.method == "gae"]
    for record in own:  # each class alone
        names = record.image.removeprefix("mosaic ").rpartition(": ")[0].split(" | ")
        pixels = [read(tmp_path / "photos" / name, HOW, 10**6).pixels[0] for name in names]
        (values,) = explainer.attribute(composed(pixels, 2)[None], record.target, "gae").clamp_min(0)
        place = [int(name.partition("-")[0]) for name in names].index(record.target)
        top, left, bottom, right = cell(place, 2, SIZE)
        inside = values.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)[top:bottom, left:right].sum()
        assert record.numbers["grid_pointing"] == [pytest.approx(float(inside / values.sum()) / PATCH**2, rel=1e-4)]
    assert len({record.numbers["grid_pointing"][0] for record in own}) == 8
