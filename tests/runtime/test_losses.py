"""What a draft learns from: losses, their gradients, and the same compiled."""

from __future__ import annotations

import pytest
import torch

from pearl_decode.distill.compiling import compiled
from pearl_decode.distill.lessons import Head, Lesson
from pearl_decode.distill.losses import LOSSES, forward_kl, mean_loss, sum_of, total_variation


def test_losses_are_what_they_are_called():
    torch.manual_seed(0)
    target_probs, logits = torch.randn(5, 7).softmax(-1), torch.randn(5, 7)
    draft_probs = logits.softmax(-1)
    entropy = -(target_probs * target_probs.log()).sum(-1)
    kl = (target_probs * (target_probs / draft_probs).log()).sum(-1)
    torch.testing.assert_close(forward_kl(target_probs, logits)[0] - entropy, kl)
    half_distance = (target_probs - draft_probs).abs().sum(-1) / 2
    torch.testing.assert_close(total_variation(target_probs, logits)[0], half_distance)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_gradients_are_the_losses_own(loss, monkeypatch):
    """Against differences of the loss, through a head, in parts that do not divide the positions."""
    monkeypatch.setattr("pearl_decode.distill.lessons.ON_CPU", 3 * 11)
    torch.manual_seed(0)
    hidden = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    head = Head(torch.randn(11, 4, dtype=torch.float64), torch.randn(11, dtype=torch.float64))
    said = lesson(torch.randn(7, 4, dtype=torch.float64), head)
    assert torch.autograd.gradcheck(lambda x: mean_loss(sum_of(loss), x, head, said), (hidden,))


def lesson(hidden, head):
    """Of a target with a few more ids than the draft has."""
    lse = head.product(hidden).to(torch.promote_types(hidden.dtype, torch.float32)).logsumexp(-1) + 0.1
    return Lesson(torch.empty(0), torch.empty(0), hidden, lse, torch.empty(0))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_a_fused_loss_is_the_loss(loss):
    """And is compiled once, for parts of several sizes."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    head = Head(torch.randn(300, 16, dtype=torch.bfloat16), None)
    fused = compiled("the loss", sum_of(loss), fullgraph=True)
    for positions in (7, 40, 23):
        said = lesson(torch.randn(positions, 16).bfloat16(), head)
        logits = head.product(torch.randn(positions, 16))
        got, expected = (run(head.product(said.hidden), said.lse, logits) for run in (fused, sum_of(loss)))
        torch.testing.assert_close(got[0], expected[0])
        torch.testing.assert_close(got[1], expected[1], rtol=1e-2, atol=1e-5)
        assert got[1].dtype == torch.bfloat16
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_loss_that_torch_cannot_compile_runs_as_it_is(caplog):
    def loss(target_probs, draft_logits):
        values = (target_probs * draft_logits).sum(-1)
        assert float(values[0].sign()) < 2  # fullgraph refuses to read a value
        return values, target_probs

    head = Head(torch.randn(300, 16), None)
    said, hidden = lesson(torch.randn(7, 16), head), torch.randn(7, 16)
    fused = compiled("the loss", sum_of(loss), fullgraph=True)
    got, expected = (mean_loss(run, hidden, head, said) for run in (fused, sum_of(loss)))
    torch.testing.assert_close(got, expected)
    assert "the loss runs as it is, torch cannot compile it here" in caplog.text


def test_a_loss_that_would_be_compiled_too_often_runs_as_it_is(caplog):
    torch._dynamo.reset()
    head, loss = Head(torch.randn(300, 16), None), sum_of(LOSSES["kl"])
    said, hidden = lesson(torch.randn(7, 16), head), torch.randn(7, 16)
    with torch._dynamo.config.patch(recompile_limit=1):
        fused = compiled("the loss", loss, fullgraph=True)
        for dtype in (torch.float32, torch.bfloat16):
            logits = head.product(said.hidden).to(dtype), said.lse, head.product(hidden).to(dtype)
            torch.testing.assert_close(fused(*logits)[0], loss(*logits)[0])
    assert "the loss runs as it is, torch cannot compile it here" in caplog.text
