"""The original script's way of computing attention rollout, written again for comparison: attention unfused and kept,
one image at a time, N×N×N products. Column scaling and discarding follow the script; see ``legacy`` in the package."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OriginalRollout:
    """Forward hooks on ``attn_drop`` of every block, as the script had them; ``fused_attn`` is off meanwhile."""

    def __init__(self, model: nn.Module, head_fusion: str, discard_ratio: float) -> None:
        self.model, self.head_fusion, self.discard_ratio = model, head_fusion, discard_ratio
        self.attentions: list[Tensor] = []

    def __enter__(self) -> OriginalRollout:
        drops = [block.attn.attn_drop for block in self.model.blocks]
        self.hooks = [drop.register_forward_hook(lambda _m, _i, out: self.attentions.append(out)) for drop in drops]
        for block in self.model.blocks:
            block.attn.fused_attn = False
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
        for block in self.model.blocks:
            block.attn.fused_attn = True

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        self.attentions.clear()
        self.model(image)
        tokens = self.attentions[0].shape[-1]
        result, identity = torch.eye(tokens), torch.eye(tokens)
        for attention in self.attentions:
            fused = {"mean": attention.mean, "max": attention.amax, "min": attention.amin}[self.head_fusion](1)
            flat = fused.view(1, -1)
            lowest = flat.topk(int(flat.shape[-1] * self.discard_ratio), -1, False).indices
            flat[0, lowest[lowest != 0]] = 0
            halved = (fused + identity) / 2
            result = torch.matmul(halved / halved.sum(-1), result)
        return result[0, 0, 1:]
