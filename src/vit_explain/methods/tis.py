"""TIS: transformer input sampling."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ..options import Range, Seed
from ..perturb import Fill, Samples, answers, chosen_fill, dropped_fact
from ..registry import method
from ..types import Attribution, Trace

ROUNDS = 20  # of k-means; later ones move a handful of features
BLOCK = 4096  # features compared with all centres at a time


@method(
    paper="Englebert et al., Explaining Through Transformer Input Sampling, ICCV Workshops 2023",
    family="perturbation",
    means="How likely the class is on average when a patch is among the half that is kept, over halves that the "
    "model's own features suggest.",
    does_not_mean="Patches that are kept together with decisive ones share their success. Values are mean "
    "probabilities and no shares of the score: only differences say something.",
    needs={"probe", "blocks"},
    forwards=514,
    class_specific=True,
)
def tis(
    trace: Trace,
    *,
    samples: Samples = 512,
    kept: Annotated[float, Range(0.0, 1.0)] = 0.5,
    fill: Fill = "auto",
    seed: Seed = 0,
) -> Attribution:
    """Which patches the model can do with alone: masks drawn from its own features, dropped as tokens, and scored.

    Every channel of every block's output is a vector over the patches; k-means of them gives ``samples`` centres, and
    a mask M keeps the ``kept`` part of the patches where a centre is largest. ``map = Σ_k y_k M_k / Σ_k M_k``,
    (B, h, w), with y_k the softmax probability when the other patches are dropped after their positions were added.

    The paper takes 1024 masks; the default is half of that. Models with fewer channels get fewer masks. A patch in no
    mask gets the mean of all y_k, and ``patches_unseen`` counts them. k-means starts at random channels, as in the
    authors' code, and ends after 20 rounds; so the masks are not theirs one by one.
    """
    h, w = trace.anatomy.grid
    fill, warnings = chosen_fill(trace, fill)
    chosen = max(1, int(kept * h * w))
    masks = []
    for image in range(len(trace.pixels)):
        # Looked at alone, so that no rounding of a batch decides which centre a channel goes to.
        tokens = trace.inquiry.single(image).again(trace.pixels[image : image + 1], {"tokens"}).tokens[1:]
        channels = torch.cat([after[0, trace.anatomy.prefix :].float() for after in tokens], 1).T
        best = _centres(channels, min(samples, len(channels)), seed).topk(chosen, 1).indices
        masks.append(torch.zeros(len(best), h * w, dtype=torch.bool, device=best.device).scatter_(1, best, True))
    keep = torch.stack(masks)
    y = answers(trace, keep.unflatten(2, (h, w)), fill)
    times = keep.sum(1)
    values = (keep * y.unsqueeze(2)).sum(1) / times.clamp_min(1)
    values = torch.where(times > 0, values, y.mean(1, keepdim=True))
    facts = {"mean_score": y.mean(1), "patches_unseen": (times == 0).sum(1)} | dropped_fact(fill, y)
    return Attribution(values.unflatten(1, (h, w)), facts, warnings)


def _centres(points: Tensor, number: int, seed: int) -> Tensor:
    """Centres (number, d) of points (n, d) by Lloyd's k-means; a centre that loses all its points stays."""
    generator = torch.Generator().manual_seed(seed)
    centres = points[torch.randperm(len(points), generator=generator)[:number].to(points.device)]
    before = None
    for _ in range(ROUNDS):
        lengths = centres.square().sum(1)
        nearest = torch.cat([(lengths - 2 * some @ centres.T).argmin(1) for some in points.split(BLOCK)])
        if before is not None and bool((nearest == before).all()):
            break
        before = nearest
        counts = nearest.bincount(minlength=number).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    return centres
