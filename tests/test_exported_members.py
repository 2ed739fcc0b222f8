"""The public surface: changing it is a decision, made here and in the changelog."""

from __future__ import annotations

import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import vit_explain

PUBLIC = [
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


def test_the_public_names() -> None:
    assert sorted(vit_explain.__all__) == PUBLIC
    assert dir(vit_explain) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_each_name_loads(name: str) -> None:
    assert getattr(vit_explain, name) is getattr(vit_explain, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'explane'"):
        vit_explain.explane  # noqa: B018


def test_explain_stays_a_function_whatever_is_imported() -> None:
    """A module called explain would hide the function once something imports it."""
    importlib.import_module("vit_explain.commands.explain")
    assert callable(vit_explain.explain)


def test_the_version_has_one_source() -> None:
    root = Path(__file__).parents[1]
    assert 'path = "src/vit_explain/_version.py"' in (root / "pyproject.toml").read_text(encoding="utf-8")
    assert re.fullmatch(r"\d+\.\d+\.\d+", vit_explain.__version__)
    assert f"## [{vit_explain.__version__}]" in (root / "CHANGELOG.md").read_text(encoding="utf-8")


def test_no_public_name_is_that_of_a_module() -> None:
    """Importing the module would put it in the name's place."""
    assert not [name for name in PUBLIC if find_spec(f"vit_explain.{name}")]
