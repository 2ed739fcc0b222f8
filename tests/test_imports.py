"""The layers of the package: a file imports only lower ones, and importing the package costs next to nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "vit_explain"
ROOT = Path(__file__).parents[1] / "src" / PACKAGE

# A name stands for a module, or for every module of a package. Later lines may import earlier ones, never each other.
LEVELS = [
    {"_version", "errors"},
    {
        "compiled",
        "eager",
        "flow_cuts",
        "kernels",
        "labels",
        "modules",
        "multihead",
        "options",
        "paper",
        "photos",
        "principal",
        "ranks",
        "seeds",
        "selection",
        "superpixels",
        "surroundings",
        "terminal",
    },
    {"layer", "saved", "weights"},
    {"types"},
    {
        "biases",
        "flow",
        "fused",
        "heap",
        "hooks",
        "image",
        "layouts",
        "likeness",
        "metric_registry",
        "placed",
        "registry",
        "relevance_rules",
        "swapped",
    },
    {"matching", "slabs"},
    {"tap"},
    {"artifacts", "cams", "capture", "family", "heads", "perturb", "pixel_paths", "propagate", "relprop", "rules"},
    {"structure", "targets"},
    {"hf_pictures"},
    {"huggingface"},
    {"prompts"},
    {"attention_paths", "contributions", "inquiry", "players", "timm_common", "torchvision_common"},
    {"removal", "truth"},
    {"cases", "datasets", "mosaics", "places"},
    {"curves", "localisation", "randomised"},
    {"catalogue", "inputs", "methods", "metrics", "models", "render", "sharing", "store"},
    {"charts", "explanation", "leaderboard", "loading", "metric_catalogue", "running"},
    {"comparison"},
    {"explainer"},
    {"inspection", "judging", "original", "plots", "records"},
    {"results", "scoring"},
    {"evaluation", "report", "verdict"},
    {"arguments"},
    {"commands.explain", "commands.methods", "commands.original"},
    {
        "commands.compare",
        "commands.evaluate",
        "commands.inspect",
        "commands.metrics",
        "commands.models",
        "commands.sweep",
    },  # take the options of commands.explain
    {"cli"},
    {"__main__"},
]
# These gather a package for its users: each may import whatever lies inside it.
GATHERERS = {"", "commands", "methods", "metrics", "models"}
HEAVY = {"PIL", "fastapi", "matplotlib", "numpy", "pydantic", "ray", "rich", "timm", "torch", "transformers"}


def modules() -> dict[str, Path]:
    """Dotted name below the package, '' for the package itself, of every file."""
    named = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return named


MODULES = modules()


def level(module: str) -> int | None:
    """Number of the line that names the module, or the package it is in."""
    while module:
        for number, names in enumerate(LEVELS):
            if module in names:
                return number
        module = module.rpartition(".")[0]
    return None


def imported(module: str, tree: ast.AST) -> Iterator[str]:
    """Modules of this package that a file imports, inside functions too; not what only type checkers see."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    yield alias.name.removeprefix(PACKAGE).removeprefix(".")
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parts = package.split(".") if package else []
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            elif node.module and node.module.split(".")[0] == PACKAGE:
                base = node.module.removeprefix(PACKAGE).removeprefix(".")
            else:
                continue
            for alias in node.names:  # from . import x: a module, or a name of the package's
                inner = f"{base}.{alias.name}".removeprefix(".")
                yield inner if inner in MODULES else base


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_only_lower_levels(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found = set(imported(module, tree)) - {module}
    if module in GATHERERS:
        assert all(other == "" or not module or other.startswith(f"{module}.") for other in found), found
        return
    own = level(module)
    assert own is not None, f"{module} is new: give it a line in LEVELS"
    for other in sorted(found - {""}):
        below = level(other)
        assert below is not None
        assert below < own, f"{module} (level {own}) imports {other} (level {below})"


def test_the_table_sees_imports() -> None:
    tree = ast.parse(
        "from . import render, store\nfrom .types import Trace\nimport torch\n"
        "if TYPE_CHECKING:\n    from .explainer import Explainer\n"
        "def f():\n    from .commands.sweep import sweep\n    import vit_explain.errors\n"
    )
    assert set(imported("explanation", tree)) == {"render", "store", "types", "commands.sweep", "errors"}


@pytest.mark.parametrize("statement", ["import vit_explain", "import vit_explain.cli"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    code = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(loaded)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from vit_explain.cli import main; main(['--help'])\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split()
    assert not HEAVY & set(loaded)
