"""The original project's two classes, called as its README calls them; a thin layer over ``Explainer``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from .explainer import Explainer


class _Original:
    def __init__(self, model: nn.Module, head_fusion: str, discard_ratio: float, legacy: bool) -> None:
        self._explainer = Explainer(model)
        self._options = {"head_fusion": head_fusion, "discard_ratio": discard_ratio, "legacy": legacy}

    def _mask(self, input_tensor: Tensor, method: str, target: int | None) -> NDArray[np.float32]:
        relevance = self._explainer.attribute(input_tensor, target, method, **self._options).cpu().numpy()
        highest = relevance.max((1, 2), keepdims=True)
        masks = np.divide(relevance, highest, out=np.zeros_like(relevance), where=highest > 0)
        return masks[0] if len(masks) == 1 else masks


class VITAttentionRollout(_Original):
    """``VITAttentionRollout(model, head_fusion="max", discard_ratio=0.9)(input_tensor)`` -> (h, w) with maximum 1.

    A batch of several images gives (B, h, w). ``legacy=True`` repeats the original's arithmetic, faults included.
    ``attention_layer_name`` is taken for the sake of old code: attention is intercepted, no layer is looked up by name.
    """

    def __init__(
        self,
        model: nn.Module,
        attention_layer_name: str = "attn_drop",
        head_fusion: str = "mean",
        discard_ratio: float = 0.9,
        *,
        legacy: bool = False,
    ) -> None:
        del attention_layer_name
        super().__init__(model, head_fusion, discard_ratio, legacy)

    def __call__(self, input_tensor: Tensor) -> NDArray[np.float32]:
        return self._mask(input_tensor, "rollout", None)


class VITAttentionGradRollout(_Original):
    """``VITAttentionGradRollout(model, discard_ratio=0.9)(input_tensor, category_index=243)`` -> (h, w), maximum 1.

    ``category_index``: the class to explain, by default the likeliest. The rest as for ``VITAttentionRollout``.
    """

    def __init__(
        self,
        model: nn.Module,
        attention_layer_name: str = "attn_drop",
        discard_ratio: float = 0.9,
        head_fusion: str = "mean",
        *,
        legacy: bool = False,
    ) -> None:
        del attention_layer_name
        super().__init__(model, head_fusion, discard_ratio, legacy)

    def __call__(self, input_tensor: Tensor, category_index: int | None = None) -> NDArray[np.float32]:
        return self._mask(input_tensor, "gradient_rollout", category_index)
