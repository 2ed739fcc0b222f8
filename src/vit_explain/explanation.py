"""What users keep: the raw relevance, and the way from there to pictures and files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import render, store
from .errors import OptionError, OutputError
from .image import Geometry


@dataclass(eq=False, repr=False)
class Explanation:
    """Relevance of R rows, each one image and one target. On the CPU, detached, never normalised.

    ``relevance``: (R, h, w) float32 on the patch grid, or on the pixels of the model's input, raw and signed. Row r
    belongs to image ``image_of[r]`` and explains ``targets[r]`` (empty where the method does not depend on a class).
    Images are counted from 0.
    """

    relevance: NDArray[np.float32]
    image_of: list[int]
    targets: list[str]
    target_numbers: list[int | None]
    logits: NDArray[np.float32]  # (images, classes)
    labels: list[str] | None
    method: str
    signed: bool
    options: dict[str, Any]
    model: str
    photos: list[NDArray[np.uint8]]  # (H, W, 3) an image, as the viewer sees it
    geometries: list[Geometry]
    sources: list[str]
    facts: dict[str, NDArray[np.float32]]  # numbers about the maps, (R,) each, such as a completeness gap
    warnings: list[list[str]]  # what a reader of each row's map must know
    seconds: float
    versions: dict[str, str]
    checkpoint: str | None = None  # the file of weights that was named with the model
    verdicts: list[dict[str, Any]] = field(default_factory=list)  # of each row, where it was verified; see ``verdict``

    def __repr__(self) -> str:
        grid = "×".join(map(str, self.relevance.shape[1:]))
        targets = ", ".join(dict.fromkeys(filter(None, self.targets)))
        rows = f"{len(self.image_of)} maps" if len(self.image_of) != 1 else "1 map"
        return f"<Explanation: {rows} of {self.model} by {self.method}, {grid}{f', for {targets}' if targets else ''}>"

    def heatmaps(self, interpolation: str = "bilinear") -> list[NDArray[np.float32]]:
        """A (H, W) map in [0, 1] a row, at the original image's size; see ``render.normalise`` for the scale."""
        scaled = render.normalise(self.relevance, self.signed)
        # Pixels the model never saw carry no relevance: the bottom of the scale, or its middle where it has a sign.
        outside = 0.5 if self.signed else 0.0
        return [
            self.geometries[image].to_original(scaled[row : row + 1], interpolation, outside)[0]
            for row, image in enumerate(self.image_of)
        ]

    def heatmap(self, interpolation: str = "bilinear") -> NDArray[np.float32]:
        """(R, H, W) float32 in [0, 1] at the original images' size, where all have one size (else ``heatmaps()``)."""
        maps = self.heatmaps(interpolation)
        sizes = {part.shape for part in maps}
        if len(sizes) != 1:
            raise OutputError(f"the images have {len(sizes)} different sizes: use heatmaps(), which returns a list")
        return np.stack(maps)

    def overlay(self, row: int = 0, colormap: str | None = None, opacity: float = 0.7) -> NDArray[np.uint8]:
        """The photo of a row with its map on it, (H, W, 3); the photo shows through unchanged where nothing matters."""
        return render.overlay(self.photo(row), self.heatmaps()[row], self.signed, colormap, opacity)

    def photo(self, row: int = 0) -> NDArray[np.uint8]:
        """The original image of a row, (H, W, 3)."""
        return self.photos[self.image_of[row]]

    def top(self, row: int = 0, k: int = 5) -> list[tuple[str, int, float]]:
        """The k classes that the model finds most likely for a row's image: (label, number, probability). None of a
        model of a single class, whose score is no probability."""
        logits = self.logits[self.image_of[row]].astype(np.float64)
        if logits.size < 2:
            return []
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = np.argsort(-probabilities, kind="stable")[:k]
        return [(self._label(int(n)), int(n), float(probabilities[n])) for n in best]

    def where(self, row: int = 0) -> str:
        """In words, where in the *photo* the relevance of a row lies."""
        geometry = self.geometries[self.image_of[row]]
        # 64 pixels along the longer side are precise enough for words, and quick for large photos; but what the model
        # saw of a very thin one must not vanish.
        left, top, right, bottom = geometry.seen_box
        scale = max(64 / max(geometry.original), min(1.0, 16 / min(right - left, bottom - top)))
        height, width = (max(1, round(side * scale)) for side in geometry.original)
        small = dataclasses.replace(geometry, original=(height, width))
        return render.describe(
            small.to_original(self.relevance[row][None], "nearest")[0], self.signed, bool(self.targets[row])
        )

    def seen_share(self, row: int = 0) -> float:
        """Share of the photo's area that the model saw; its own preprocessing may crop."""
        return self.geometries[self.image_of[row]].seen_share

    def row(self, row: int) -> Explanation:
        """One row on its own; -1 is the last."""
        if not -len(self.image_of) <= row < len(self.image_of):
            raise OptionError(f"there is no row {row}: the explanation has {len(self.image_of)}")
        row %= len(self.image_of)
        image = self.image_of[row]
        return dataclasses.replace(
            self,
            relevance=self.relevance[row : row + 1],
            image_of=[0],
            targets=[self.targets[row]],
            target_numbers=[self.target_numbers[row]],
            logits=self.logits[image : image + 1],
            photos=[self.photos[image]],
            geometries=[self.geometries[image]],
            sources=[self.sources[image]],
            facts={name: values[row : row + 1] for name, values in self.facts.items()},
            warnings=[self.warnings[row]],
            verdicts=self.verdicts[row : row + 1],
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything but the arrays, ready for JSON."""
        return {
            "method": self.method,
            "options": {name: _plain(value) for name, value in self.options.items()},
            "model": self.model,
            "checkpoint": self.checkpoint,
            "signed": self.signed,
            "seconds": round(self.seconds, 4),
            "versions": self.versions,
            "grid": list(self.relevance.shape[1:]),
            "images": [
                {"source": source, "geometry": geometry.as_dict(), "seen_share": round(geometry.seen_share, 4)}
                for source, geometry in zip(self.sources, self.geometries, strict=True)
            ],
            "rows": [
                {
                    "image": image,
                    "target": self.targets[row],
                    "target_number": self.target_numbers[row],
                    "where": self.where(row),
                    "facts": {name: float(values[row]) for name, values in self.facts.items()},
                    "warnings": self.warnings[row],
                    **({"verdict": self.verdicts[row]} if self.verdicts else {}),
                    "top": [
                        {"label": label, "number": number, "probability": round(probability, 6)}
                        for label, number, probability in self.top(row)
                    ],
                }
                for row, image in enumerate(self.image_of)
            ],
            "labels": self.labels,
        }

    def files(self, colormap: str | None = None, opacity: float = 0.7) -> dict[str, bytes]:
        """What ``save`` writes, by file name; with several rows the pictures are numbered."""
        arrays = {"relevance": self.relevance, "logits": self.logits, "image_of": np.array(self.image_of)}
        files = {"explanation.npz": store.npz(arrays)}
        for row, heat in enumerate(self.heatmaps()):
            end = f"-{row}" if len(self.image_of) > 1 else ""
            photo = self.photo(row)
            picture = render.overlay(photo, heat, self.signed, colormap, opacity)
            captions = ("photo", self.caption(row), "overlay")
            panel = render.side_by_side(
                photo, heat, self.signed, self.verdicts[row]["summary"] if self.verdicts else "", captions,
                colormap=colormap, opacity=opacity, seen_box=self.geometries[self.image_of[row]].seen_box,
                of_class=bool(self.targets[row]),
            )  # fmt: skip
            files[f"overlay{end}.png"] = render.png(picture)
            files[f"side_by_side{end}.png"] = render.png(panel)
        return files

    def caption(self, row: int = 0) -> str:
        """Method and target in a few words."""
        return f"{self.method}: {self.targets[row]}" if self.targets[row] else self.method

    def save(self, folder: str | Path, colormap: str | None = None, opacity: float = 0.7) -> list[Path]:
        """Write pictures, ``explanation.npz`` and, last, ``manifest.json``; returns their paths."""
        return store.write_folder(Path(folder), self.files(colormap, opacity), self.as_dict())

    def _label(self, number: int) -> str:
        return self.labels[number] if self.labels is not None else f"class {number}"


def _plain(value: Any) -> Any:
    """The value as JSON knows it."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
