"""ALTI: how near each contribution comes to the whole, rolled out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..contributions import roll_contributions, written
from ..errors import ModelError
from ..layer import ALL, block_elements
from ..registry import method
from ..types import Trace


@method(
    paper="Ferrando et al., Measuring the Mixing of Contextual Information in the Transformer, EMNLP 2022",
    family="attention",
    means="How much of what the head reads comes from each patch, by how near each contribution comes to what a token "
    "becomes, multiplied through all layers.",
    does_not_mean="It tells how information is mixed, not what it is used for: no class is asked about. The MLPs are "
    "left out.",
    needs={"attention", "values", "tokens", "attended"},
    class_specific=False,
    beyond_passes="a vector of D numbers for each pair of tokens in every block",
    read_rows_suffice=lambda **_: True,
)
def alti(trace: Trace) -> Tensor:
    """Rollout of how near each token's contribution comes to what a token becomes.

    ``T_i(x_j) = Σ_h A^h_ij W_O^h v^h_j + δ_ij x_j``, ``y_i = x_i + attention_i = Σ_j T_i(x_j) + bias``,
    ``C_ij = max(0, ‖y_i‖₁ − ‖y_i − T_i(x_j)‖₁)``; rows are divided by their sums, and ``map = r C_L … C_1`` at the
    patches, (B, h, w). A token whose every contribution leads away from y keeps itself.

    The paper is about models with layer norms behind the residual, which scale T and y; in a ViT they lie before
    attention, so nothing does. As in the paper, y includes the bias of the projection, which belongs to no token.
    Unlike 2-norms, these need the vectors themselves: O(L N² D) numbers are computed, in blocks of rows, so large
    inputs take time.
    """

    if not trace.attended:
        raise ModelError("alti needs what attention adds to the tokens, which this model hides; use rollout instead")

    def nearness(number: int, rows: slice) -> Iterator[tuple[slice, slice, Tensor]]:
        layer, tokens = trace.layers[number], trace.tokens[number].detach().float()
        projection = trace.inquiry.projection(number)
        whole = tokens + trace.attended[number].float()
        batch, keys, width = tokens.shape
        step = max(1, block_elements(layer.device) // (keys * width))
        for image in range(batch):
            one = slice(image, image + 1)
            vectors = written(layer, projection, one, ALL)[0]  # (M, H, D)
            for first in range(rows.start, rows.stop, step):
                part = slice(first, min(first + step, rows.stop))
                weights = layer.attention(one, part)[0].permute(2, 1, 0).contiguous()  # (M, rows, H)
                y = whole[image, part]
                parts = torch.bmm(weights, vectors)  # T: (M, rows, D)
                parts.diagonal(-first, 0, 1).add_(tokens[image, part].T)
                near = y.abs().sum(1) - parts.sub_(y).abs_().sum(2)
                yield one, part, near.clamp_min_(0).T.unsqueeze(0)

    return trace.patches(roll_contributions(trace, nearness))
