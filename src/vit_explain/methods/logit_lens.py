"""The head's view of single patch tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..layer import block_elements
from ..options import nth
from ..registry import method
from ..types import Trace


@method(
    paper="Vilas et al., Analyzing Vision Transformers for Image Classification in Class Embedding Space, NeurIPS 2023",
    family="looking inside",
    means="How likely the model's head would find the class if each patch's token were all that it reads, at one "
    "layer.",
    does_not_mean="It is not the model's answer: the head may never read patch tokens, and those of early layers do "
    "not speak its language. A token of a deep layer holds more than its own patch.",
    needs={"tokens"},
    class_specific=True,
    signed=lambda *, scale, of_class, **_: scale == "logit" or not of_class,  # probabilities are never below zero
)
def logit_lens(trace: Trace, *, layer: int = -1, scale: Literal["probability", "logit"] = "probability") -> Tensor:
    """Which class the model's head reads in each patch token alone, at any layer.

    ``y_i = head(norm(x_i))`` for the token x_i of patch i as it leaves the block, (B, h, w): the output of the model if
    every token had been x_i. So a class token is replaced by the patch token, the mean over patches is the patch
    itself, and a pooling attention finds the same value everywhere. The paper ranks the class among all classes; here
    its number is returned. Tokens of early layers speak the head's language only in part, and of the last block only
    what the head reads was trained to: with a class token, patches may say more some blocks earlier.

    ``layer``: block number from 0, or from the end when negative. ``scale``: the softmax probability of the class,
    which compares tokens, or its logit; functions as targets give what they give.
    """
    number = nth(layer, len(trace.anatomy.blocks), "logit_lens", "layer")
    prefix = trace.anatomy.prefix
    tokens = trace.tokens[number + 1].detach()[:, prefix:]
    batch, _, width = tokens.shape
    # One patch after all prefix tokens is the shortest sequence that every way of reading finds its tokens in.
    length = prefix + 1
    together = max(1, 16 * block_elements(tokens.device) // (batch * length * width))
    found = []
    for some in tokens.split(together, 1):
        output = trace.inquiry.lens(some.reshape(-1, 1, width).expand(-1, length, -1))
        values = trace.inquiry.value(output, probability=scale == "probability")
        found.append(values.unflatten(0, (batch, -1)))
    return torch.cat(found, 1).unflatten(1, trace.anatomy.grid)
