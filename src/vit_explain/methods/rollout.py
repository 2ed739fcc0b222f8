"""Attention rollout."""

from __future__ import annotations

from torch import Tensor

from ..attention_paths import plain
from ..propagate import DiscardRatio, HeadFusion, legacy_roll_out, pooled_row, protected_tokens, roll_out
from ..registry import method
from ..types import Trace


@method(
    paper="Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020",
    family="attention",
    means="Where information could have come from: attention multiplied through all layers, where the residual counts "
    "as each token's attention to itself.",
    does_not_mean="It does not depend on a class, so it cannot tell what spoke for an answer. It sees neither the "
    "values nor the MLPs, and where a model parks attention on background patches, these light up.",
    any_layout=True,
    needs={"attention"},
    class_specific=False,
    read_rows_suffice=lambda *, discard_ratio, legacy, **_: discard_ratio == 0 and not legacy,
)
def rollout(
    trace: Trace, *, head_fusion: HeadFusion = "mean", discard_ratio: DiscardRatio = 0.0, legacy: bool = False
) -> Tensor:
    """Attention multiplied through all layers, residual connections included: where the model looked.

    ``Ã = rownorm(discard(fuse_h A) + I)``, ``map = r Ã_L … Ã_1`` at the patches, (B, h, w), where r is the row the
    head reads. With mean fusion and nothing discarded ``Ã = ½ A + ½ I`` as in the paper; fusing by max or min and
    discarding the lowest entries come from Gildenblat's vit-explain (2020). Not class-specific.

    ``legacy``: that script's arithmetic to the letter (columns divided by the row sums; on one image at a time).
    """
    if legacy:
        return trace.patches(legacy_roll_out(trace, plain, head_fusion, discard_ratio, keep_first=True))
    row = pooled_row(trace, plain, head_fusion)
    protected = protected_tokens(trace)
    rolled = roll_out(trace.layers, row, plain, head_fusion, discard_ratio, protected, trace.read_tokens)
    return trace.patches(rolled)
