"""Weights from a file: tensors only, every one of them used, or an error in one line."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .errors import ModelError, reason


def load_weights(model: nn.Module, state: dict[str, Tensor], checkpoint: Path, name: str) -> Any:
    """The model in eval mode with these weights; ``checkpoint`` and ``name`` say in errors what does not fit what."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"{checkpoint}: these weights do not fit {name}: {' '.join(str(error).split())[:300]}"
        ) from error
    return model.eval()


def read_state(checkpoint: Path) -> dict[str, Tensor]:
    """The state_dict in a .safetensors file, or in a .pth that holds only tensors, whatever trainers wrap it in."""
    if not checkpoint.is_file():
        raise ModelError(f"{checkpoint}: there is no such checkpoint file")
    try:
        if checkpoint.suffix == ".safetensors":
            with safe_open(checkpoint, "pt") as archive:
                state: Any = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (no dict)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch remarks on odd pickles before it refuses them
                state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{checkpoint}: holds more than tensors, and loading it could run code, so it is refused; "
            "save its state_dict, best as .safetensors"
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ModelError(f"{checkpoint}: cannot be read as weights ({reason(error)})") from error
    for key in ("model_ema", "state_dict_ema", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()) or not state:
        raise ModelError(f"{checkpoint}: holds no state_dict of tensors")
    prefix = "module."
    return {name.removeprefix(prefix): value for name, value in state.items()}


def digest(model: nn.Module) -> str:
    """The same for the same parameters and buffers by the same names, and for no others."""
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
