"""Record a look: attention calls, tokens and what else methods need, and the gradients of a number that came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .biases import BiasTap
from .compiled import as_written
from .errors import CaptureError, ModelError, TargetError
from .hooks import hooked
from .layer import Layer
from .matching import by_window
from .modules import evaluation_mode
from .surroundings import callers
from .tap import AttentionTap
from .types import Anatomy, Trace


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
        modules = stack.enter_context(evaluation_mode(model))
        stack.enter_context(as_written(modules))
        if gradient:
            _check_run_once(modules)
        if gradient and pixels.device.type == "cpu":
            _mend_batch_norms(stack, modules)
        if anatomy is not None:
            _watch_tokens(stack, model, seen, needs, anatomy, gradient)
        if "attention" in needs:
            values = gradient or "values" in needs
            tap = AttentionTap(gradient=gradient, values=values, shortened=shortened, images=len(pixels))
            stack.enter_context(tap)
            seen.layers = tap.layers
        if anatomy is not None and "biases" in needs:
            _watch_biases(stack, model, pixels, seen, anatomy)
        with callers():
            seen.output = model(pixels)
    if anatomy is not None:
        _check_complete(seen, needs, anatomy)
    return seen


def _check_run_once(modules: Iterable[nn.Module]) -> None:
    """A ``ModelError`` where blocks of timm's or open_clip's models run again in the backward; others' do in training
    alone."""
    if any(module.__dict__.get("grad_checkpointing") for module in modules):
        raise ModelError(
            "gradient checkpointing runs blocks again for the gradient, without what was recorded of their first run: "
            "call model.set_grad_checkpointing(False) first"
        )


def _check_complete(seen: Seen, needs: Container[str], anatomy: Anatomy) -> None:
    """A ``CaptureError`` where the model did not go through all modules that were watched."""
    found = {"features": (int(seen.features is not None), 1)}
    found["tokens"] = len(seen.tokens), len(anatomy.blocks) + 1
    found["attended"] = len(seen.attended), len(anatomy.attended)
    for what, (number, wanted) in found.items():
        if what in needs and number != wanted:
            raise CaptureError(
                f"{what} were seen {number} times, but the model family says {wanted}: the model did not call all its "
                "blocks as modules, or called some of them more than once"
            )


def _mend_batch_norms(stack: ExitStack, modules: Iterable[nn.Module]) -> None:
    """PyTorch (seen in 2.15, on processors) gets the gradient of batch normalisation wrong where one image's comes back
    with its channels last, as from code that makes tokens of a feature map."""

    def mended(out: Tensor) -> Tensor:
        if out.requires_grad:
            out.register_hook(Tensor.contiguous)
        return out

    for part in modules:
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
