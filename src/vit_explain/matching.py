"""Attention calls that were seen, held against what the model family says of the model."""

from __future__ import annotations

from torch import Tensor

from .errors import CaptureError
from .layer import Layer, Placement
from .types import Anatomy, Plan, Readout


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
        known = layer.probabilities if layer.q is None else layer.q
        if known is not None and known.ndim != 4:
            what = "weights" if layer.q is None else "queries"
            raise CaptureError(f"{name}: attention with {tuple(known.shape)} {what}; (B, heads, N, …) was expected")
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
        layer.q, layer.k, layer.v, layer.probabilities = (
            None if one is None else by_window(one, place) for one in (layer.q, layer.k, layer.v, layer.probabilities)
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


def by_window(tensor: Tensor, place: Placement | None) -> Tensor:
    """(B, H, W, N, D), (B, W, H, N, D) or (B, W·H, N, D), as windows are sometimes kept apart, -> (B·W, H, N, D)."""
    if place is None or (tensor.ndim == 4 and not place.windows_first):
        return tensor
    if tensor.ndim == 4:
        tensor = tensor.unflatten(1, (place.windows, -1))
    return (tensor if place.windows_first else tensor.transpose(1, 2)).flatten(0, 1)
