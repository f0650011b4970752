"""Every fused op compared with what users run instead: torch eager, torch.compile, diffusers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import formulas, harness, operations, peers
from benchmarks.tiers import row, tier

SHAPES, DTYPES = operations.SHAPES, operations.DTYPES
# (dtype, shape, cache); the default tier leaves out rows that add no information
CASES = [
    row(
        (
            "default"
            if dtype in ("float32", "bfloat16") and (shape != "large" or dtype == "float32")
            else "full"
        ),
        dtype,
        shape,
        cache,
        id=f"{dtype}-{shape}-{cache}",
    )
    for dtype in DTYPES
    for shape in SHAPES
    for cache in ("warm", "cold")
    if (shape, cache) not in (("small", "cold"), ("large", "warm"), ("real", "cold"))
] + [
    row("default" if dtype == "float32" else "full", dtype, "real", "cold", id=f"{dtype}-real-cold")
    for dtype in DTYPES
]
# ops for which a tier compiles; `full` compiles all
COMPILED = {"quick": {"ddim"}, "default": {"q_sample", "gaussian_kl", "ddpm", "ddim"}}


def light(cases: list[Any]) -> list[Any]:
    """Returns the cases with large shapes in the full tier only: their peers take seconds."""
    return [
        (
            pytest.param(*case.values, marks=tier("full"), id=case.id)
            if case.values[1] == "large"
            else case
        )
        for case in cases
    ]


def quick(cases: list[Any]) -> list[Any]:
    """Returns the cases with the row of float32, real size and warm cache in the quick tier."""
    return [
        (
            pytest.param(*case.values, marks=tier("quick"), id=case.id)
            if case.values == ("float32", "real", "warm")
            else case
        )
        for case in cases
    ]


def arms(
    op: operations.Op, *, compile: bool, numpy: bool, extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the op's peers: eager, torch.compile and NumPy if requested, and `extra`."""
    bare, eager = formulas.arms(op.formula, op.inputs)
    found: dict[str, Any] = {"torch eager": eager}
    if compile:
        found["torch.compile"] = peers.compiled(bare, *op.inputs)
    if numpy:
        found["numpy"] = op.numpy
    return found | (extra or {})


def scheduler_arm(make: Callable[[Any], Callable[[], Any]]) -> Any:
    """Returns an arm of diffusers, or `Missing`."""
    module = peers.diffusers()
    return module if isinstance(module, peers.Missing) else make(module)


@pytest.fixture
def compare(measured: Callable[..., Any], setting: harness.Setting) -> Callable[..., Any]:
    """Checks that the peers compute what the op computes, then measures."""

    def run(
        name: str,
        op: operations.Op,
        dtype: str,
        shape: str,
        cache: str,
        what: str = "",
        **extra: Any,
    ) -> Any:
        operations.same_work(op)
        real = (dtype, shape, cache) == ("float32", "real", "warm")
        compile = setting.tier == "full" or (real and (what or name) in COMPILED[setting.tier])
        theirs = arms(op, compile=compile, numpy=shape == "small", extra=extra)
        size = list(op.inputs[0].shape)
        case = {"dtype": dtype, "shape": size, "size": shape, "batch": size[0]}
        return measured(
            op.work,
            kind="op",
            what=f"{name} {what}".strip(),
            case=case,
            peers=theirs,
            elements=op.elements,
            bytes_floor=op.bytes_floor,
            cold=cache == "cold",
            instructions=op.limit,
        )

    return run


def maker(dtype: str, shape: str, setting: harness.Setting) -> operations.Maker:
    return operations.Maker(SHAPES[shape], DTYPES[dtype], setting.device)


@pytest.mark.parametrize("dtype, shape, cache", CASES)
def test_randn(compare: Any, setting: harness.Setting, dtype: str, shape: str, cache: str) -> None:
    compare("randn", maker(dtype, shape, setting).randn(), dtype, shape, cache)


@pytest.mark.parametrize("dtype, shape, cache", quick(CASES))
def test_q_sample(
    compare: Any, setting: harness.Setting, dtype: str, shape: str, cache: str
) -> None:
    op = maker(dtype, shape, setting).q_sample()
    x0, t = op.inputs[:2]

    def make(module: Any) -> Callable[[], Any]:
        scheduler = module.DDPMScheduler(num_train_timesteps=1000)
        return lambda: scheduler.add_noise(x0, torch.randn_like(x0), t)

    compare("q_sample", op, dtype, shape, cache, diffusers=scheduler_arm(make))


@pytest.mark.parametrize("dtype, shape, cache", CASES)
def test_q_posterior(
    compare: Any, setting: harness.Setting, dtype: str, shape: str, cache: str
) -> None:
    compare("q_posterior", maker(dtype, shape, setting).q_posterior(), dtype, shape, cache)


@pytest.mark.parametrize("dtype, shape, cache", quick(CASES))
@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_reverse_step(
    compare: Any, setting: harness.Setting, solver: str, dtype: str, shape: str, cache: str
) -> None:
    """A step in place, the 26th of 50."""
    op = maker(dtype, shape, setting).reverse_step(solver)
    x, out = op.inputs

    def make(module: Any) -> Callable[[], Any]:
        name = "DDPMScheduler" if solver == "ddpm" else "DDIMScheduler"
        scheduler = getattr(module, name)(num_train_timesteps=1000, clip_sample=False)
        scheduler.set_timesteps(50)
        t = scheduler.timesteps[25]
        return lambda: scheduler.step(out, t, x)

    compare("reverse_step", op, dtype, shape, cache, what=solver, diffusers=scheduler_arm(make))


@pytest.mark.parametrize("dtype, shape, cache", CASES)
def test_step_log_prob(
    compare: Any, setting: harness.Setting, dtype: str, shape: str, cache: str
) -> None:
    compare("step_log_prob", maker(dtype, shape, setting).step_log_prob(), dtype, shape, cache)


SCORED = [
    row("default" if dtype == "float32" and shape != "large" else "full", dtype, shape)
    for dtype in DTYPES
    for shape in SHAPES
]


@pytest.mark.parametrize("dtype, shape", SCORED)
def test_a_step_with_its_log_probability(
    measured: Any, setting: harness.Setting, dtype: str, shape: str
) -> None:
    """A bound step of DDPM in place, compared with one that writes no log-probability."""
    op = maker(dtype, shape, setting).reverse_step("ddpm", bound=True, log_prob=True)
    bare = maker(dtype, shape, setting).reverse_step("ddpm", bound=True)
    size = list(op.inputs[0].shape)
    measured(
        op.work,
        kind="op",
        what="reverse_step ddpm, log_prob",
        case={"dtype": dtype, "shape": size, "size": shape, "batch": size[0]},
        peers={"without log_prob": bare.work.call},
        elements=op.elements,
        bytes_floor=op.bytes_floor,
    )


@pytest.mark.parametrize("dtype, shape, cache", CASES)
def test_reparameterize(
    compare: Any, setting: harness.Setting, dtype: str, shape: str, cache: str
) -> None:
    compare("reparameterize", maker(dtype, shape, setting).reparameterize(), dtype, shape, cache)


@pytest.mark.parametrize("dtype, shape, cache", CASES)
def test_noise_mse(
    compare: Any, setting: harness.Setting, dtype: str, shape: str, cache: str
) -> None:
    compare("noise_mse", maker(dtype, shape, setting).noise_mse(), dtype, shape, cache)


@pytest.mark.parametrize("dtype, shape, cache", quick(CASES))
def test_gaussian_kl(
    compare: Any, setting: harness.Setting, dtype: str, shape: str, cache: str
) -> None:
    compare("gaussian_kl", maker(dtype, shape, setting).gaussian_kl(), dtype, shape, cache)


@pytest.mark.parametrize("dtype, shape, cache", light(CASES))
def test_discretized_gaussian_nll(
    compare: Any, setting: harness.Setting, dtype: str, shape: str, cache: str
) -> None:
    compare(
        "discretized_gaussian_nll",
        maker(dtype, shape, setting).discretized_gaussian_nll(),
        dtype,
        shape,
        cache,
    )


@pytest.mark.parametrize("dtype, shape, cache", light(CASES))
def test_vlb_terms(
    compare: Any, setting: harness.Setting, dtype: str, shape: str, cache: str
) -> None:
    compare("vlb_terms", maker(dtype, shape, setting).vlb_terms(), dtype, shape, cache)


# activations of a U-Net's residual blocks
ACTIVATIONS = {
    "small": (1, 256, 8, 8),
    "real": (8, 128, 32, 32),
    "deep": (8, 256, 16, 16),
    "large": (16, 128, 128, 128),
}
NORMS = [
    row(
        "default" if dtype == "float32" and shape != "large" else "full",
        dtype,
        shape,
        id=f"{dtype}-{shape}",
    )
    for dtype in DTYPES
    for shape in ACTIVATIONS
]


@pytest.mark.parametrize("dtype, shape", NORMS)
def test_group_norm_silu(measured: Any, setting: harness.Setting, dtype: str, shape: str) -> None:
    """On channels-last activations; eager also on contiguous ones, where torch is faster."""
    op = operations.Maker(ACTIVATIONS[shape], DTYPES[dtype], setting.device).group_norm_silu()
    operations.same_work(op)
    theirs = arms(op, compile=setting.tier == "full", numpy=False)
    x, *rest = op.inputs
    nchw, _ = formulas.arms(op.formula, op.inputs)
    flat = x.contiguous()
    theirs["torch eager"] = {
        "channels_last": theirs["torch eager"],
        "contiguous": lambda: nchw(flat, *rest),
    }
    case = {"dtype": dtype, "shape": list(x.shape), "size": shape, "batch": x.shape[0]}
    measured(
        op.work,
        kind="op",
        what="group_norm_silu",
        case=case,
        peers=theirs,
        elements=op.elements,
        bytes_floor=op.bytes_floor,
    )


def step_arms(
    solver: str, shape: tuple[int, ...]
) -> tuple[dict[str, harness.Arm], Callable[[], None]]:
    """Returns (the arms of one step in place on the CPU, the check of fastdiff's).

    The arms are fastdiff, torch.compile's default mode, and diffusers.
    """
    op = operations.Maker(shape).reverse_step(solver)
    bare, _ = formulas.arms(op.formula, op.inputs)
    compiled = peers.compiled(bare, *op.inputs, modes=peers.MODES[:1])
    found: dict[str, harness.Arm] = {"fastdiff": op.work.call}
    if not isinstance(compiled, peers.Missing):
        found["torch.compile"] = compiled[peers.MODES[0]]
    module = peers.diffusers()
    if not isinstance(module, peers.Missing):
        scheduler = getattr(module, f"{solver.upper()}Scheduler")(
            num_train_timesteps=1000, clip_sample=False
        )
        scheduler.set_timesteps(50)
        t, (x, out) = scheduler.timesteps[25], op.inputs
        found["diffusers"] = lambda: scheduler.step(out, t, x)
    return found, op.work.verify
