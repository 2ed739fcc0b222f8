"""The same map, up to rounding; and one model's weights in other libraries' classes."""

from __future__ import annotations

from typing import Any

import torch
from scipy.stats import spearmanr
from small_models import PATCH, SMALL, lively
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vit_explain import load_model

SIDE = 4 * PATCH  # torchvision and open_clip take squares
RANKS = 0.999
SHAPE: dict[str, Any] = SMALL | {"img_size": SIDE}


def assert_same_map(ours: Tensor, theirs: Any, *, up_to_scale: bool = False, tolerance: float = 1e-4) -> None:
    """Maps (R, ...) agree to a share of their largest number, and in the order of their places."""
    ours, theirs = ours.detach().double(), torch.as_tensor(theirs).detach().double()
    assert ours.shape == theirs.shape
    for mine, other in zip(ours.flatten(1), theirs.flatten(1), strict=True):
        assert mine.std() > 0 and other.std() > 0
        if up_to_scale:
            mine, other = mine / mine.norm(), other / other.norm()
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance * float(other.abs().max()))
        assert spearmanr(mine, other).statistic >= RANKS


def photo(images: int = 2) -> Tensor:
    """Pixels for the bundled model."""
    return torch.rand(images, 3, 224, 224, generator=torch.Generator().manual_seed(7)) * 2 - 1


def bundled() -> Any:
    """Trained weights, so that nothing is degenerate."""
    return load_model("bundled")


def square(**options: Any) -> Any:
    """A small ViT of a kind that others have too, in float64, so that only real differences show."""
    torch.manual_seed(0)
    return lively(VisionTransformer(**SHAPE | options)).double()


def square_pixels() -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def as_torchvision(model: Any) -> nn.Module:
    """torchvision's class with a timm model's weights."""
    from torchvision.models import VisionTransformer as Torchvision

    made = Torchvision(
        image_size=model.patch_embed.img_size[0],
        patch_size=model.patch_embed.patch_size[0],
        num_layers=len(model.blocks),
        num_heads=model.blocks[0].attn.num_heads,
        hidden_dim=model.embed_dim,
        mlp_dim=model.blocks[0].mlp.fc1.out_features,
        num_classes=model.num_classes,
    )
    names = {
        "cls_token": "class_token",
        "pos_embed": "encoder.pos_embedding",
        "patch_embed.proj.": "conv_proj.",
        "norm.": "encoder.ln.",
        "head.": "heads.head.",
    }
    names |= _of_blocks(model, "encoder.layers.encoder_layer_{}.", "self_attention.", ("mlp.0.", "mlp.3."))
    made.load_state_dict(_renamed(model, names))
    return made.double().eval()


def as_open_clip(model: Any) -> nn.Module:
    """A CLIP of open_clip whose image tower has a timm model's weights; its text tower is not used."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    heads = model.blocks[0].attn.num_heads
    vision = CLIPVisionCfg(
        layers=len(model.blocks),
        width=model.embed_dim,
        head_width=model.embed_dim // heads,
        patch_size=PATCH,
        image_size=SIDE,
        norm_kwargs={"eps": model.norm.eps},
    )
    text = CLIPTextCfg(context_length=4, vocab_size=8, width=8, heads=1, layers=1)
    made = CLIP(model.num_classes, vision, text)
    names = {
        "cls_token": "class_embedding",
        "pos_embed": "positional_embedding",
        "patch_embed.proj.": "conv1.",
        "norm_pre.": "ln_pre.",
        "norm.": "ln_post.",
    }
    names |= _of_blocks(model, "transformer.resblocks.{}.", "attn.", ("mlp.c_fc.", "mlp.c_proj."))
    state = _renamed(model, names)
    state["class_embedding"] = state["class_embedding"][0, 0]
    state["positional_embedding"] = state["positional_embedding"][0]
    made.visual.load_state_dict(state | {"proj": model.head.weight.detach().T})
    return made.double().eval()


def as_siglip(model: Any) -> nn.Module:
    """open_clip's wrapper around a timm model, as SigLIP's image towers have it; there is no text tower."""
    from open_clip.timm_model import TimmModel

    tower = TimmModel("vit_tiny_patch16_224", embed_dim=model.embed_dim, pool="", proj="none")
    tower.trunk = model
    made = nn.Module()
    made.visual = tower
    made.encode_image = tower.forward
    return made


def _of_blocks(model: Any, block: str, attention: str, mlp: tuple[str, str]) -> dict[str, str]:
    """Names of the blocks' weights here, and there: of a block by its number, of attention and of the MLP in it."""
    names = {}
    for number in range(len(model.blocks)):
        here, there = f"blocks.{number}.", block.format(number)
        names |= {
            f"{here}norm1.": f"{there}ln_1.",
            f"{here}attn.qkv.": f"{there}{attention}in_proj_",
            f"{here}attn.proj.": f"{there}{attention}out_proj.",
            f"{here}norm2.": f"{there}ln_2.",
            f"{here}mlp.fc1.": there + mlp[0],
            f"{here}mlp.fc2.": there + mlp[1],
        }
    return names


def _renamed(model: Any, names: dict[str, str]) -> dict[str, Tensor]:
    """The state of a model under other names; weights whose names begin with none of these are left out."""
    state = {}
    for name, value in model.state_dict().items():
        for old, new in names.items():
            if name.startswith(old):
                state[new + name.removeprefix(old)] = value
    return state
