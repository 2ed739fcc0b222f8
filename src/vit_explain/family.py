"""A model family answers questions about its models and does nothing else: it never hooks, never edits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from .errors import ModelError
from .image import Preprocessing
from .types import Anatomy, Attends


class Family(Protocol):
    """What must be known of a model before its attention means anything."""

    title: str
    attends: Attends  # where its models' attention goes, of most of them

    def matches(self, model: nn.Module) -> bool:
        """Whether this family can answer for the model."""
        ...

    def refuses(self, model: nn.Module) -> str | None:
        """Why a model that looks like this family's cannot be explained; None where it can, or is not of its kind."""
        ...

    def anatomy(self, model: nn.Module, shape: tuple[int, int, int]) -> Anatomy:
        """Blocks, patch grid, prefix tokens and readout for (C, H, W) inputs; ``ModelError`` for a wrong shape."""
        ...

    def classes(self, model: nn.Module) -> int:
        """Number of classes the head tells apart; 0 for a model without a head."""
        ...

    def logits(self, output: Any) -> Tensor:
        """(B, classes) from what the model returned."""
        ...

    def lens(self, model: nn.Module, tokens: Tensor) -> Any:
        """What the model would return if ``tokens`` (B, N, D) had left its last block."""
        ...

    def projection(self, model: nn.Module, block: int) -> Tensor:
        """``W_O`` (D, H·Dv) of a block's attention, with what scales it on its way into the residual stream."""
        ...

    def preprocessing(self, model: nn.Module) -> Preprocessing:
        """How the model's own evaluation pipeline prepares a picture."""
        ...

    def labels(self, model: nn.Module) -> list[str] | None:
        """Class names, where they are known."""
        ...

    def name(self, model: nn.Module) -> str:
        """What to call the model."""
        ...

    def names(self) -> list[str]:
        """Names that ``load`` takes; one that ends with a star stands for all that begin so."""
        ...

    def load(self, name: str, checkpoint: Path | None) -> nn.Module:
        """The named model in eval mode, with hub weights, or with those of a checkpoint file."""
        ...


class Placed:
    """The answers of families of whose attention it is known where it lies, and no more."""

    attends: Attends = "in places"

    def lens(self, model: Any, tokens: Tensor) -> Any:
        raise ModelError(f"what the head of {self.name(model)} makes of other tokens is not known")

    def projection(self, model: Any, block: int) -> Tensor:
        raise ModelError(f"what becomes of values in the attention of {self.name(model)} is not known")

    def name(self, model: Any) -> str:
        return type(model).__name__


FAMILIES: list[Family] = []


def register(family: type[Family]) -> type[Family]:
    """Class decorator: makes the family known."""
    FAMILIES.append(family())
    return family


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``'s or ``DataParallel``'s wrapper."""
    for attribute in ("_orig_mod", "module"):
        inner = getattr(model, attribute, None)
        if isinstance(inner, nn.Module) and type(model).__module__.startswith("torch."):
            return unwrap(inner)
    return model


def family_of(model: nn.Module) -> Family:
    """The family that answers for this model; an error that says what is supported otherwise."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"a model must be a torch.nn.Module or a model's name, not {type(model).__name__}")
    for family in sorted(FAMILIES, key=lambda family: getattr(family, "fallback", False)):
        if family.matches(model):
            return family
    for family in FAMILIES:
        if (reason := family.refuses(model)) is not None:
            raise ModelError(reason)
    raise ModelError(f"{type(model).__name__} is not a supported transformer; supported: {_titles(FAMILIES)}")


def _titles(families: Sequence[Family]) -> str:
    return "; ".join(family.title for family in families)
