"""Loading by name and by file, what is supported, and what is refused in one clear line."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from small_models import SMALL
from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer

from vit_explain import Explainer, list_models, load_model
from vit_explain.errors import ModelError

NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=7).state_dict()


def test_checkpoints_of_either_format_are_loaded_and_size_the_head(state, tmp_path):
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pth")
    torch.save({"model": state, "epoch": 3}, tmp_path / "nested.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "parallel.pth")
    for file in ("a.safetensors", "a.pth", "nested.pth", "parallel.pth"):
        model = load_model(NAME, checkpoint=tmp_path / file)
        assert not model.training
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


class RunsCode:
    def __reduce__(self):
        return Path.touch, (Path("owned"),)


def test_a_checkpoint_that_would_run_code_is_refused(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": state, "extra": RunsCode()}, "evil.pth")
    (tmp_path / "evil.pkl.pth").write_bytes(pickle.dumps(RunsCode()))
    for file in ("evil.pth", "evil.pkl.pth"):
        with pytest.raises(ModelError, match="could run code"):
            load_model(NAME, checkpoint=file)
    assert not Path("owned").exists()


def test_damaged_and_foreign_checkpoints_are_refused(state, tmp_path):
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.safetensors").write_text("not weights")
    (tmp_path / "text.pth").write_text("not weights")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({k: v for k, v in state.items() if "blocks.3" not in k}, tmp_path / "partial.pth")
    torch.save(timm.create_model("vit_small_patch16_224").state_dict(), tmp_path / "other.pth")
    words = {
        "missing.pth": "no such checkpoint",
        "empty.pth": "cannot be read|could run code",
        "text.safetensors": "cannot be read",
        "text.pth": "cannot be read|could run code",
        "list.pth": "no state_dict",
        "partial.pth": "do not fit vit_tiny_patch16_224",
        "other.pth": "do not fit vit_tiny_patch16_224",
    }
    for file, expected in words.items():
        with pytest.raises(ModelError, match=expected) as caught:
            load_model(NAME, checkpoint=tmp_path / file)
        assert "\n" not in str(caught.value)


def test_names():
    assert list_models("bundled") == ["bundled"]
    assert NAME in list_models("vit_tiny_*") and NAME in list_models("tiny_patch16")
    assert list_models("no such thing") == []
    with pytest.raises(ModelError, match=r"no model 'vit_tiny_patch16_225'; near matches: .*vit_tiny_patch16_224"):
        load_model("vit_tiny_patch16_225")
    with pytest.raises(ModelError, match="device 'cuda:99' cannot be used"):
        load_model("bundled", device="cuda:99")
    with pytest.raises(ModelError, match="device 'toaster' cannot be used"):
        load_model("bundled", device="toaster")


def test_without_weights_the_way_out_is_said():
    with pytest.raises(ModelError, match=f"weights of {NAME} could not be loaded .*checkpoint=.*'bundled'"):
        load_model(NAME)


# One name an architecture; sizes shrunk so that all of them are built and explained in seconds.
ARCHITECTURES = {
    "vit_base_patch16_224": {},
    "vit_base_patch32_clip_224": {},
    "vit_base_patch16_siglip_224": {"num_classes": 3},
    "vit_base_patch16_siglip_gap_224": {"num_classes": 3},
    "vit_base_patch14_dinov2": {"img_size": (70, 112), "num_classes": 3},
    "vit_base_patch14_reg4_dinov2": {"img_size": (70, 112), "num_classes": 3},
    "deit_base_patch16_224": {},
    "deit_base_distilled_patch16_224": {},
    "deit3_base_patch16_224": {},
    "beit_base_patch16_224": {},
    "beitv2_base_patch16_224": {},
    "eva02_base_patch14_224": {"num_classes": 3},
    "eva02_base_patch14_448": {"img_size": 224},
    "eva_large_patch14_196": {},
    "vit_base_patch16_dinov3": {"num_classes": 3},
    "vit_pe_core_base_patch16_224": {"num_classes": 3},
    "vit_base_patch16_rope_224": {},
    "vit_relpos_base_patch16_224": {},
    "vit_relpos_base_patch16_clsgap_224": {},
    "vit_base_patch16_gap_224": {"num_classes": 3},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name):
    """Random weights: capture complete, grid and prefix right by the package's own checks, maps finite."""
    model = timm.create_model(name, pretrained=False, depth=2, **ARCHITECTURES[name]).eval()
    explainer = Explainer(model)
    size = explainer.preprocessing.size
    pixels = torch.randn(1, 3, *size)
    patch = model.patch_embed.patch_size
    for method, target in (("rollout", None), ("gradient_rollout", 1), ("attention", None)):
        relevance = explainer.explain(pixels, method, target).relevance
        assert relevance.shape == (1, size[0] // patch[0], size[1] // patch[1])
        assert np.isfinite(relevance).all()


@pytest.mark.parametrize("name", ["resnet18", "mixer_s32_224"])
def test_models_without_attention_are_refused_by_name(name):
    model = timm.create_model(name, pretrained=False)
    with pytest.raises(ModelError, match=f"timm's {type(model).__name__} is not supported: it has no attention"):
        Explainer(model)


def test_max_pooling_is_refused():
    model = timm.create_model(NAME, pretrained=False, global_pool="max").eval()
    with pytest.raises(ModelError, match="max pooling"):
        Explainer(model).explain(torch.randn(1, 3, 224, 224))


def test_a_model_without_a_head_explains_functions_only():
    model = timm.create_model(NAME, pretrained=False, num_classes=0).eval()
    pixels = torch.randn(1, 3, 224, 224)
    explainer = Explainer(model)
    assert explainer.labels is None and explainer.explain(pixels).top() == []
    with pytest.raises(ModelError.__bases__[0], match="no classifier head"):
        explainer.explain(pixels, target=0)
    wanted = torch.randn(192)
    assert explainer.explain(pixels, target=lambda features: features @ wanted).relevance.shape == (1, 14, 14)


def test_imagenet_models_know_their_classes():
    labels = Explainer(timm.create_model(NAME, pretrained=False)).labels
    assert labels is not None and len(labels) == 1000
    assert labels[243] == "bull mastiff" and labels[0].startswith("tench")
    assert Explainer(timm.create_model(NAME, pretrained=False, num_classes=3)).labels is None


def test_preprocessing_is_the_models_own():
    model = timm.create_model("vit_base_patch16_siglip_224", pretrained=False)
    preparing = Explainer(model).preprocessing
    config = timm.data.resolve_model_data_config(model)
    assert preparing.size == tuple(config["input_size"][1:])
    assert (preparing.mean, preparing.std) == (tuple(config["mean"]), tuple(config["std"]))
    assert (preparing.crop_pct, preparing.crop_mode) == (config["crop_pct"], config["crop_mode"])
    wide = timm.create_model(NAME, pretrained=False, img_size=(128, 64))
    assert Explainer(wide).preprocessing.size == (128, 64)


def test_the_bundled_model():
    explainer = Explainer("bundled")
    assert explainer.model_name == "bundled"
    assert explainer.labels is not None and len(explainer.labels) == 10 and "golf ball" in explainer.labels
    assert explainer.preprocessing.size == (224, 224)
    file = Path(timm.__file__)  # only to have a Path; the asset is found through the package
    import vit_explain

    file = Path(vit_explain.__file__).parent / "assets" / "bundled.safetensors"
    assert file.stat().st_size < 30e6


def test_a_configuration_of_one_channel():
    config = {"mean": (0.5,), "std": (0.25,), "input_size": (1, 224, 224)}
    model = timm.create_model("vit_tiny_patch16_224", depth=1, in_chans=1, pretrained_cfg_overlay=config).eval()
    assert Explainer(model).preprocessing.mean == (0.5,) * 3
    assert Explainer(model).explain(torch.randn(1, 1, 224, 224)).overlay().shape == (224, 224, 3)


@pytest.mark.parametrize("kind", [{}, {"block_fn": ParallelThingsBlock}])
def test_dynamic_sizes_that_patches_do_not_divide(kind):
    options = {**SMALL, **kind, "dynamic_img_size": True}
    pictures = torch.randn(1, 3, 36, 45)
    with pytest.raises(ModelError, match=r"patches of 8x8 pixels divide, not 36x45; timm.*dynamic_img_pad"):
        Explainer(VisionTransformer(**options).eval()).attribute(pictures, method="rollout")
    padded = VisionTransformer(**options, dynamic_img_pad=True).eval()
    assert Explainer(padded).attribute(pictures, method="rollout").shape == (1, 5, 6)


def test_coat_takes_the_size_that_it_was_built_for():
    explainer = Explainer(timm.create_model("coat_tiny", img_size=(64, 96), num_classes=4).eval())
    assert explainer.preprocessing.size == (64, 96)
    with pytest.raises(ModelError, match="takes 64x96 pixels"):
        explainer.attribute(torch.randn(1, 3, 65, 65), 1, "gradcam")


@pytest.mark.parametrize(("name", "grid"), [("edgenext_xx_small", (2, 3)), ("edgenext_small_rw", (3, 4))])
def test_edgenext_at_sizes_that_its_strides_do_not_divide(name, grid):
    model = timm.create_model(name, num_classes=4).eval()
    assert Explainer(model).attribute(torch.randn(1, 3, 67, 100), 1, "gradcam").shape == (1, *grid)
