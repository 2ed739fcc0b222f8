"""Whether one picture's map can be believed: tested on this picture, and said in words."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import metrics as _registers_them  # noqa: F401
from .cases import Case
from .errors import CaptureError, ModelError, OptionError
from .explainer import Explainer
from .explanation import Explanation
from .inputs import TENSOR, read
from .judging import Judge
from .likeness import rank_correlation
from .metrics.class_sensitivity import class_sensitivity
from .metrics.deletion import deletion
from .metrics.insertion import insertion
from .metrics.model_randomisation import model_randomisation
from .registry import METHODS, find
from .seeds import uniform_noise
from .surroundings import own

CHANCE = 8  # maps of chance, each of which a map must beat: half of them the map itself put elsewhere
SAME_ANSWER = 0.05  # of the largest score: how far scores may be from those at the time of explaining
FAR = 0.25  # of an axis: how far at least
NOISES, RADIUS = 3, 0.05  # draws of uniform noise, in standard deviations of the model's input
# Rank correlations that say so: the same map, much the same map, another map.
SAME, ALIKE, APART = 0.98, 0.7, 0.3
# Whom to ask for a second opinion: of other families, of one forward and one backward, first those that see the class.
OTHERS = ("gae", "attn_lrp", "gradcam", "rollout")
OPINIONS = 2


@dataclass(frozen=True)
class Finding:
    """One test of one map."""

    test: str
    value: float | None  # None where nothing could be measured
    says: str
    believable: bool


EVEN = Finding("evenness", None, "The map is the same everywhere, so it marks nothing.", False)


@dataclass(frozen=True)
class Verdict:
    """All tests of one map; ``warnings``: why it should not be believed, none where nothing speaks against it."""

    findings: list[Finding]

    @property
    def warnings(self) -> list[str]:
        return [finding.says for finding in self.findings if not finding.believable]

    @property
    def summary(self) -> str:
        """One sentence."""
        failed = [finding.test for finding in self.findings if not finding.believable]
        if not failed:
            return "Nothing speaks against believing this map."
        return f"Do not rely on this map: {', '.join(failed)} {'speaks' if len(failed) == 1 else 'speak'} against it."

    def document(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"summary": self.summary, "findings": [asdict(finding) for finding in self.findings]}


@own()
def verify(
    model: nn.Module | str | Explainer, explanation: Explanation, inputs: Tensor | None = None, *, seed: int = 0
) -> Explanation:
    """The explanation with a verdict for each of its rows, tested on its own images.

    ``model``: the one that was explained, or its ``Explainer``, where that has labels or a preprocessing of its own.
    ``inputs``: the preprocessed (B, C, H, W) tensor, where that was explained and no photos. ``seed``: for all chance.
    Only maps of a class, or of none in particular (of which the likeliest class is then asked), can be judged. A row
    takes six maps of the method, two of others and some 400 forwards. Raises ``OptionError`` for targets that are
    functions or differences of classes, for models of a single class, and for a model that answers otherwise than the
    one that was explained.
    """
    if any(
        number is None and name for number, name in zip(explanation.target_numbers, explanation.targets, strict=True)
    ):
        raise OptionError("only maps of a class, or of none, can be verified: give a class as the target")
    if any(" rather than " in name for name in explanation.targets):
        raise OptionError("maps of one class rather than another cannot be verified: give one class as the target")
    if inputs is None and TENSOR in explanation.sources:
        raise OptionError("what was explained is a tensor: verifying needs it again")
    explainer = model if isinstance(model, Explainer) else Explainer(model)
    if explainer.model_name != explanation.model:
        raise OptionError(
            f"the explanation is of {explanation.model}, and cannot be verified with {explainer.model_name}"
        )
    judge, method = Judge(explainer, seed), find(explanation.method)
    given = list(explanation.photos) if inputs is None else inputs
    pixels = read(given, explainer.preprocessing, max(photo.size for photo in explanation.photos)).pixels
    verdicts = []
    for image, number in zip(explanation.image_of, explanation.target_numbers, strict=True):
        pictures = judge.pictures(pixels[image : image + 1])
        whole = judge.whole(pictures)
        if whole.shape[1] < 2:
            raise OptionError("verifying needs a model that tells at least two classes apart")
        before = torch.from_numpy(explanation.logits[image]).to(whole)
        if before.shape != whole[0].shape or (whole[0] - before).abs().max() > SAME_ANSWER * before.abs().max():
            raise OptionError(
                f"the model answers otherwise than the {explanation.model} that was explained: give the same weights"
            )
        target = whole.argmax(1).cpu() if number is None else torch.tensor([number])
        case = judge.case(method, explanation.options, pictures, whole, target)
        even = bool(case.maps.amax() == case.maps.amin())
        findings = [EVEN] if even else [test(judge, case, explanation.method) for test in TESTS]
        verdicts.append(Verdict(findings).document())
    return dataclasses.replace(explanation, verdicts=verdicts)


def against_chance(judge: Judge, case: Case, method: str) -> Finding:
    """Insertion less deletion, beside the best of maps of noise and of the map itself, put elsewhere."""
    (generator,) = case.pictures.generators()
    patches = case.at("patch").view(1, *case.pictures.anatomy.grid).cpu()
    maps = elsewhere(patches, CHANCE // 2, generator)
    maps += [torch.rand(patches.shape, generator=generator) for _ in range(CHANCE - len(maps))]
    chance = [Case(one, case.targets, case.pictures, case.whole) for one in maps]
    left, shown = (float(metric(case).values) for metric in (deletion, insertion))
    left_by_chance, shown_by_chance = (
        np.array([float(metric(one).values) for one in chance]) for metric in (deletion, insertion)
    )
    gains, means = shown_by_chance - left_by_chance, (left_by_chance.mean(), shown_by_chance.mean())
    gain = shown - left - float(gains.mean())
    better = shown - left > gains.max() and left < means[0] and shown > means[1]
    says = (
        f"removing what it marks first leaves {left:.0%} of the class's probability on average, removing as maps of "
        f"chance say {means[0]:.0%}; showing it first reaches {shown:.0%}, by chance {means[1]:.0%}"
    )
    return Finding("faithfulness", gain, f"{'Better' if better else 'No better'} than chance: {says}.", bool(better))


def elsewhere(maps: Tensor, number: int, generator: torch.Generator) -> list[Tensor]:
    """Maps (1, h, w) so often moved around the picture's edges, by a quarter of it or more along an axis: as smooth as
    the map, and as sure of their place. None where there is a single patch."""
    height, width = maps.shape[1:]
    moves = [
        (down, across)
        for down in range(height)
        for across in range(width)
        if (down or across) and max(_around(down, height), _around(across, width)) >= FAR
    ]
    picked = torch.randperm(len(moves), generator=generator)[:number].tolist()
    return [maps.roll(moves[i], (1, 2)) for i in picked]


def _around(move: int, size: int) -> float:
    """A move as a share of the axis, the shorter way round."""
    return min(move, size - move) / size


def stability(judge: Judge, case: Case, method: str) -> Finding:
    """Rank correlation with maps of the picture under noise that nobody would see."""
    assert case.explain is not None
    pixels, generators = case.pictures.pixels, case.pictures.generators()
    found = []
    for _ in range(NOISES):
        moved = case.explain(pixels + RADIUS * uniform_noise(pixels, generators), case.targets)
        found.append(float(rank_correlation(case.maps, moved)))
    if any(value != value for value in found):
        says = "Unstable: under noise that nobody would see, it becomes the same everywhere."
        return Finding("stability", None, says, False)
    value = min(found)
    word = "Stable" if value >= ALIKE else "Unstable" if value < APART else "Not very stable"
    says = f"{word}: under noise that nobody would see, its rank correlation with itself is {value:.2f} at the least."
    return Finding("stability", value, says, value >= APART)


def weights(judge: Judge, case: Case, method: str) -> Finding:
    """Rank correlation with the map of the model with random weights; a negative one is as telling."""
    value = float(model_randomisation(case, stages=1))
    if value != value:
        return Finding("weights", None, "Rests on what the model learnt: with random weights the map is even.", True)
    believable = value < ALIKE
    word = "Rests on what the model learnt" if believable else "Hardly depends on what the model learnt"
    says = f"{word}: with random weights the map has a rank correlation of magnitude {value:.2f} with this one."
    return Finding("weights", value, says, believable)


def class_dependence(judge: Judge, case: Case, method: str) -> Finding:
    """Rank correlation with the map of the next likeliest class."""
    if not METHODS[method].class_specific:
        says = "The method does not depend on a class: the map does not say what speaks for one."
        return Finding("class", 1.0, says, True)
    value = float(class_sensitivity(case))
    if value != value:
        return Finding("class", None, "Is about this class: the map of the next likeliest one is even.", True)
    believable = value < SAME
    word = "Is about this class" if value < ALIKE else "Is hardly about this class" if believable else "Is not about it"
    says = f"{word}: the map of the next likeliest class has a rank correlation of {value:.2f} with this one."
    return Finding("class", value, says, believable)


def agreement(judge: Judge, case: Case, method: str) -> Finding:
    """Rank correlation with the maps of two methods of other families."""
    heard: dict[str, float] = {}
    for name in OTHERS:
        if len(heard) == OPINIONS or METHODS[name].family == METHODS[method].family:
            continue
        try:
            other = judge.case(METHODS[name], METHODS[name].settings({}), case.pictures, case.whole, case.targets)
        except (CaptureError, ModelError):
            continue  # the next one may know this model
        value = float(rank_correlation(case.at("patch"), other.at("patch")))
        if value == value:
            heard[name] = value
    if not heard:
        return Finding("agreement", None, "No other method could be asked.", True)
    mean = sum(heard.values()) / len(heard)
    word = "Others agree" if mean >= ALIKE else "Others disagree" if mean < APART else "Others agree in part"
    says = f"{word}: rank correlation {' and '.join(f'{value:.2f} with {name}' for name, value in heard.items())}."
    return Finding("agreement", mean, says, True)  # those who disagree may be the ones that are wrong


TESTS = (against_chance, stability, weights, class_dependence, agreement)
