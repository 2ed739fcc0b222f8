"""Speed and memory, side by side in one run, as ratios.

``python benchmarks/bench.py [--rounds N] [speed|original|memory ...]``. Times are medians over rounds in which the two
sides of a ratio take turns, so that a machine whose speed drifts drifts for both. Weights are random: speed does not
depend on them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import timm
import torch
from original import OriginalRollout
from rich.console import Console
from rich.table import Table

from vit_explain import Explainer

MODELS = {"ViT-B/16": "vit_base_patch16_224", "DeiT-Ti": "deit_tiny_patch16_224"}
LIMITS = {
    ("rollout", "ViT-B/16"): 1.1,
    ("rollout", "DeiT-Ti"): 1.3,
    ("gradient_rollout", "ViT-B/16"): 1.1,
    ("gradient_rollout", "DeiT-Ti"): 1.2,
    ("original", "ViT-B/16"): 1.35,
    ("original", "DeiT-Ti"): 2.5,
}
MEMORY_LIMIT_MB = 300
MEMORY_PROCESSES = 3


def build(name: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **options).eval()


def forward(model: torch.nn.Module, pixels: torch.Tensor) -> None:
    with torch.inference_mode():
        model(pixels)


def backward(model: torch.nn.Module, pixels: torch.Tensor) -> None:
    pixels = pixels.clone().requires_grad_()
    logits = model(pixels)
    torch.autograd.grad(logits.amax(1).sum(), pixels)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turns(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median seconds of both, and the median of the rounds' ratios second / first."""
    first(), second()
    pairs = [(seconds(first), seconds(second)) for _ in range(rounds)]
    ratios = [b / a for a, b in pairs]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), statistics.median(ratios)


def table(title: str, *columns: str) -> Table:
    made = Table(title=title, title_justify="left")
    for column in columns:
        made.add_column(column, justify="right")
    return made


def speed(rounds: int) -> Table:
    rows = table("Cost over the bare model at 224 pixels", "method", "model", "batch", "fusion", "discard", "bare ms",
                 "with map ms", "ratio", "limit")  # fmt: skip
    for method, (title, name) in itertools.product(("rollout", "gradient_rollout"), MODELS.items()):
        model = build(name)
        explainer = Explainer(model)
        bare = forward if method == "rollout" else backward
        for batch, fusion, discard in itertools.product((4, 8), ("mean", "min", "max"), (0.0, 0.9)):
            pixels = torch.randn(batch, 3, 224, 224)
            options = {"head_fusion": fusion, "discard_ratio": discard}
            plain, ours, ratio = in_turns(
                lambda: bare(model, pixels),  # noqa: B023
                lambda: explainer.attribute(pixels, None, method, **options),  # noqa: B023
                rounds,
            )
            rows.add_row(method, title, str(batch), fusion, f"{discard:g}", f"{plain * 1e3:.0f}", f"{ours * 1e3:.0f}",
                         f"{ratio:.2f}", f"{LIMITS[method, title]:g}")  # fmt: skip
    return rows


def original(rounds: int) -> Table:
    rows = table("The original (one image at a time, unfused, N×N×N products) over ours, per image, batch 8", "model",
                 "fusion", "discard", "original ms", "ours ms", "times faster", "at least")  # fmt: skip
    for (title, name), (fusion, discard) in itertools.product(
        MODELS.items(), (("mean", 0.0), ("mean", 0.9), ("max", 0.9))
    ):
        model = build(name)
        explainer = Explainer(model)
        pixels = torch.randn(8, 3, 224, 224)

        def theirs() -> None:
            with OriginalRollout(model, fusion, discard) as rollout:  # noqa: B023
                for image in pixels:  # noqa: B023
                    rollout(image[None])

        ours, old, ratio = in_turns(
            lambda: explainer.attribute(pixels, None, "rollout", head_fusion=fusion, discard_ratio=discard),  # noqa: B023
            theirs,
            rounds,
        )
        rows.add_row(title, fusion, f"{discard:g}", f"{old / 8 * 1e3:.0f}", f"{ours / 8 * 1e3:.0f}", f"{ratio:.2f}",
                     f"{LIMITS['original', title]:g}")  # fmt: skip
    return rows


MEMORY_SCRIPT = """
import resource, sys, torch
sys.path.insert(0, {folder!r})
from bench import backward, build, forward
from vit_explain import Explainer
model = build("vit_base_patch16_224", img_size=1024)
pixels = torch.randn(1, 3, 1024, 1024)
what, options = {what!r}, {options!r}
if what in ("forward", "backward"):
    {{"forward": forward, "backward": backward}}[what](model, pixels)
else:
    Explainer(model).attribute(pixels, None, what, **options)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 * 1.048576)
"""


def peak_megabytes(what: str, options: dict[str, object]) -> float:
    """Peak memory, in units of 10⁶ bytes, of a fresh process that does this once at 1024 × 1024 (4,097 tokens)."""
    script = MEMORY_SCRIPT.format(folder=__file__.rpartition("/")[0] or ".", what=what, options=options)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout)


def memory(_: int) -> Table:
    title = f"Peak memory at 1024 × 1024, ViT-B/16 (MB; medians of {MEMORY_PROCESSES} processes)"
    rows = table(title, "method", "options", "bare", "with map", "added", "limit")
    cases: list[tuple[str, str, dict[str, object]]] = [
        ("forward", "rollout", {}),
        ("forward", "rollout", {"head_fusion": "max", "discard_ratio": 0.9}),
        ("backward", "gradient_rollout", {}),
        ("backward", "gradient_rollout", {"head_fusion": "max", "discard_ratio": 0.9}),
    ]
    # The allocator's luck moves a single process by up to 100 MB, with and without a map.
    runs: list[tuple[str, dict[str, object]]] = [("forward", {}), ("backward", {}), *((m, o) for _, m, o in cases)]
    peaks = [[peak_megabytes(what, options) for what, options in runs] for _ in range(MEMORY_PROCESSES)]
    forward_peak, backward_peak, *with_map = (statistics.median(column) for column in zip(*peaks, strict=True))
    bare = {"forward": forward_peak, "backward": backward_peak}
    for (base, method, options), peak in zip(cases, with_map, strict=True):
        words = ", ".join(f"{k}={v}" for k, v in options.items())
        rows.add_row(
            method, words, f"{bare[base]:.0f}", f"{peak:.0f}", f"{peak - bare[base]:+.0f}", str(MEMORY_LIMIT_MB)
        )
    return rows


PARTS = {"speed": speed, "original": original, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="which tables; all without any")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    console = Console(width=120)
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    for part in options.parts or PARTS:
        console.print(PARTS[part](options.rounds))


if __name__ == "__main__":
    main()
