"""Scores of methods on many images: which map can be trusted, by every metric, on one footing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from . import metrics as _registers_them  # noqa: F401
from ._version import __version__
from .datasets import chosen, read_dataset
from .errors import ImageError, ModelError, OptionError
from .explainer import Explainer
from .metric_registry import Metric, choose_metrics
from .photos import DEFAULT_MAX_PIXELS
from .records import Records, alone
from .registry import METHODS, Method, choose_methods
from .results import Evaluation
from .scoring import BASELINES, Explained, Progress, Scoring
from .surroundings import own
from .weights import digest


@own()
def evaluate(
    data: str | Path,
    model: nn.Module | str | Explainer = "bundled",
    methods: str | Sequence[str] = "fast",
    metrics: str | Sequence[str] = "fast",
    *,
    images: int | None = None,
    seed: int = 0,
    out: str | Path = "vit-explain-evaluation",
    target: Explained = "predicted",
    mosaic: int = 2,
    others: Sequence[Method] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    metric_options: Mapping[str, Mapping[str, Any]] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Progress | None = None,
    complain: Callable[[str], None] | None = None,
) -> Evaluation:
    """Score methods by metrics on the images of a dataset, with the random and the centred Gaussian map beside them.

    ``data``: see ``datasets.read_dataset``. ``methods``: as in ``Explainer.compare``. ``metrics``: names; "fast" stands
    for those that need no further maps, "all" for all. ``images``: so many, chosen with ``seed`` evenly over classes;
    ``seed`` is for all other chance but that of the intervals, too. ``others``: methods of your own or of other
    packages, see ``other_method``, judged on the same pictures. ``target``: which class is explained. ``mosaic``:
    photos a side of the mosaics for ``grid_pointing``. ``options``, ``metric_options``: keywords of each method and
    metric, by its name. ``out``: where every number is kept as it is found; the same call goes on where it was stopped,
    and another model, other data or another version of this package is refused there. ``progress``: called as
    ``progress(done, total)`` in forwards, of about as many as are left to do; mosaics add to the total once it is known
    which photos they are made of. ``complain``: told of pictures that cannot be read, and of methods and metrics that
    cannot be had.
    """
    explainer = model if isinstance(model, Explainer) else Explainer(model)
    classes = explainer.family.classes(explainer.plain)
    if classes == 0:
        raise ModelError(f"{explainer.model_name} has no classes, which evaluation needs: give it a head or texts")
    if classes == 1:
        raise ModelError(
            f"{explainer.model_name} has a single score, and evaluation needs probabilities of two classes or more: "
            "give it a head of two scores, one of which may always be zero"
        )
    if images is not None and images < 1:
        raise OptionError(f"an evaluation needs at least 1 image, not {images}")
    if target not in ("predicted", "label"):
        raise OptionError(f"the target of an evaluation is 'predicted' or 'label', not {target!r}")
    if mosaic < 2:
        raise OptionError(f"a mosaic has at least 2 pictures a side, not {mosaic}")
    wanted = choose_methods([*([methods] if isinstance(methods, str) else methods), *BASELINES])
    for one in others:
        if one.name in METHODS or one.name in [known.name for known in wanted]:
            raise OptionError(f"there is a method {one.name!r} already; give yours another name")
        wanted.append(one)
    measures = choose_metrics([metrics] if isinstance(metrics, str) else metrics)
    settings = _settings(wanted, measures, options or {}, metric_options or {}, seed)
    items = chosen(read_dataset(data, explainer.labels, classes), images, seed)
    if target == "label" and any(item.label is None for item in items):
        raise ImageError("some images have no class, so their true class cannot be explained; take the predicted one")
    record = {
        "version": __version__,
        "model": explainer.model_name,
        "weights": digest(explainer.plain),
        "preprocessing": asdict(explainer.preprocessing),
        "labels": hashlib.blake2b(json.dumps(explainer.labels).encode(), digest_size=8).hexdigest(),
        "data": str(Path(data).resolve()),
        "seed": seed,
        "target": target,
        "mosaic": mosaic,
        "metrics": settings["metrics"],
        # Of every method, so that another call cannot mix numbers of other options among them.
        "options": settings["methods"],
    }
    with alone(Path(out)):
        records = Records(Path(out), record)
        run = Scoring(explainer, wanted, measures, settings, target, seed, records, complain, progress)
        run.images(items, max_pixels)
        groups = run.groups(items, mosaic)
        run.mosaics(groups, items, mosaic, max_pixels)
    kept = {item.name for item in items} | {name for names in groups.values() for name in names}
    found = [one for one in records if one.image in kept]
    if not found:
        raise ImageError(f"none of the {len(items)} pictures of {str(data)!r} can be read")
    scored, known = {one.method for one in found}, [*choose_methods(["all"]), *others]
    return Evaluation(
        found,
        {one.name: one for one in known if one.name in scored},
        [one.name for one in choose_metrics(list(records.settings["metrics"]))],
        records.settings,
        run.refused,
        {item.name: item for item in items},
        explainer.preprocessing,
        explainer.labels,
    )


def _settings(
    methods: Sequence[Method],
    metrics: Sequence[Metric],
    options: Mapping[str, Mapping[str, Any]],
    metric_options: Mapping[str, Mapping[str, Any]],
    seed: int,
) -> dict[str, dict[str, Any]]:
    for given, known, kind in ((options, methods, "methods"), (metric_options, metrics, "metrics")):
        for name in given:
            if name not in [one.name for one in known]:
                raise OptionError(f"options are given for {name!r}, which is not among the {kind}")
    seeds = {one.name: {"seed": seed} if "seed" in one.options else {} for one in methods}
    return {
        "methods": {one.name: one.settings(seeds[one.name] | dict(options.get(one.name, {}))) for one in methods},
        "metrics": {one.name: one.settings(dict(metric_options.get(one.name, {}))) for one in metrics},
    }
