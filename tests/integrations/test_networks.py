"""Adapters of EDM's, k-diffusion's and diffusers' networks, against the peers' loops."""

from __future__ import annotations

import functools
import math
import types
from typing import Any

import numpy as np
import peer
import pytest
import torch
from tolerances import K_DIFFUSION

import fastdiff
from fastdiff import Sampler, Schedule
from fastdiff.integrations import edm, k_diffusion
from fastdiff.integrations.networks import (
    Adapter,
    DenoiserAdapter,
    EDMAdapter,
    FlowAdapter,
    from_diffusers,
)
from fastdiff.sampling.adaptive import dpm_adaptive

SHAPE = (2, 3, 4, 4)


def denoiser(
    x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None = None
) -> torch.Tensor:
    """D(x, sigma), not linear, that knows the noise level to float32."""
    s = sigma.to(x.dtype).view(-1, 1, 1, 1)
    shift = 0.0 if class_labels is None else class_labels.to(x.dtype).view(-1, 1, 1, 1)
    return torch.tanh(0.7 * x / (1 + s) + 0.1 + shift) + 0.2 * torch.log1p(s)


def algorithm_2(
    x: np.ndarray,
    levels: list[float],
    s_churn: float,
    s_min: float,
    s_max: float,
    s_noise: float,
    draw,
):
    """Karras et al. 2022, algorithm 2, in NumPy float64; draw(i) is the noise of step i."""

    def d(x: np.ndarray, t: float) -> np.ndarray:
        t32 = torch.tensor([t, t], dtype=torch.float32)
        return (x - denoiser(torch.from_numpy(x), t32).numpy()) / t

    n = len(levels) - 1
    for i in range(n):
        t, s = levels[i], levels[i + 1]
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_min <= t <= s_max else 0.0
        up = t + gamma * t
        if gamma > 0:
            x = x + math.sqrt(up**2 - t**2) * s_noise * draw(i)
        slope = d(x, up)
        following = x + (s - up) * slope
        if s != 0:
            following = x + (s - up) * (0.5 * slope + 0.5 * d(following, s))
        x = following
    return x


@pytest.mark.parametrize("churn", [0.0, 10.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 18])
def test_edm_sampler_is_algorithm_2(churn: float, steps: int) -> None:
    levels = [
        (80 ** (1 / 7) + (i / max(steps - 1, 1)) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        for i in range(steps)
    ]
    start = fastdiff.randn(SHAPE, seed=5, dtype=torch.float64) * 80
    sampler = edm.sampler(
        denoiser, num_steps=steps, S_churn=churn, S_min=0.05, S_max=90, S_noise=1.003
    )
    got = sampler.sample(x_T=start, seed=3)
    drawn = [
        k
        for k in range(len(sampler.plan))
        if sampler.plan.column("x.z")[k] != 0
        or any(sampler.plan.column(f"s{i}.z")[k] for i in range(1, 5))
    ]
    churned = [i for i, t in enumerate(levels) if 0.05 <= t <= 90 and churn]
    rows = dict(zip(churned, drawn, strict=True))

    def draw(i: int) -> np.ndarray:
        return fastdiff.randn(SHAPE, seed=3, step=rows[i], stream=1, dtype=torch.float64).numpy()

    expected = algorithm_2(start.numpy(), [*levels, 0.0], churn, 0.05, 90, 1.003, draw)
    # the network gets sigma in float32, where a last bit of the level may round differently
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=2e-6)


def test_raw_edm_networks_and_preconditioned_ones_agree() -> None:
    """D = c_skip x + c_out F(c_in x, c_noise) by Parametrization, and D written out (table 1)."""
    data = 0.5

    def raw(x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x + c_noise.to(x.dtype).view(-1, 1, 1, 1))

    def whole(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        s = sigma.double().view(-1, 1, 1, 1)
        total = s**2 + data**2
        skip, out, scale = data**2 / total, s * data / total.sqrt(), 1 / total.sqrt()
        return skip * x + out * raw(scale * x, (sigma.double().log() / 4).float())

    start = fastdiff.randn(SHAPE, seed=5, dtype=torch.float64) * 80
    one = edm.sampler(EDMAdapter(raw, sigma_data=data), num_steps=12).sample(x_T=start)
    two = edm.sampler(whole, num_steps=12).sample(x_T=start)
    torch.testing.assert_close(one, two, rtol=0, atol=2e-6)


def test_k_diffusion_denoisers_in_a_sampler_equal_k_diffusion() -> None:
    theirs = peer.load()
    sigmas = k_diffusion.get_sigmas_karras(20, 0.1, 20.0)
    start = fastdiff.randn(SHAPE, seed=5) * float(sigmas[0])
    labels = torch.tensor([0.3, -0.2])
    model = DenoiserAdapter(denoiser)
    for solver, function in [("dpm++2m", "dpmpp_2m"), ("heun", "heun"), ("lms", "lms")]:
        got = Sampler(
            model,
            Schedule.karras(),
            solver=solver,
            prediction_type=model.parametrization,
            sigmas=sigmas[:-1].tolist(),
        ).sample(x_T=start, cond={"class_labels": labels})
        expected = getattr(theirs, f"sample_{function}")(
            denoiser, start, sigmas, extra_args={"class_labels": labels}, disable=True
        )
        assert float((got - expected).abs().max() / expected.abs().max()) < K_DIFFUSION["float32"]


@pytest.mark.parametrize("space", ["ve", "vp", "flow", "sub_vp"])
def test_a_denoiser_serves_schedules_of_every_space(space: str) -> None:
    """The probability flow of x/alpha is the same in every space.

    Equal x/alpha at equal levels lead to equal data.
    """
    schedule = {
        "ve": Schedule.karras(),
        "vp": Schedule.linear(1000),
        "flow": Schedule.flow(),
        "sub_vp": Schedule.sub_vp(),
    }[space]
    model = DenoiserAdapter(denoiser, space=space)
    levels = [10.0, 3.0, 1.0, 0.3, 0.1]
    alpha = schedule.at_log_snr(-2 * math.log(10.0)).alpha
    start = fastdiff.randn(SHAPE, seed=5) * 10
    given = (
        [v / (1 + v) for v in levels] if space == "flow" else levels
    )  # flow matching's own sigma
    got = Sampler(
        model, schedule, solver="dpm++2m", prediction_type=model.parametrization, sigmas=given
    ).sample(x_T=start * alpha)
    sigmas = torch.tensor([*levels, 0.0])
    expected = k_diffusion.sample_dpmpp_2m(denoiser, start, sigmas, disable=True)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="expected space in"):
        DenoiserAdapter(denoiser, space="edm")


def test_a_denoiser_under_adaptive_steps() -> None:
    model = DenoiserAdapter(denoiser)
    got = dpm_adaptive(
        model,
        Schedule.karras(),
        x_T=fastdiff.randn(SHAPE, seed=5) * 20,
        prediction_type=model.parametrization,
        sigma_max=20.0,
        sigma_min=0.1,
        denoise=False,
    )
    start = fastdiff.randn(SHAPE, seed=5) * 20
    expected = k_diffusion.sample_dpm_adaptive(denoiser, start, 0.1, 20.0, disable=True)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_diffusers_unets_and_dit() -> None:
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers is not installed here (make test installs it)"
    )
    torch.manual_seed(0)
    small = {
        "sample_size": 8,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    unet = diffusers.UNet2DModel(
        **small,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    ).eval()
    text = diffusers.UNet2DConditionModel(
        **small,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    dit = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_num_groups=4,
    ).eval()
    cases = [
        (unet, (2, 3, 8, 8), {}),
        (text, (2, 4, 8, 8), {"encoder_hidden_states": torch.ones(2, 3, 8)}),
        (dit, (2, 4, 8, 8), {"class_labels": torch.tensor([1, 2])}),
    ]
    for network, shape, cond in cases:
        model = from_diffusers(network)
        assert next(model.parameters()) is next(network.parameters())
        got = Sampler(model, Schedule.linear(1000), solver="ddim", steps=4).sample(
            shape, seed=1, cond=cond
        )
        scheduler = diffusers.DDIMScheduler(
            beta_start=1e-4,
            beta_end=0.02,
            clip_sample=False,
            timestep_spacing="trailing",
            set_alpha_to_one=True,
        )
        scheduler.set_timesteps(4)
        x = fastdiff.randn(shape, seed=1)
        with torch.no_grad():
            for t in scheduler.timesteps:
                out = network(x, timestep=t.expand(2), **cond).sample[:, : shape[1]]
                x = scheduler.step(out, t, x).prev_sample
        torch.testing.assert_close(got, x, rtol=0, atol=5e-5 * float(x.abs().max()))
    with pytest.raises(TypeError, match="expected a diffusers network with a config, got function"):
        from_diffusers(denoiser)


def test_diffusers_sd3_transformer_gets_1000_sigma_and_gives_velocity() -> None:
    diffusers = pytest.importorskip(
        "diffusers", reason="diffusers is not installed here (make test installs it)"
    )
    torch.manual_seed(0)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=8,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=8,
    ).eval()
    cond = {"encoder_hidden_states": torch.ones(2, 3, 8), "pooled_projections": torch.ones(2, 8)}
    model = from_diffusers(network)
    assert isinstance(model, FlowAdapter) and model.parametrization.prediction_type == "flow"
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    start = x = fastdiff.randn((2, 4, 8, 8), seed=1)
    with torch.no_grad():
        for t in scheduler.timesteps:
            velocity = network(hidden_states=x, timestep=t.expand(2), **cond).sample
            x = scheduler.step(velocity, t, x).prev_sample
    levels = scheduler.sigmas[:-1].double()
    times = [
        fastdiff.schedule.Time(0.0, 1 - s, s, 2 * math.log((1 - s) / s) if s < 1 else -math.inf)
        for s in levels.tolist()
    ]
    got = Sampler(
        model,
        Schedule.flow(),
        solver="euler",
        prediction_type=model.parametrization,
        times=[*times, fastdiff.schedule.CLEAN],
        steps=5,
    ).sample(x_T=start, cond=cond)
    torch.testing.assert_close(got, x, rtol=0, atol=2e-5 * float(x.abs().max()))


def test_adapters_show_the_networks_dtype() -> None:
    network = torch.nn.Conv2d(3, 3, 1).double()
    seen: list[torch.dtype] = []

    def call(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x.dtype)
        return network(x)

    model = Adapter(call)
    model.inner = network
    Sampler(model, Schedule.linear(10), solver="ddim", steps=2).sample((1, 3, 4, 4), seed=1)
    assert set(seen) == {torch.float64}


def test_the_first_arguments_name_is_that_of_the_signature() -> None:
    """A decorator's wrapper hides the arguments' names, and a local variable has the other name."""

    def decorated(forward: Any) -> Any:
        @functools.wraps(forward)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            return forward(*arguments, **named)

        return wrapper

    class Transformer(torch.nn.Module):
        config: Any = types.SimpleNamespace(in_channels=3, out_channels=3)

        @decorated
        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return hidden_states + timestep.view(-1, 1)

    class UNet(torch.nn.Module):
        config: Any = types.SimpleNamespace(in_channels=3, out_channels=3)

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            hidden_states = sample + timestep.view(-1, 1)
            return hidden_states

    x, t = torch.ones(2, 3), torch.ones(2)
    for network in (Transformer(), UNet()):
        assert torch.equal(from_diffusers(network)(x, t), x + 1)
