"""The zoo's part about timm: a row each of its files that hold models with attention.

*Capture*, for every name: built without memory for its weights, at full depth and size. *Numbers*, for every
architecture of a family up to a size.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict

import timm
import torch
from torch import nn
from zoo_checks import Found, captured, checked

from vit_explain import models as _registers_them  # noqa: F401
from vit_explain.family import FAMILIES

TITLE = "timm"
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


def signature(model: nn.Module) -> str:
    """Equal for names that differ in weights or in the size of pictures alone."""
    parts = [
        f"{name}{tuple(p.shape)}" for name, p in model.named_parameters() if "pos" not in name and "head" not in name
    ]
    return f"{zlib.crc32(repr(parts).encode()):x}"


def of_name(name: str, module: str) -> Found | None:
    """None for models without attention."""
    with torch.device("meta"), torch.no_grad():
        model = timm.create_model(name, pretrained=False).eval()
        if not any(family.matches(model) for family in FAMILIES):
            return None
        found = captured(model, name, module)
        found.signature = signature(model)
    return found


def names(pattern: str) -> Iterator[tuple[str, str]]:
    for module in sorted({timm.models._registry._model_to_module[name] for name in timm.list_models(pattern)}):
        for name in timm.list_models(pattern, module=module):
            yield name, module


def section(given: argparse.Namespace) -> str:
    """Run it; returns the text of this part."""
    done: dict[str, Found] = {}
    if given.log and given.log.exists():
        done = {row["name"]: Found(**row) for row in map(json.loads, given.log.read_text().splitlines())}
    rows: list[Found] = []
    seen: set[str] = set()
    for name, module in names(given.pattern):
        found = done.get(name) or of_name(name, module)
        if found is None:
            continue
        if found.signature not in seen and found.others and found.parameters <= given.largest and not found.numbers:
            torch.manual_seed(0)
            try:
                model = timm.create_model(found.name, pretrained=False).eval()
                found.numbers = checked(model, attention=found.attention, near=NEAR)
            except Exception as error:
                found.numbers = f"{type(error).__name__}: {error}"[:200]
        seen.add(found.signature)
        rows.append(found)
        print(name, found.family, found.attention, found.reason[:100], found.numbers, flush=True)
        if given.log and name not in done:
            with given.log.open("a") as log:
                log.write(json.dumps(asdict(found)) + "\n")
    return table(rows, given.largest)


def table(rows: list[Found], largest: float) -> str:
    by_module: dict[str, list[Found]] = defaultdict(list)
    for row in rows:
        by_module[row.module].append(row)
    counted = [row for row in rows if row.module in VIT_LIKE]
    share = sum(row.attention for row in counted) / max(1, len(counted))
    lines = [
        f"timm {timm.__version__}, torch {torch.__version__}: every model that some family matches, with "
        "random weights. Some are convolutional networks, not Vision Transformers. "
        f"Of {len(counted)} names of Vision Transformers and kin "
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
    return "\n".join(lines)
