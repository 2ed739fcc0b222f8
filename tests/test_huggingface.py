"""Models of transformers from folders: the class, the labels and the preprocessing that their files say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import PROMPTS, Words, example, hf, pairs
from PIL import Image
from safetensors.torch import save_file
from small_models import SIZE

from vit_explain import Explainer, list_models, load_model
from vit_explain.errors import ModelError
from vit_explain.hf_pictures import preprocessing_of
from vit_explain.image import Preprocessing, prepare

transformers = pytest.importorskip("transformers")
NAMES = ("tench", "parrot", "cat", "temple")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A fine-tuned model as ``save_pretrained`` leaves it."""
    model: Any = example("transformers ViT")
    model.config.id2label = dict(enumerate(NAMES))
    model.save_pretrained(tmp_path / "tuned")
    processor = transformers.ViTImageProcessor(
        size={"height": 24, "width": 40}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=3
    )
    processor.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


def test_a_folder_is_a_model(folder):
    expected: Any = example("transformers ViT")
    for name in (str(folder), f"hf/{folder}"):
        explainer = Explainer(name)
        assert not explainer.model.training
        assert all(torch.equal(v, expected.state_dict()[k]) for k, v in explainer.model.state_dict().items())
        assert explainer.labels == list(NAMES) and explainer.model_name == "tuned"
        assert explainer.preprocessing == Preprocessing(
            (24, 40), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic", crop_mode="squash"
        )
    explanation = explainer.explain(Image.new("RGB", (90, 60), "red"), target="parrot")
    assert explanation.targets == ["parrot"] and explanation.relevance.shape == (1, 3, 5)


def test_a_folder_that_is_no_model(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="there is no model"):
        load_model(str(tmp_path / "empty"))
    for file in folder.glob("model*"):
        file.unlink()
    with pytest.raises(ModelError, match="could not be loaded") as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)
    (folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ModelError, match="names no class"):
        load_model(str(folder))
    (folder / "config.json").write_text('{"model_type": "swin", "architectures": ["SwinForImageClassification"]}')
    with pytest.raises(ModelError):
        Explainer(str(folder))


def test_offline_hub_names_are_refused_in_one_line():
    with pytest.raises(ModelError, match="google/vit-base-patch16-224 could not be loaded") as caught:
        load_model("hf/google/vit-base-patch16-224")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_for_a_folder(folder, tmp_path):
    wide: Any = hf("ViTForImageClassification")()
    state = {**wide.state_dict(), "classifier.weight": torch.randn(7, 24), "classifier.bias": torch.randn(7)}
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "seven.safetensors")
    explainer = Explainer(str(folder), checkpoint=tmp_path / "seven.safetensors")
    assert explainer.family.classes(explainer.model) == 7
    assert explainer.labels is None  # the folder's names are those of other classes
    save_file({"nothing": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ModelError, match="do not fit"):
        load_model(str(folder), checkpoint=tmp_path / "foreign.safetensors")


def test_eager_attention_in_half_precision_has_the_same_rules():
    """Its softmax is cast before values are multiplied, so the product's factor is another tensor."""
    pixels = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0)).bfloat16()
    fused, eager = (Explainer(example(f"transformers ViT{kind}").bfloat16()) for kind in ("", ", eager"))
    for method in ("attn_lrp", "depth_lrp", "cp_lrp"):
        expected = fused.explain(pixels, method, 1).relevance
        found = eager.explain(pixels, method, 1).relevance
        assert np.abs(found - expected).max() < 0.2 * np.abs(expected).max()
    # Relevance stops at the right block; its numbers are no better than its warning says.
    assert eager.explain(pixels, "partial_lrp", 1).relevance.any()
    assert eager.explain(pixels, "transformer_attribution", 1, start_layer=1).relevance.any()


def test_mae_is_loaded_as_a_vit_and_refused_as_an_object(tmp_path):
    config = transformers.ViTMAEConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=40, patch_size=8,
        decoder_num_hidden_layers=1, decoder_hidden_size=24, decoder_num_attention_heads=2,
        decoder_intermediate_size=48,
    )  # fmt: skip
    mae = transformers.ViTMAEForPreTraining(config)
    with pytest.raises(ModelError, match=r"at random.*ViTModel.from_pretrained"):
        Explainer(mae)
    with pytest.raises(ModelError, match="at random"):
        Explainer(mae.vit)
    mae.save_pretrained(tmp_path / "mae")
    explainer = Explainer(str(tmp_path / "mae"))
    assert type(explainer.model).__name__ == "ViTModel"
    known = mae.vit.state_dict()
    assert all(torch.equal(known[k], v) for k, v in explainer.model.state_dict().items() if "pooler" not in k)
    assert explainer.explain(torch.randn(1, 3, 40, 40)).relevance.shape == (1, 5, 5)


def test_labels_that_nobody_gave():
    assert Explainer(example("transformers ViT")).labels is None
    assert Explainer(example("transformers ViT without a head")).labels is None


def test_image_text_models_from_folders_bring_their_tokenizer(tmp_path, monkeypatch):
    model = pairs("CLIP")
    model.save_pretrained(tmp_path / "clip")
    with pytest.raises(ModelError, match="no tokenizer was found"):
        Explainer(str(tmp_path / "clip"), texts=PROMPTS)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda source: Words(12, True))
    explainer = Explainer(str(tmp_path / "clip"), texts=PROMPTS)
    assert explainer.labels == PROMPTS and explainer.model_name == "clip"


PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "both sides": ("ViTImageProcessor", {"size": {"height": 24, "width": 40}}),
    "both sides, then cut": (
        "DeiTImageProcessor",
        {"size": {"height": 32, "width": 32}, "crop_size": {"height": 28, "width": 28}},
    ),
    "shorter side, then cut": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 30}, "crop_size": {"height": 24, "width": 24}},
    ),
    "both sides, then cut to another shape": (
        "DeiTImageProcessor",
        {"size": {"height": 32, "width": 36}, "crop_size": {"height": 28, "width": 24}},
    ),
    "shorter side, then cut to another shape": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 30}, "crop_size": {"height": 24, "width": 20}},
    ),
    "a quotient that floating point rounds down": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 212}, "crop_size": {"height": 160, "width": 160}},
    ),
    "not normalised": ("ViTImageProcessor", {"size": {"height": 24, "width": 24}, "do_normalize": False}),
    "another scale": (
        "ViTImageProcessor",
        {
            "size": {"height": 24, "width": 24},
            "rescale_factor": 1 / 127.5,
            "image_mean": [1.0] * 3,
            "image_std": [1.0] * 3,
        },
    ),
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_pictures_are_prepared_as_the_processor_does(case):
    kind, options = PROCESSORS[case]
    noise = np.random.default_rng(0).integers(0, 255, (45, 64, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((98, 70))
    processor = getattr(transformers, kind)(**options)
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    found, _ = prepare(picture, preprocessing_of(processor.to_dict(), (24, 24)))
    assert found.shape == tuple(expected.shape)
    # Versions of transformers resize with torchvision, or with Pillow as here: levels differ by one now and then.
    scale = float(expected.max() - expected.min()) / 255
    assert float((torch.from_numpy(found) - expected).abs().max()) < 3 * scale


def test_names_are_patterns():
    assert list_models("hf/") == ["hf/*"] and "open_clip/*" in list_models()


def test_importing_the_package_loads_neither_library():
    code = (
        "import sys, vit_explain; vit_explain.Explainer('bundled'); "
        "print(*({'transformers', 'open_clip'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


@pytest.mark.parametrize(
    ("library", "name", "extra"), [("transformers", "hf/a/b", "hf"), ("open_clip", "open_clip/ViT-B-32:openai", "clip")]
)
def test_without_the_library_it_is_said_what_to_install(library, name, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModelError, match=rf"pip install 'vit-explain\[{extra}\]'"):
        load_model(name)
