"""Every door accepts the same networks, with the same numbers, and says the same about bad ones.

A door is a public entry point that takes a user's network. To add one, write a function
`door(network, data) -> Tensor` and a line in DOORS.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from tolerances import DOORS as TOLERANCES
from torch import Tensor, nn

import fastdiff
from fastdiff import Schedule
from fastdiff.cli.bench_diffusers import loop as diffusers_loop
from fastdiff.cli.bench_diffusers import scheduler_of
from fastdiff.integrations import k_diffusion
from fastdiff.jobs import Model
from fastdiff.sampling.adaptive import dpm_adaptive, dpm_fast, on_tree
from fastdiff.schedule import Time
from fastdiff.theory.likelihood import elbo, elbo_two_variable, nll
from fastdiff.theory.score import (
    VPSDE,
    annealed_langevin,
    denoising_score_matching,
    predictor_corrector,
    probability_flow,
)
from fastdiff.theory.variational import DenoisingLoss, DiffusionHVAE

SCHEDULE = Schedule.linear(20)
SHAPE = (3, 2, 4)
STEPS = 4


class Plain(nn.Module):
    """v = W x/4 + t/1024 over channels: a linear map, which refuses inputs of another dtype.

    Its weights have few bits, so that a cast of the network changes none of them.
    """

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5, -0.25], [0.125, 0.75]], dtype=dtype))
        self.seen: set[torch.dtype] = set()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.add(x.dtype)
        mixed = nn.functional.linear(x.movedim(1, -1), self.weight).movedim(-1, 1)
        return mixed + (t.to(torch.float32) / 1024).to(x.dtype).view(-1, 1, 1)


class Wrapped(nn.Module):
    """The plain network's output in another form."""

    def __init__(self, form: Callable[[Tensor], Any]):
        super().__init__()
        self.plain, self.form = Plain(), form

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return self.form(self.plain(x, t))


class OwnTime(nn.Module):
    """The plain network for times 2 t + 1, as it says itself."""

    def __init__(self, time: Callable[[Time], float]):
        super().__init__()
        self.plain, self.time = Plain(), time

    def network_time(self, point: Time) -> float:
        return 2 * self.time(point) + 1

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.float32
        return self.plain(x, (t - 1) / 2)


class Unparametrized(nn.Module):
    """The plain network as a module without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = [Plain()]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.plain[0].to(x.dtype)(x, t)


def _sigma(point: Time) -> float:
    return point.sigma


class Door(NamedTuple):
    """A door.

    Attributes:
        name: that its error messages begin with.
        run: a network -> what the door computes.
        time: a point -> the time that the door passes to a network without its own time.
        opens: the name that errors begin with where no network is passed, if it is another one.
    """

    name: str
    run: Callable[[Any], Tensor]
    time: Callable[[Time], float] = lambda point: float(round(point.t))
    opens: str = ""


def noise() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def sample(network: Any) -> Tensor:
    sampler = fastdiff.Sampler(
        network, SCHEDULE, solver="ddim", steps=STEPS, prediction_type="v", clip_range=2.0
    )
    return sampler.sample(SHAPE, seed=0)


def padded(network: Any) -> Tensor:
    sampler = fastdiff.Sampler(
        network, SCHEDULE, solver="heun", steps=STEPS, prediction_type="v", network_batch=2
    )
    return sampler.sample(SHAPE, seed=0)


def guided(network: Any) -> Tensor:
    sampler = fastdiff.Sampler(
        network, SCHEDULE, steps=STEPS, prediction_type="v", guidance_scale=2.0
    )
    return sampler.sample(SHAPE, seed=0, uncond={})


def differentiated(network: Any) -> Tensor:
    sampler = fastdiff.Sampler(network, SCHEDULE, steps=STEPS, prediction_type="v")
    return sampler.sample(SHAPE, seed=0, differentiable=True, checkpoint=2)


def stream(network: Any) -> Tensor:
    sampler = fastdiff.Sampler(network, SCHEDULE, steps=STEPS, prediction_type="v")
    return torch.cat(list(sampler.stream(SHAPE[0], SHAPE[1:], batch_size=2, seed=0)))


def serve(network: Any) -> Tensor:
    sampler = fastdiff.Sampler(network, SCHEDULE, steps=STEPS, prediction_type="v")
    requests = [fastdiff.Request(sample_id=i, seed=0) for i in range(SHAPE[0])]
    done = dict((r.sample_id, x) for r, x in sampler.serve(requests, SHAPE[1:], batch_size=2))
    return torch.stack([done[i] for i in range(SHAPE[0])])


def through(network: Any) -> Tensor:
    sampler = fastdiff.Sampler(network, SCHEDULE, steps=STEPS, prediction_type="v")
    return sampler.sample(SHAPE, seed=0, guidance=lambda x0, x, t: x0 * 0.5, through_network=True)


def job(network: Any) -> Tensor:
    """What the workers of a job sample with."""
    settings = {"prediction_type": "v", "steps": STEPS}
    model = Model(network, SHAPE[1:], schedule=SCHEDULE, settings=settings)
    return model.sampler().sample(SHAPE, seed=0)


def bench(network: Any) -> Tensor:
    """The loop of diffusers that `fastdiff bench` compares with."""
    pytest.importorskip("diffusers")
    sampler = fastdiff.Sampler(Plain(), SCHEDULE, solver="ddim", steps=STEPS, prediction_type="v")
    scheduler, step = scheduler_of(sampler, "a model")
    start = noise()
    return diffusers_loop(scheduler, network, STEPS, start, step=step, schedule=SCHEDULE)


def outside(function: Callable[..., Tensor], **options: Any) -> Callable[[Any], Tensor]:
    return lambda network: function(
        network, SCHEDULE, SHAPE, seed=0, prediction_type="v", **options
    )


def flow_nll(network: Any) -> Tensor:
    return nll(network, noise(), SCHEDULE, prediction_type="v", seed=0, rtol=1e-2, atol=1e-2).nats


def bound(network: Any) -> Tensor:
    return elbo(
        network, noise(), SCHEDULE, prediction_type="v", variance="fixed_small", seed=0
    ).total()


def bound_two_variable(network: Any) -> Tensor:
    return elbo_two_variable(
        network, noise(), SCHEDULE, prediction_type="v", variance="fixed_large", seed=0
    )


def score_matching(network: Any) -> Tensor:
    times = torch.tensor([2, 7, 19])
    return denoising_score_matching(
        network, noise(), SCHEDULE, times=times, prediction_type="v", seed=0
    )


def sde_score(network: Any) -> Tensor:
    t = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
    return VPSDE().score(network, "v")(noise(), t)


def denoising_loss(network: Any) -> Tensor:
    loss = DenoisingLoss(SCHEDULE, prediction_type="v", objective="hybrid", vlb_share=0.5)
    return loss(network, noise(), torch.tensor([2, 7, 19]), seed=0)


def diffusion_hvae(network: Any) -> Tensor:
    return DiffusionHVAE(network, SCHEDULE, prediction_type="v").loss(noise(), seed=0)


SCORE, LIKELIHOOD = "fastdiff.theory.score.", "fastdiff.theory.likelihood."
VARIATIONAL = "fastdiff.theory.variational."


def denoising(name: str, **options: Any) -> Callable[[Any], Tensor]:
    """A sampler of k-diffusion over sigmas [n + 1]."""

    def run(network: Any) -> Tensor:
        torch.manual_seed(0)  # seeds of its noise come from torch's generator
        sigmas = k_diffusion.get_sigmas_karras(STEPS, 0.1, 2.0)
        return getattr(k_diffusion, name)(network, noise(), sigmas, disable=True, **options)

    return run


def denoising_between(name: str, **options: Any) -> Callable[[Any], Tensor]:
    """A sampler of k-diffusion that chooses its levels between sigma_min and sigma_max."""
    sampler = getattr(k_diffusion, name)
    return lambda network: sampler(network, noise(), 0.1, 2.0, disable=True, **options)


ADAPTIVE = "fastdiff.sampling.adaptive."
K_DIFFUSION = "fastdiff.integrations.k_diffusion."
DOORS = {
    "sample": Door("fastdiff.Sampler", sample),
    "sample padded": Door("fastdiff.Sampler", padded),
    "sample guided": Door("fastdiff.Sampler", guided),
    "sample through": Door("fastdiff.Sampler", through),
    "sample differentiated": Door("fastdiff.Sampler", differentiated),
    "stream": Door("fastdiff.Sampler", stream),
    "serve": Door("fastdiff.Sampler", serve),
    "dpm_adaptive": Door(
        ADAPTIVE + "dpm_adaptive", outside(dpm_adaptive, rtol=10.0, atol=10.0, h_init=1.0)
    ),
    "dpm_fast": Door(ADAPTIVE + "dpm_fast", outside(dpm_fast, calls=5)),
    "on_tree": Door(ADAPTIVE + "on_tree", outside(on_tree, steps=STEPS)),
    "on_tree guided": Door(
        ADAPTIVE + "on_tree", outside(on_tree, steps=STEPS, guidance_scale=2.0, uncond={})
    ),
    "probability_flow": Door(
        SCORE + "probability_flow", outside(probability_flow, rtol=1e-2, atol=1e-2)
    ),
    "probability_flow padded": Door(
        SCORE + "probability_flow",
        outside(probability_flow, rtol=1e-2, atol=1e-2, network_batch=2),
    ),
    "probability_flow on a grid": Door(
        SCORE + "probability_flow", outside(probability_flow, solver="heun", steps=STEPS)
    ),
    "predictor_corrector": Door(
        SCORE + "predictor_corrector", outside(predictor_corrector, steps=STEPS, ratio="norm")
    ),
    "annealed_langevin": Door(
        SCORE + "annealed_langevin", outside(annealed_langevin, levels=3, steps=1)
    ),
    "annealed_langevin level": Door(
        SCORE + "annealed_langevin",
        outside(annealed_langevin, levels=3, steps=1, ratio="level"),
    ),
    "denoising_score_matching": Door(SCORE + "denoising_score_matching", score_matching),
    "SDE.score": Door(SCORE + "VPSDE", sde_score, lambda point: point.t),
    "nll": Door(LIKELIHOOD + "nll", flow_nll),
    "elbo": Door(LIKELIHOOD + "elbo", bound),
    "elbo_two_variable": Door(LIKELIHOOD + "elbo_two_variable", bound_two_variable),
    "DenoisingLoss": Door(VARIATIONAL + "DenoisingLoss", denoising_loss),
    "DiffusionHVAE": Door(VARIATIONAL + "DiffusionHVAE", diffusion_hvae),
    "sample_heun": Door(K_DIFFUSION + "sample_heun", denoising("sample_heun"), _sigma),
    "sample_euler_ancestral": Door(
        K_DIFFUSION + "sample_euler_ancestral", denoising("sample_euler_ancestral"), _sigma
    ),
    "sample_dpm_fast": Door(
        K_DIFFUSION + "sample_dpm_fast", denoising_between("sample_dpm_fast", n=5), _sigma
    ),
    "sample_dpm_adaptive": Door(
        K_DIFFUSION + "sample_dpm_adaptive",
        denoising_between("sample_dpm_adaptive", rtol=10.0, atol=10.0, h_init=1.0),
        _sigma,
    ),
    "job": Door("fastdiff.Sampler", job, opens="fastdiff.jobs.Model"),
    "bench": Door("fastdiff.cli.bench_diffusers", bench),
}

GOOD: dict[str, Callable[[Door], Any]] = {
    "bf16": lambda door: Plain(torch.bfloat16),
    "fp16": lambda door: Plain(torch.float16),
    "fp64": lambda door: Plain(torch.float64),
    "sample object": lambda door: Wrapped(lambda out: SimpleNamespace(sample=out)),
    "tuple": lambda door: Wrapped(lambda out: (out, None)),
    "list": lambda door: Wrapped(lambda out: [out]),
    "learned variance": lambda door: Wrapped(lambda out: torch.cat([out, 0 * out], 1)),
    "own time": lambda door: OwnTime(door.time),
    "no parameters": lambda door: Unparametrized(),
    "function": lambda door: lambda x, t: Plain().to(x.dtype)(x, t),
}
BAD: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "shape": (
        lambda out: out[:, :1],
        ValueError,
        r"expected a model output of shape \[\d, 2, 4\], like its input, got \[\d, 1, 4\]\. Only"
        r" learned variance adds to it: twice the channels\.",
    ),
    "batch": (lambda out: out[:1, :, :2], ValueError, "expected a model output of shape"),
    "type": (
        lambda out: {"x0": out},
        TypeError,
        r"expected the model to return a floating tensor, an object with \.sample or a tuple that"
        r" begins with one, got dict\.",
    ),
    "dtype": (lambda out: out.int(), TypeError, r"got torch\.int32\."),
    "empty tuple": (lambda out: (), TypeError, r"got tuple\."),
}

_plain: dict[str, Tensor] = {}


def plain(name: str) -> Tensor:
    """What a door gives for the plain float32 network."""
    if name not in _plain:
        _plain[name] = DOORS[name].run(Plain()).detach()
    return _plain[name]


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("name", DOORS)
def test_a_door_accepts_every_kind_of_network(name: str, kind: str) -> None:
    door = DOORS[name]
    network, expected = GOOD[kind](door), plain(name)
    got = door.run(network).detach()
    assert bool(torch.isfinite(expected).all()) and float(expected.abs().max()) > 0
    assert got.shape == expected.shape and got.dtype == expected.dtype
    off = float((got - expected).abs().max() / expected.abs().max())
    assert off <= TOLERANCES.get(kind, 0.0), off
    if kind in TOLERANCES:
        assert network.seen == {network.weight.dtype}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", DOORS)
def test_doors_say_the_same_about_bad_networks(name: str, kind: str) -> None:
    door, (form, error, sentence) = DOORS[name], BAD[kind]
    with pytest.raises(error, match=f"^{re.escape(door.name)}: .*{sentence}"):
        door.run(Wrapped(form))


@pytest.mark.parametrize("name", DOORS)
def test_doors_say_the_same_about_what_is_no_network(name: str) -> None:
    door = DOORS[name]
    sentence = r"expected a callable model\(x, t, \*\*cond\), got str\."
    with pytest.raises(TypeError, match=f"^{re.escape(door.opens or door.name)}: {sentence}"):
        door.run("network")
