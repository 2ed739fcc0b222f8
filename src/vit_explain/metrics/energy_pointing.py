"""Energy-based pointing game."""

from __future__ import annotations

from torch import Tensor

from ..cases import Case
from ..localisation import positive_share
from ..metric_registry import metric


@metric(
    paper="Wang et al., Score-CAM, CVPR Workshops 2020",
    family="localisation",
    higher_is_better=True,
    means="Which share of a map's positive relevance lies on the object.",
    does_not_mean="A large object holds a large share of any map: compare with the uniform one.",
    needs={"truth"},
)
def energy_pointing(case: Case) -> Tensor:
    """Share of the map's positive relevance that lies on the object; higher is better.

    ``Σ_{object} max(map, 0) / Σ max(map, 0)`` on pixels, each patch's value spread evenly over it; (B,) in [0, 1], zero
    for a map without positive values.
    """
    return positive_share(case)
