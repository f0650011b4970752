"""The exponential integrators' drop-ins: where diffusers fails, and their arguments and results."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastdiff

diffusers = pytest.importorskip(
    "diffusers", reason="diffusers is not installed here (make test installs it)"
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`algorithm_types:FutureWarning"),
]
MULTISTEP, SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"


def loop(scheduler: Any, x: torch.Tensor, **arguments: Any) -> torch.Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(0.5 * torch.tanh(x), t, x, **arguments).prev_sample
    return x


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("name", [MULTISTEP, SINGLESTEP])
@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_timestep_that_comes_twice_is_a_step_of_nothing(name: str, order: int, at: int) -> None:
    """diffusers divides by the step between equal timesteps.

    The result here is that of the run without the second one, within the digits that the
    differences lose.
    """
    once, x = [900, 700, 400, 200, 100], fastdiff.randn((2, 3, 4, 4), seed=1)
    results = []
    for timesteps in (once, [*once[: at + 1], *once[at:]]):
        scheduler = getattr(fastdiff, name)(solver_order=order, lower_order_final=True)
        scheduler.set_timesteps(timesteps=timesteps)
        results.append(loop(scheduler, x))
    assert torch.isfinite(results[1]).all()
    assert (results[0] - results[1]).abs().max() < 0.1 * results[0].abs().max()


@pytest.mark.parametrize(
    "name, config",
    [
        ("UniPCMultistepScheduler", {"solver_order": 3}),
        ("DEISMultistepScheduler", {"solver_order": 3}),
        ("SASolverScheduler", {"predictor_order": 3, "corrector_order": 3}),
        (MULTISTEP, {"solver_order": 3}),
        ("UniPCMultistepScheduler", {"predict_x0": False}),
        ("SASolverScheduler", {"algorithm_type": "noise_prediction"}),
    ],
)
def test_as_many_steps_as_training_timesteps(name: str, config: dict[str, Any]) -> None:
    """diffusers' default grid then has one timestep twice, and its result is NaN."""
    scheduler = getattr(fastdiff, name)(num_train_timesteps=100, beta_end=0.2, **config)
    scheduler.set_timesteps(100)
    assert len(scheduler.timesteps.unique()) == 99
    assert torch.isfinite(loop(scheduler, fastdiff.randn((2, 3, 4, 4), seed=1))).all()


def test_a_step_into_clean_data_with_bh1_is_the_prediction() -> None:
    """With the default configuration diffusers gives NaN."""
    x, steps = fastdiff.randn((2, 3, 4, 4), seed=1), {}
    for variant in ("bh1", "bh2"):
        scheduler = fastdiff.UniPCMultistepScheduler(solver_type=variant, solver_order=1)
        scheduler.set_timesteps(1)
        steps[variant] = loop(scheduler, x)
    assert torch.equal(steps["bh1"], steps["bh2"]) and torch.isfinite(steps["bh1"]).all()


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(ValueError, match="expected solver_p=None"):
        fastdiff.UniPCMultistepScheduler(solver_p=fastdiff.DDIMScheduler())
    with pytest.raises(ValueError, match="expected final_sigmas_type='sigma_min'"):
        fastdiff.DPMSolverMultistepScheduler(algorithm_type="dpmsolver")
    with pytest.raises(NotImplementedError, match="expected algorithm_type in"):
        fastdiff.DPMSolverSinglestepScheduler(
            algorithm_type="sde-dpmsolver", final_sigmas_type="sigma_min"
        )
    with pytest.raises(ValueError, match="expected one of num_inference_steps and timesteps"):
        fastdiff.DPMSolverMultistepScheduler().set_timesteps()
    with pytest.raises(ValueError, match="expected no timesteps with use_lu_lambdas"):
        fastdiff.DPMSolverMultistepScheduler(use_lu_lambdas=True).set_timesteps(timesteps=[5, 1])
    with pytest.raises(ValueError, match="expected mu with use_dynamic_shifting"):
        fastdiff.UniPCMultistepScheduler(
            use_dynamic_shifting=True, use_flow_sigmas=True
        ).set_timesteps(5)
    x = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match="expected set_timesteps before step"):
        fastdiff.DPMSolverMultistepScheduler().step(x, 3, x)
    for scheduler, text in (
        (
            fastdiff.DPMSolverMultistepInverseScheduler(algorithm_type="sde-dpmsolver++"),
            "without noise",
        ),
        (
            fastdiff.DPMSolverMultistepScheduler(
                algorithm_type="sde-dpmsolver", solver_order=3, final_sigmas_type="sigma_min"
            ),
            "expected solver_order 1 or 2",
        ),
        (
            fastdiff.EDMDPMSolverMultistepScheduler(
                algorithm_type="sde-dpmsolver++", solver_order=3
            ),
            "solver_order 1 or 2",
        ),
        (fastdiff.EDMEulerScheduler(prediction_type="sample"), "expected prediction_type in"),
        (fastdiff.DEISMultistepScheduler(use_karras_sigmas=True, use_flow_sigmas=True), None),
    ):
        if text is None:
            with pytest.raises(
                ValueError, match=r"expected sigmas in \[0, 1\) with use_flow_sigmas"
            ):
                scheduler.set_timesteps(4)
            continue
        scheduler.set_timesteps(20)
        with pytest.raises(ValueError, match=text):
            scheduler.step(x, scheduler.timesteps[0], x)


def test_a_network_with_learned_variance_gives_its_first_three_channels() -> None:
    for name in (MULTISTEP, SINGLESTEP, "SASolverScheduler"):
        x = fastdiff.randn((2, 3, 4, 4), seed=1)
        plain, learned = (
            getattr(fastdiff, name)(variance_type=kind) for kind in (None, "learned_range")
        )
        for scheduler in (plain, learned):
            scheduler.set_timesteps(5)
        t, out = plain.timesteps[0], torch.tanh(x)
        generators = [
            {"generator": torch.Generator().manual_seed(1)} if "SA" in name else {}
            for _ in range(2)
        ]
        expected = plain.step(out, t, x, **generators[0]).prev_sample
        assert torch.equal(
            learned.step(torch.cat([out, x], 1), t, x, **generators[1]).prev_sample, expected
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_noise_given_or_drawn_is_diffusers_at_every_dtype(dtype: torch.dtype) -> None:
    """Draws are float32 whatever the sample's dtype; with a variance_noise nothing is drawn."""
    x = fastdiff.randn((2, 3, 4, 4), seed=1).to(dtype)
    given = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    for arguments in ({"variance_noise": given}, {}):
        results, states = [], []
        for module in (diffusers, fastdiff):
            scheduler = getattr(module, MULTISTEP)(
                algorithm_type="sde-dpmsolver++", timestep_spacing="trailing"
            )
            scheduler.set_timesteps(10)
            generator = torch.Generator().manual_seed(3)
            t = scheduler.timesteps[5]
            results.append(
                scheduler.step(torch.tanh(x), t, x, generator=generator, **arguments).prev_sample
            )
            states.append(generator.get_state())
        assert results[1].dtype == dtype and torch.equal(*states)
        tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
        assert (results[0] - results[1]).abs().max() <= tolerance * results[0].abs().max()


def test_an_euler_step_from_a_given_prediction() -> None:
    x, results = fastdiff.randn((2, 3, 4, 4), seed=1) * 80, []
    for module in (diffusers, fastdiff):
        scheduler = module.EDMEulerScheduler()
        scheduler.set_timesteps(5)
        t = scheduler.timesteps[0]
        scheduler.scale_model_input(x, t)
        results.append(
            scheduler.step(torch.zeros_like(x), t, x, pred_original_sample=torch.tanh(x))
        )
    torch.testing.assert_close(results[1].prev_sample, results[0].prev_sample, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results[1].pred_original_sample, torch.tanh(x))
