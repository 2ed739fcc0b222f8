"""GlobEnc: norms of contributions, rolled out."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..contributions import grams, roll_contributions, squared_norms
from ..layer import ALL
from ..registry import method
from ..types import Trace


@method(
    paper="Modarressi et al., GlobEnc: Quantifying Global Token Attribution by Incorporating the Whole Encoder Layer "
    "in Transformers, NAACL 2022",
    family="attention",
    means="How much of what the head reads comes from each patch, by the norms of what attention and residual bring, "
    "multiplied through all layers.",
    does_not_mean="A norm has no direction: contributions that cancel each other still count. The MLPs are left out, "
    "and no class is asked about.",
    needs={"attention", "values", "tokens"},
    class_specific=False,
    beyond_passes="a product with a matrix of H by H for each pair of tokens in every block",
    read_rows_suffice=lambda **_: True,
)
def globenc(trace: Trace) -> Tensor:
    """Rollout of how much of each token's next state comes from which token: norms instead of attention.

    ``N_ij = ‖Σ_h A^h_ij W_O^h v^h_j + δ_ij x_j‖₂`` with the tokens x that enter the block; rows are divided by their
    sums, and ``map = r N_L … N_1`` at the patches, (B, h, w). The residual is part of the norm, so none is added.

    The paper is about BERT, whose layer norms lie behind the residual: there each contribution is also scaled by both
    norms of a block. In a ViT they lie before attention and before the MLP, where W_V's input already went through
    the first, and nothing scales the residual stream, so there is nothing to add. As in the paper, what the MLP does
    to contributions is left out. The authors' code multiplies the norms as they are; behind a norm all tokens are about
    equally long, but in a ViT's residual stream long tokens would outweigh all others, so rows are divided by their
    sums, as rollout and ALTI do it.
    """

    def norms(number: int, rows: slice) -> Iterator[tuple[slice, slice, Tensor]]:
        layer, tokens = trace.layers[number], trace.tokens[number].detach().float()
        gram = grams(layer, trace.inquiry.projection(number), tokens)
        for images, part in layer.blocks(ALL, rows):
            weights = layer.attention(images, part)
            squares = squared_norms(weights, gram[images, :, :-1, :-1])
            # ‖t + x‖² = ‖t‖² + 2 t·x + ‖x‖² where a token looks at itself.
            own = weights.diagonal(part.start, 2, 3).transpose(1, 2)  # (b, rows, H)
            beside = gram[images, part, -1]  # u·x of each head, and ‖x‖²
            squares.diagonal(part.start, 1, 2).add_(2 * (own * beside[..., :-1]).sum(2) + beside[..., -1])
            yield images, part, squares.clamp_min_(0).sqrt_()

    return trace.patches(roll_contributions(trace, norms))
