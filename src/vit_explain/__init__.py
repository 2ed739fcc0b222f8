"""Why did a Vision Transformer say that? ``explain(model, "photo.jpg").save("out")``.

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .errors import VitExplainError
    from .evaluation import evaluate
    from .explainer import Explainer, explain, list_methods
    from .explanation import Explanation
    from .loading import list_models, load_model
    from .original import VITAttentionGradRollout, VITAttentionRollout
    from .registry import other_method
    from .targets import Contrast
    from .verdict import verify

_WHERE = {
    "Contrast": "targets",
    "Explainer": "explainer",
    "Explanation": "explanation",
    "VITAttentionGradRollout": "original",
    "VITAttentionRollout": "original",
    "VitExplainError": "errors",
    "evaluate": "evaluation",
    "explain": "explainer",
    "list_methods": "explainer",
    "list_models": "loading",
    "load_model": "loading",
    "other_method": "registry",
    "verify": "verdict",
}

__all__ = [
    "Contrast",
    "Explainer",
    "Explanation",
    "VITAttentionGradRollout",
    "VITAttentionRollout",
    "VitExplainError",
    "__version__",
    "evaluate",
    "explain",
    "list_methods",
    "list_models",
    "load_model",
    "other_method",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
