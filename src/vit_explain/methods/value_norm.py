"""The norm of what attention brings from each patch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contributions import grams, squared_norms
from ..layer import ALL, Layer
from ..options import nth
from ..propagate import pooled_row
from ..registry import method
from ..types import Trace


@method(
    paper="Kobayashi et al., Attention is Not Only a Weight: Analyzing Transformers with Vector Norms, EMNLP 2020",
    family="attention",
    means="How large a vector one layer's attention brings from each patch to what the head reads.",
    does_not_mean="A large vector need not matter to the answer, and those of different patches may cancel. The "
    "residual, the MLPs and the other layers are left out, and no class is asked about.",
    needs={"attention", "values"},
    class_specific=False,
    read_rows_suffice=lambda **_: True,
)
def value_norm(trace: Trace, *, layer: int = -1) -> Tensor:
    """How much one layer's attention brings from each patch: attention times the size of what is there to bring.

    ``map_j = ‖Σ_h a^h_j W_O^h v^h_j‖₂`` with ``a^h = r A^h`` the row of head h that the head of the model reads,
    (B, h, w); heads are summed as vectors, so they may cancel. LayerScale belongs to ``W_O``. Where the model reads a
    mean of tokens, this is the norm of what is added to that mean. The bias of the projection belongs to no token and
    is left out, as in the paper, and so is the residual: see globenc.

    ``layer``: block number from 0, or from the end when negative; rows of earlier layers are those of the tokens that
    are read in the end (of a pooling attention, weighted by its mean over heads).
    """
    number = nth(layer, len(trace.layers), "value_norm", "layer")
    call, row = trace.layers[number], pooled_row(trace, Layer.attention, "mean")
    batch, heads, _, keys = call.shape
    weights = torch.zeros(batch, heads, 1, keys, dtype=torch.float32, device=call.device)
    for images, rows in call.blocks(ALL, trace.read_tokens):
        weights[images] += row[images, None, None, rows] @ call.attention(images, rows)
    gram = grams(call, trace.inquiry.projection(number))
    return trace.patches(squared_norms(weights, gram).clamp_min_(0).sqrt_().squeeze(1))
