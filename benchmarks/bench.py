"""Speed and memory, side by side in one run, as ratios.

``python benchmarks/bench.py [--rounds N] [TABLE ...]``, all of them without any. Times are medians over rounds in which
the sides of a ratio take turns, so that a machine whose speed drifts drifts for both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from accelerator import accelerator
from classes import classes
from evaluation import evaluation
from flow import flow
from memory import memory
from methods import methods
from peers import peers
from perturbation import perturbation
from rich.console import Console
from rich.table import Table
from speed import speed
from versus_original import versus_original

PARTS: dict[str, Callable[[int], Table | str]] = {
    "speed": speed,
    "original": versus_original,
    "methods": methods,
    "classes": classes,
    "perturbation": perturbation,
    "evaluation": evaluation,
    "flow": flow,
    "memory": memory,
    "accelerator": accelerator,
    "peers": peers,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="TABLE", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    console = Console(width=150)
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    for part in options.parts or PARTS:
        console.print(PARTS[part](options.rounds))


if __name__ == "__main__":
    main()
