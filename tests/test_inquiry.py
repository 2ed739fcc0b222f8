"""What a look may keep besides attention, and looking again: tokens, gradients, fewer patches, other pixels."""

from __future__ import annotations

import dataclasses
import sys
import threading

import pytest
import torch
from small_models import GRID, SIZE, small
from torch import nn

from vit_explain.capture import look
from vit_explain.errors import CaptureError, OptionError
from vit_explain.family import family_of
from vit_explain.hooks import hooked
from vit_explain.inquiry import ModelInquiry, Subject
from vit_explain.targets import Target

NEEDS = frozenset({"attention", "tokens", "features", "pixels", "gradient"})


def subject(model: nn.Module) -> Subject:
    family = family_of(model)
    return Subject(model, family, family.anatomy(model, (3, *SIZE)))


def test_tokens_and_their_gradients_are_the_models_own(model, pixels):
    """A hand-made walk through the blocks, with PyTorch's own gradients at every step."""
    asked = subject(model)
    targets = [Target(str(n), n) for n in (0, 1, 3)]
    trace, output = asked.look(pixels, NEEDS)
    trace = asked.about(trace, output, targets, NEEDS, keep_graph=False)
    own_pixels = pixels.clone().requires_grad_()
    kept: list[torch.Tensor] = []

    def keep(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        args[0].retain_grad()
        kept.append(args[0])

    handles = [block.register_forward_pre_hook(keep) for block in model.blocks]
    logits = model(own_pixels)
    logits[torch.arange(3), torch.tensor([0, 1, 3])].sum().backward()
    for handle in handles:
        handle.remove()
    assert len(trace.tokens) == len(trace.token_gradients) == len(model.blocks) + 1
    for ours, gradient, theirs in zip(trace.tokens, trace.token_gradients, kept, strict=False):
        torch.testing.assert_close(ours, theirs.detach())
        torch.testing.assert_close(gradient, theirs.grad)
    torch.testing.assert_close(trace.pixel_gradient, own_pixels.grad)
    torch.testing.assert_close(trace.y, logits.detach()[torch.arange(3), torch.tensor([0, 1, 3])])
    torch.testing.assert_close(trace.features, model.blocks[-1].norm1(trace.tokens[-2]).detach())
    # The lens turns the tokens that leave the last block into what the model returned.
    torch.testing.assert_close(trace.inquiry.lens(trace.tokens[-1]), logits)


def test_patches_are_dropped_after_positions_are_added(vit, pixels):
    """Against a forward by hand: tokens with their positions, some left out, then the blocks."""
    inquiry = ModelInquiry(subject(vit), 3, (tuple(Target(str(n), n) for n in (0, 1, 3)),))
    keep = torch.rand(3, GRID[0] * GRID[1], generator=torch.Generator().manual_seed(0)) > 0.4
    keep[1] = True
    keep[2] = False
    found = inquiry.probe(pixels, keep, probability=False)
    for image, number in enumerate((0, 1, 3)):
        tokens = vit._pos_embed(vit.patch_embed(pixels[image : image + 1]))
        tokens = torch.cat([tokens[:, :1], tokens[:, 1:][:, keep[image]]], 1)
        expected = vit.forward_head(vit.norm(vit.blocks(tokens)))[0, number]
        torch.testing.assert_close(found[image], expected.detach())
    whole = inquiry.probe(pixels)
    torch.testing.assert_close(whole, vit(pixels).softmax(-1)[torch.arange(3), torch.tensor([0, 1, 3])].detach())


def test_rows_belong_to_images_in_order(vit, pixels):
    inquiry = ModelInquiry(subject(vit), 3, (tuple(Target(str(n), n) for n in (0, 1, 3)),))
    many = pixels.repeat_interleave(2, 0)
    torch.testing.assert_close(inquiry.probe(many), inquiry.probe(pixels).repeat_interleave(2))
    again = inquiry.again(many, {"pixels", "gradient"})
    torch.testing.assert_close(again.y, inquiry.probe(pixels, probability=False).repeat_interleave(2))
    assert again.pixel_gradient is not None and again.pixel_gradient.shape == many.shape


@pytest.mark.parametrize("name", ["eva with rotary positions", "beit with relative position bias"])
def test_positions_in_attention_forbid_dropping(name, pixels):
    inquiry = ModelInquiry(subject(small(name)), 3, ((Target("0", 0),) * 3,))
    with pytest.raises(OptionError, match="cannot be left out as tokens; fill them instead"):
        inquiry.probe(pixels, torch.ones(3, GRID[0] * GRID[1], dtype=torch.bool))


def test_a_frozen_model_has_token_gradients_too(vit, pixels):
    moving = look(vit, pixels, NEEDS, subject(vit).anatomy)
    expected = torch.autograd.grad(moving.output[:, 0].sum(), moving.tokens)
    frozen = look(vit.requires_grad_(False), pixels, NEEDS, subject(vit).anatomy)
    found = torch.autograd.grad(frozen.output[:, 0].sum(), frozen.tokens)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


def test_tokens_that_are_not_as_the_family_says_are_refused(vit, pixels):
    wrong = dataclasses.replace(subject(vit).anatomy, prefix=2)
    with pytest.raises(CaptureError, match=r"the model family says \(B, 17, D\) tokens"):
        look(vit, pixels, {"tokens"}, wrong)


def test_hooks_are_for_one_thread_and_leave_nothing(vit, pixels):
    """While one thread zeroes the first block's input, another one's forward is as ever."""
    plain = vit(pixels).detach()
    before = [(list(m._forward_hooks.items()), list(m._forward_pre_hooks.items())) for m in vit.modules()]
    elsewhere: list[torch.Tensor] = []
    with hooked(vit.blocks[0], before=torch.zeros_like, after=lambda out: out + 1):
        changed = vit(pixels)
        other = threading.Thread(target=lambda: elsewhere.append(vit(pixels).detach()))
        other.start()
        other.join()
    assert not torch.allclose(changed, plain)
    torch.testing.assert_close(elsewhere[0], plain)
    with pytest.raises(RuntimeError, match="inside"), hooked(vit.blocks[0]):
        raise RuntimeError("inside")
    torch.testing.assert_close(vit(pixels).detach(), plain)
    assert before == [(list(m._forward_hooks.items()), list(m._forward_pre_hooks.items())) for m in vit.modules()]


def test_hooks_of_users_can_be_removed_whenever_they_were_registered(vit, pixels):
    """Before, during and after an explanation."""
    fired: list[str] = []
    block = vit.blocks[0]
    handles = {"gone": block.register_forward_hook(lambda *_: fired.append("gone"))}
    handles["early"] = block.register_forward_hook(lambda *_: fired.append("early"))
    with hooked(block, after=lambda out: out):
        handles["gone"].remove()
        handles["late"] = block.register_forward_hook(lambda *_: fired.append("late"))
        vit(pixels)
        assert fired == ["early", "late"]
    vit(pixels)
    assert fired == ["early", "late"] * 2
    for handle in handles.values():
        handle.remove()
    vit(pixels)
    assert fired == ["early", "late"] * 2


def test_hooks_may_come_and_go_while_other_threads_look(vit, pixels):
    plain = vit(pixels).detach()
    stop, found = threading.Event(), []

    def come_and_go() -> None:
        while not stop.is_set():
            with hooked(vit.blocks[0], before=torch.zeros_like):
                pass

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    other = threading.Thread(target=come_and_go)
    try:
        other.start()
        found = [vit(pixels).detach() for _ in range(20)]
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        other.join()
    for one in found:
        torch.testing.assert_close(one, plain)
