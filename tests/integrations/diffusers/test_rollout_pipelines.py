"""Rollouts of small diffusers pipelines: states, log-probabilities and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from any_pipelines import CROSS, made
from any_runs import close

import fastdiff
from fastdiff import Sampler

FAMILIES = ("sd3", "flux")


def arguments(family: str, pipe: Any, n: int) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The shape of n latents and what the pipeline passes to its transformer next to them."""
    config = pipe.transformer.config
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(n, 3, CROSS, generator=generator)
    pooled = torch.randn(n, config.pooled_projection_dim, generator=generator)
    cond: dict[str, Any] = {"encoder_hidden_states": text, "pooled_projections": pooled}
    if family == "sd3":
        side = config.sample_size
        return (n, config.in_channels, side, side), cond
    places = torch.zeros(4, 3)
    places[:, 1:] = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    cond |= {"txt_ids": fastdiff.shared(torch.zeros(3, 3)), "img_ids": fastdiff.shared(places)}
    if config.guidance_embeds:
        cond["guidance"] = torch.full((n,), 3.5)
    return (n, 4, config.in_channels), cond


@pytest.mark.parametrize("family", FAMILIES)
def test_rollouts_of_flow_transformers(family: str) -> None:
    pipe = made(family)
    extra = {"mu": 0.6} if pipe.scheduler.config.use_dynamic_shifting else {}
    s = Sampler.from_diffusers(pipe, steps=4, solver="flow_sde", network_batch=2, **extra)
    shape, cond = arguments(family, pipe, 4)
    r = s.rollout(shape, seed=0, cond=cond, start_ids=[0, 0, 1, 1])
    assert r.samples.isfinite().all() and len(r.rows) >= 3
    assert torch.equal(r.states[0, 0], r.states[0, 1])
    score = r.score(checkpoint=True)
    assert torch.equal(score.detach(), r.log_prob)
    score.mean().backward()
    grads = [p.grad for p in pipe.transformer.parameters() if p.grad is not None]
    assert grads and max(float(g.abs().max()) for g in grads) > 0
    part = s.rollout((1, *shape[1:]), seed=0, sample_ids=[2], start_ids=[1], cond=_one(cond, 2))
    assert torch.equal(part.log_prob[:, 0], r.log_prob[:, 2])
    again = s.sample(shape, seed=0, cond=cond, start_ids=[0, 0, 1, 1])
    close(again, r.samples, 0.0)


def _one(cond: dict[str, Any], i: int) -> dict[str, Any]:
    return {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in cond.items()}


def test_shared_takes_tensors() -> None:
    with pytest.raises(TypeError, match="fastdiff.shared: expected a tensor, got float"):
        fastdiff.shared(1.0)  # type: ignore[arg-type]
