"""What holds for every test."""

import os

# Read when the hub's library is imported: no test may depend on a network, or wait for one that is not there.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from families import THOROUGH, example
from small_models import MODELS, SIZE, small


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    """A small model of each kind of anatomy."""
    return small(request.param)


@pytest.fixture(params=[*MODELS, *THOROUGH])
def any_model(request: pytest.FixtureRequest) -> torch.nn.Module:
    """The same, and models of other libraries than timm."""
    return small(request.param) if request.param in MODELS else example(request.param)


@pytest.fixture
def vit() -> torch.nn.Module:
    """A small plain ViT with a class token."""
    return small("class token")


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(2))
