"""Every timm model with attention, and what of it can be explained; writes a table of timm's families.

``python benchmarks/zoo.py [--pattern P] [--largest MILLIONS] [--out docs/model-support.md]``. No weights are needed.

*Capture*, for every name: built without memory for its weights, at full depth and size, the attention calls that are
seen must be those that the family says, in number and shape. *Numbers*, for every architecture of a family up to a
size, with random weights: looking changes no output, a batch gives what single images give, maps are finite, and the
values of every attention call change most where the picture is changed.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from vit_explain import Explainer
from vit_explain.capture import look, match
from vit_explain.errors import VitExplainError
from vit_explain.family import family_of
from vit_explain.models.timm_other import attends

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from geometry import misplaced, stilled

MILLION = 1e6
NEAR = 1  # cells; overlapping convolutions carry a change a cell on
# Files of Vision Transformers by name or by kind.
VIT_LIKE = (
    "vision_transformer",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "vision_transformer_sam",
    "deit",
    "beit",
    "eva",
    "cait",
    "swin_transformer",
    "swin_transformer_v2",
    "swin_transformer_v2_cr",
    "hiera",
    "pvt_v2",
    "mvitv2",
    "maxxvit",
    "twins",
    "pit",
    "levit",
    "tnt",
    "volo",
    "convit",
    "crossvit",
    "xcit",
    "naflexvit",
)


@dataclass
class Found:
    """What is known of one name."""

    name: str
    module: str
    family: str = ""
    attention: bool = False  # whether attention methods apply, and what is captured is what was expected
    others: bool = False  # whether gradients and perturbation apply
    reason: str = ""
    numbers: str = ""  # "" not tried, "ok", or what failed
    parameters: float = 0.0
    signature: str = field(default="", repr=False)


def signature(model: nn.Module) -> str:
    """Equal for names that differ in weights or in the size of pictures alone."""
    parts = [
        f"{name}{tuple(p.shape)}" for name, p in model.named_parameters() if "pos" not in name and "head" not in name
    ]
    return f"{zlib.crc32(repr(parts).encode()):x}"


def captured(name: str, module: str) -> Found | None:
    """None for models without attention."""
    with torch.device("meta"), torch.no_grad():
        model = timm.create_model(name, pretrained=False).eval()
        if not attends(model):
            return None
        found = Found(name, module, parameters=sum(p.numel() for p in model.parameters()) / MILLION)
        found.signature = signature(model)
        try:
            family = family_of(model)
            found.family = type(family).__name__
            size = family.preprocessing(model).size
            with torch.device("cpu"):
                anatomy = family.anatomy(model, (model_channels(model), *size))
            found.others = True
            if anatomy.plan is not None and not anatomy.plan.places:
                found.reason = anatomy.plan.reason.replace(found.name, "it")
                return found
            seen = look(model, torch.empty(1, model_channels(model), *size), {"attention"}, None)
            match(seen.layers, anatomy)
            found.attention = True
        except VitExplainError as error:
            found.reason = str(error).replace(name, "it")
        except Exception as error:
            found.reason = f"{type(error).__name__}: {error}"[:200]
    return found


def model_channels(model: Any) -> int:
    return next((part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d)), model.in_chans)


def checked(found: Found) -> str:
    """What is wrong with the numbers of this model with random weights; "ok" if nothing is."""
    torch.manual_seed(0)
    model = timm.create_model(found.name, pretrained=False).eval()
    explainer = Explainer(model)
    size = explainer.preprocessing.size
    pixels = torch.randn(2, model_channels(model), *size)
    with torch.no_grad():  # some models keep tables for later calls, which inference mode would spoil
        before = model(pixels)
    methods = ("rollout", "gradient_rollout", "gae") if found.attention else ("saliency",)
    headless = explainer.family.classes(model) == 0
    for method in methods:
        target = None if method == "rollout" else first if headless else [0, 1]
        maps = explainer.attribute(pixels, target, method)
        if not maps.isfinite().all():
            return f"{method}: not finite"
        alone = explainer.attribute(pixels[1:], target[1] if isinstance(target, list) else target, method)
        if not torch.allclose(maps[1:], alone, rtol=1e-3, atol=1e-3 * float(maps.abs().max())):
            return f"{method}: a batch differs from single images"
    with torch.no_grad():
        if not torch.equal(before, model(pixels)):
            return "looking changed the output"
    if found.attention:
        grid = explainer.family.anatomy(model, tuple(pixels.shape[1:])).grid
        for cell in ((grid[0] // 3, grid[1] // 2), (grid[0] - 2, 1)):
            wrong = misplaced(model, size, cell, near=NEAR)
            if wrong:  # the fault may be that of random weights
                wrong = misplaced(stilled(copy.deepcopy(model)), size, cell, near=NEAR)
            if wrong:
                return f"values of {', '.join(wrong[:3])} change elsewhere than the picture does"
    return "ok"


def first(output: Any) -> torch.Tensor:
    """A number an image, of models without classes."""
    return output.flatten(1)[:, 0]


def names(pattern: str) -> Iterator[tuple[str, str]]:
    for module in sorted({timm.models._registry._model_to_module[name] for name in timm.list_models(pattern)}):
        for name in timm.list_models(pattern, module=module):
            yield name, module


def write(rows: list[Found], out: Path, largest: float) -> None:
    by_module: dict[str, list[Found]] = defaultdict(list)
    for row in rows:
        by_module[row.module].append(row)
    counted = [row for row in rows if row.module in VIT_LIKE]
    share = sum(row.attention for row in counted) / max(1, len(counted))
    lines = [
        "# Models",
        "",
        "Written by `make zoo`; every timm model with a module that is called attention, with random weights. Some are "
        "convolutional networks, not Vision Transformers.",
        "",
        f"timm {timm.__version__}, torch {torch.__version__}. Of {len(counted)} names of Vision Transformers and kin "
        f"({', '.join(VIT_LIKE)}), {sum(row.attention for row in counted)} ({share:.1%}) are explained by attention "
        f"methods; of the others, {sum(row.others and not row.attention for row in counted)} by gradient, class "
        f"activation map and perturbation methods, and {sum(not row.others for row in counted)} are refused.",
        "",
        "*names*: model names of this file of timm. *attention*: names whose attention calls are captured completely "
        "and lie where the family says. *numbers*: of the architectures that were run, of up to "
        f"{largest:g} million parameters, those without a fault. Names that differ in weights or input size alone are "
        "one architecture.",
        "",
        "| timm file | family | names | attention | gradients and perturbation | numbers | what is refused, and why |",
        "|---|---|---|---|---|---|---|",
    ]
    for module, found in sorted(by_module.items()):
        tried = [row for row in found if row.numbers]
        families = ", ".join(sorted({row.family for row in found if row.family}))
        reasons = sorted({row.reason for row in found if row.reason} | {r.numbers for r in tried if r.numbers != "ok"})
        lines.append(
            f"| {module} | {families} | {len(found)} | {sum(row.attention for row in found)} | "
            f"{sum(row.others for row in found)} | {sum(row.numbers == 'ok' for row in tried)} of {len(tried)} | "
            f"{'; '.join(reasons)} |"
        )
    out.parent.mkdir(exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pattern", default="*", help="names, as timm.list_models takes them")
    parser.add_argument(
        "--largest", type=float, default=30, help="million parameters of a model whose numbers are checked"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/model-support.md"))
    parser.add_argument("--log", type=Path, help="one JSON line a name as it is done; what is there is not done again")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    done: dict[str, Found] = {}
    if given.log and given.log.exists():
        done = {row["name"]: Found(**row) for row in map(json.loads, given.log.read_text().splitlines())}
    rows: list[Found] = []
    seen: set[str] = set()
    for name, module in names(given.pattern):
        found = done.get(name) or captured(name, module)
        if found is None:
            continue
        if found.signature not in seen and found.others and found.parameters <= given.largest and not found.numbers:
            try:
                found.numbers = checked(found)
            except Exception as error:
                found.numbers = f"{type(error).__name__}: {error}"[:200]
        seen.add(found.signature)
        rows.append(found)
        print(name, found.family, found.attention, found.reason[:100], found.numbers, flush=True)
        if given.log and name not in done:
            with given.log.open("a") as log:
                log.write(json.dumps(asdict(found)) + "\n")
    write(rows, given.out, given.largest)


if __name__ == "__main__":
    main()
