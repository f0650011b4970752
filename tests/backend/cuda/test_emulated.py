"""The CUDA kernels of one pass over the elements, compiled for the host, against the oracle.

On the host csrc/cuda/launch.h runs the threads of a phase forwards and backwards in turn, and fills
shared memory with NaN first, so a missing barrier or an unwritten value shows here.

The file is long because a step has many arguments, each with its edge cases.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from cuda_library import OPS, Field, Library, array, compute_of, draw, workspace
from emulated_cases import (
    DTYPES,
    SEED,
    STEP,
    assert_close,
    every_dtype,
    every_shape,
    ids_of,
    name,
    normal,
    poisoned,
    rounded,
    truth,
)
from ops.cases import random_table
from tolerances import CUDA_SUMS
from torch import Tensor

from fastdiff.reference.q_posterior import q_posterior
from fastdiff.reference.q_sample import q_sample
from fastdiff.reference.randn import randn
from fastdiff.reference.reparameterize import reparameterize
from fastdiff.reference.reverse_step import reverse_step
from fastdiff.reference.step_log_prob import step_log_prob
from fastdiff.rng import windowed
from fastdiff.table import COLUMNS, INDEX

ROWS = 6


# ---- randn, q_sample


@every_dtype
@every_shape
def test_randn(cuda: Library, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    out, ids = poisoned(torch.empty(shape), dtype), ids_of(shape[0])
    seeds = torch.arange(shape[0]) - 2
    cuda.call("randn", out, draw(SEED, None, ids, STEP, 4), array(out))
    assert torch.equal(
        out, rounded(randn(shape, seed=SEED, sample_ids=ids.numpy(), step=STEP, stream=4), dtype)
    )
    cuda.call("randn", out, draw(SEED, seeds, None, STEP, 4), array(out))
    assert torch.equal(out, rounded(randn(shape, seed=seeds.numpy(), step=STEP, stream=4), dtype))
    for offset in (4, 2**33 + 12):  # a window of larger samples
        cuda.call("randn", out, draw(SEED, None, None, STEP, windowed(4, offset)), array(out))
        whole = randn(shape, seed=SEED, step=STEP, stream=4, offset=offset)
        assert torch.equal(out, rounded(whole, dtype))


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("timed", [True, False])
@every_dtype
@every_shape
def test_q_sample(
    cuda: Library, shape: tuple[int, ...], dtype: torch.dtype, timed: bool, drawn: bool
) -> None:
    batch = shape[0]
    x0, x_t = normal(shape, dtype), poisoned(torch.empty(shape), dtype)
    size = 5 if timed else batch
    alpha, sigma = normal((size,), torch.float64, 1), normal((size,), torch.float64, 2)
    t, noise = (
        torch.arange(batch) % 5 if timed else None,
        (None if drawn else normal(shape, torch.float16, 3)),
    )
    cuda.call(
        "q_sample",
        x0,
        draw(SEED, step=STEP, stream=2),
        array(x0),
        array(x_t),
        t,
        alpha,
        sigma,
        size,
        array(noise),
    )
    expected = q_sample(
        truth(x0),
        None if t is None else t.numpy(),
        alpha.numpy(),
        sigma.numpy(),
        seed=SEED,
        step=STEP,
        noise=truth(noise),
    )
    assert torch.equal(x_t, rounded(expected, dtype))


def test_a_time_outside_its_table_makes_its_sample_nan(cuda: Library) -> None:
    x0, alpha = torch.ones(4, 700), torch.ones(3, dtype=torch.float64)
    for t in (torch.tensor([0, 3, 2, 1]), torch.tensor([0, -1, 2, 2**40])):
        x_t = torch.zeros(4, 700)
        cuda.call("q_sample", x0, draw(), array(x0), array(x_t), t, alpha, alpha, 3, [0, 0])
        bad = (t < 0) | (t >= 3)
        assert torch.equal(x_t.isnan().all(1), bad) and torch.equal(x_t.isnan().any(1), bad)
        assert cuda.error() == OPS.index("q_sample") + 1


# ---- reverse_step


def _table(rows: int, seed: int, learned: bool, clip: int, rescale: float) -> np.ndarray:
    """Returns a random table with one clip mode, off in every third row, and rescaled guidance."""
    table, index = random_table(rows, seed, learned=learned), np.arange(rows)
    table[:, INDEX["guidance_rescale"]] = rescale * (index % 2)
    table[:, INDEX["clip_mode"]] = clip * (index % 3 != 2)
    table[:, INDEX["clip_bound"]] = 0.7 if clip == 1 else 1.8
    table[:, INDEX["clip_ratio"]] = np.linspace(0, 1, rows)
    return table


class _Step:
    """Random inputs and poisoned outputs of a step, for the library and for the oracle."""

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        guided: bool = False,
        learned: bool = False,
        clip: int = 1,
        rescale: float = 0.0,
        out_dtype: torch.dtype | None = None,
        drawn: bool = True,
    ) -> None:
        batch, compute = shape[0], compute_of(dtype)
        self.copies = 2 if guided else 1
        channels = () if len(shape) == 1 else (shape[1] * (2 if learned else 1), *shape[2:])
        self.table = torch.from_numpy(_table(ROWS, 1, learned, clip, rescale))
        self.x = normal(shape, dtype, 1)
        self.out = normal((batch * self.copies, *channels), out_dtype or dtype, 2)
        self.row = torch.arange(batch) % ROWS
        self.slots = normal((4, *shape), compute, 3)
        self.noise = None if drawn else normal(shape, dtype, 4)
        self.gamma = (
            torch.tensor([1.0, 0.0, 2.5, -1.0, 7.5])[torch.arange(batch) % 5].to(compute)
            if guided
            else None
        )
        self.gradient, self.ids = normal(shape, dtype, 5), ids_of(batch)
        self.x_s, self.x0 = poisoned(self.x), poisoned(self.x, compute)
        self.slots_out = poisoned(self.slots)
        self.input = torch.full((batch * self.copies, *shape[1:]), torch.nan, dtype=compute)
        self.next = torch.full((batch,), -7)
        self.times = torch.full((batch * self.copies,), -7)
        self.factors = poisoned(torch.empty(batch), compute) if rescale else None
        self.bounds = poisoned(torch.empty(batch), compute) if clip == 2 else None
        self.parts: Tensor | None = None  # memory for parts of long samples
        self.score: Tensor | None = None  # the log-probabilities, and their partial sums
        self.sums = workspace(self.x, compute)

    def run(self, cuda: Library) -> None:
        fields = self.fields(draw(SEED, None, self.ids, 0, 1), self.noise is None)
        cuda.call("reverse_step", self.x, *fields)

    def fields(self, noise: list[Field], seeded: bool) -> list[list[Field] | Field]:
        """Returns the fields of fd_reverse_step_args behind `launch`."""
        size = self.out[0].numel() if self.out.size(0) else 0
        return [
            noise,
            int(seeded),
            array(self.x),
            array(self.x_s),
            array(self.out),
            size,
            self.table,
            ROWS,
            self.row,
            self.slots,
            4,
            self.slots_out,
            4,
            array(self.noise),
            self.gamma,
            array(self.gradient),
            array(self.x0),
            array(self.input),
            self.copies,
            self.next,
            array(self.times),
            self.copies,
            self.factors,
            self.bounds,
            None,
            self.parts,
            0 if self.parts is None else self.parts.numel(),
            self.score,
            self.sums,
        ]

    def results(self) -> dict[str, Tensor]:
        return {
            "x_s": self.x_s,
            "slots": self.slots_out,
            "x0": self.x0,
            "network_input": self.input,
            "row": self.next,
            "time" if self.times.is_floating_point() else "timestep": self.times,
        }

    def expected(self) -> dict[str, np.ndarray]:
        step = reverse_step(
            truth(self.x),
            truth(self.out),
            self.table.numpy(),
            self.row.numpy(),
            slots=self.slots.numpy(),
            noise=truth(self.noise),
            seed=SEED,
            sample_ids=self.ids.numpy(),
            guidance=None if self.gamma is None else self.gamma.numpy(),
            gradient=truth(self.gradient),
        )
        return step._asdict() | {"timestep": step.timestep}

    def check(self, cuda: Library, exact: bool = True) -> None:
        expected = self.expected()
        self.run(cuda)
        for key, got in self.results().items():
            want = rounded(expected[key], got.dtype)
            if exact:
                assert torch.equal(got.nan_to_num(99.0), want.nan_to_num(99.0)), key
            else:
                # the platform's exp, an ulp from NumPy's
                assert torch.allclose(got, want, rtol=1e-14, atol=1e-14, equal_nan=True), key
        assert cuda.error() == 0


@pytest.mark.parametrize("clip", [0, 1, 2])
@pytest.mark.parametrize("guided", [False, True])
@every_dtype
@every_shape
def test_reverse_step(
    cuda: Library, shape: tuple[int, ...], dtype: torch.dtype, guided: bool, clip: int
) -> None:
    if clip == 2 and 0 in shape:
        clip = 1  # an empty sample has no quantile
    # a single value has no standard deviation
    rescale = 0.7 if guided and len(shape) > 1 and np.prod(shape[1:]) > 1 else 0.0
    _Step(shape, dtype, guided, clip=clip, rescale=rescale).check(cuda)


@pytest.mark.parametrize("guided", [False, True])
@every_dtype
@pytest.mark.parametrize(
    "shape", [(3, 5), (6, 3, 7), (6, 4, 16), (2, 1, 33, 33), (2, 2, 512)], ids=str
)
def test_learned_variance(
    cuda: Library, shape: tuple[int, ...], dtype: torch.dtype, guided: bool
) -> None:
    _Step(shape, dtype, guided, learned=True).check(cuda, exact=dtype != torch.float64)


@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
def test_mixed_dtypes_and_given_noise(cuda: Library, out_dtype: torch.dtype) -> None:
    _Step((6, 260), torch.bfloat16, True, learned=True, out_dtype=out_dtype, drawn=False).check(
        cuda
    )
    _Step(
        (6, 1028), torch.float32, True, clip=2, rescale=0.5, out_dtype=out_dtype, drawn=False
    ).check(cuda)


@pytest.mark.parametrize("size", [37, 2048])
def test_outputs_may_be_the_inputs_memory(cuda: Library, size: int) -> None:
    step = _Step((6, size), torch.float32, True)
    expected = step.expected()
    step.x_s, step.slots_out, step.input = step.x, step.slots, step.out
    step.run(cuda)
    for key, got in step.results().items():
        assert torch.equal(got, rounded(expected[key], got.dtype)), key


@pytest.mark.parametrize("size", [36, 2048])
def test_unaligned_memory(cuda: Library, size: int) -> None:
    step = _Step((6, size), torch.float32, True, learned=True)
    for field in ("x", "out", "slots", "gradient", "x_s", "x0", "input", "slots_out"):
        tensor = getattr(step, field)
        moved = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
        assert moved.data_ptr() % 16
        setattr(step, field, moved.copy_(tensor))
    step.check(cuda)


@pytest.mark.parametrize("size", [3, 2048])
def test_a_row_outside_the_table_makes_its_sample_nan(cuda: Library, size: int) -> None:
    step = _Step((7, size), torch.float32, True, clip=2, rescale=0.5)
    step.row[1], step.row[4] = ROWS, -(2**40)
    bad = torch.isin(torch.arange(7), torch.tensor([1, 4]))
    step.run(cuda)
    for got in (step.x_s, step.x0, step.input[:7], step.input[7:], *step.slots_out):
        assert torch.equal(got.isnan().all(1), bad) and torch.equal(got.isnan().any(1), bad)
    assert torch.equal(step.next[bad], step.row[bad]) and not bool((step.next[~bad] < 0).any())
    assert torch.equal(step.times.view(2, 7)[:, bad], torch.zeros(2, 2, dtype=torch.int64))
    assert cuda.error() == OPS.index("reverse_step") + 1


@pytest.mark.parametrize("size", [0, 3, 2048])
def test_float_times(cuda: Library, size: int) -> None:
    """They are rounded to float32 once; a sample without a next row gets NaN."""
    step = _Step((6, size), torch.float32, True)
    step.table[:, INDEX["t"]] += 1 / 3
    step.times = torch.zeros(12)
    step.check(cuda)
    step.row[2], step.table[4, INDEX["next"]] = ROWS, -1
    step.run(cuda)
    bad = torch.isin(torch.arange(6), torch.tensor([2, 4]))
    assert torch.equal(step.times.view(2, 6).isnan(), bad.expand(2, 6))
    assert cuda.error() == OPS.index("reverse_step") + 1


def test_a_following_row_outside_the_table_is_an_error(cuda: Library) -> None:
    step = _Step((3, 5), torch.float32)
    step.table[1, INDEX["next"]] = ROWS
    step.run(cuda)
    assert (
        step.input[1].isnan().all()
        and not step.x_s.isnan().any()
        and step.next.tolist() == [1, -1, 3]
        and step.times[1] == 0
    )
    assert cuda.error() == OPS.index("reverse_step") + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_long_sample_is_read_in_parts(cuda: Library, dtype: torch.dtype) -> None:
    """By a block for each part: the bits of the threshold are the same, and the factor's value."""
    digits = torch.finfo(dtype).bits // 8
    for size, parts in ((33_000, 3), (4 * 4096 + 1, 2)):
        results = []
        for several in (False, True):
            step = _Step((5, size), dtype, True, clip=2)
            step.x[2, ::3] = 0.25  # ties
            step.x[3, 7] = torch.nan
            if several:
                step.parts = torch.full((5 * (257 * parts + 4),), -1)
            before = cuda.launches("reverse_step_threshold")
            step.run(cuda)
            launched = cuda.launches("reverse_step_threshold") - before
            assert launched == (digits + 1 if several else 1)
            results.append((step.bounds, step.x_s, step.x0))
            if not several:
                want = rounded(step.expected()["x_s"], dtype)
                assert torch.equal(step.x_s.nan_to_num(99.0), want.nan_to_num(99.0))
        for whole, divided in zip(*results, strict=True):
            assert torch.equal(whole.nan_to_num(99.0), divided.nan_to_num(99.0))

        factors = []
        for several in (False, True):
            step = _Step((5, size), dtype, True, rescale=0.5)
            if several:
                step.parts = torch.full((5 * (257 * parts + 4),), -1)
            before = cuda.launches("reverse_step_rescale")
            step.run(cuda)
            assert cuda.launches("reverse_step_rescale") - before == 1 + several
            factors.append(step.factors.nan_to_num(99.0))
        assert torch.allclose(*factors, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_operands_that_are_absent_are_not_read(cuda: Library) -> None:
    """Without output, slots and noise their columns count as zero, as in the Triton kernels."""
    step = _Step((6, 5), torch.float32)
    cuda.call(
        "reverse_step",
        step.x,
        draw(),
        0,
        array(step.x),
        array(step.x_s),
        [0, 0],
        0,
        step.table,
        ROWS,
        step.row,
        0,
        0,
        0,
        0,
        [0, 0],
        0,
        [0, 0],
        [0, 0],
        [0, 0],
        0,
        0,
        [0, 0],
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    )
    absent = (".out", ".z", ".s1", ".s2", ".s3", ".s4")
    for column in COLUMNS:
        if column == "x0_out" or column.endswith(absent):
            step.table[:, INDEX[column]] = 0
    assert torch.equal(step.x_s, rounded(step.expected()["x_s"], torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("shape", [(7, 4, 5), (3, 2, 700)], ids=str)
def test_a_drawn_step_and_its_score(
    cuda: Library, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """The log-probability of a step as it is sampled and as it is scored: the same bits."""
    step = _Step(shape, dtype, guided=True, learned=True)
    on_z = step.table[:, INDEX["x.z"]]
    on_z[:] = torch.where(on_z == 0, -0.4, on_z)
    drawn, again = (torch.full(shape[:1], torch.nan, dtype=compute_of(dtype)) for _ in range(2))
    step.score = drawn
    step.check(cuda, exact=dtype != torch.float64)  # whose exp is the platform's
    step.score, step.sums = again, workspace(step.x, compute_of(dtype))
    before = [cuda.launches(op) for op in ("step_log_prob", "sum_chunks")]
    step.noise = None
    cuda.call("step_log_prob", step.x, *step.fields(draw(), False), 0)
    after = [cuda.launches(op) for op in ("step_log_prob", "sum_chunks")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, int(step.x[0].numel() > 1024)]
    assert torch.equal(again, drawn)
    expected = step_log_prob(
        truth(step.x),
        truth(step.out),
        truth(step.x_s),
        step.table.numpy(),
        step.row.numpy(),
        slots=step.slots.numpy(),
        guidance=step.gamma.numpy(),  # type: ignore[union-attr]
        gradient=truth(step.gradient),
    )
    limit = CUDA_SUMS["float64" if dtype == torch.float64 else "float32"]
    np.testing.assert_allclose(drawn, expected, rtol=4 * limit, atol=4 * limit)
    assert cuda.error() == 0
    on_z[1], step.row[2] = 0, ROWS
    cuda.call("step_log_prob", step.x, *step.fields(draw(), False), 0)
    bad = (step.row == 1) | (step.row == ROWS)
    assert torch.equal(again.isnan(), bad) and torch.equal(again[~bad], drawn[~bad])
    assert cuda.error() == OPS.index("step_log_prob") + 1


def test_nan_and_infinity_under_a_dynamic_threshold(cuda: Library) -> None:
    step = _Step((2, 9), torch.float32, clip=2)
    step.row[:] = 3
    step.table[3, INDEX["clip_mode"]], step.table[3, INDEX["clip_ratio"]] = 2, 0.8
    step.table[3, INDEX["x0_out"]] = 1
    step.out[0, 4], step.out[1, 2] = torch.nan, torch.inf
    step.check(cuda)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thresholds_with_ties(cuda: Library, dtype: torch.dtype) -> None:
    step = _Step((12, 50), dtype, clip=2)
    step.x, step.out = torch.round(step.x * 2) / 2, torch.round(step.out * 2) / 2
    step.table[:, INDEX["clip_mode"]] = 2
    step.check(cuda)


# ---- q_posterior, reparameterize


@every_dtype
@every_shape
def test_q_posterior(cuda: Library, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, compute = shape[0], compute_of(dtype)
    x0, x_t, mean = (
        normal(shape, dtype),
        normal(shape, dtype, 1),
        poisoned(torch.empty(shape), dtype),
    )
    for times in (5, 1):
        cumulative = torch.linspace(0.99, 0.1, times, dtype=torch.float64)
        t = torch.arange(batch) % times
        variance, log_variance = (torch.full((batch,), torch.nan, dtype=compute) for _ in range(2))
        cuda.call(
            "q_posterior",
            x0,
            array(x0),
            array(x_t),
            t,
            cumulative,
            times,
            array(mean),
            variance,
            log_variance,
        )
        expected = q_posterior(truth(x0), truth(x_t), t.numpy(), cumulative.numpy())
        assert torch.equal(mean, rounded(expected[0], dtype)) and torch.equal(
            variance, torch.from_numpy(expected[1])
        )
        np.testing.assert_allclose(log_variance.numpy(), expected[2], rtol=CUDA_SUMS[name(compute)])
        if batch > 1:
            t[1] = times
            cuda.call(
                "q_posterior",
                x0,
                array(x0),
                array(x_t),
                t,
                cumulative,
                times,
                array(mean),
                variance,
                log_variance,
            )
            assert variance[1].isnan() and log_variance[1].isnan() and mean[1].isnan().all()
            assert not variance[0].isnan() and cuda.error() == OPS.index("q_posterior") + 1


@every_dtype
@every_shape
def test_reparameterize(cuda: Library, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    mean, logvar, z = (
        normal(shape, dtype),
        normal(shape, dtype, 1),
        poisoned(torch.empty(shape), dtype),
    )
    noise, none = draw(SEED, step=STEP, stream=3), [0, 0]
    cuda.call("reparameterize", mean, noise, array(mean), array(logvar), array(z), none, none, none)
    expected = reparameterize(truth(mean), truth(logvar), seed=SEED, step=STEP)
    if dtype == torch.float64:
        assert_close(z, expected, dtype)
    else:
        assert torch.equal(z, rounded(expected, dtype))
    g, g_mean, g_logvar = normal(shape, dtype, 2), poisoned(mean), poisoned(mean)
    cuda.call(
        "reparameterize",
        mean,
        noise,
        none,
        array(logvar),
        none,
        array(g),
        array(g_mean),
        array(g_logvar),
    )
    eps = randn(shape, seed=SEED, step=STEP, stream=3, dtype=np.float64)
    assert torch.equal(g_mean, g)
    assert_close(
        g_logvar, g.double().numpy() * eps * 0.5 * np.exp(0.5 * logvar.double().numpy()), dtype
    )


def test_launches_are_counted(cuda: Library) -> None:
    """A step with both prepasses is three launches."""
    step = _Step((2, 2048), torch.float32, True, clip=2, rescale=0.5)
    before = [cuda.launches(op) for op in OPS]
    step.run(cuda)
    after = [cuda.launches(op) for op in OPS]
    counted = {op: b - a for op, a, b in zip(OPS, before, after, strict=True) if a != b}
    assert counted == {"reverse_step": 1, "reverse_step_rescale": 1, "reverse_step_threshold": 1}


def test_a_step_and_a_stream_out_of_range_are_refused(cuda: Library) -> None:
    out = torch.empty(2, 3)
    for bad, text in (
        (draw(0, step=2**32), "step in [0, 2^32)"),
        (draw(0, stream=2**40), "stream in [0, 2^40)"),  # above 2^8: a window
    ):
        with pytest.raises(AssertionError, match=re.escape(text)):
            cuda.call("randn", out, bad, array(out))
