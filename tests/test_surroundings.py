"""What a caller has set for all of PyTorch is for the model; what is made of what was seen of it stays the same."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from small_models import lively
from torch import Tensor

from vit_explain import Explainer, list_methods
from vit_explain.relprop import imprecise
from vit_explain.surroundings import callers, own

METHODS = {method.name: method for method in list_methods()}


def half_precision():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("name", ["alti", "globenc", "value_norm", "rollout", "token_pca", "artifact_tokens"])
def test_methods_reckon_under_autocast_as_outside_of_it(name, vit, pixels):
    explainer, method = Explainer(lively(vit)), METHODS[name]
    subject, ready = explainer.subject(pixels)
    with half_precision():
        found = explainer.attribute(pixels, None, name)
        with torch.inference_mode():
            trace, _ = subject.look(ready, method.needs)
    with torch.inference_mode():
        map_ = method.run(trace, **method.settings({}))
    torch.testing.assert_close(found, getattr(map_, "map", map_), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["occlusion", "smoothgrad", "logit_lens", "attn_lrp", "transformer_attribution"])
def test_models_run_under_the_callers_autocast_however_often_they_are_looked_at(name, vit, pixels):
    seen = set()
    vit.head.register_forward_hook(lambda _, args, out: seen.add(out.dtype))
    with half_precision():
        Explainer(vit).attribute(pixels[:1], 1, name)
    assert seen == {torch.bfloat16}
    seen.clear()
    Explainer(vit).attribute(pixels[:1], 1, name)
    assert seen == {torch.float32}


@pytest.mark.parametrize("name", ["transformer_attribution", "partial_lrp"])
def test_relevance_that_magnifies_rounding_says_so(name, vit, pixels):
    def warnings() -> list[list[str]]:
        return Explainer(vit).explain(pixels[:2], name, 1).warnings

    assert not any("bfloat16" in warning for row in warnings() for warning in row)
    with half_precision():
        assert all("computes in bfloat16" in " ".join(row) for row in warnings())
    vit.bfloat16()
    assert all("computes in bfloat16" in " ".join(row) for row in warnings())


def test_products_in_tf32_count_as_rounded():
    class OnDevice(Tensor):
        is_cuda = True  # type: ignore[assignment]

    look = SimpleNamespace(pixels=torch.zeros(2, 3, 4, 4).as_subclass(OnDevice), layers=[])
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    try:
        settings.fp32_precision = "ieee"
        assert imprecise(look) == []
        settings.fp32_precision = "tf32"
        assert len(imprecise(look)) == 2 and "products in TF32" in imprecise(look)[0][0]
    finally:
        settings.fp32_precision = before


@pytest.mark.parametrize(("name", "option"), [("attn_lrp", {"linear_gamma": 0.1}), ("cp_lrp", {"epsilon": 0.1})])
def test_rules_of_linear_layers_hold_under_autocast(name, option, vit, pixels):
    explainer = Explainer(vit)
    expected = explainer.attribute(pixels, 1, name, **option)
    with half_precision():
        found = explainer.attribute(pixels, 1, name, **option)
    # As near as the model's own rounding lets them be.
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.99


def seen() -> tuple[str, torch.dtype]:
    one = torch.ones(1, 1, device="cpu")
    return torch.zeros(1).device.type, (one @ one).dtype


def test_the_callers_settings_are_put_aside_and_put_back():
    outside = "cpu", torch.float32
    with own():
        assert seen() == outside
    with torch.device("meta"), half_precision():
        assert seen() == ("meta", torch.bfloat16)
        with own():
            assert seen() == outside
            with own(), callers():
                assert seen() == ("meta", torch.bfloat16)
                with own():
                    assert seen() == outside
                assert seen() == ("meta", torch.bfloat16)
            with pytest.raises(KeyError), callers():
                raise KeyError
            assert seen() == outside
        assert seen() == ("meta", torch.bfloat16)
    assert seen() == outside
    with callers():
        assert seen() == outside


def test_functions_of_the_caller_run_with_their_settings(vit, pixels):
    found = []

    def target(logits: Tensor) -> Tensor:
        found.append(seen()[0])
        return logits[:, 1]

    with torch.device("meta"):
        Explainer(vit).explain(pixels, "gradient_rollout", target)
    assert found and set(found) == {"meta"}
