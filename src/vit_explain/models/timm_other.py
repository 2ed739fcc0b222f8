"""All other timm models: what can be said of a picture classifier without knowing its attention."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..family import register
from ..timm_common import Timm
from ..types import Anatomy, Attends

# What classes of attention are called by.
CALLED = ("attention", "attn", "mhsa", "shma", "shsa", "litemla")
# Convolutional networks have these; they weigh channels by what the whole picture holds.
CHANNELS = {"splitattn", "selectivekernelattn"}


@register
class TimmOther(Timm):
    """Gradients, class activation maps of the last feature map, and perturbation."""

    title = "other timm models, without methods that read attention"
    attends: Attends = "unread"
    fallback = True

    def matches(self, model: nn.Module) -> bool:
        return _from_timm(model) and bool(getattr(model, "feature_info", None)) and attends(model)

    def refuses(self, model: nn.Module) -> str | None:
        if not _from_timm(model):
            return None
        lacks = "where its features are is not known" if attends(model) else "it has no attention"
        return f"timm's {type(model).__name__} is not supported: {lacks}"

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        if kinds_of_attention(model) <= CHANNELS:
            return self.unplaced(model, shape, f"attention of {self.name(model)} weighs channels, not tokens")
        return self.unplaced(model, shape, f"how attention of {self.name(model)} lies on the picture is not known")


def _from_timm(model: nn.Module) -> bool:
    return type(model).__module__.startswith("timm.")


def attends(model: nn.Module) -> bool:
    """Whether a module of the model is called some kind of attention."""
    return bool(kinds_of_attention(model))


def kinds_of_attention(model: nn.Module) -> set[str]:
    """The class names of the model's modules that are called some kind of attention."""
    names = {type(part).__name__.lower() for part in model.modules()}
    return {name for name in names if any(word in name for word in CALLED)}
