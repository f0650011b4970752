"""What pipelines expect of a scheduler, checked for every drop-in.

This file is over 400 lines because every expectation is one short test over all classes.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from cases import CASES, CLASSES, SHAPE, Case, arguments, both, network, set_timesteps, start
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

import fastdiff
from fastdiff.integrations import diffusers as drop_ins

pytestmark = [
    pytest.mark.filterwarnings("ignore:`algorithm_types:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `scale_model_input` function should be called"),
]
KARRAS = sorted({e.name for e in KarrasDiffusionSchedulers} & set(CLASSES))


def plain(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def made(name: str, **config: Any) -> tuple[Any, Any]:
    """(diffusers', fastdiff's) in the class's first case."""
    return both(plain(name), plain(name).kinds[0], **config)


def steps_of(case: Case) -> int:
    return 10 if 10 in case.steps else case.steps[-1]


def ready(name: str, **config: Any) -> tuple[Any, Any]:
    pair = made(name, **config)
    for scheduler in pair:
        set_timesteps(plain(name), scheduler, steps_of(plain(name)))
    return pair


def first_step(
    scheduler: Any, case: Case, *, seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any
) -> Any:
    x = start(scheduler, dtype) if hasattr(scheduler, "init_noise_sigma") else start(case, dtype)
    t = scheduler.timesteps[0]
    given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
    generator = torch.Generator().manual_seed(seed)
    out = network(given, case.kinds[0], case.learned)
    return scheduler.step(out, t, x, **{**arguments(case, generator), **options})


@pytest.mark.parametrize("name", CLASSES)
def test_a_subclass_of_diffusers_mixins_found_at_the_top(name: str) -> None:
    cls = getattr(fastdiff, name)
    assert issubclass(cls, diffusers.SchedulerMixin) and issubclass(cls, diffusers.ConfigMixin)
    assert cls.__module__ == "fastdiff" and cls.__name__ == name
    assert cls.config_name == "scheduler_config.json"
    assert cls.__doc__ and "diffusers" in cls.__doc__


@pytest.mark.parametrize("name", CLASSES)
def test_arguments_and_defaults_are_diffusers(name: str) -> None:
    theirs, ours = getattr(diffusers, name), getattr(fastdiff, name)
    for method in ("__init__", "set_timesteps", "step", "add_noise", "scale_noise", "get_velocity"):
        if not hasattr(theirs, method):
            continue
        expected = inspect.signature(getattr(theirs, method)).parameters
        got = inspect.signature(getattr(ours, method)).parameters
        assert list(got) == list(expected), method
        for key, parameter in expected.items():
            assert got[key].default == parameter.default, (method, key)
    methods = (
        "add_noise",
        "scale_noise",
        "get_velocity",
        "set_begin_index",
        "scale_model_input",
        "index_for_timestep",
    )
    for attribute in methods:
        assert hasattr(ours, attribute) >= hasattr(theirs, attribute), attribute
    assert getattr(ours, "order", None) == getattr(theirs, "order", 1)


@pytest.mark.parametrize("name", CLASSES)
def test_attributes_before_and_after_set_timesteps(name: str) -> None:
    theirs, ours = made(name)
    assert len(ours) == theirs.config.num_train_timesteps
    assert not hasattr(type(theirs), "__len__") or len(theirs) == len(ours)
    for _ in range(2):
        for attribute in ("num_inference_steps", "init_noise_sigma"):
            if hasattr(theirs, attribute):
                assert float(getattr(ours, attribute) or 0) == float(
                    getattr(theirs, attribute) or 0
                ), attribute
        for table in ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod"):
            if hasattr(theirs, table):
                torch.testing.assert_close(
                    torch.as_tensor(getattr(ours, table)),
                    torch.as_tensor(getattr(theirs, table)),
                    rtol=0,
                    atol=0,
                )
        assert ours.timesteps.ndim == 1 and len(ours.timesteps[1:].repeat(2)) == 2 * (
            len(ours.timesteps) - 1
        )
        for scheduler in (theirs, ours):
            set_timesteps(plain(name), scheduler, steps_of(plain(name)))


@pytest.mark.parametrize("name", CLASSES)
def test_steps_return_outputs_or_tuples(name: str) -> None:
    case = plain(name)
    theirs, ours = ready(name)
    expected = first_step(theirs, case)
    got = first_step(ours, case)
    as_tuple = first_step(ready(name)[1], case, return_dict=False)
    assert isinstance(got, diffusers.utils.BaseOutput) and isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], got.prev_sample) and torch.equal(got[0], got.prev_sample)
    assert [k for k in expected.keys() if expected[k] is not None] == list(got.keys())
    assert len(as_tuple) == len(got.keys())


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("name", CLASSES)
def test_shape_dtype_and_order_of_memory(name: str, dtype: torch.dtype) -> None:
    case, ours = plain(name), ready(name)[1]
    got = first_step(ours, case, dtype=dtype)[0]
    assert got.dtype == dtype and got.isfinite().all()
    exact = first_step(ready(name)[1], case, dtype=torch.float64)[0]
    if not case.stochastic:
        limit = {torch.float16: 2e-2, torch.bfloat16: 1e-1}.get(dtype, 1e-4)
        assert (got.double() - exact).abs().max() <= limit * exact.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", CLASSES)
def test_copies_and_pickles_go_on_where_they_stand(name: str) -> None:
    case, ours = plain(name), ready(name)[1]
    x = start(ours, torch.float32)
    generator = torch.Generator().manual_seed(2)
    for t in ours.timesteps[:3]:
        x = ours.step(network(x, case.kinds[0], case.learned), t, x, **arguments(case, generator))[
            0
        ]
    state = generator.get_state()
    results = []
    for scheduler in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), ours):
        generator.set_state(state)
        t = scheduler.timesteps[3] if len(scheduler.timesteps) > 3 else scheduler.timesteps[-1]
        results.append(
            scheduler.step(
                network(x, case.kinds[0], case.learned), t, x, **arguments(case, generator)
            )[0]
        )
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[2])


@pytest.mark.parametrize("name", CLASSES)
def test_noised_samples(name: str) -> None:
    case = plain(name)
    theirs, ours = ready(name)
    x0, noise = (fastdiff.randn((3, 4, 5, 5), seed=s) for s in (1, 2))
    # float16: a rounding of coefficients, and what is left of sums that cancel
    limits = {
        torch.float32: {"rtol": 2e-6, "atol": 2e-6},
        torch.float16: {"rtol": 2e-3, "atol": 1e-3},
    }
    for method in ("add_noise", "get_velocity"):
        if not hasattr(theirs, method):
            continue
        for dtype in (torch.float32, torch.float16):
            for chosen in ([0, 3, 6], [2, 2, 2]):
                t = theirs.timesteps[[i % len(theirs.timesteps) for i in chosen]]
                expected = getattr(theirs, method)(x0.to(dtype), noise.to(dtype), t)
                got = getattr(ours, method)(x0.to(dtype), noise.to(dtype), t)
                assert got.dtype == dtype
                torch.testing.assert_close(got, expected, **limits[dtype])
        if hasattr(theirs, "set_begin_index") and method == "add_noise":
            for scheduler in (theirs, ours):
                set_timesteps(case, scheduler, steps_of(case))
                scheduler.set_begin_index(2)
            t = theirs.timesteps[2:3].repeat(3)
            torch.testing.assert_close(
                ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=1e-6, atol=1e-6
            )


def img2img(scheduler: Any, case: Case, index: int, *, as_views: bool) -> torch.Tensor:
    set_timesteps(case, scheduler, steps_of(case))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)
    x, generator = start(scheduler, torch.float32) * 0.3, torch.Generator().manual_seed(4)
    timesteps = scheduler.timesteps[index:]
    for t in timesteps if as_views else timesteps.clone():
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(
            network(given, case.kinds[0], case.learned), t, x, **arguments(case, generator)
        )[0]
    return x


@pytest.mark.parametrize("as_views", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_runs_that_begin_inside_the_grid(name: str, as_views: bool) -> None:
    """Image-to-image: histories and counters begin there; timesteps may be no views of the grid."""
    case = plain(name)
    theirs, ours = made(name)
    expected = img2img(theirs, case, 4, as_views=as_views)
    got = img2img(ours, case, 4, as_views=as_views)
    assert (got - expected).abs().max() <= 2e-4 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", CLASSES)
def test_a_step_taken_again_gives_the_same(name: str) -> None:
    case, ours = plain(name), ready(name)[1]
    x, out = start(ours, torch.float32), None
    for t in ours.timesteps:
        draws = [torch.Generator().manual_seed(1) for _ in range(2)]
        out = network(x, case.kinds[0], case.learned)
        twice = [ours.step(out, t, x, **arguments(case, draw))[0] for draw in draws]
        assert torch.equal(*twice)
        x = twice[0]


def test_skipped_steps_do_not_move_the_index() -> None:
    """Callbacks may interrupt a run and continue: the timestep determines the step."""
    for name in ("EulerDiscreteScheduler", "DDIMScheduler", "EulerAncestralDiscreteScheduler"):
        case, (theirs, ours) = plain(name), ready(name)
        x = start(ours, torch.float32)
        first_step(ours, case)
        t = ours.timesteps[5]
        got = ours.step(network(x), t, x, generator=torch.Generator().manual_seed(0))[0]
        if hasattr(theirs, "_step_index"):
            theirs._step_index = 5
        theirs.is_scale_input_called = True
        expected = theirs.step(network(x), t, x, generator=torch.Generator().manual_seed(0))[0]
        assert (got - expected).abs().max() <= 1e-5 * x.abs().max()


def test_timesteps_of_every_form() -> None:
    copied = torch.Tensor.clone
    for name, forms in (
        ("DDIMScheduler", (int, float, copied)),
        ("EulerDiscreteScheduler", (float, copied)),
    ):
        case, (_, ours) = plain(name), ready(name)
        expected = first_step(ours, case)[0]
        x = start(ours, torch.float32)
        for form in forms:
            set_timesteps(case, ours, steps_of(case))
            t = form(ours.timesteps[0])
            assert torch.equal(ours.step(network(ours.scale_model_input(x, t)), t, x)[0], expected)


@pytest.mark.parametrize(
    "name", [c for c in CLASSES if any(k.stochastic and k.name == c for k in CASES)]
)
def test_generators_of_every_form(name: str) -> None:
    case = next(c for c in CASES if c.name == name and c.stochastic)
    theirs, ours = both(case, case.kinds[0])
    x = start(ours, torch.float32)

    def run(scheduler: Any, generator: Any) -> torch.Tensor:
        set_timesteps(case, scheduler, steps_of(case))
        y = x
        for t in scheduler.timesteps[:4]:
            given = (
                scheduler.scale_model_input(y, t) if hasattr(scheduler, "scale_model_input") else y
            )
            out = network(given, case.kinds[0], case.learned)
            y = scheduler.step(out, t, y, **{**case.step, "generator": generator})[0]
        return y

    def fresh(n: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(10 + i) for i in range(n)]

    for count in (2, 1):
        expected, got = run(theirs, fresh(count)), run(ours, fresh(count))
        assert (got - expected).abs().max() <= 2e-5 * max(
            float(expected.abs().max()), float(x.abs().max())
        )
    torch.manual_seed(0)
    once, other = run(ours, None), run(ours, None)
    torch.manual_seed(0)
    assert torch.equal(run(ours, None), once) and not torch.equal(once, other)


@pytest.mark.parametrize(
    "name", [c for c in CLASSES if not any(k.stochastic and k.name == c for k in CASES)]
)
def test_deterministic_classes_leave_the_global_generator_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    first_step(ready(name)[1], plain(name))
    assert torch.equal(before, torch.random.get_rng_state())


def test_gradients_flow_through_a_step() -> None:
    for name in ("DDIMScheduler", "HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
        case, (theirs, ours) = (
            plain(name),
            ready(name, **({"clip_sample": False} if name == "DDIMScheduler" else {})),
        )
        grads = []
        for scheduler in (theirs, ours):
            x = (start(scheduler, torch.float32) * 0.5).requires_grad_()
            t = scheduler.timesteps[0]
            out = network(scheduler.scale_model_input(x, t))
            result = scheduler.step(out, t, x, **arguments(case, torch.Generator().manual_seed(0)))
            (result[0].square().mean() + 1e-4 * result[1].square().mean()).backward()
            grads.append(x.grad)
        assert (grads[0] - grads[1]).abs().max() <= 1e-5 * grads[0].abs().max()


def test_wrong_arguments_are_named() -> None:
    ddim, ddpm, euler = (
        drop_ins.DDIMScheduler(),
        drop_ins.DDPMScheduler(),
        drop_ins.EulerDiscreteScheduler(),
    )
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="set_timesteps"):
        ddim.step(x, 0, x)
    for call in (
        lambda: ddim.set_timesteps(1001),
        lambda: ddpm.set_timesteps(timesteps=[3, 5]),
        lambda: ddpm.set_timesteps(5, timesteps=[5]),
        lambda: euler.set_timesteps(5, sigmas=[1.0, 0.0]),
        lambda: drop_ins.DDIMScheduler(timestep_spacing="even").set_timesteps(5),
        lambda: drop_ins.EulerDiscreteScheduler(use_karras_sigmas=True, use_beta_sigmas=True),
    ):
        with pytest.raises(ValueError, match=r"fastdiff\.\w+(\.set_timesteps)?: expected"):
            call()
    euler.set_timesteps(5)
    with pytest.raises(ValueError, match="integer"):
        euler.step(x, 3, x)
    ddpm.set_timesteps(5)
    with pytest.raises(ValueError, match="scheduler.timesteps"):
        ddpm.step(x, 7, x)
    with pytest.raises(NotImplementedError, match="beta_schedule"):
        drop_ins.DDIMScheduler(beta_schedule="steep")


def test_parallel_steps_equal_diffusers() -> None:
    for name, options in (("DDIMParallelScheduler", {}), ("DDPMParallelScheduler", {})):
        theirs, ours = (
            (
                getattr(module, name)(set_alpha_to_one=False)
                if "DDIM" in name
                else getattr(module, name)()
            )
            for module in (diffusers, fastdiff)
        )
        x = fastdiff.randn((5, 3, 4, 4), seed=1)
        for scheduler in (theirs, ours):
            scheduler.set_timesteps(20)
        t = theirs.timesteps[[0, 3, 3, 12, 19]]
        expected = theirs.batch_step_no_noise(network(x), t, x, **options)
        torch.testing.assert_close(
            ours.batch_step_no_noise(network(x), t, x, **options), expected, rtol=1e-5, atol=2e-6
        )


@pytest.mark.parametrize("name", CLASSES)
def test_plans_hold_the_timesteps(name: str) -> None:
    ours = ready(name)[1]
    plan = ours.plan(**plain(name).step)
    calls = plan.column("network") == 1
    np.testing.assert_allclose(plan.column("t")[calls], ours.timesteps.double().numpy())
    assert plan.initial_std == float(ours.init_noise_sigma) and str(plan)


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_loops_pass_the_checks_of_a_device(case: Case) -> None:
    """Off the CPU a launch must have everything that any row of the plan reads.

    Tensors without memory ("meta") get the checks of a GPU's.
    """
    ours = both(case, case.kinds[0])[1]
    for gradients in (False, True):
        set_timesteps(case, ours, next(n for n in case.steps if n > 1))
        if case.name.startswith("KDPM2Ancestral") and "beta_schedule" in case.config:
            return  # its levels are NaN here, like the peer's
        x = torch.empty(SHAPE, device="meta", requires_grad=gradients)
        for t in ours.timesteps:
            out = network(ours.scale_model_input(x, t), case.kinds[0], case.learned)
            x = ours.step(out, t, x, **case.step)[0]
            assert x.is_meta and x.shape == SHAPE and x.requires_grad == gradients


def test_a_batch_of_another_shape_is_refused_between_steps_with_a_history() -> None:
    """Also after a step that was repeated; a first step takes any shape."""
    scheduler = fastdiff.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(4)
    x = torch.randn(4, 3)
    for t in scheduler.timesteps[:2]:
        x = scheduler.step(x * 0.1, t, x).prev_sample
    with pytest.raises(ValueError, match=r"expected a sample of shape \[4, 3\] at step 2"):
        scheduler.step(x[:2] * 0.1, scheduler.timesteps[2], x[:2])
    again = scheduler.step(x[:2] * 0.1, scheduler.timesteps[0], x[:2]).prev_sample
    assert again.shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "noise"),
    [
        *(("DDIM", noise) for noise in (0, 0.5, "zeros", "one sample", "0-d")),
        *(("DPMSolverMultistep", noise) for noise in ("zeros", "one sample", "0-d")),
    ],
)
def test_a_given_noise_may_be_a_number_or_broadcast(name: str, noise: object) -> None:
    x = torch.randn(2, 3, 4, 4)
    given = {"zeros": torch.zeros_like(x), "one sample": x[:1], "0-d": torch.tensor(0.5)}
    value: Any = given[noise] if isinstance(noise, str) else noise
    config = {"algorithm_type": "sde-dpmsolver++"} if name != "DDIM" else {}
    results = []
    for library in (diffusers, fastdiff):
        scheduler = getattr(library, f"{name}Scheduler")(**config)
        scheduler.set_timesteps(10)
        more = {"eta": 1.0} if name == "DDIM" else {}
        t = scheduler.timesteps[3]
        results.append(scheduler.step(0.3 * x.tanh(), t, x, variance_noise=value, **more)[0])
    assert torch.allclose(*results, atol=1e-5)
    with pytest.raises(ValueError, match=r"expected noise as a number or a floating tensor that"):
        scheduler.step(x, t, x, variance_noise=torch.zeros(3), **more)


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "PNDM", "LMSDiscrete"])
def test_more_timesteps_than_were_trained_are_refused_in_a_sentence(name: str) -> None:
    more = {"skip_prk_steps": True} if name == "PNDM" else {}
    scheduler = getattr(fastdiff, f"{name}Scheduler")(
        steps_offset=1, timestep_spacing="leading", **more
    )
    x = torch.randn(1, 4, 4, 4)
    with pytest.raises(
        ValueError, match=r"expected (timesteps in \[0, 1000\), got 1000|different)"
    ):
        scheduler.set_timesteps(1000)
        scheduler.step(0.1 * x, scheduler.timesteps[0], x)
