"""Prompts as classes: the scores are the model's own, and whatever works on classes works on prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import PROMPTS, SQUARE, Words, open_clip, pairs
from small_models import SIZE, lively
from torch import nn

from vit_explain import Explainer
from vit_explain.errors import ModelError, TargetError
from vit_explain.prompts import Prompted
from vit_explain.registry import METHODS
from vit_explain.targets import Contrast

BUILD = {"CLIP": lambda: pairs("CLIP"), "Siglip": lambda: pairs("Siglip"), "open_clip": open_clip}


def words(name: str) -> Words:
    return Words(12, name != "open_clip")


def pixels(name: str, number: int = 2) -> torch.Tensor:
    size = SIZE if name == "open_clip" else SQUARE
    return torch.randn(number, 3, *size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", BUILD)
def test_scores_are_the_models_own(name):
    model, pictures, tokenizer = BUILD[name](), pixels(name), words(name)
    tokens = tokenizer(PROMPTS)
    if name == "open_clip":
        image, text, scale = model(pictures, tokens)[:3]
        expected = scale * image @ text.T
    else:
        expected = model(pixel_values=pictures, **tokens).logits_per_image
    torch.testing.assert_close(Prompted(model, PROMPTS, tokenizer)(pictures), expected)
    explanation = Explainer(model, texts=PROMPTS, tokenizer=tokenizer).explain(pictures, "gradient_rollout", "top1")
    torch.testing.assert_close(torch.from_numpy(explanation.logits), expected.detach())
    assert explanation.labels == PROMPTS
    assert explanation.targets == [PROMPTS[int(row.argmax())] for row in expected]


@pytest.mark.parametrize("name", BUILD)
def test_prompts_read_inside_inference_mode_can_be_differentiated_through(name):
    model, pictures, tokenizer = BUILD[name](), pixels(name), words(name)
    expected = Explainer(model, texts=PROMPTS, tokenizer=tokenizer).attribute(pictures, 1, "gradcam")
    with torch.inference_mode():
        explainer = Explainer(model, texts=PROMPTS, tokenizer=tokenizer)
    torch.testing.assert_close(explainer.attribute(pictures, 1, "gradcam"), expected)


@pytest.mark.parametrize("name", BUILD)
def test_a_prompt_is_explained_whatever_stands_beside_it(name):
    """Its score depends on no other prompt, so its map does not, by the text or by the number; contrasts subtract."""
    model, pictures, tokenizer = BUILD[name](), pixels(name), words(name)
    every = Explainer(model, texts=PROMPTS, tokenizer=tokenizer)
    alone = Explainer(model, texts=PROMPTS[1], tokenizer=tokenizer)
    for method in ("gradient_rollout", "input_x_gradient", "gradcam"):
        expected = every.attribute(pictures, 1, method)
        torch.testing.assert_close(every.attribute(pictures, PROMPTS[1], method), expected)
        torch.testing.assert_close(alone.attribute(pictures, 0, method), expected, rtol=1e-4, atol=1e-6)
    first, second = (every.attribute(pictures, number, "input_x_gradient") for number in (0, 1))
    found = every.attribute(pictures, Contrast(PROMPTS[0], PROMPTS[1]), "input_x_gradient")
    torch.testing.assert_close(found, first - second, rtol=1e-4, atol=1e-5)


def test_of_one_prompt_alone_the_score_is_probed():
    """The softmax of a single score is always one, and would make every perturbation look as if it changed nothing."""
    explainer = Explainer(open_clip(), texts=PROMPTS[:1], tokenizer=Words(12, False))
    assert (explainer.attribute(pixels("open_clip"), 0, "occlusion").std((1, 2)) > 0).all()
    assert explainer.explain(pixels("open_clip"), "gae", 0).top() == []  # whose probability would always be one


def test_nothing_of_the_model_changes():
    model = open_clip()
    model.train()
    model.visual.eval()
    before = [module.training for module in model.modules()]
    names = [name for name, _ in model.named_modules()]
    explainer = Explainer(model, texts=PROMPTS, tokenizer=Words(12, False))
    explainer.explain(pixels("open_clip"), target=0)
    assert [module.training for module in model.modules()] == before
    assert [name for name, _ in model.named_modules()] == names
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_texts_are_read_once(monkeypatch):
    model = open_clip()
    calls: list[Any] = []
    plain = type(model).encode_text
    monkeypatch.setattr(type(model), "encode_text", lambda self, *a, **k: calls.append(1) or plain(self, *a, **k))
    explainer = Explainer(model, texts=PROMPTS, tokenizer=Words(12, False))
    for target in (0, 1, "top2"):
        explainer.explain(pixels("open_clip", 1), target=target)
    assert len(calls) == 1


@pytest.mark.parametrize("name", BUILD)
def test_what_is_missing_is_said(name, vit):
    model = BUILD[name]()
    with pytest.raises(ModelError, match=r'give texts=\["a photo of a ..."\] \(--text\)'):
        Explainer(model)
    with pytest.raises(ModelError, match="give it with tokenizer="):
        Explainer(model, texts=PROMPTS)
    for texts in ([], [""], ["a cat", "a cat"], [1]):
        with pytest.raises(TargetError, match="texts"):
            Explainer(model, texts=texts, tokenizer=words(name))
    with pytest.raises(ModelError, match="does not compare pictures with texts"):
        Explainer(vit, texts=PROMPTS)
    with pytest.raises(TargetError, match="no class 'a photo of a parot'; near matches: a photo of a parrot"):
        Explainer(model, texts=PROMPTS, tokenizer=words(name)).explain(pixels(name), target="a photo of a parot")


@pytest.mark.parametrize("options", [{"scale_heads": True}, {"scale_attn": True}, {"scale_attn_inner": True}])
def test_blocks_that_scale_or_normalise_attention(options):
    explainer = Explainer(open_clip(**options), texts=PROMPTS, tokenizer=Words(12, False))
    for method in ("rollout", "gradient_rollout", "attn_lrp", "transformer_attribution"):
        assert (explainer.attribute(pixels("open_clip"), None, method).std((1, 2)) > 0).all()
    with pytest.raises(ModelError, match="values have no norm of their own; use attention"):
        explainer.attribute(pixels("open_clip"), None, "alti")


def coca() -> Any:
    """open_clip's CoCa, whose text decoder reads all queries of the pooling attention, and whose features the first."""
    code = pytest.importorskip("open_clip", minversion="3.0").coca_model
    torch.manual_seed(0)
    text = {"context_length": 12, "vocab_size": 50, "width": 24, "heads": 2, "layers": 1}
    return lively(
        code.CoCa(
            24,
            multimodal_cfg=text,
            text_cfg={**text, "embed_cls": True, "output_tokens": True},
            vision_cfg={
                "layers": 3, "width": 24, "head_width": 12, "patch_size": 8, "image_size": SIZE, "output_tokens": True,
                "attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 2,
            },
        )
    )  # fmt: skip


def test_coca_is_read_at_the_first_query_of_its_pooling_attention():
    """Every method says what it says of the same model with that query alone."""
    many, alone = coca(), coca()
    alone.visual.attn_pool.query = nn.Parameter(many.visual.attn_pool.query[:1].detach())
    one, other = (Explainer(model, texts=PROMPTS, tokenizer=Words(11, False)) for model in (many, alone))
    explained = []
    for name, method in METHODS.items():
        if "attention" not in method.needs:
            continue
        target = 1 if method.class_specific else None
        options = {"steps": 2} if "steps" in method.options else {}
        if name == "transformer_attribution":  # has no rule for projections that are parts of one parameter
            with pytest.raises(ModelError, match="has no rule for"):
                other.attribute(pixels("open_clip"), target, name)
            continue
        expected, found = (each.attribute(pixels("open_clip"), target, name, **options) for each in (other, one))
        scale = float(expected.abs().max())
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * scale), name
        explained.append(name)
    assert {"attention", "rollout", "gradient_rollout", "gae", "legrad", "tam", "beyond_intuition"} <= set(explained)


@pytest.mark.parametrize("pool", [{"attentional_pool": "parallel"}, {"attentional_pool": True, "pool_type": "avg"}])
def test_other_poolings_of_several_queries_are_refused(pool):
    model = open_clip(attn_pooler_queries=4, attn_pooler_heads=2, **pool)
    with pytest.raises(ModelError, match="two pooling attentions, or several queries of one"):
        Explainer(model, texts=PROMPTS, tokenizer=Words(12, False)).explain(pixels("open_clip"), target=0)


def test_naflex_is_refused_with_what_works():
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.Siglip2Config(vision_config=small, text_config={**small, "projection_size": 24})
    refusal = "takes pictures as lists of patches.* are of the Siglip classes.*naflexvit_base_patch16_siglip"
    for texts in (None, PROMPTS):
        with pytest.raises(ModelError, match=f"Siglip2Model {refusal}"):
            Explainer(transformers.Siglip2Model(config).eval(), texts=texts, tokenizer=Words(12, True))
    with pytest.raises(ModelError, match=f"Siglip2ForImageClassification {refusal}"):
        Explainer(transformers.Siglip2ForImageClassification(config).eval())


def test_gradient_checkpointing_is_refused_with_the_remedy():
    model = open_clip()
    model.set_grad_checkpointing(True)
    with pytest.raises(ModelError, match=r"set_grad_checkpointing\(False\)"):
        Explainer(model, texts=PROMPTS, tokenizer=Words(12, False)).explain(pixels("open_clip"), target=0)
