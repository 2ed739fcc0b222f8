"""Several methods on the same images: their maps side by side, what each cost, and how far they agree."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from . import charts, render, store
from .explanation import Explanation
from .ranks import spearman
from .registry import METHODS

AGREEMENT_NOTE = (
    "Spearman's rank correlation of raw maps on the patch grid, maps at pixels averaged over patches. "
    "A dash: a map that is the same everywhere, which ranks nothing."
)


@dataclass(eq=False)
class Comparison:
    """What several methods say of the same images and targets. At least one method is there.

    ``explanations``: by name, in the order asked; ``seconds`` of each are its own, beside ``look_seconds``, which are
    those of the looks that several methods shared. ``refused``: why other methods could not explain this model.
    """

    explanations: dict[str, Explanation]
    refused: dict[str, str]
    look_seconds: float
    grid: tuple[int, int]
    covers: tuple[int, int]  # pixels (height, width) of the model's input that the grid stands for

    @property
    def names(self) -> list[str]:
        return list(self.explanations)

    @property
    def rows(self) -> int:
        """Rows of the methods that depend on a class: images times targets; the others have one an image."""
        return max(len(one.image_of) for one in self.explanations.values())

    def row_of(self, name: str, row: int) -> int:
        """Which row of this method's explanation goes with a row of the comparison."""
        return row * len(self.explanations[name].image_of) // self.rows

    def target(self, row: int = 0) -> str:
        """What the methods that depend on a class explain in this row; empty where none does."""
        return next((one.targets[row] for one in self.explanations.values() if one.targets[-1]), "")

    def on_patches(self, name: str) -> NDArray[np.float32]:
        """A method's raw maps on the patch grid, (R, h, w); finer ones, such as maps at pixels, are averaged over each
        patch."""
        maps = self.explanations[name].relevance
        if maps.shape[1:] == self.grid:
            return maps
        height, width = self.covers
        inside = torch.from_numpy(maps[:, None, :height, :width])
        return torch.nn.functional.adaptive_avg_pool2d(inside, self.grid)[:, 0].numpy()

    def agreement(self, row: int | None = None) -> NDArray[np.float64]:
        """Spearman's rank correlation of every two methods' maps on the patch grid: (M, M), in the order of ``names``.

        Of one row, or the mean over all of them. Raw maps are ranked, those with a sign from most against to most for;
        equal values share their mean rank. A map that is the same everywhere has no ranks: NaN.
        """
        found = self._agreements if row is None else self._agreements[[row]]
        known = np.isfinite(found)
        total, counted = np.where(known, found, 0).sum(0), known.sum(0)
        return np.divide(total, counted, out=np.full(total.shape, np.nan), where=counted > 0)

    @cached_property
    def _agreements(self) -> NDArray[np.float64]:
        """Of each row on its own, (R, M, M)."""
        maps = {name: self.on_patches(name).reshape(-1, math.prod(self.grid)) for name in self.names}
        return np.stack([
            spearman(np.stack([maps[name][self.row_of(name, one)] for name in self.names])) for one in range(self.rows)
        ])  # fmt: skip

    def nearest(self) -> dict[str, tuple[float, str]]:
        """For each method, its mean agreement with the others and the one that is most alike; absent if it has none."""
        found = self.agreement()
        np.fill_diagonal(found, np.nan)
        return {
            name: (float(np.nanmean(values)), self.names[int(np.nanargmax(values))])
            for name, values in zip(self.names, found, strict=True)
            if np.isfinite(values).any()
        }

    def picture(
        self, row: int = 0, *, overlay: bool = True, colormap: str | None = None, opacity: float = 0.7, cell: int = 200
    ) -> Image.Image:
        """The photo and, beside it, every method's map on it, or alone; with names and the seconds of each."""
        small = {name: self._thumbnail(name, row, 2 * cell) for name in self.names}
        first = small[self.names[0]]
        pictures, captions = [first.photos[0]], [("photo", " × ".join(map(str, self._size(row))))]
        for name, one in small.items():
            pictures.append(
                one.overlay(0, colormap, opacity)
                if overlay
                else render.colorize(one.heatmaps()[0], render.colormap_for(one.signed, colormap))
            )
            captions.append((name, seconds(one.seconds)))
        return charts.gallery(pictures, captions, self.title(row), cell)

    def agreement_picture(self) -> Image.Image:
        """``agreement()`` as a matrix of colours and numbers."""
        model = self.explanations[self.names[0]].model
        about = self.title(0) if self.rows == 1 else f"{model}, mean over {self.rows} images and targets"
        return charts.matrix(self.agreement(), self.names, f"Agreement: {about}", AGREEMENT_NOTE)

    def title(self, row: int = 0) -> str:
        """Photo, model and target in a line."""
        first = self.explanations[self.names[0]]
        source = Path(first.sources[first.image_of[self.row_of(self.names[0], row)]]).name
        return ", ".join(part for part in (source, first.model, self.target(row)) if part)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the maps, ready for JSON; agreement is null where a map ranks nothing."""
        first, nearest = self.explanations[self.names[0]].as_dict(), self.nearest()
        methods = []
        for name, one in self.explanations.items():
            said = one.as_dict()
            agreement, like = nearest.get(name, (None, None))
            facts = {"forwards": METHODS[name].forwards, "backwards": METHODS[name].backwards}
            close = {"mean_agreement": agreement, "most_like": like}
            rows = [{key: value for key, value in row.items() if key != "top"} for row in said["rows"]]
            kept = {key: said[key] for key in ("method", "options", "signed", "seconds", "grid")}
            methods.append({**kept, **facts, **close, "rows": rows})
        return {
            "model": first["model"],
            "versions": first["versions"],
            "images": first["images"],
            "labels": first["labels"],
            "top": [row["top"] for row in first["rows"]],
            "look_seconds": round(self.look_seconds, 4),
            "patches": list(self.grid),
            "methods": methods,
            "refused": self.refused,
            "agreement": [[float(v) if np.isfinite(v) else None for v in line] for line in self.agreement()],
        }

    def files(self, colormap: str | None = None, opacity: float = 0.7) -> dict[str, bytes]:
        """What ``save`` writes, by file name; with several rows the pictures of maps are numbered."""
        arrays: dict[str, Any] = {
            "methods": np.array(self.names),
            "seconds": np.array([one.seconds for one in self.explanations.values()]),
            "agreement": self.agreement(),
            **{f"relevance_{name}": one.relevance for name, one in self.explanations.items()},
        }
        files = {"comparison.npz": store.npz(arrays), "agreement.png": render.png(self.agreement_picture())}
        for row in range(self.rows):
            end = f"-{row}" if self.rows > 1 else ""
            for name, overlay in (("comparison", True), ("maps", False)):
                picture = self.picture(row, overlay=overlay, colormap=colormap, opacity=opacity)
                files[f"{name}{end}.png"] = render.png(picture)
        return files

    def save(self, folder: str | Path, colormap: str | None = None, opacity: float = 0.7) -> list[Path]:
        """Write the pictures, ``comparison.npz`` and, last, ``manifest.json``; returns their paths."""
        return store.write_folder(Path(folder), self.files(colormap, opacity), self.as_dict())

    def _size(self, row: int) -> tuple[int, int]:
        """(width, height) of a row's photo."""
        height, width = self.explanations[self.names[0]].photo(self.row_of(self.names[0], row)).shape[:2]
        return width, height

    def _thumbnail(self, name: str, row: int, longest: int) -> Explanation:
        """One row of an explanation on a small copy of its photo: large ones would not all fit into memory."""
        one = self.explanations[name].row(self.row_of(name, row))
        photo = Image.fromarray(one.photos[0])
        photo.thumbnail((longest, longest))
        geometry = dataclasses.replace(one.geometries[0], original=(photo.height, photo.width))
        return dataclasses.replace(one, photos=[np.asarray(photo)], geometries=[geometry])


def seconds(value: float) -> str:
    """A time in as many digits as anyone wants to know."""
    if value < 0.1:
        return f"{1000 * value:.0f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"
