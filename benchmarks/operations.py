"""Every fused op as a row: its call, its oracle, the formula that users write instead, and the
bytes that it must move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import formulas, instructions
from benchmarks.harness import Workload
from fastdiff import Schedule, ops, reference
from fastdiff.ops.common import workspace_for
from fastdiff.solvers import make_plan
from fastdiff.theory.likelihood import vlb_table

SCHEDULE = Schedule.linear(1000)
SEED = 1
SHAPES = {"small": (1, 3, 32, 32), "real": (256, 3, 32, 32), "large": (256, 3, 128, 128)}
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
SUM = {
    torch.float64: 2e-13
}  # relative error of sums over a sample in other dtypes: 3e-6 (tests/tolerances.py)
# what a formula, given the op's own noise, may differ by in norm: half precision rounds at every
# operation
FORMULA = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Op(NamedTuple):
    """A row of an op.

    Attributes:
        work: ours. result: what it left. formula, inputs: its peers'. stream: of the op's noise,
            None without.
        numpy: the oracle on the whole batch. bytes_floor: what an ideal kernel reads and writes.
        tolerance: of the formula beside the op, where it is an approximation.
    """

    work: Workload
    result: Callable[[], Any]
    formula: Callable[..., Any]
    inputs: tuple[Any, ...]
    numpy: Callable[[], Any]
    bytes_floor: int
    elements: int
    stream: int | None = None
    limit: Callable[[], Any] | None = None
    tolerance: float | None = None


def truth(x: Tensor) -> np.ndarray:
    """As NumPy, in which half precision is float32."""
    x = x.detach().cpu()
    return (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x).numpy()


def ends(batch: int) -> list[int]:
    """The samples that are compared with NumPy: the first and the last."""
    return sorted({0, batch - 1})


def same_bits(got: Tensor, expected: np.ndarray, what: str) -> None:
    """The oracle's value, rounded once to the stored type, is what is there."""
    rounded = torch.from_numpy(np.ascontiguousarray(expected)).to(got.dtype)
    if not torch.equal(got.cpu(), rounded):
        off = float((got.cpu().double() - rounded.double()).abs().max())
        raise AssertionError(f"{what}: expected NumPy's bits, got values up to {off:.3g} away")


def near(got: Tensor, expected: np.ndarray, rtol: float, what: str) -> None:
    np.testing.assert_allclose(truth(got), expected, rtol=rtol, atol=0, err_msg=what)


def same_work(op: Op) -> None:
    """The formula with the op's noise has the op's result: the peers do what is compared."""

    def normal(like: Tensor) -> Tensor:
        assert op.stream is not None
        return ops.randn(
            like.shape, seed=SEED, stream=op.stream, dtype=like.dtype, device=like.device
        )

    op.work.verify()
    ours, theirs = op.result(), op.formula(normal, *op.inputs)
    for a, b in zip(*((v,) if isinstance(v, Tensor) else v for v in (ours, theirs)), strict=True):
        off = float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
        if not off < (op.tolerance or FORMULA[a.dtype]):
            raise AssertionError(f"the formula differs from the op by {off:.2g} of its norm")


class Maker:
    """Inputs of one shape, dtype and device, and the ops on them."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu"
    ):
        self.shape, self.dtype, self.device = shape, dtype, device
        self.batch, self.elements = shape[0], int(np.prod(shape))
        self.size = torch.empty((), dtype=dtype).element_size()
        self.ends = ends(self.batch)
        self.g = torch.Generator(device).manual_seed(0)

    def normal(self, shape: tuple[int, ...] | None = None) -> Tensor:
        return torch.randn(shape or self.shape, generator=self.g, device=self.device).to(self.dtype)

    def pixels(self) -> Tensor:
        levels = torch.randint(0, 256, self.shape, generator=self.g, device=self.device)
        return (levels / 127.5 - 1).to(self.dtype)

    def empty(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)

    def times(self) -> Tensor:
        return torch.arange(self.batch, device=self.device) * 7 % 1000

    def table(self, values: Any) -> Tensor:
        return torch.tensor(values, device=self.device)

    def sums(self) -> dict[str, Any]:
        kind = torch.float64 if self.dtype == torch.float64 else torch.float32
        out = torch.empty(self.batch, dtype=kind, device=self.device)
        room = workspace_for(self.batch, self.elements // self.batch, kind, out.device)
        return {"out": out} if room is None else {"out": out, "workspace": room}

    @property
    def sum_error(self) -> float:
        return SUM.get(self.dtype, 3e-6)

    def op(
        self,
        work: Workload,
        result: Callable[[], Any],
        formula: Any,
        inputs: tuple[Any, ...],
        numpy: Any,
        arrays: float,
        **more: Any,
    ) -> Op:
        """arrays: how many tensors of the shape are read or written."""
        return Op(
            work,
            result,
            formula,
            inputs,
            numpy,
            int(arrays * self.elements) * self.size,
            self.elements,
            **more,
        )

    # -- the ops
    # ------------------------------------------------------------------------------------------------------

    def limit(self, name: str, uses: int = 0) -> Callable[[], Any]:
        """The ceiling that arithmetic sets on this op."""

        def make(n: int) -> Callable[[], Any]:
            return getattr(Maker((1, n), self.dtype, self.device), name)().work.call

        return lambda: instructions.ceiling(
            make, self.device, instructions.launch_of(name, self.empty(), uses)
        )

    def randn(self) -> Op:
        out = self.empty()

        def check(_: Any) -> None:
            for b in self.ends:
                expected = reference.randn(
                    (1, *self.shape[1:]), seed=SEED, sample_ids=[b], dtype=truth(out[:1]).dtype.type
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
                truth(x0[b]), truth(t[b]), SCHEDULE.alpha, SCHEDULE.sigma, seed=SEED, sample_ids=ids
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
        x0, x_t, t, kept = (
            self.normal(),
            self.normal(),
            self.times(),
            self.table(SCHEDULE.alphas_cumprod),
        )
        values = self.sums()["out"]
        out = (self.empty(), values, torch.empty_like(values))

        def oracle(b: Any = slice(None)) -> Any:
            return reference.q_posterior(
                truth(x0[b]), truth(x_t[b]), truth(t[b]), SCHEDULE.alphas_cumprod
            )

        def check(_: Any) -> None:
            for got, expected in zip(out, oracle(self.ends), strict=True):
                same_bits(got[self.ends], expected, "q_posterior")

        work = Workload(
            lambda: ops.q_posterior(x0, x_t, t, kept, out=out), check, "bits equal to NumPy", out
        )
        return self.op(work, lambda: out, formulas.q_posterior, (x0, x_t, t, kept), oracle, 3)

    def reverse_step(self, solver: str = "ddpm", k: int = 25) -> Op:
        plan = make_plan(SCHEDULE, solver=solver, steps=50, timestep_spacing="leading")
        table, row = self.table(plan.table), torch.full((self.batch,), k, device=self.device)
        x, out, ids = self.normal(), self.normal(), torch.arange(self.batch, device=self.device)
        state = x.clone()

        def oracle(b: Any = slice(None)) -> np.ndarray:
            which = np.arange(self.batch)[b]
            return reference.reverse_step(
                truth(x[b]), truth(out[b]), plan.table, k, seed=SEED, sample_ids=which
            ).x_s

        def call() -> Any:
            return ops.reverse_step(
                state, out, table, row, seed=SEED, sample_ids=ids, used=plan.used, out=state
            )

        def check(_: Any) -> None:
            same_bits(state[self.ends], oracle(self.ends), "reverse_step")

        work = Workload(call, check, "bits equal to NumPy", restore=lambda: state.copy_(x))
        names = ("x0_x", "x0_out", "x.x", "x.x0", "x.out", "x.z")
        numbers = tuple(float(plan.table[k, plan.columns.index(name)]) for name in names)
        noise = {"stream": 1, "limit": self.limit("reverse_step", plan.used)} if numbers[-1] else {}

        def formula(normal: Any, x: Tensor, out: Tensor) -> Tensor:
            # drawn by the row's number of the contract when compared, by torch's generator when
            # timed
            return formulas.reverse_step(normal, x, out, numbers)

        step = int(plan.column("noise_index")[k])
        return self.op(work, lambda: state, _at_step(formula, step), (x, out), oracle, 3, **noise)

    def reparameterize(self) -> Op:
        mean, logvar, out = self.normal(), self.normal(), self.empty()

        def oracle(b: Any = slice(None)) -> np.ndarray:
            ids = np.arange(self.batch)[b]
            return reference.reparameterize(
                truth(mean[b]), truth(logvar[b]), seed=SEED, sample_ids=ids
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
        """Against training as it is: noise made once, kept, and subtracted."""
        prediction, room = self.normal(), self.sums()

        def oracle(b: Any = slice(None)) -> np.ndarray:
            return reference.noise_mse(
                truth(prediction[b]), seed=SEED, sample_ids=np.arange(self.batch)[b]
            )

        return self._sum(
            "noise_mse",
            lambda: ops.noise_mse(prediction, seed=SEED, **room),
            room,
            oracle,
            formulas.noise_mse,
            (prediction,),
            1,
            stream=2,
            limit=self.limit("noise_mse"),
        )

    def gaussian_kl(self) -> Op:
        moments, room = tuple(self.normal() for _ in range(4)), self.sums()

        def oracle(b: Any = slice(None)) -> np.ndarray:
            return reference.gaussian_kl(*(truth(v[b]) for v in moments))

        return self._sum(
            "gaussian_kl",
            lambda: ops.gaussian_kl(*moments, **room),
            room,
            oracle,
            formulas.gaussian_kl,
            moments,
            4,
        )

    def discretized_gaussian_nll(self) -> Op:
        x0 = self.pixels()
        mean = (x0.double() + 0.05 * self.normal().double()).to(self.dtype)
        log_scale, room = (self.normal().double() * 0.3 - 3).to(self.dtype), self.sums()

        def oracle(b: Any = slice(None)) -> np.ndarray:
            return reference.discretized_gaussian_nll(*(truth(v[b]) for v in (x0, mean, log_scale)))

        inputs = (x0, mean, log_scale)
        return self._sum(
            "discretized_gaussian_nll",
            lambda: ops.discretized_gaussian_nll(*inputs, **room),
            room,
            oracle,
            formulas.discretized_gaussian_nll,
            inputs,
            3,
            tolerance=2e-2,
        )

    def vlb_terms(self) -> Op:
        x0, t, room = self.pixels(), self.times(), self.sums()
        alpha, sigma = self.table(SCHEDULE.alpha), self.table(SCHEDULE.sigma)
        x_t = ops.q_sample(x0, t, alpha, sigma, seed=SEED)
        # as a trained network's: the noise, a little off, and variances within their range
        eps = (
            ops.randn(self.shape, seed=SEED, stream=2, device=self.device)
            + 0.1 * self.normal().float()
        )
        output = torch.cat([eps, self.normal().float().tanh()], dim=1).to(self.dtype)
        rows = vlb_table(SCHEDULE, variance="learned_range", clip_range=1.0)
        table = self.table(rows)

        def oracle(b: Any = slice(None)) -> np.ndarray:
            return reference.vlb_terms(*(truth(v[b]) for v in (x0, x_t, output)), rows, truth(t[b]))

        rtol = 2e-5 if self.dtype != torch.float64 else 1e-12
        return self._sum(
            "vlb_terms",
            lambda: ops.vlb_terms(x0, x_t, output, table, t, **room),
            room,
            oracle,
            formulas.vlb_terms,
            (x0, x_t, output, table, t),
            4,
            tolerance=2e-2,
            rtol=rtol,
        )

    def group_norm_silu(self, groups: int = 32) -> Op:
        """On channels-last activations, with the time embedding added first."""
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
                truth(out[self.ends]), oracle(self.ends), rtol=rounding, atol=rounding
            )

        def call() -> Any:
            return ops.group_norm_silu(x, groups, weight, bias, add=add, out=out)

        work = Workload(call, check, f"within {rounding:g} of torch in float64", (out,))
        return self.op(
            work, lambda: out, formulas.group_norm_silu, (x, groups, weight, bias, add), oracle, 2
        )

    def _sum(
        self,
        name: str,
        call: Any,
        room: dict[str, Any],
        oracle: Any,
        formula: Any,
        inputs: tuple[Any, ...],
        arrays: float,
        rtol: float | None = None,
        **more: Any,
    ) -> Op:
        """An op with a number per sample."""
        rtol, out = rtol or self.sum_error, room["out"]
        work = Workload(
            call,
            lambda _: near(out[self.ends], oracle(self.ends), rtol, name),
            f"rtol {rtol:g} to NumPy",
            (out,),
        )
        return self.op(work, lambda: out, formula, inputs, oracle, arrays, **more)


def _at_step(formula: Callable[..., Any], step: int) -> Callable[..., Any]:
    """The formula, whose noise in a comparison is that of the contract's `step`."""

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
