"""The rows of the fused ops: each op's call, oracle, peers' formula and fewest bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import formulas
from benchmarks.checks import as_numpy, same_bits
from benchmarks.harness import Workload
from benchmarks.op_inputs import SEED, Inputs, Op, same_work
from fastdiff import Schedule, ops, reference
from fastdiff.ops.step import workspace_for as step_workspace
from fastdiff.solvers import make_plan
from fastdiff.theory.likelihood import vlb_table

# the columns of a plan that benchmarks.formulas.reverse_step takes
_NUMBERS = ("x0_x", "x0_out", "x.x", "x.x0", "x.out", "x.z")
__all__ = ["DTYPES", "SCHEDULE", "SEED", "SHAPES", "Maker", "Op", "same_work"]

SCHEDULE = Schedule.linear(1000)
SHAPES = {"small": (1, 3, 32, 32), "real": (256, 3, 32, 32), "large": (256, 3, 128, 128)}
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


class Maker(Inputs):
    """Makes every op, by its name, on inputs of one shape, dtype and device."""

    def randn(self) -> Op:
        out = self.empty()

        def check(_: Any) -> None:
            for b in self.ends:
                expected = reference.randn(
                    (1, *self.shape[1:]),
                    seed=SEED,
                    sample_ids=[b],
                    dtype=as_numpy(out[:1]).dtype.type,
                )
                same_bits(out[b : b + 1], expected, "randn")

        def call() -> Tensor:
            return ops.randn(self.shape, seed=SEED, out=out)

        work = Workload(call, check, "bits equal to NumPy", (out,))
        numpy = lambda: reference.randn(self.shape, seed=SEED)  # noqa: E731
        return self.op(
            work, lambda: out, formulas.randn, (out,), numpy, 1, stream=0, limit=self.limit("randn")
        )

    def q_sample(self) -> Op:
        x0, t, out = self.normal(), self.times(), self.empty()
        alpha, sigma = self.table(SCHEDULE.alpha), self.table(SCHEDULE.sigma)

        def oracle(b: Any = slice(None)) -> np.ndarray:
            ids = np.arange(self.batch)[b]
            return reference.q_sample(
                as_numpy(x0[b]),
                as_numpy(t[b]),
                SCHEDULE.alpha,
                SCHEDULE.sigma,
                seed=SEED,
                sample_ids=ids,
            )

        def call() -> Tensor:
            return ops.q_sample(x0, t, alpha, sigma, seed=SEED, out=out)

        work = Workload(
            call,
            lambda _: same_bits(out[self.ends], oracle(self.ends), "q_sample"),
            "bits equal to NumPy",
            (out,),
        )
        inputs = (
            (x0, t, alpha.float(), sigma.float())
            if self.dtype != torch.float64
            else (x0, t, alpha, sigma)
        )
        return self.op(
            work,
            lambda: out,
            formulas.q_sample,
            inputs,
            oracle,
            2,
            stream=2,
            limit=self.limit("q_sample"),
        )

    def q_posterior(self) -> Op:
        x0, x_t, t = self.normal(), self.normal(), self.times()
        alphas_cumprod = self.table(SCHEDULE.alphas_cumprod)
        values = self.buffers()["out"]
        out = (self.empty(), values, torch.empty_like(values))

        def oracle(b: Any = slice(None)) -> Any:
            return reference.q_posterior(
                as_numpy(x0[b]), as_numpy(x_t[b]), as_numpy(t[b]), SCHEDULE.alphas_cumprod
            )

        def check(_: Any) -> None:
            for got, expected in zip(out, oracle(self.ends), strict=True):
                same_bits(got[self.ends], expected, "q_posterior")

        work = Workload(
            lambda: ops.q_posterior(x0, x_t, t, alphas_cumprod, out=out),
            check,
            "bits equal to NumPy",
            out,
        )
        inputs = (x0, x_t, t, alphas_cumprod)
        return self.op(work, lambda: out, formulas.q_posterior, inputs, oracle, 3)

    def reverse_step(
        self, solver: str = "ddpm", k: int = 25, *, bound: bool = False, log_prob: bool = False
    ) -> Op:
        """A step in place, as a call of the op or `bound`, as in loops.

        With `log_prob` it writes its log-probability too.
        """
        plan = make_plan(SCHEDULE, solver=solver, steps=50, timestep_spacing="leading")
        table, row = self.table(plan.table), torch.full((self.batch,), k, device=self.device)
        x, out, ids = self.normal(), self.normal(), torch.arange(self.batch, device=self.device)
        state = x.clone()
        more: dict[str, Any] = {}
        if log_prob:
            space = step_workspace(x, log_prob=True)
            more = {"log_prob_out": self.buffers()["out"], "workspace": space}

        def oracle(b: Any = slice(None)) -> np.ndarray:
            which = np.arange(self.batch)[b]
            return reference.reverse_step(
                as_numpy(x[b]), as_numpy(out[b]), plan.table, k, seed=SEED, sample_ids=which
            ).x_s

        def call() -> Any:
            return ops.reverse_step(
                state, out, table, row, seed=SEED, sample_ids=ids, used=plan.used, out=state, **more
            )

        if bound:
            given = {"seed": SEED, "sample_ids": ids, "used": plan.used, "out": state} | more
            step_of = ops.StepArguments(state, out, table, row, **given).bind("model_output")
            call = functools.partial(step_of, out)

        def check(_: Any) -> None:
            same_bits(state[self.ends], oracle(self.ends), "reverse_step")

        work = Workload(call, check, "bits equal to NumPy", restore=lambda: state.copy_(x))
        numbers = tuple(float(plan.table[k, plan.columns.index(name)]) for name in _NUMBERS)
        noise = {"stream": 1, "limit": self.limit("reverse_step", plan.used)} if numbers[-1] else {}

        def formula(normal: Any, x: Tensor, out: Tensor) -> Tensor:
            # `normal` draws the row's noise of the contract when the formula is compared, and
            # torch's own noise when it is timed
            return formulas.reverse_step(normal, x, out, numbers)

        step = int(plan.column("noise_index")[k])
        return self.op(work, lambda: state, _at_step(formula, step), (x, out), oracle, 3, **noise)

    def step_log_prob(self, k: int = 25) -> Op:
        """Scores a step of DDPM, the 26th of 50, whose x_s the row has drawn."""
        plan = make_plan(SCHEDULE, solver="ddpm", steps=50, timestep_spacing="leading")
        table, row = self.table(plan.table), torch.full((self.batch,), k, device=self.device)
        x, out = self.normal(), self.normal()
        x_s = ops.reverse_step(x, out, table, row, seed=SEED, used=plan.used)
        score = self.buffers()["out"]
        space = step_workspace(x, log_prob=True)

        def oracle(b: Any = slice(None)) -> np.ndarray:
            given = (as_numpy(v[b]) for v in (x, out, x_s))  # type: ignore[index]
            return reference.step_log_prob(*given, plan.table, k)

        def call() -> Tensor:
            return ops.step_log_prob(
                x, out, x_s, table, row, used=plan.used, out=score, workspace=space
            )

        numbers = tuple(float(plan.table[k, plan.columns.index(name)]) for name in _NUMBERS)

        def formula(normal: Any, *inputs: Tensor) -> Tensor:
            return formulas.step_log_prob(normal, *inputs, numbers)

        def check(_: Any) -> None:
            got, expected = as_numpy(score[self.ends]), oracle(self.ends)
            scale = self.elements // self.batch
            np.testing.assert_allclose(got, expected, rtol=0, atol=self.sum_error * scale)

        work = Workload(call, check, "within a sum's error of NumPy", (score,))
        # 16 bits: the peers round the mean to them, as users do
        wide = self.dtype in (torch.float32, torch.float64)
        return self.op(
            work,
            lambda: score,
            formula,
            (x, out, x_s),
            oracle,
            3,
            tolerance=1e-4 if wide else 2e-1,
        )

    def reparameterize(self) -> Op:
        mean, logvar, out = self.normal(), self.normal(), self.empty()

        def oracle(b: Any = slice(None)) -> np.ndarray:
            ids = np.arange(self.batch)[b]
            return reference.reparameterize(
                as_numpy(mean[b]), as_numpy(logvar[b]), seed=SEED, sample_ids=ids
            )

        def call() -> Tensor:
            return ops.reparameterize(mean, logvar, seed=SEED, out=out)

        work = Workload(
            call,
            lambda _: same_bits(out[self.ends], oracle(self.ends), "reparameterize"),
            "bits equal to NumPy",
            (out,),
        )
        return self.op(
            work,
            lambda: out,
            formulas.reparameterize,
            (mean, logvar),
            oracle,
            3,
            stream=3,
            limit=self.limit("reparameterize"),
        )

    def noise_mse(self) -> Op:
        """The peers' formula stores the noise and subtracts it, as training codes do."""
        prediction, buffers = self.normal(), self.buffers()

        def oracle(b: Any = slice(None)) -> np.ndarray:
            return reference.noise_mse(
                as_numpy(prediction[b]), seed=SEED, sample_ids=np.arange(self.batch)[b]
            )

        return self._sum(
            "noise_mse",
            lambda: ops.noise_mse(prediction, seed=SEED, **buffers),
            buffers,
            oracle,
            formulas.noise_mse,
            (prediction,),
            1,
            stream=2,
            limit=self.limit("noise_mse"),
        )

    def gaussian_kl(self) -> Op:
        moments, buffers = tuple(self.normal() for _ in range(4)), self.buffers()

        def oracle(b: Any = slice(None)) -> np.ndarray:
            return reference.gaussian_kl(*(as_numpy(v[b]) for v in moments))

        return self._sum(
            "gaussian_kl",
            lambda: ops.gaussian_kl(*moments, **buffers),
            buffers,
            oracle,
            formulas.gaussian_kl,
            moments,
            4,
        )

    def discretized_gaussian_nll(self) -> Op:
        x0 = self.pixels()
        mean = (x0.double() + 0.05 * self.normal().double()).to(self.dtype)
        log_scale, buffers = (self.normal().double() * 0.3 - 3).to(self.dtype), self.buffers()

        def oracle(b: Any = slice(None)) -> np.ndarray:
            return reference.discretized_gaussian_nll(
                *(as_numpy(v[b]) for v in (x0, mean, log_scale))
            )

        inputs = (x0, mean, log_scale)
        return self._sum(
            "discretized_gaussian_nll",
            lambda: ops.discretized_gaussian_nll(*inputs, **buffers),
            buffers,
            oracle,
            formulas.discretized_gaussian_nll,
            inputs,
            3,
            tolerance=2e-2,
        )

    def vlb_terms(self) -> Op:
        x0, t, buffers = self.pixels(), self.times(), self.buffers()
        alpha, sigma = self.table(SCHEDULE.alpha), self.table(SCHEDULE.sigma)
        x_t = ops.q_sample(x0, t, alpha, sigma, seed=SEED)
        # like a trained network's output: nearly the noise, and variances within their range
        eps = (
            ops.randn(self.shape, seed=SEED, stream=2, device=self.device)
            + 0.1 * self.normal().float()
        )
        output = torch.cat([eps, self.normal().float().tanh()], dim=1).to(self.dtype)
        rows = vlb_table(SCHEDULE, variance="learned_range", clip_range=1.0)
        table = self.table(rows)

        def oracle(b: Any = slice(None)) -> np.ndarray:
            return reference.vlb_terms(
                *(as_numpy(v[b]) for v in (x0, x_t, output)), rows, as_numpy(t[b])
            )

        rtol = 2e-5 if self.dtype != torch.float64 else 1e-12
        return self._sum(
            "vlb_terms",
            lambda: ops.vlb_terms(x0, x_t, output, table, t, **buffers),
            buffers,
            oracle,
            formulas.vlb_terms,
            (x0, x_t, output, table, t),
            4,
            tolerance=2e-2,
            rtol=rtol,
        )

    def group_norm_silu(self, groups: int = 32) -> Op:
        """On channels-last activations; the time embedding is added first."""
        channels = self.shape[1]
        x = self.normal().contiguous(memory_format=torch.channels_last)
        weight, bias, add = (
            self.normal((channels,)),
            self.normal((channels,)),
            self.normal((self.batch, channels)),
        )
        out = torch.empty_like(x)

        def oracle(b: Any = slice(None)) -> Any:
            v = (x[b].double() + add[b].double()[:, :, None, None]).cpu()
            norm = torch.nn.functional.group_norm(
                v, groups, weight.double().cpu(), bias.double().cpu(), 1e-5
            )
            return torch.nn.functional.silu(norm).numpy()

        rounding = {
            torch.float64: 1e-12,
            torch.float32: 2e-5,
            torch.float16: 4e-3,
            torch.bfloat16: 3e-2,
        }[self.dtype]

        def check(_: Any) -> None:
            np.testing.assert_allclose(
                as_numpy(out[self.ends]), oracle(self.ends), rtol=rounding, atol=rounding
            )

        def call() -> Any:
            return ops.group_norm_silu(x, groups, weight, bias, add=add, out=out)

        work = Workload(call, check, f"within {rounding:g} of torch in float64", (out,))
        return self.op(
            work, lambda: out, formulas.group_norm_silu, (x, groups, weight, bias, add), oracle, 2
        )


def _at_step(formula: Callable[..., Any], step: int) -> Callable[..., Any]:
    """Returns the formula such that, when it is compared, its noise is that of this `step`."""

    def with_step(normal: Any, *inputs: Any) -> Any:
        if normal is torch.randn_like:
            return formula(normal, *inputs)
        return formula(
            lambda like: ops.randn(
                like.shape, seed=SEED, stream=1, step=step, dtype=like.dtype, device=like.device
            ),
            *inputs,
        )

    return with_step
