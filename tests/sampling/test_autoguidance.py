"""Autoguidance: another network gives the unconditional half (Karras et al. 2024).

The oracle is one elementwise network that computes both halves: an argument of each row selects
which one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdiff import Request, Sampler, Schedule
from fastdiff.models import UNet

SCHEDULE = Schedule.linear(1000)


class Elementwise(nn.Module):
    """An elementwise network with one weight, which counts the rows of its calls."""

    def __init__(self, weight: float, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=dtype))
        self.rows: list[int] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.rows.append(len(x))
        column = (-1, *(1,) * (x.ndim - 1))
        return x * self.weight / (1 + x.abs()) + 0.1 * y.to(x.dtype).view(column)


class Either(nn.Module):
    """The network or the guide, as `weak` says for each row."""

    def __init__(self, network: nn.Module, guide: nn.Module):
        super().__init__()
        self.network, self.guide = network, guide

    def forward(self, x: Tensor, t: Tensor, y: Tensor, weak: Tensor) -> Tensor:
        weak = weak.view(-1, *(1,) * (x.ndim - 1)) != 0
        return torch.where(weak, self.guide(x, t, y), self.network(x, t, y))


Y = {"y": torch.arange(3)}
NONE = {"y": torch.full((3,), 9)}


def _both(**options: Any) -> tuple[Sampler, Sampler]:
    """A sampler with a guide, and one of the network that computes both halves."""
    network, guide = Elementwise(1.1), Elementwise(0.7)
    ours = Sampler(network, SCHEDULE, steps=6, guide=guide, **options)
    return ours, Sampler(Either(network, guide), SCHEDULE, steps=6, **options)


def _marked(uncond: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "cond": Y | {"weak": torch.zeros(3)},
        "uncond": uncond | {"weak": torch.ones(3)},
    }


@pytest.mark.parametrize("network_batch", [None, 2, 4])
@pytest.mark.parametrize("gamma", [3.0, 0.0, 1.0, -0.5, torch.tensor([2.0, 0.0, 1.0])])
def test_the_guide_is_the_unconditional_half(
    gamma: float | Tensor, network_batch: int | None, backend: str
) -> None:
    ours, theirs = _both(network_batch=network_batch)
    for uncond in (NONE, Y):
        given = {} if uncond is Y else {"uncond": uncond}  # without uncond the guide gets cond
        x = ours.sample((3, 4), seed=1, cond=Y, guidance_scale=gamma, **given)
        want = theirs.sample((3, 4), seed=1, guidance_scale=gamma, **_marked(uncond))
        assert torch.equal(x, want)


@pytest.mark.parametrize("solver", ["ddim", "unipc", "heun", "ddpm"])
def test_streams_requests_and_hooks_with_a_guide(solver: str) -> None:
    ours, theirs = _both(solver=solver, guidance_rescale=0.5)
    marked = _marked(NONE)
    call: dict[str, Any] = {"seed": 2, "guidance_scale": 2.5}
    want = theirs.sample((3, 4), **call, **marked)
    stream = ours.stream(3, (4,), batch_size=2, cond=Y, uncond=NONE, **call)
    assert want.isfinite().all() and torch.equal(torch.cat(list(stream)), want)
    requests = [
        Request(
            seed=2,
            sample_id=i,
            cond={"y": Y["y"][i]},
            uncond={"y": NONE["y"][i]},
            guidance_scale=2.5,
        )
        for i in range(3)
    ]
    for request, sample in ours.serve(requests, (4,), batch_size=2):
        assert torch.equal(sample, want[request.sample_id])
    hooks: dict[str, Any] = {
        "guidance": lambda x0, x, t: x0 - 0.1 * torch.autograd.grad(x0.square().sum(), x)[0],
        "through_network": True,
    }
    guided = ours.sample((3, 4), cond=Y, uncond=NONE, **hooks, **call)
    assert torch.equal(guided, theirs.sample((3, 4), **hooks, **call, **marked))
    assert not torch.equal(guided, want)


def test_a_row_without_guidance_does_not_call_the_guide() -> None:
    network, guide = Elementwise(1.1), Elementwise(0.7)
    strengths = [1.0, 3.0, 3.0, 0.0, 1.0]
    sampler = Sampler(network, SCHEDULE, steps=5, guidance_scale=strengths, guide=guide)
    sampler.sample((3, 4), seed=0, cond=Y)
    assert network.rows == [3, 3, 3, 3] and guide.rows == [3, 3, 3]
    network.rows.clear(), guide.rows.clear()
    rho = [float((-0.5 * torch.tensor(SCHEDULE.log_snr[int(t)])).exp()) for t in (700, 300)]
    banded = Sampler(
        network,
        SCHEDULE,
        steps=5,
        guidance_scale=3.0,
        guide=guide,
        guidance_interval=tuple(rho[::-1]),
    )
    banded.sample((3, 4), seed=0, cond=Y)
    inside = [
        rho[1] <= (1 / SCHEDULE.alphas_cumprod[int(t)] - 1) ** 0.5 <= rho[0]
        for t in banded.plan.column("t")[:-1]
    ]
    assert network.rows == [3] * 5 and 0 < sum(inside) < 5 and guide.rows == [3] * sum(inside)


def test_gradients_reach_the_network_and_the_guide() -> None:
    ours, theirs = _both()
    results = []
    for sampler, arguments in ((ours, {"cond": Y, "uncond": NONE}), (theirs, _marked(NONE))):
        ours.model.weight.grad = ours.guide.weight.grad = None  # type: ignore[union-attr]
        x = sampler.sample((3, 4), seed=1, guidance_scale=2.0, differentiable=True, **arguments)
        x.square().sum().backward()
        results.append((x.detach(), ours.model.weight.grad, ours.guide.weight.grad))  # type: ignore[union-attr]
    assert torch.equal(results[0][0], results[1][0])
    for got, want in zip(results[0][1:], results[1][1:], strict=True):
        assert want.abs() > 1e-4
        torch.testing.assert_close(got, want, rtol=1e-4, atol=0)


def test_a_sample_has_the_same_bits_in_any_batch() -> None:
    torch.manual_seed(0)
    networks = [UNet(3, 8, 4, widths=(16, 32), mid_blocks=1, emb=32).eval() for _ in range(2)]
    for network in networks:
        for p in network.parameters():
            nn.init.normal_(p, std=0.05)
    sampler = Sampler(
        networks[0], SCHEDULE, steps=3, guidance_scale=2.0, guide=networks[1], network_batch=2
    )
    y = torch.tensor([0, 1, 2])
    x = sampler.sample((3, 3, 8, 8), seed=4, cond={"y": y})
    for i in range(3):
        one = sampler.sample((1, 3, 8, 8), seed=4, sample_ids=[i], cond={"y": y[i : i + 1]})
        assert torch.equal(one[0], x[i])
    alone = Sampler(networks[0], SCHEDULE, steps=3, network_batch=2)
    assert not torch.equal(x, alone.sample((3, 3, 8, 8), seed=4, cond={"y": y}))


def test_a_guide_of_another_dtype() -> None:
    network, guide = Elementwise(1.1), Elementwise(0.7, torch.bfloat16)
    x = Sampler(network, SCHEDULE, steps=4, guidance_scale=2.0, guide=guide).sample(
        (3, 4), seed=1, cond=Y
    )

    def rounded(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return guide(x.bfloat16(), t, y).float()

    want = Sampler(network, SCHEDULE, steps=4, guidance_scale=2.0, guide=rounded)
    assert torch.equal(x, want.sample((3, 4), seed=1, cond=Y))


def test_refusals(tmp_path: Any) -> None:
    network = Elementwise(1.1)
    with pytest.raises(TypeError, match="expected guide as a callable"):
        Sampler(network, SCHEDULE, guide=3)  # type: ignore[arg-type]

    def learned(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, x], 1)

    sampler = Sampler(network, SCHEDULE, steps=2, guidance_scale=2.0, guide=learned)
    for extra in ({}, {"differentiable": True}):
        with pytest.raises(ValueError, match="expected outputs of one shape"):
            sampler.sample((3, 4), seed=0, cond=Y, **extra)
    with pytest.raises(ValueError, match="got a guide too"):
        sampler.save_pretrained(tmp_path)
