"""All other timm models: what can be said of a picture classifier without knowing its attention."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..family import register
from ..layouts import laid_out
from ..timm_common import Timm
from ..types import Anatomy, Readout


@register
class TimmOther(Timm):
    """Gradients, class activation maps of the last feature map, and perturbation."""

    title = "other timm models, without methods that read attention"
    fallback = True

    def matches(self, model: nn.Module) -> bool:
        return _from_timm(model) and bool(getattr(model, "feature_info", None)) and attends(model)

    def refuses(self, model: nn.Module) -> str | None:
        if not _from_timm(model):
            return None
        lacks = "where its features are is not known" if attends(model) else "it has no attention"
        return f"timm's {type(model).__name__} is not supported: {lacks}"

    def anatomy(self, model: Any, shape: tuple[int, int, int]) -> Anatomy:
        self.check_channels(model, shape[0])
        last = model.feature_info[-1]
        grid = tuple(-(-side // last["reduction"]) for side in shape[1:])
        name = self.name(model)
        return laid_out(
            (shape[1], shape[2]),
            grid,
            (),
            grid,
            readout=Readout(patches=True),
            features=last["module"],
            reason=f"how attention of {name} lies on the picture is not known",
            undroppable=f"{name} is not known to go without some of its tokens",
            remembers=True,  # for all that is known
        )


def _from_timm(model: nn.Module) -> bool:
    return type(model).__module__.startswith("timm.")


def attends(model: nn.Module) -> bool:
    """Whether a module of the model is called some kind of attention."""
    names = (type(part).__name__.lower() for part in model.modules())
    return any(word in name for name in names for word in ("attention", "attn", "mhsa"))
