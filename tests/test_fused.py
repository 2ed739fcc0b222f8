"""Kernels that fuse heads: as Triton's interpreter runs them, and on a CUDA device where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from small_models import SIZE, small

from vit_explain import Explainer, attention_paths, fused
from vit_explain.layer import ALL, Layer
from vit_explain.propagate import fused_blocks

CASES = Path(__file__).parent / "fused_cases.py"


def run(device: str, **environment: str) -> str:
    command = [sys.executable, str(CASES), device]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_interpreted():
    assert "144 compared" in run("cpu", TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_compiled():
    assert "216 compared" in run("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_more_windows_than_a_grid_dimension_holds():
    x = torch.randn(2**16 + 1, 1, 4, 16, device="cuda")
    layer = Layer(0.25, q=x, k=x, v=x, grad_out=x)
    found = fused.fused_mean(layer, ALL, ALL, attention_paths.product)
    torch.testing.assert_close(found, attention_paths.product(layer, ALL, ALL).mean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", ["rollout", "gradient_rollout", "gae", "grad_sam", "gmar", "legrad", "ag_cam"])
def test_maps_on_a_device_are_those_of_the_processor(method):
    model, pixels = small("class token"), torch.randn(3, 3, *SIZE)
    here = Explainer(model).attribute(pixels, None, method)
    there = Explainer(model.cuda()).attribute(pixels, None, method).cpu()
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-5 * float(here.abs().max()))


def test_kernels_that_cannot_be_built_are_told_of_and_not_taken(monkeypatch):
    def failing(*_: object) -> None:
        raise subprocess.CalledProcessError(1, ["cc", "-c"])

    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda name: name)
    asked = fused.available.__wrapped__
    monkeypatch.setattr(fused, "fused_mean", failing)
    with pytest.warns(RuntimeWarning, match="plain operations, which take longer: .* CalledProcessError"):
        assert not asked(torch.device("cpu"), torch.float32)
    monkeypatch.setattr(fused, "fused_mean", lambda *_: None)
    assert asked(torch.device("cpu"), torch.float32)
    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda name: None)
    assert not asked(torch.device("cpu"), torch.float32)


def test_what_the_kernels_take(monkeypatch):
    """Everything else goes the plain way; the device is checked first, so it is feigned here."""

    class OnDevice(Layer):
        device = torch.device("cuda")  # type: ignore[assignment]

    x = torch.randn(1, 2, 5, 8)
    layer = OnDevice(1.0, q=x, k=x, v=x, grad_out=x)
    monkeypatch.setattr(fused, "available", lambda device, dtype: True)
    assert fused.fuses(attention_paths.plain, layer) and fused.fuses(attention_paths.positive_product, layer)
    wide = torch.randn(1, 2, 5, 65)
    for other in (
        replace(layer, bias=torch.zeros(1, 1, 5, 5)),
        replace(layer, causal=True),
        replace(layer, q=None, k=None, probabilities=torch.rand(1, 2, 5, 5)),
        replace(layer, q=wide, k=wide),
        replace(layer, q=x.double(), k=x.double()),
        replace(layer, k=x.half()),
        Layer(1.0, q=x, k=x),
    ):
        assert not fused.fuses(attention_paths.plain, other)
    assert not fused.fuses(attention_paths.product, replace(layer, grad_out=None))
    assert not fused.fuses(attention_paths.product, replace(layer, v=wide, grad_out=wide))
    monkeypatch.setattr(fused, "available", lambda device, dtype: False)
    assert not fused.fuses(attention_paths.plain, layer)
    assert not fused.fuses(Layer.attention, layer)


def together(layer: Layer) -> torch.Tensor:
    return torch.cat([part for _, _, part in fused_blocks(layer, ALL, attention_paths.product, "mean", whole=True)])


def test_fused_blocks_and_column_sums_take_what_the_kernels_make(monkeypatch):
    x = torch.randn(2, 3, 5, 8)
    layer = Layer(1.0, q=x, k=x, v=x, grad_out=x)
    before = attention_paths.column_sums(layer, attention_paths.product)
    plain = torch.cat(
        [part for _, _, part in fused_blocks(layer, slice(None), attention_paths.product, "mean", whole=True)]
    )
    asked = []

    def made(layer, images, rows, weights):
        asked.append((images, rows))
        return weights(layer, images, rows).mean(1)

    for module in (attention_paths, sys.modules["vit_explain.propagate"]):
        monkeypatch.setattr(module, "fuses", lambda weights, layer: True)
    monkeypatch.setattr(sys.modules["vit_explain.propagate"], "fused_mean", made)
    again = torch.cat(
        [part for _, _, part in fused_blocks(layer, slice(None), attention_paths.product, "mean", whole=True)]
    )
    torch.testing.assert_close(again, plain)
    torch.testing.assert_close(attention_paths.column_sums(layer, attention_paths.product), before)
    assert len(asked) == 2
