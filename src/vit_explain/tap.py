"""Every attention call of a model, without touching the model.

One ``TorchFunctionMode`` intercepts the attention *operation*: fused ``scaled_dot_product_attention`` (recomputed
later from its q and k, so the fused kernel keeps running), also where ``nn.MultiheadAttention`` calls it, and, for code
that spells attention out, a softmax whose result goes into a matrix product. The mode is local to the thread and gone
when the ``with`` block ends.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .eager import Eager
from .errors import CaptureError
from .layer import Layer
from .multihead import WHOLE, added, for_each_head, multi_head_attention
from .slabs import Slab


class AttentionTap(TorchFunctionMode):
    """Collects one ``Layer`` an attention call while it is entered.

    ``gradient``: outputs stay in the graph, so that ``∂y/∂out`` can be asked for; ``values``: v is kept too.
    ``shortened``: (number of a call, queries): of that fused call only the first so many queries are kept.
    ``images``: B, for calls that have images and heads in one dimension.
    """

    def __init__(
        self, *, gradient: bool, values: bool, shortened: tuple[int, int] | None = None, images: int = 1
    ) -> None:
        super().__init__()
        self.gradient, self.values, self.shortened, self.images = gradient, values, shortened, images
        self.layers: list[Layer] = []
        self._eager = Eager(images)
        self._slab = Slab()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        if func is WHOLE:
            return multi_head_attention(self, *args, **kwargs)
        if not self._eager.follows(func):
            return func(*args, **kwargs)
        product = self._eager.product(func, args, kwargs)
        result = func(*args, **kwargs)
        if product is None:
            self._eager.follow(func, args, kwargs, result)
            return result
        out = self._leaf(product.parted(result))
        values = product.values.detach() if self.values else None
        self.layers.append(Layer(1.0, v=values, probabilities=product.weights.detach(), out=out))
        return product.joined(out)

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        merged = query.ndim == 3 and len(query) % self.images == 0  # (B·H, N, D)
        if merged:
            query, key, value, out = (x.unflatten(0, (self.images, -1)) for x in (query, key, value, out))
            if attn_mask is not None and attn_mask.ndim == 3 and len(attn_mask) > 1:
                attn_mask = attn_mask.unflatten(0, (self.images, -1))
        if query.ndim not in (4, 5):
            raise CaptureError(f"attention over {tuple(query.shape)} queries: only (B, heads, N, D) is understood")
        if enable_gqa:
            key, value = for_each_head(query, key, value)
        attn_mask = added(attn_mask, torch.float32)
        out = self._leaf(out)
        queries = query.shape[-2]
        if self.shortened is not None and len(self.layers) == self.shortened[0]:
            query = query[:, :, : self.shortened[1]]
        self.layers.append(
            Layer(
                scale if scale is not None else query.shape[-1] ** -0.5,
                q=self._keep(query),
                k=self._keep(key),
                v=self._keep(value) if self.values else None,
                bias=attn_mask,
                causal=is_causal,
                out=out if self.gradient else None,
                dropped=queries - query.shape[-2],
                memory=self._slab,
            )
        )
        return out.flatten(0, 1) if merged else out

    def _keep(self, tensor: Tensor) -> Tensor:
        """Detached; copied where it is a view that would keep a larger buffer (q, k, v in one) alive for nothing."""
        tensor = tensor.detach()
        shared = tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
        return self._slab.copy(tensor) if shared and not self.gradient else tensor

    def _leaf(self, out: Tensor) -> Tensor:
        """Start the graph here where nothing before it needs a gradient (frozen parameters, plain pixels)."""
        return out.detach().requires_grad_() if self.gradient and not out.requires_grad else out
