"""Peak memory of fresh processes at 1024 × 1024 pixels, beside the bare model's."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from measuring import at_most, table, words
from rich.table import Table

PROCESSES = 3  # the allocator's luck moves a single one by up to 100 MB, with and without a map
# (bare, method, options, most MB on top, most times the bare peak)
CASES: tuple[tuple[str, str, dict[str, Any], float | None, float | None], ...] = (
    ("forward", "rollout", {}, 300, None),
    ("forward", "rollout", {"head_fusion": "max", "discard_ratio": 0.9}, 300, None),
    ("backward", "gradient_rollout", {}, 300, None),
    ("backward", "gradient_rollout", {"head_fusion": "max", "discard_ratio": 0.9}, 300, None),
    ("backward", "gae", {}, None, 1.3),
    ("backward", "legrad", {}, None, 1.3),
)
SCRIPT = """
import resource, sys
sys.path.insert(0, {folder!r})
from measuring import backward, build, forward, images
from vit_explain import Explainer
model = build("vit_base_patch16_224", img_size=1024)
pixels = images(1, 1024)
what, options = {what!r}, {options!r}
if what in ("forward", "backward"):
    {{"forward": forward, "backward": backward}}[what](model, pixels)
else:
    Explainer(model).attribute(pixels, None, what, **options)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 * 1.048576)
"""


def peak_megabytes(what: str, options: dict[str, Any]) -> float:
    """Peak memory, in units of 10⁶ bytes, of a fresh process that does this once (4,097 tokens)."""
    script = SCRIPT.format(folder=str(Path(__file__).parent), what=what, options=options)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout)


def memory(_: int) -> Table:
    rows = table(f"Peak memory at 1024 × 1024, ViT-B/16 (MB; medians of {PROCESSES} processes)", "method", "options",
                 "bare", "with map", "added", "at most", "met", "times bare", "at most", "met")  # fmt: skip
    runs = [("forward", {}), ("backward", {}), *((method, options) for _, method, options, _, _ in CASES)]
    peaks = [[peak_megabytes(what, options) for what, options in runs] for _ in range(PROCESSES)]
    forward_peak, backward_peak, *with_map = (statistics.median(column) for column in zip(*peaks, strict=True))
    bare = {"forward": forward_peak, "backward": backward_peak}
    for (base, method, options, most, times), peak in zip(CASES, with_map, strict=True):
        added = at_most(peak - bare[base], most)
        rows.add_row(method, words(options), f"{bare[base]:.0f}", f"{peak:.0f}", *added,
                     *at_most(peak / bare[base], times))  # fmt: skip
    return rows
