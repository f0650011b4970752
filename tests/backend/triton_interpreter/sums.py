"""The kernels that sum over a sample, in Triton's interpreter against the NumPy oracle.

Their gradients are in sums_gradients.py. tests/backend/test_triton.py starts this file with
TRITON_INTERPRET=1.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from cases import DTYPES, compute, name, numbers, poisoned
from fastdiff_kernels import elementary, launch
from tolerances import ROUNDING, TRITON_SUMS
from torch import Tensor

from fastdiff.reference.discretized_gaussian_nll import bins, discretized_gaussian_nll
from fastdiff.reference.gaussian_kl import gaussian_kl
from fastdiff.reference.noise_mse import noise_mse
from fastdiff.reference.vlb_terms import vlb_terms
from fastdiff.table import VLB_COLUMNS

SHAPES = [(1, 1), (3, 5), (7,), (0, 3), (3, 0), (2, 3, 7), (2, 1, 33, 33), (300, 2)]
SUMS = ["noise_mse", "gaussian_kl", "standard_kl", "discretized_gaussian_nll", "vlb_terms"]
SEED = 2**63 + 5


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64, count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, *shape), generator=generator, dtype=torch.float64).to(dtype)


def memory(like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns buffers for the result [B] and for the sums of the chunks, poisoned."""
    size = like[0].numel() if len(like) else 0
    return tuple(
        poisoned((n,), compute(like.dtype)) for n in (len(like), len(like) * -(-size // 1024))
    )


def rows(like: Tensor) -> Tensor:
    """Returns the tensor as [B, elements]."""
    return like.reshape(len(like), math.prod(like.shape[1:]))


def vlb_table() -> np.ndarray:
    """Returns a table for vlb_terms; row 1 does not clip."""
    columns = {
        "x0_x": [1.2, 1.1, 1.5, 1.0, 2.0],
        "x0_out": [-0.3, 1.0, -0.7, -0.2, 0.8],
        "clip_bound": [1, np.inf, 1, 2, 0.5],
        "mean_x0": [0.9, 0.05, 0.3, 1.0, 0.7],
        "mean_x": [0.1, 0.9, 0.5, 0.0, 0.2],
        "logvar_q": [-4] * 5,
        "logvar_lo": [-5, -4.5, -6, -3, -4],
        "logvar_hi": [-3, -2, -3.5, -1, -3],
        "first": [1, 0, 0, 1, 0],
    }
    return np.stack([np.array(columns[column], float) for column in VLB_COLUMNS], axis=1)


class Case:
    """Random inputs of one op, its kernel's launch, and the oracle's result."""

    def __init__(
        self, op: str, shape: tuple[int, ...], dtype: torch.dtype, learned: bool = True
    ) -> None:
        self.op, self.shape = op, shape
        self.values = list(normal(len(shape) + shape[0], *shape, dtype=dtype, count=4))
        self.ids = torch.arange(shape[0]) * 2**33 + 7
        self.weight = torch.rand(
            shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        self.t = torch.arange(shape[0]) % 5
        if op == "discretized_gaussian_nll":
            self.values[0] = (1.3 * self.values[0]).clamp(-1, 1)
            self.values[1] = 0.4 * self.values[1]
            self.values[2] = -3 + 1.5 * self.values[2]
        if op == "vlb_terms":
            self.values[0] = self.values[0].clamp(-1, 1)
            if learned and len(shape) > 1:
                self.values[2] = torch.cat([self.values[2], 0.3 * self.values[3]], 1)

    def part(self, begin: int, end: int) -> Case:
        """Returns the case of samples `begin` to `end - 1` alone."""
        part = object.__new__(Case)
        part.op, part.shape = self.op, (end - begin, *self.shape[1:])
        part.values = [value[begin:end].clone() for value in self.values]
        part.ids, part.weight, part.t = (
            v[begin:end].clone() for v in (self.ids, self.weight, self.t)
        )
        return part

    def run(self, out: Tensor, workspace: Tensor | None) -> None:
        a, b, c, d = self.values
        if self.op == "noise_mse":
            launch.noise_mse(out, workspace, a, self.weight, SEED, None, self.ids, 3, 2, False)
        elif self.op == "gaussian_kl":
            launch.gaussian_kl(out, workspace, rows(a), rows(b), rows(c), rows(d))
        elif self.op == "standard_kl":
            launch.gaussian_kl(out, workspace, rows(a), rows(b), None, None)
        elif self.op == "discretized_gaussian_nll":
            launch.discretized_gaussian_nll(out, workspace, rows(a), rows(b), rows(c))
        else:
            launch.vlb_terms(out, workspace, a, b, c, torch.from_numpy(vlb_table()), self.t)

    def oracle(self) -> np.ndarray:
        a, b, c, d = (numbers(value) for value in self.values)
        if self.op == "noise_mse":
            return noise_mse(
                a, seed=SEED, sample_ids=self.ids.numpy(), step=3, weight=self.weight.numpy()
            )
        if self.op == "gaussian_kl":
            return gaussian_kl(*(v.reshape(len(v), -1) if v.size else v for v in (a, b, c, d)))
        if self.op == "standard_kl":
            return gaussian_kl(a, b)
        if self.op == "discretized_gaussian_nll":
            return discretized_gaussian_nll(a, b, c)
        return vlb_terms(a, b, c, vlb_table(), self.t.numpy())


@triton.jit
def elementary_kernel(out, x, positive):
    i = tl.arange(0, 256)
    v, p = tl.load(x + i), tl.load(positive + i)
    tl.store(out + i, elementary.exponential(v))
    tl.store(out + 256 + i, elementary.exp_minus_1(v))
    tl.store(out + 512 + i, elementary.exp_minus_1_minus(v))
    tl.store(out + 768 + i, elementary.logarithm(p))
    tl.store(out + 1024 + i, elementary.log_1_plus(p - 1.0))
    tl.store(out + 1280 + i, elementary.mills(p))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_elementary_functions(dtype: torch.dtype) -> None:
    x = torch.cat([torch.linspace(-30, 30, 128), torch.linspace(-0.5, 0.5, 128)]).to(dtype)
    positive = torch.cat([torch.logspace(-6, 1, 128), torch.linspace(0.1, 5, 128)]).to(dtype)
    out = poisoned((6, 256), dtype)
    elementary_kernel[(1,)](out, x, positive)
    x, p = x.double(), positive.double()
    series = sum(x**k / math.factorial(k) for k in range(2, 20))
    truth = [
        x.exp(),
        x.expm1(),
        torch.where(x.abs() < 0.5, series, x.expm1() - x),
        p.log(),
        (positive - 1).double().log1p(),
        math.sqrt(math.pi / 2) * torch.special.erfcx(p / math.sqrt(2)),
    ]
    for i, (got, want) in enumerate(zip(out.double(), truth, strict=True)):
        # e^x - 1 - x loses up to three bits where its series ends
        roundings = {2: 16, 5: 8}.get(i, 4)
        torch.testing.assert_close(got, want, rtol=roundings * ROUNDING[name(dtype)], atol=1e-30)
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0] * 64, dtype=dtype)
    elementary_kernel[(1,)](out, special, special.abs())
    assert out[0, 0].isnan() and out[0, 1:4].tolist() == [math.inf, 0, 1]
    assert out[1, 0].isnan() and out[1, 1:4].tolist() == [math.inf, -1, 0]
    assert out[5, 0].isnan() and out[5, 1] == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("op", SUMS)
def test_sums_of_any_shape(op: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    case = Case(op, shape, dtype)
    out, workspace = memory(case.values[0])
    case.run(out, workspace)
    want = case.oracle() if 0 not in shape else np.zeros(shape[0])
    np.testing.assert_allclose(out.numpy(), want, rtol=TRITON_SUMS[name(out.dtype)])
    launch.check("cpu")


@pytest.mark.parametrize("op", SUMS)
def test_a_sample_has_the_same_bits_in_any_batch(op: str) -> None:
    for size in (5, 130, 1089, 2100):
        case = Case(op, (7, size), torch.float32)
        out, workspace = memory(case.values[0])
        case.run(out, workspace)
        for begin, end in [(0, 1), (3, 4), (6, 7), (2, 4), (5, 7)]:
            part = case.part(begin, end)
            again, space = memory(part.values[0])
            part.run(again, space)
            assert torch.equal(again.view(torch.int32), out[begin:end].view(torch.int32)), (
                size,
                begin,
                end,
            )


def test_the_second_pass_is_launched_only_for_several_chunks() -> None:
    for size, passes in [(0, 0), (1024, 0), (1025, 1)]:
        before = launch.launches.copy()
        mean = torch.ones(2, size)
        launch.gaussian_kl(*memory(mean), mean, mean, None, None)
        assert launch.launches - before == {"gaussian_kl": 1} | (
            {"sum_chunks": 1} if passes else {}
        )
    before = launch.launches.copy()
    launch.gaussian_kl(
        torch.empty(0), torch.empty(0), torch.empty(0, 5), torch.empty(0, 5), None, None
    )
    assert launch.launches == before


@pytest.mark.parametrize("chunks, programs", [(2, 1), (16, 1), (17, 3), (130, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_partial_sums_are_added_in_order(dtype: torch.dtype, chunks: int, programs: int) -> None:
    """The order is that of every backend. Long samples have a program each."""
    parts = normal(chunks, 3, chunks, dtype=dtype)[0] * torch.logspace(8, -8, chunks).to(dtype)
    out, weight = poisoned((3,), dtype), torch.tensor([1.0, 3.0, -0.5], dtype=dtype)
    call = launch.sum_chunks_call(out, parts.flatten(), chunks * 1024 - 5, weight, True)
    assert call.grid == (programs, 1, 1)
    launch.run(call, out)
    total = torch.zeros(3, dtype=torch.float64)
    for k in range(chunks):
        total = total + parts[:, k].double()
    assert torch.equal(out, (weight.double() * (total / (chunks * 1024 - 5))).to(dtype))


VIEWS = [(0, 1, 1, 0), (1, 0, 0, 1), (0, 0, 0, 0)]


def views_of(steps: tuple[int, ...]) -> list[Tensor]:
    """Returns inputs of gaussian_kl [3, 1100]: two means and log-variances, of various strides.

    Among them are one value per sample, one for all samples, and halves of a wider tensor.
    """
    batch, size = 3, 1100
    wide = normal(0, batch, 2 * size, dtype=torch.float32)[0]
    single = normal(1, batch, 1, dtype=torch.bfloat16)[0].expand(batch, size)
    shared = normal(2, 1, size, dtype=torch.float16)[0].expand(batch, size)
    whole = normal(3, 1, 1, dtype=torch.float64)[0].expand(batch, size)
    views = [(single, wide[:, :size]), (whole, wide[:, size:]), (whole, shared), (single, shared)]
    return [pair[step] for pair, step in zip(views, steps, strict=True)]


@pytest.mark.parametrize("steps", VIEWS)
def test_views_of_gaussian_kl(steps: tuple[int, ...]) -> None:
    inputs, batch = views_of(steps), 3
    want = gaussian_kl(*(numbers(v) for v in inputs))
    for dtype in (torch.float32, torch.float64):
        out, workspace = poisoned((batch,), dtype), poisoned((2 * batch,), dtype)
        launch.gaussian_kl(out, workspace, *inputs)
        np.testing.assert_allclose(out.numpy(), want, rtol=TRITON_SUMS[name(dtype)])


def test_views_of_the_nll() -> None:
    batch, size = 3, 1100
    x0 = normal(0, batch, size, dtype=torch.float32)[0].clamp(-1, 1)
    mean = normal(1, batch, 2 * size, dtype=torch.float32)[0][:, :size] * 0.5
    for log_scale in (
        torch.full((1, 1), -2.5).expand(batch, size),
        normal(2, batch, 1)[0].expand(batch, size) - 3,
        normal(2, 1, size)[0].expand(batch, size) - 3,
    ):
        out, workspace = poisoned((batch,)), poisoned((2 * batch,))
        launch.discretized_gaussian_nll(out, workspace, x0, mean, log_scale)
        want = discretized_gaussian_nll(numbers(x0), numbers(mean), numbers(log_scale))
        np.testing.assert_allclose(out.numpy(), want, rtol=TRITON_SUMS["float32"])
    whole = torch.zeros(1, 1).expand(batch, size)
    launch.discretized_gaussian_nll(out, workspace, whole, whole, whole)
    want = discretized_gaussian_nll(*[np.zeros((batch, size))] * 3)
    np.testing.assert_allclose(out.numpy(), want, rtol=TRITON_SUMS["float32"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_every_bin_at_every_distance(dtype: torch.dtype) -> None:
    """Levels at both ends and between, scales from e^-7 to e^4, distances up to 60 deviations."""
    level = torch.tensor([0.0, 1, 60, 127, 200, 254, 255], dtype=dtype)
    scale = torch.linspace(-7, 4, 23, dtype=dtype)
    distance = torch.tensor([0, 0.3, -0.3, 1, -1, 3, -3, 7, -7, 20, -20, 60, -60], dtype=dtype)
    x0, log_scale, z = (
        v.reshape(-1) for v in torch.meshgrid(level / 127.5 - 1, scale, distance, indexing="ij")
    )
    mean = x0 + z * log_scale.exp()
    batch = len(x0)
    out = poisoned((batch,), dtype)
    launch.discretized_gaussian_nll(out, None, x0[:, None], mean[:, None], log_scale[:, None])
    want = torch.from_numpy(bins(*(v.double().numpy() for v in (x0, mean, log_scale))))
    slack = torch.ones_like(want)
    if dtype == torch.float64:
        # the oracle's own roundings: of x0 and mean in the distance, whose slope is up to
        # distance/scale, and of the bin's width, the difference of its ends
        slack += (x0.abs() + mean.abs() + 1) * (z.abs() + 3) * (-log_scale).exp()
        slack += (z.abs() + 1) * 255 / 2 * log_scale.exp()
    error = (out.double() - want).abs()
    # exp(-log_scale) carries a rounding of log_scale of up to 7, and is squared into the term
    limit = 4 * ROUNDING[name(dtype)] * (want + slack)
    assert (error <= limit).all(), float((error / limit).max())


@pytest.mark.parametrize("op", SUMS)
def test_nan_and_infinity_reach_the_sum_and_stay_in_their_sample(op: str) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        for operand in range(4):
            case = Case(op, (5, 40), torch.float32, learned=False)
            if op == "vlb_terms":
                case.t[:] = 1
            case.values[operand][2, 11] = bad
            with np.errstate(all="ignore"):
                want = case.oracle()
            out, workspace = memory(case.values[0])
            case.run(out, workspace)
            assert torch.equal(out.isnan(), torch.from_numpy(np.isnan(want))), (bad, operand)
            others = [0, 1, 3, 4]
            np.testing.assert_allclose(out[others], want[others], rtol=TRITON_SUMS["float32"])
            if not np.isnan(want[2]):
                np.testing.assert_allclose(out[2], want[2], rtol=TRITON_SUMS["float32"])


def test_vlb_marks_samples_whose_t_is_outside() -> None:
    for size in (6, 1089):
        case = Case("vlb_terms", (4, size), torch.float32)
        want = case.oracle()
        case.t[:] = torch.tensor([0, 5, -1, 3])
        out, workspace = memory(case.values[0])
        case.run(out, workspace)
        assert out.isnan().tolist() == [False, True, True, False]
        np.testing.assert_allclose(out[[0, 3]], want[[0, 3]], rtol=TRITON_SUMS["float32"])
        with pytest.raises(IndexError, match="vlb_terms"):
            launch.check("cpu")
        gradient = poisoned(tuple(case.values[2].shape))
        x0, x_t, output, _ = case.values
        launch.vlb_terms_backward(
            gradient, torch.ones(4), x0, x_t, output, torch.from_numpy(vlb_table()), case.t
        )
        assert gradient.isnan().all(1).tolist() == [False, True, True, False]
        assert not gradient[[0, 3]].isnan().any()
        with pytest.raises(IndexError, match="vlb_terms"):
            launch.check("cpu")
    launch.check("cpu")
