"""``Explainer``: images in, explanations out. Arguments of many kinds are resolved here, at the edge."""

from __future__ import annotations

import dataclasses
import functools
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import methods  # noqa: F401  registers the methods
from ._version import __version__
from .artifacts import warned
from .errors import ImageError, ModelError, TargetError
from .explanation import Explanation
from .family import family_of, unwrap
from .image import Geometry, Preprocessing, denormalise, prepare
from .inquiry import CHUNK, Subject, Tally, finite
from .loading import DEFAULT_MODEL, load_model
from .photos import DEFAULT_MAX_PIXELS, load_image
from .registry import METHODS, Method, choose_method, find
from .targets import Target, resolve, spread
from .types import Attribution

DIFFERENTIATED = {"gradient", "graph", "pixels", "probe"}  # needs that autograd, or a later look, serves


@dataclasses.dataclass(eq=False)
class _Prepared:
    pixels: Tensor
    photos: list[NDArray[np.uint8]]
    geometries: list[Geometry]
    sources: list[str]


@dataclasses.dataclass(eq=False)
class _Result:
    """Maps (R, h, w) and what each row of them is about; image-major where an image has several targets."""

    maps: Tensor
    logits: Tensor  # (images, classes)
    targets: list[Target | None]
    covers: tuple[int, int]
    facts: dict[str, Tensor]
    warnings: list[list[str]]

    @property
    def image_of(self) -> list[int]:
        each = len(self.targets) // len(self.logits)
        return [row // each for row in range(len(self.targets))]


class Explainer:
    """Explains one model, which it never changes: flags, gradients and hooks are as they were, also after an error.

    ``model``: a ``torch.nn.Module`` of a known family, or a name for ``load_model`` (then ``checkpoint`` and
    ``device`` apply). ``labels``: class names, where the model does not carry its own. ``preprocessing``: how pictures
    become pixels, by default as the model's own configuration says.
    """

    def __init__(
        self,
        model: nn.Module | str = DEFAULT_MODEL,
        *,
        checkpoint: str | Path | None = None,
        labels: Sequence[str] | None = None,
        device: str | torch.device | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        if isinstance(model, str):
            model = load_model(model, checkpoint=checkpoint, device=device or "cpu")
        elif checkpoint is not None or device is not None:
            raise ModelError("checkpoint and device go with a model's name; load and move your own model yourself")
        self.family = family_of(unwrap(model) if isinstance(model, nn.Module) else model)
        self.model = model
        self._plain = unwrap(model)
        self.model_name = self.family.name(self._plain)
        self.preprocessing = preprocessing or self.family.preprocessing(self._plain)
        if labels is not None:
            classes = self.family.classes(self._plain)
            if len(labels) != classes:
                raise ModelError(f"{len(labels)} labels were given, but {self.model_name} has {classes} classes")
            self.labels = list(labels)

    @functools.cached_property
    def labels(self) -> list[str] | None:
        """Class names, where they are known; looked up when first asked for, since ImageNet's fill megabytes."""
        return self.family.labels(self._plain)

    def explain(
        self,
        images: Any,
        method: str | None = None,
        target: Any = None,
        *,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Explanation:
        """Explain one image or several.

        ``images``: a path, PIL image or uint8 array (H, W, 3), a list of these, or an already preprocessed float
        tensor (C, H, W) or (B, C, H, W). ``method``: by default attention rollout without a target, and gradient
        rollout with one. ``target``: see ``targets.spread``; class-specific methods explain "top1" without one.
        ``progress``: called as ``progress(done, total)`` by methods that take many forwards; what it raises ends them.
        """
        began = time.perf_counter()
        chosen, settings = self._method(method, target, options)
        prepared = self._prepare(images, max_pixels)
        result = self._run(prepared.pixels, chosen, target, settings, progress)
        return Explanation(
            relevance=result.maps.cpu().numpy(),
            image_of=result.image_of,
            targets=[one.name if one else "" for one in result.targets],
            target_numbers=[one.index if one else None for one in result.targets],
            logits=result.logits.cpu().numpy(),
            labels=self.labels,
            method=chosen.name,
            signed=chosen.signed,
            options=settings,
            model=self.model_name,
            photos=prepared.photos,
            # The grid may cover less than the input (sizes that patches do not divide), or its padding.
            geometries=[dataclasses.replace(one, input=result.covers) for one in prepared.geometries],
            sources=prepared.sources,
            facts={name: values.numpy() for name, values in result.facts.items()},
            warnings=result.warnings,
            seconds=time.perf_counter() - began,
            versions=_versions(),
        )

    def attribute(
        self,
        inputs: Tensor,
        target: Any = None,
        method: str | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Tensor:
        """captum's form: preprocessed (B, C, H, W) in, raw relevance (R, h, w) float32 out, on the inputs' device.

        Rows are images, or with K targets an image, the K rows of the first image, then those of the second.
        """
        chosen, settings = self._method(method, target, options)
        maps = self._run(_checked_pixels(inputs), chosen, target, settings, progress).maps
        # A tensor made in inference mode could not be part of a caller's own graph.
        return (maps.clone() if maps.is_inference() else maps).to(inputs.device)

    def _method(self, method: str | None, target: Any, options: dict[str, Any]) -> tuple[Method, dict[str, Any]]:
        chosen = find(choose_method(method, target))
        if target is not None and not chosen.class_specific:
            raise TargetError(
                f"{chosen.name} does not depend on a class: leave the target out or choose another method"
            )
        return chosen, chosen.settings(options)

    def _run(
        self,
        pixels: Tensor,
        method: Method,
        target: Any,
        settings: dict[str, Any],
        progress: Callable[[int, int], None] | None,
    ) -> _Result:
        images = len(pixels)
        tally = Tally(progress) if progress is not None else None
        wanted = spread("top1" if target is None else target, images) if method.class_specific else None
        # Whatever mode the caller is in: inside torch.inference_mode() nothing could be differentiated, and outside
        # of it what is never differentiated takes longer.
        with torch.inference_mode(not DIFFERENTIATED & method.needed(settings)), torch.no_grad():
            parts = [
                self._chunk(
                    pixels[first : first + CHUNK],
                    method,
                    wanted and wanted[first : first + CHUNK],
                    settings,
                    tally,
                    left=images - first,
                )
                for first in range(0, images, CHUNK)
            ]
        if len({len(part.targets) / len(part.logits) for part in parts}) != 1:
            raise TargetError("every image needs the same number of targets")
        return _Result(
            maps=torch.cat([part.maps for part in parts]),
            logits=torch.cat([part.logits for part in parts]),
            targets=[one for part in parts for one in part.targets],
            covers=parts[0].covers,
            facts={name: torch.cat([part.facts[name] for part in parts]) for name in parts[0].facts},
            warnings=[one for part in parts for one in part.warnings],
        )

    def _chunk(
        self,
        pixels: Tensor,
        method: Method,
        wanted: list[Any] | None,
        settings: dict[str, Any],
        tally: Tally | None,
        left: int,
    ) -> _Result:
        reference = next((p for p in self._plain.parameters() if p.is_floating_point()), pixels)
        pixels = pixels.to(reference.device, reference.dtype, copy=pixels.is_inference())
        channels, height, width = pixels.shape[1:]
        anatomy = self.family.anatomy(self._plain, (channels, height, width))
        read = anatomy.readout
        suffice = method.read_rows_suffice(**settings) and read.tokens and not (read.patches or read.attention)
        shortened = (len(anatomy.blocks) - 1, max(read.tokens) + 1) if suffice else None
        subject, needs = Subject(self._plain, self.family, anatomy, tally), method.needed(settings)
        within = method.within(**settings) if method.within else None
        trace, output = subject.look(pixels, needs, within, shortened=shortened)
        columns: Sequence[Sequence[Target | None]] = [[None] * len(pixels)]
        if wanted is None:
            if tally is not None:
                tally.begin(left / len(pixels))
            found = [_attribution(method.run(trace, **settings))]
        else:
            if self.family.classes(self._plain) == 0 and not all(callable(one) for row in wanted for one in row):
                raise TargetError(f"{self.model_name} has no classifier head: give a function of its output as target")
            columns = targets = resolve(wanted, trace.logits, self.labels)
            found = []
            for number, column in enumerate(targets):
                more = number < len(targets) - 1
                if tally is not None:
                    tally.begin(left * len(targets) / len(pixels) - number)
                about = subject.about(trace, output, column, needs, keep_graph=more)
                found.append(_attribution(method.run(about, **settings)))
        found = [warned(trace, one) for one in found]
        # What a model without a head returns are features, which nobody should read as scores of classes.
        scores = trace.logits if self.family.classes(self._plain) else trace.logits[:, :0]
        rows = [(image, number) for image in range(len(pixels)) for number in range(len(columns))]
        maps = torch.stack([one.map.detach().float() for one in found], 1).flatten(0, 1)
        size = (int(maps.shape[1]), int(maps.shape[2]))
        if size not in (anatomy.grid, (height, width)):
            raise ModelError(f"{method.name} returned maps of {size}, neither the patch grid nor the pixels")
        return _Result(
            maps,
            scores,
            targets=[columns[number][image] for image, number in rows],
            covers=anatomy.covers if size == anatomy.grid else (height, width),
            facts={
                name: torch.stack([one.facts[name].float() for one in found], 1).flatten().cpu()
                for name in found[0].facts
            },
            warnings=[found[number].warnings[image] if found[number].warnings else [] for image, number in rows],
        )

    def _prepare(self, images: Any, max_pixels: int) -> _Prepared:
        if isinstance(images, Tensor):
            pixels = _checked_pixels(images)
            height, width = pixels.shape[2:]
            photos = [
                denormalise(one.float().cpu().numpy(), self.preprocessing.mean, self.preprocessing.std)
                for one in pixels
            ]
            geometries = [Geometry.identity(height, width)] * len(pixels)
            return _Prepared(pixels, photos, geometries, ["tensor"] * len(pixels))
        if isinstance(images, np.ndarray) and images.ndim == 4:
            images = list(images)
        if not isinstance(images, (list, tuple)):
            images = [images]
        if not images:
            raise ImageError("there are no images to explain")
        pictures = [load_image(source, max_pixels) for source in images]
        ready = [prepare(picture, self.preprocessing) for picture in pictures]
        return _Prepared(
            pixels=torch.from_numpy(np.stack([pixels for pixels, _ in ready])),
            photos=[np.asarray(picture) for picture in pictures],
            geometries=[geometry for _, geometry in ready],
            sources=[str(source) if isinstance(source, (str, Path)) else type(source).__name__ for source in images],
        )


def explain(
    model: nn.Module | str, images: Any, method: str | None = None, target: Any = None, **options: Any
) -> Explanation:
    """``Explainer(model).explain(images, method, target, **options)``: one line for one picture."""
    return Explainer(model).explain(images, method, target, **options)


def list_methods() -> list[Method]:
    """Every registered method, by name."""
    return [METHODS[name] for name in sorted(METHODS)]


def _checked_pixels(pixels: Tensor) -> Tensor:
    if pixels.ndim == 3:
        pixels = pixels.unsqueeze(0)
    if pixels.ndim != 4 or not pixels.is_floating_point() or not len(pixels):
        raise ImageError(
            f"a preprocessed tensor is (B, C, H, W) floating point, not {tuple(pixels.shape)} {pixels.dtype}"
        )
    if not finite(pixels):
        raise ImageError("the pixels are not finite (NaN or infinity)")
    return pixels.detach()


def _attribution(found: Tensor | Attribution) -> Attribution:
    return found if isinstance(found, Attribution) else Attribution(found)


def _versions() -> dict[str, str]:
    return {"vit_explain": __version__, "torch": torch.__version__, "python": platform.python_version()}
