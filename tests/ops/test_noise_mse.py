"""`noise_mse`: the training loss against noise that is drawn again instead of stored.

test_sums.py tests what it shares with the other sums.
"""

from __future__ import annotations

import pytest
import torch

from fastdiff import Schedule, ops


def test_the_noise_is_that_of_q_sample(backend) -> None:
    """With the noise of q_sample as prediction the loss and its gradient are zero."""
    schedule, x0, t = Schedule.linear(100), torch.randn(4, 3, 5), torch.tensor([0, 30, 60, 99])
    ids = torch.tensor([4, 2**50, 9, 0])
    arguments = {"seed": 11, "sample_ids": ids, "step": 17}
    alpha, sigma = torch.tensor(schedule.alpha), torch.tensor(schedule.sigma)
    x_t = ops.q_sample(x0, t, alpha, sigma, **arguments)
    noise = ops.randn((4, 3, 5), stream=2, **arguments).requires_grad_()
    assert torch.equal(ops.q_sample(x0, t, alpha, sigma, noise=noise.detach()), x_t)
    loss = ops.noise_mse(noise, **arguments)
    assert loss.eq(0).all() and torch.autograd.grad(loss.sum(), noise)[0].eq(0).all()


def test_gradient_against_autograd_of_stored_noise(backend) -> None:
    prediction = torch.randn(3, 1500, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
    noise = ops.randn((3, 1500), seed=5, stream=2, dtype=torch.float64)
    plain = (weight * (prediction - noise).square().mean(dim=1)).sum()
    expected = torch.autograd.grad(plain, prediction)[0]
    ours = ops.noise_mse(prediction, seed=5, weight=weight).sum()
    assert abs(ours.item() - plain.item()) < 1e-13 * abs(plain.item())
    torch.testing.assert_close(
        torch.autograd.grad(ours, prediction)[0], expected, rtol=1e-13, atol=1e-16
    )


def test_nothing_but_the_prediction_is_kept(backend) -> None:
    """The backward pass draws the noise again."""
    prediction = torch.randn(8, 64, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v) or v, lambda v: v):
        ops.noise_mse(prediction, seed=3)
    assert [v.data_ptr() for v in kept] == [prediction.data_ptr()]


def test_bad_input() -> None:
    with pytest.raises(
        ValueError, match=r"fastdiff.noise_mse: expected weight of shape \[2\], got \[3\]"
    ):
        ops.noise_mse(torch.zeros(2, 3), seed=1, weight=torch.ones(3))
    with pytest.raises(
        ValueError, match="fastdiff.noise_mse: expected out together with workspace"
    ):
        ops.noise_mse(torch.zeros(2, 3), seed=1, workspace=torch.ones(3))
