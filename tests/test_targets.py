"""Every form of target, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import SIZE

from vit_explain import Contrast, Explainer
from vit_explain.errors import TargetError
from vit_explain.targets import class_number, resolve, score, spread

LABELS = ["tench", "tabby, tabby cat", "tiger cat", "crane", "crane"]
LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0], [5.0, 0.0, 1.0, 2.0, 3.0]])


def names(target, images=2):
    columns = resolve(spread(target, images), LOGITS[:images], LABELS)
    return [[one.name for one in column] for column in columns]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (2, [["tiger cat"] * 2]),
        (np.int64(2), [["tiger cat"] * 2]),
        ("2", [["tiger cat"] * 2]),
        ("Tiger Cat", [["tiger cat"] * 2]),
        ("tabby", [["tabby, tabby cat"] * 2]),
        ("top1", [["tabby, tabby cat", "tench"]]),
        ("top2", [["tabby, tabby cat", "tench"], ["crane", "crane"]]),
        ([0, 2], [["tench", "tiger cat"]]),
        (torch.tensor([0, 2]), [["tench", "tiger cat"]]),
        ([[0, 1], [2, "tench"]], [["tench", "tiger cat"], ["tabby, tabby cat", "tench"]]),
        (Contrast("tench", 2), [["tench rather than tiger cat"] * 2]),
        (Contrast("top1", 2), [["tabby, tabby cat rather than tiger cat", "tench rather than tiger cat"]]),
        (Contrast("Top1", "top2"), [["tabby, tabby cat rather than crane", "tench rather than crane"]]),
    ],
)
def test_forms(target, expected):
    assert names(target) == expected


def test_one_image_takes_a_list_of_classes():
    assert names([0, "tiger cat", "top1"], images=1) == [["tench"], ["tiger cat"], ["tabby, tabby cat"]]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (5, r"class 5 does not exist: the model has 5 classes, 0 to 4 \(tench"),
        (-1, "class -1 does not exist"),
        ("tiger", "there is no class 'tiger'; near matches: tiger cat"),
        ("crane", "'crane' names 2 classes: 3, 4; give the number"),
        ("--3", "there is no class '--3'"),
        ("²", "there is no class '²'"),
        ("9" * 5000, "there is no class '999"),
        ("top" + "9" * 5000, "there is no class 'top999"),
        ("top9", "'top9': the model has 5 classes"),
        ("top0", "'top0': the model has 5 classes"),
        ([0, 1, 2], "3 targets were given for 2 images"),
        ([], "the list of targets is empty"),
        ([[0, 1], [2]], "every image needs the same number of targets"),
        (1.5, "a target is a class number"),
        (True, "a target is a class number"),
        (Contrast(1, "tabby"), "a contrast needs two classes"),
        (Contrast("top1", "tabby"), "a contrast needs two classes, not tabby, tabby cat twice"),
        (Contrast("top9", 0), "'top9': the model has 5 classes"),
    ],
)
def test_refusals(target, words):
    with pytest.raises(TargetError, match=words):
        names(target)


def test_labels_are_needed_for_names():
    with pytest.raises(TargetError, match="class names of this model are not known"):
        class_number("tench", 5, None)


def test_scores_are_logits_differences_and_functions():
    def run(target):
        column = resolve(spread(target, 2), LOGITS, LABELS)[0]
        return score(column, LOGITS, {"output": LOGITS}).tolist()

    assert run(2) == [1.0, 1.0]
    assert run("top1") == [3.0, 5.0]
    assert run(Contrast(3, 0)) == [2.0, -3.0]
    assert run(lambda output: output["output"].square().sum(1)) == [15.0, 39.0]
    with pytest.raises(TargetError, match=r"one number an image, \(2,\), not \(2, 5\)"):
        run(lambda output: output["output"])
    first, third = (lambda output: output["output"][:, 0]), (lambda output: output["output"][:, 2])
    assert run([first, third]) == [0.0, 1.0]
    assert run([third, first]) == [1.0, 5.0]
    assert run([Contrast(3, 0), Contrast(1, 4)]) == [2.0, -3.0]
    for mixed in ([0, first], [first, 0], [0, Contrast(0, 1)], [Contrast(0, 1), 0], [first, Contrast(0, 1)]):
        with pytest.raises(TargetError, match="cannot be mixed"):
            run(mixed)


def test_a_function_of_one_logit_is_that_class(vit, pixels):
    explainer = Explainer(vit)
    by_class = explainer.explain(pixels, target=2).relevance
    by_function = explainer.explain(pixels, target=lambda logits: logits[:, 2]).relevance
    np.testing.assert_array_equal(by_class, by_function)
    contrast = explainer.explain(pixels, target=Contrast(2, 0)).relevance
    by_difference = explainer.explain(pixels, target=lambda logits: logits[:, 2] - logits[:, 0]).relevance
    np.testing.assert_array_equal(contrast, by_difference)
    assert np.abs(contrast - by_class).max() > 1e-4


def test_an_error_in_a_target_function_is_told_with_its_name(vit):
    pictures = torch.randn(10, 3, *SIZE)
    classes = torch.arange(10) % 4

    def own_class(output: torch.Tensor) -> torch.Tensor:
        return output.gather(1, classes[:, None])[:, 0]

    with pytest.raises(TargetError, match=r"the target function own_class failed with RuntimeError: .*for each"):
        Explainer(vit).attribute(pictures, own_class, "gradcam")
    each = [lambda output, number=int(number): output[:, number] for number in classes]
    expected = Explainer(vit).attribute(pictures, classes, "gradcam")
    torch.testing.assert_close(Explainer(vit).attribute(pictures, each, "gradcam"), expected)


def test_a_target_function_may_run_out_of_memory(vit):
    """Then fewer images are tried."""
    lots: list[int] = []

    def logit(output: torch.Tensor) -> torch.Tensor:
        lots.append(len(output))
        if len(output) > 2:
            raise torch.cuda.OutOfMemoryError
        return output[:, 1]

    Explainer(vit).attribute(torch.randn(4, 3, *SIZE), logit, "gradcam")
    assert lots == [4, 4, 2, 2]
