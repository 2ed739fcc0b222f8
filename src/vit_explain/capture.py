"""Record a look: every attention call of a model, without touching the model.

One ``TorchFunctionMode`` intercepts the attention *operation*: fused ``scaled_dot_product_attention`` (recomputed
later from its q and k, so the fused kernel keeps running), also where ``nn.MultiheadAttention`` calls it, and, for code
that spells attention out, a softmax whose result goes into a matrix product. The mode is local to the thread and gone
when the ``with`` block ends.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .biases import BiasTap
from .eager import Eager
from .errors import CaptureError, TargetError
from .heap import release_holes
from .hooks import hooked, modules_of
from .multihead import WHOLE, multi_head_attention
from .types import Anatomy, Layer, Placement, Plan, Readout, Trace

_SPARE = threading.local()


class Slab:
    """Contiguous copies of tensors, side by side in a few large buffers.

    What is kept through a look would otherwise lie between the model's own short-lived buffers on the heap and keep the
    room between them from being used again (measured at 4,097 tokens: 130 MB on top of 300 MB that are kept). Buffers
    go to the thread's next look, up to ``SPARE`` of them: memory that was never touched costs time when it first is.
    """

    SIZE, SPARE, ALIGNMENT = 2**26, 2, 64  # bytes, buffers, bytes; pages that nothing is written to cost nothing

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._used = 0

    def copy(self, tensor: Tensor) -> Tensor:
        size = tensor.numel() * tensor.element_size()
        if tensor.device.type != "cpu":
            return tensor.clone(memory_format=torch.contiguous_format)
        if not self._buffers or len(self._buffers[-1]) - self._used < size:
            spare = _spare_buffers()
            fits = spare and len(spare[-1]) >= size
            buffer = spare.pop() if fits else torch.empty(max(self.SIZE, size), dtype=torch.uint8)
            self._buffers.append(buffer)
            self._used = 0
        if len(self._buffers) > self.SPARE:
            release_holes()
        piece = self._buffers[-1][self._used : self._used + size]
        self._used += -(-size // self.ALIGNMENT) * self.ALIGNMENT
        return piece.view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def __del__(self) -> None:
        """Layers hold their slab: when the last of them is gone, nothing reads its buffers any more."""
        spare = _spare_buffers()
        usual = [buffer for buffer in self._buffers if len(buffer) == self.SIZE]
        spare.extend(usual[: self.SPARE - len(spare)])


def _spare_buffers() -> list[Tensor]:
    if not hasattr(_SPARE, "buffers"):
        _SPARE.buffers = []
    return _SPARE.buffers


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
        product = self._eager.product(func, args)
        result = func(*args, **kwargs)
        if product is None:
            self._eager.follow(func, args, result)
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
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=torch.float32).masked_fill_(~attn_mask, -torch.inf)
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


def by_window(tensor: Tensor, place: Placement | None) -> Tensor:
    """(B, H, W, N, D), (B, W, H, N, D) or (B, W·H, N, D), as windows are sometimes kept apart, -> (B·W, H, N, D)."""
    if place is None or (tensor.ndim == 4 and not place.windows_first):
        return tensor
    if tensor.ndim == 4:
        tensor = tensor.unflatten(1, (place.windows, -1))
    return (tensor if place.windows_first else tensor.transpose(1, 2)).flatten(0, 1)


_TRAINING_LOCK = threading.RLock()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode; the flag of each is put back afterwards, also when something raises."""
    if not any(module.training for module in modules_of(model)):
        yield
        return
    with _TRAINING_LOCK:
        training = [module for module in modules_of(model) if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True


@dataclass(eq=False)
class Seen:
    """What one forward left: the attention calls in order, the tokens that were asked for, the model's output."""

    output: Any
    layers: list[Layer] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    norms: Tensor | None = None
    attended: list[Tensor] = field(default_factory=list)
    features: Tensor | None = None
    biases: Tensor | None = None


def look(
    model: nn.Module,
    pixels: Tensor,
    needs: Container[str],
    anatomy: Anatomy | None = None,
    *,
    shortened: tuple[int, int] | None = None,
) -> Seen:
    """Run the model on (B, C, H, W) pixels and keep what is needed; ``anatomy`` says where tokens are."""
    seen = Seen(None)
    gradient = "gradient" in needs or "graph" in needs
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        if gradient and pixels.device.type == "cpu":
            _mend_batch_norms(stack, model)
        if anatomy is not None:
            _watch_tokens(stack, model, seen, needs, anatomy, gradient)
        if "attention" in needs:
            values = gradient or "values" in needs
            tap = AttentionTap(gradient=gradient, values=values, shortened=shortened, images=len(pixels))
            stack.enter_context(tap)
            seen.layers = tap.layers
        if anatomy is not None and "biases" in needs:
            _watch_biases(stack, model, pixels, seen, anatomy)
        seen.output = model(pixels)
    return seen


def _mend_batch_norms(stack: ExitStack, model: nn.Module) -> None:
    """PyTorch (seen in 2.15, on processors) gets the gradient of batch normalisation wrong where one image's comes back
    with its channels last, as from code that makes tokens of a feature map."""

    def mended(out: Tensor) -> Tensor:
        if out.requires_grad:
            out.register_hook(Tensor.contiguous)
        return out

    for part in modules_of(model):
        if isinstance(part, nn.BatchNorm2d):
            stack.enter_context(hooked(part, after=mended))


def _watch_tokens(
    stack: ExitStack, model: nn.Module, seen: Seen, needs: Container[str], anatomy: Anatomy, gradient: bool
) -> None:
    length = anatomy.prefix + anatomy.grid[0] * anatomy.grid[1]
    awaited = set(anatomy.attended)

    def checked(tokens: Any, where: str) -> Tensor:
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tokens.shape[1] != length:
            found = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise CaptureError(f"{where}: {found} was seen, but the model family says (B, {length}, D) tokens")
        return tokens.detach().requires_grad_() if gradient and not tokens.requires_grad else tokens

    def keep(tokens: Any, where: str) -> Tensor:
        seen.tokens.append(checked(tokens, where))
        return seen.tokens[-1]

    def keep_attended(added: Any, where: str) -> Any:
        if where in awaited:  # stochastic depth is sometimes one module that acts on the MLP's output as well
            awaited.remove(where)
            seen.attended.append(checked(added, where).detach())
        return added

    def keep_features(features: Any) -> Tensor:
        tokens, back = as_tokens(features, anatomy.grid)
        seen.features = checked(tokens, anatomy.features)
        return back(seen.features)

    def keep_norms(tokens: Any) -> Any:
        if isinstance(tokens, Tensor) and tokens.ndim == 3 and tokens.shape[1] == length:
            wide = torch.promote_types(tokens.dtype, torch.float32)
            seen.norms = torch.linalg.vector_norm(tokens.detach(), dim=2, dtype=wide).float()
        return tokens

    if needs and anatomy.blocks:  # a few numbers a token: does a map say more than where artifact tokens are?
        stack.enter_context(hooked(model.get_submodule(anatomy.blocks[-1]), after=keep_norms))
    if "tokens" in needs:
        for name in anatomy.blocks:
            stack.enter_context(hooked(model.get_submodule(name), before=partial(keep, where=f"input of {name}")))
        last = anatomy.blocks[-1]
        stack.enter_context(hooked(model.get_submodule(last), after=partial(keep, where=f"output of {last}")))
    if "attended" in needs:
        for name in anatomy.attended:
            stack.enter_context(hooked(model.get_submodule(name), after=partial(keep_attended, where=name)))
    if "features" in needs:
        stack.enter_context(hooked(model.get_submodule(anatomy.features), after=keep_features))


def as_tokens(features: Any, grid: tuple[int, int]) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """Features of a grid, (B, C, h, w) or (B, h, w, C), as tokens (B, h·w, C), and the way back; others as they are."""
    if isinstance(features, Tensor) and features.ndim == 4:
        if features.shape[2:] == grid and features.shape[1:3] != grid:
            return features.flatten(2).transpose(1, 2), lambda tokens: tokens.transpose(1, 2).unflatten(2, grid)
        if features.shape[1:3] == grid:
            return features.flatten(1, 2), lambda tokens: tokens.unflatten(1, grid)
    return features, lambda tokens: tokens


def _watch_biases(stack: ExitStack, model: nn.Module, pixels: Tensor, seen: Seen, anatomy: Anatomy) -> None:
    patches = anatomy.grid[0] * anatomy.grid[1]
    dtype = torch.promote_types(pixels.dtype, torch.float32)
    shape = (len(pixels), anatomy.prefix + patches)
    seen.biases = torch.zeros(shape, dtype=dtype, device=pixels.device, requires_grad=True)
    tap = stack.enter_context(BiasTap(seen.biases, patches))

    def arm(tokens: Any) -> Any:
        tap.armed = True  # what biases did before is part of the tokens that enter the first block
        return tokens

    stack.enter_context(hooked(model.get_submodule(anatomy.blocks[0]), before=arm))


def match(layers: list[Layer], anatomy: Anatomy) -> tuple[list[Layer], Layer | None]:
    """The captured calls as (layers of the blocks, pooling layer), named; an error where they disagree with anatomy."""
    if anatomy.plan is not None:
        return _match_plan(layers, anatomy.plan), None
    pooled = anatomy.readout.attention
    expected = len(anatomy.blocks) + pooled
    if not layers:
        raise CaptureError(
            "no attention call was seen: exported, traced and scripted models cannot be explained; "
            "use the original torch.nn.Module"
        )
    layers = layers[: len(layers) - anatomy.unread]
    if len(layers) != expected:
        pooling = " and a pooling attention" if pooled else ""
        raise CaptureError(
            f"{len(layers)} attention calls were seen, but the model has {len(anatomy.blocks)} blocks{pooling}: "
            "its maps would mix layers, so they are refused"
        )
    patches = anatomy.grid[0] * anatomy.grid[1]
    tokens = anatomy.prefix + patches
    for name, layer in zip((*anatomy.blocks, "attn_pool"), layers, strict=False):
        layer.name = name
        if layer.q is not None and layer.q.ndim != 4:
            raise CaptureError(f"{name}: attention over {tuple(layer.q.shape)} queries; (B, heads, N, D) was expected")
        queries, keys = layer.shape[2:]
        fits = keys in (tokens, patches) if name == "attn_pool" else queries + layer.dropped == keys == tokens
        if not fits:
            raise CaptureError(
                f"{name}: attention of {queries} queries over {keys} keys was seen, but the model family says "
                f"{anatomy.prefix} prefix tokens and a {anatomy.grid[0]}x{anatomy.grid[1]} grid, {tokens} tokens"
            )
    return (layers[:-1], read_queries(layers[-1], anatomy.readout)) if pooled else (layers, None)


def read_queries(pool: Layer, readout: Readout) -> Layer:
    """A pooling attention with the queries that the head reads."""
    return pool if readout.queries is None else pool.first(readout.queries)


def _match_plan(layers: list[Layer], plan: Plan) -> list[Layer]:
    """The captured calls that mix tokens, each with its place; an error where they disagree with the plan."""
    if len(layers) != len(plan.places):
        raise CaptureError(
            f"{len(layers)} attention calls were seen, but the model has {len(plan.places)}: "
            "its maps would mix layers, so they are refused"
        )
    placed = [(layer, place) for layer, place in zip(layers, plan.places, strict=True) if place is not None]
    for number, (layer, place) in enumerate(placed):
        layer.name, layer.place = f"attention {number}", place.to(layer.device)
        layer.q, layer.k, layer.v = (
            None if one is None else by_window(one, place) for one in (layer.q, layer.k, layer.v)
        )
        if layer.bias is not None and place.windows_first and layer.bias.ndim == 4:
            layer.bias = by_window(layer.bias, place)
        batch, _, n, m = layer.shape
        wanted = (place.windows, place.queries.shape[1], place.keys.shape[1])
        if batch % place.windows or (n, m) != wanted[1:]:
            raise CaptureError(
                f"{layer.name}: {batch} windows of {n} queries over {m} keys were seen, but the model family says "
                f"{wanted[0]} windows an image of {wanted[1]} queries over {wanted[2]} keys"
            )
    return [layer for layer, _ in placed]


def with_gradient(layer: Layer, gradient: Tensor) -> Layer:
    """The layer with ``∂y/∂out`` of the queries it has, and no longer in the graph."""
    return dataclasses.replace(layer, out=None, grad_out=gradient[:, :, : layer.shape[2]])


def differentiate(trace: Trace, value: Tensor, needs: Container[str], *, keep_graph: bool) -> Trace:
    """The trace with the gradients of numbers y (B,) that came out of the look: of attention outputs, tokens, pixels.

    Summing over images is exact: no image's number depends on another's layers. Parameter gradients stay untouched.
    """
    if not value.requires_grad:
        raise TargetError("the target does not depend on what the model sees, so there is nothing to explain")
    calls = trace.layers if trace.pool is None else [*trace.layers, trace.pool]
    outs = [layer.out for layer in calls if layer.out is not None]
    features = [] if trace.features is None else [trace.features]
    pixels = [trace.pixels] if "pixels" in needs else []
    biases = [] if trace.biases is None else [trace.biases]
    wanted = [*outs, *trace.tokens, *features, *pixels, *biases]
    found = torch.autograd.grad(value.sum(), wanted, retain_graph=keep_graph, allow_unused=True)
    gradients = iter(torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True))
    known = [with_gradient(layer, by_window(next(gradients), layer.place)) for layer in calls]
    pool = None if trace.pool is None else known.pop()
    return dataclasses.replace(
        trace,
        layers=known,
        pool=pool,
        tokens=[tokens.detach() for tokens in trace.tokens],
        token_gradients=[next(gradients) for _ in trace.tokens],
        features=None if trace.features is None else trace.features.detach(),
        feature_gradient=next(gradients) if features else None,
        pixels=trace.pixels.detach(),
        pixel_gradient=next(gradients) if pixels else None,
        biases=next(gradients) if biases else None,
    )
