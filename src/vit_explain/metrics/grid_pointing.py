"""Grid pointing."""

from __future__ import annotations

from torch import Tensor

from ..cases import Case
from ..localisation import positive_share
from ..metric_registry import metric


@metric(
    paper="Böhle, Fritz and Schiele, Convolutional Dynamic Alignment Networks, CVPR 2021",
    family="localisation",
    higher_is_better=True,
    means="In a picture put together of photos of different classes, which share of the relevance for one of the "
    "classes lies on its photo. The truth is known without anybody drawing it.",
    does_not_mean="A ViT sees all photos at once and answers with one or two of the classes; relevance for another "
    "is relevance for something it hardly says. A method that ignores the class has one over the number of photos.",
    needs={"mosaic"},
)
def grid_pointing(case: Case) -> Tensor:
    """Share of the map's positive relevance that lies in the photo of the class explained; higher is better.

    ``Σ_{cell} max(map, 0) / Σ max(map, 0)`` on mosaics of photos that the model knows with confidence; (B,) in [0, 1],
    zero for a map without positive values. Chance is one over the number of photos.
    """
    return positive_share(case)
