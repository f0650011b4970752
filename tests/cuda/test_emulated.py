"""The CUDA kernels' bodies against the oracle, compiled for the host: every op, dtype, layout and edge, without a GPU.

The executor of csrc/cuda/launch.h runs a phase's threads now forwards, now backwards and starts from poisoned shared
memory, so a missing barrier or an unwritten value shows here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_library import OPS, Library, array, compute_of, draw, view, workspace
from emulation import emulated_library
from torch import Tensor

from fastdiff.reference.discretized_gaussian_nll import discretized_gaussian_nll
from fastdiff.reference.gaussian_kl import gaussian_kl
from fastdiff.reference.noise_mse import noise_mse
from fastdiff.reference.q_posterior import q_posterior
from fastdiff.reference.q_sample import q_sample
from fastdiff.reference.randn import randn
from fastdiff.reference.reparameterize import reparameterize
from fastdiff.reference.reverse_step import reverse_step
from fastdiff.reference.vlb_terms import vlb_terms
from fastdiff.table import COLUMNS, INDEX

SHAPES = [(1, 1), (3, 5), (7,), (0, 3), (3, 0), (2, 3, 7), (2, 1, 33, 33), (300, 2), (2, 2, 512)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SEED, STEP = 2**63 + 5, 11
ROWS = 6
# sums and gradients, relative to their size: a few dozen roundings of the compute type
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}
# what a single rounding of a stored value may differ by
STORED = {torch.float32: 2e-6, torch.float64: 1e-12, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@pytest.fixture(scope="session")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The emulation or, under scripts/gpu_test.py, the real library, whose kernels must give the same numbers."""
    if path := os.environ.get("FASTDIFF_TEST_CUDA"):
        return Library(Path(path), "cuda")
    emulated = emulated_library(tmp_path_factory)
    if emulated is None:
        pytest.skip("no C++ compiler for the emulation")
    return Library(emulated)


def _random(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _truth(x: Tensor | None) -> np.ndarray | None:
    """In the oracle's types: 16-bit values as float32, which holds them exactly."""
    return None if x is None else x.to(compute_of(x.dtype)).numpy()


def _empty(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.full_like(like, torch.nan, dtype=dtype or like.dtype)


def _ids(batch: int) -> Tensor:
    return torch.arange(batch) * 3 + 2**40


def _rounded(expected: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(expected)).to(dtype)


def _close(got: Tensor, expected: np.ndarray, dtype: torch.dtype, what: str = "") -> None:
    limit = max(STORED[dtype], TOLERANCE[compute_of(dtype)])
    scale = float(np.abs(expected).max()) if expected.size else 1.0
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=limit, atol=limit * scale, err_msg=what)


# ---- randn, q_sample


@every_dtype
@every_shape
def test_randn(cuda: Library, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    out, ids = _empty(torch.empty(shape), dtype), _ids(shape[0])
    seeds = torch.arange(shape[0]) - 2
    cuda.call("randn", out, draw(SEED, None, ids, STEP, 4), array(out))
    assert torch.equal(out, _rounded(randn(shape, seed=SEED, sample_ids=ids.numpy(), step=STEP, stream=4), dtype))
    cuda.call("randn", out, draw(SEED, seeds, None, STEP, 4), array(out))
    assert torch.equal(out, _rounded(randn(shape, seed=seeds.numpy(), step=STEP, stream=4), dtype))


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("timed", [True, False])
@every_dtype
@every_shape
def test_q_sample(cuda: Library, shape: tuple[int, ...], dtype: torch.dtype, timed: bool, drawn: bool) -> None:
    batch = shape[0]
    x0, x_t = _random(shape, dtype), _empty(torch.empty(shape), dtype)
    size = 5 if timed else batch
    alpha, sigma = _random((size,), torch.float64, 1), _random((size,), torch.float64, 2)
    t, noise = torch.arange(batch) % 5 if timed else None, None if drawn else _random(shape, torch.float16, 3)
    cuda.call("q_sample", x0, draw(SEED, step=STEP, stream=2), array(x0), array(x_t), t, alpha,
              sigma, size, array(noise))  # fmt: skip
    expected = q_sample(_truth(x0), None if t is None else t.numpy(), alpha.numpy(), sigma.numpy(), seed=SEED, step=STEP,
                        noise=_truth(noise))  # fmt: skip
    assert torch.equal(x_t, _rounded(expected, dtype))


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
    """About half the coefficients zero, all modes mixed among the rows."""
    random = np.random.default_rng(seed)
    table = np.where(random.random((rows, len(COLUMNS))) < 0.5, random.standard_normal((rows, len(COLUMNS))), 0.0)
    index = np.arange(rows)
    table[:, INDEX["guidance_weight"]] = np.array([1.0, 0.5, 0.0, 2.0])[index % 4]
    table[:, INDEX["guidance_rescale"]] = rescale * (index % 2)
    table[:, INDEX["clip_mode"]] = clip * (index % 3 != 2)
    table[:, INDEX["clip_bound"]] = 0.7 if clip == 1 else 1.8
    table[:, INDEX["clip_ratio"]] = np.linspace(0, 1, rows)
    table[:, INDEX["noise_index"]] = index
    table[:, INDEX["noise_mode"]] = (index % 3 == 1) & learned
    table[:, INDEX["logvar_lo"]], table[:, INDEX["logvar_hi"]] = -4.0, -1.0
    table[:, INDEX["next"]] = np.minimum(index + 1, rows - 1)
    table[0, INDEX["s1.x"] : INDEX["s1.z"] + 1] = 0  # a slot that is kept
    table[1, INDEX["x0_x"] : INDEX["x0_out"] + 1] = 0  # a row without a prediction
    return table


class _Step:
    """A step's inputs and outputs at random, and how the library and the oracle carry it out."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, guided: bool = False, learned: bool = False, clip: int = 1,
        rescale: float = 0.0, out_dtype: torch.dtype | None = None, drawn: bool = True,
    ) -> None:  # fmt: skip
        batch, compute = shape[0], compute_of(dtype)
        self.copies = 2 if guided else 1
        channels = () if len(shape) == 1 else (shape[1] * (2 if learned else 1), *shape[2:])
        self.table = torch.from_numpy(_table(ROWS, 1, learned, clip, rescale))
        self.x = _random(shape, dtype, 1)
        self.out = _random((batch * self.copies, *channels), out_dtype or dtype, 2)
        self.row = torch.arange(batch) % ROWS
        self.slots = _random((4, *shape), compute, 3)
        self.noise = None if drawn else _random(shape, dtype, 4)
        self.gamma = torch.tensor([1.0, 0.0, 2.5, -1.0, 7.5])[torch.arange(batch) % 5].to(compute) if guided else None
        self.gradient, self.ids = _random(shape, dtype, 5), _ids(batch)
        self.x_s, self.x0 = _empty(self.x), _empty(self.x, compute)
        self.slots_out = _empty(self.slots)
        self.input = torch.full((batch * self.copies, *shape[1:]), torch.nan, dtype=compute)
        self.next = torch.full((batch,), -7)
        self.factors = _empty(torch.empty(batch), compute) if rescale else None
        self.bounds = _empty(torch.empty(batch), compute) if clip == 2 else None

    def run(self, cuda: Library) -> None:
        size = self.out[0].numel() if self.out.size(0) else 0
        cuda.call(
            "reverse_step", self.x, draw(SEED, None, self.ids, 0, 1), int(self.noise is None), array(self.x),
            array(self.x_s), array(self.out), size, self.table, ROWS, self.row, self.slots,
            4, self.slots_out, 4, array(self.noise), self.gamma, array(self.gradient), array(self.x0),
            array(self.input), self.copies, self.next, self.factors, self.bounds,
        )  # fmt: skip

    def results(self) -> dict[str, Tensor]:
        return {"x_s": self.x_s, "slots": self.slots_out, "x0": self.x0, "network_input": self.input, "row": self.next}

    def expected(self) -> dict[str, np.ndarray]:
        step = reverse_step(
            _truth(self.x), _truth(self.out), self.table.numpy(), self.row.numpy(), slots=self.slots.numpy(),
            noise=_truth(self.noise), seed=SEED, sample_ids=self.ids.numpy(),
            guidance=None if self.gamma is None else self.gamma.numpy(), gradient=_truth(self.gradient),
        )  # fmt: skip
        return step._asdict()

    def check(self, cuda: Library, exact: bool = True) -> None:
        expected = self.expected()
        self.run(cuda)
        for key, got in self.results().items():
            want = _rounded(expected[key], got.dtype)
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
def test_reverse_step(cuda: Library, shape: tuple[int, ...], dtype: torch.dtype, guided: bool, clip: int) -> None:
    if clip == 2 and 0 in shape:
        clip = 1  # an empty sample has no quantile
    # a single value has no standard deviation
    rescale = 0.7 if guided and len(shape) > 1 and np.prod(shape[1:]) > 1 else 0.0
    _Step(shape, dtype, guided, clip=clip, rescale=rescale).check(cuda)


@pytest.mark.parametrize("guided", [False, True])
@every_dtype
@pytest.mark.parametrize("shape", [(3, 5), (6, 3, 7), (6, 4, 16), (2, 1, 33, 33), (2, 2, 512)], ids=str)
def test_learned_variance(cuda: Library, shape: tuple[int, ...], dtype: torch.dtype, guided: bool) -> None:
    _Step(shape, dtype, guided, learned=True).check(cuda, exact=dtype != torch.float64)


@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
def test_mixed_dtypes_and_given_noise(cuda: Library, out_dtype: torch.dtype) -> None:
    _Step((6, 260), torch.bfloat16, True, learned=True, out_dtype=out_dtype, drawn=False).check(cuda)
    _Step((6, 1028), torch.float32, True, clip=2, rescale=0.5, out_dtype=out_dtype, drawn=False).check(cuda)


@pytest.mark.parametrize("size", [37, 2048])
def test_outputs_may_be_the_inputs_memory(cuda: Library, size: int) -> None:
    step = _Step((6, size), torch.float32, True)
    expected = step.expected()
    step.x_s, step.slots_out, step.input = step.x, step.slots, step.out
    step.run(cuda)
    for key, got in step.results().items():
        assert torch.equal(got, _rounded(expected[key], got.dtype)), key


@pytest.mark.parametrize("size", [36, 2048])
def test_unaligned_memory(cuda: Library, size: int) -> None:
    step = _Step((6, size), torch.float32, True, learned=True)
    for name in ("x", "out", "slots", "gradient", "x_s", "x0", "input", "slots_out"):
        tensor = getattr(step, name)
        moved = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
        assert moved.data_ptr() % 16
        setattr(step, name, moved.copy_(tensor))
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
    assert cuda.error() == OPS.index("reverse_step") + 1


def test_a_following_row_outside_the_table_is_an_error(cuda: Library) -> None:
    step = _Step((3, 5), torch.float32)
    step.table[1, INDEX["next"]] = ROWS
    step.run(cuda)
    assert step.input[1].isnan().all() and not step.x_s.isnan().any() and step.next.tolist() == [1, -1, 3]
    assert cuda.error() == OPS.index("reverse_step") + 1


def test_operands_that_are_absent_are_not_read(cuda: Library) -> None:
    """No output, no slots, no noise: their columns count as zero, as under Triton."""
    step = _Step((6, 5), torch.float32)
    cuda.call(
        "reverse_step", step.x, draw(), 0, array(step.x), array(step.x_s), [0, 0], 0, step.table, ROWS,
        step.row, 0, 0, 0, 0, [0, 0], 0, [0, 0], [0, 0], [0, 0], 0, 0, 0, 0,
    )  # fmt: skip
    for name in COLUMNS:
        if name == "x0_out" or name.endswith((".out", ".z", ".s1", ".s2", ".s3", ".s4")):
            step.table[:, INDEX[name]] = 0
    assert torch.equal(step.x_s, _rounded(step.expected()["x_s"], torch.float32))


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
    x0, x_t, mean = _random(shape, dtype), _random(shape, dtype, 1), _empty(torch.empty(shape), dtype)
    for times in (5, 1):
        cumulative = torch.linspace(0.99, 0.1, times, dtype=torch.float64)
        t = torch.arange(batch) % times
        variance, log_variance = (torch.full((batch,), torch.nan, dtype=compute) for _ in range(2))
        cuda.call("q_posterior", x0, array(x0), array(x_t), t, cumulative, times, array(mean),
                  variance, log_variance)  # fmt: skip
        expected = q_posterior(_truth(x0), _truth(x_t), t.numpy(), cumulative.numpy())
        assert torch.equal(mean, _rounded(expected[0], dtype)) and torch.equal(variance, torch.from_numpy(expected[1]))
        np.testing.assert_allclose(log_variance.numpy(), expected[2], rtol=TOLERANCE[compute])
        if batch > 1:
            t[1] = times
            cuda.call("q_posterior", x0, array(x0), array(x_t), t, cumulative, times, array(mean),
                      variance, log_variance)  # fmt: skip
            assert variance[1].isnan() and log_variance[1].isnan() and mean[1].isnan().all()
            assert not variance[0].isnan() and cuda.error() == OPS.index("q_posterior") + 1


@every_dtype
@every_shape
def test_reparameterize(cuda: Library, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    mean, logvar, z = _random(shape, dtype), _random(shape, dtype, 1), _empty(torch.empty(shape), dtype)
    noise, none = draw(SEED, step=STEP, stream=3), [0, 0]
    cuda.call("reparameterize", mean, noise, array(mean), array(logvar), array(z), none, none, none)
    expected = reparameterize(_truth(mean), _truth(logvar), seed=SEED, step=STEP)
    if dtype == torch.float64:
        _close(z, expected, dtype)
    else:
        assert torch.equal(z, _rounded(expected, dtype))
    g, g_mean, g_logvar = _random(shape, dtype, 2), _empty(mean), _empty(mean)
    cuda.call("reparameterize", mean, noise, none, array(logvar), none, array(g), array(g_mean), array(g_logvar))
    eps = randn(shape, seed=SEED, step=STEP, stream=3, dtype=np.float64)
    assert torch.equal(g_mean, g)
    _close(g_logvar, g.double().numpy() * eps * 0.5 * np.exp(0.5 * logvar.double().numpy()), dtype)


# ---- sums over a sample, and their gradients


def _gradients(f: Callable[..., Tensor], g: Tensor, *inputs: Tensor) -> list[np.ndarray]:
    """Of Σ g·f(inputs), by autograd in float64."""
    wide = [x.double().requires_grad_() for x in inputs]
    (g.double() * f(*wide)).sum().backward()
    return [np.zeros(tuple(w.shape)) if w.grad is None else w.grad.numpy() for w in wide]


def _per_sample(x: Tensor) -> Tensor:
    return x.reshape(x.size(0), -1).sum(1) if x.numel() else torch.zeros(x.size(0), dtype=x.dtype) + x.sum()


def _relative(got: Tensor, expected: np.ndarray, compute: torch.dtype) -> None:
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=TOLERANCE[compute], atol=TOLERANCE[compute] * 1e-2)


@pytest.mark.parametrize("weighted", [False, True])
@every_dtype
@every_shape
def test_noise_mse(cuda: Library, shape: tuple[int, ...], dtype: torch.dtype, weighted: bool) -> None:
    batch, compute = shape[0], compute_of(dtype)
    x, loss = _random(shape, dtype), torch.full((batch,), torch.nan, dtype=compute)
    weight = torch.rand(batch, dtype=compute) + 0.5 if weighted else None
    noise, none = draw(SEED, step=STEP, stream=2), [0, 0]
    cuda.call("noise_mse", x, noise, array(x), weight, loss, workspace(x, compute), 0, none)
    _relative(loss, noise_mse(_truth(x), seed=SEED, step=STEP, weight=_truth(weight)), compute)
    g, out = _random((batch,), compute, 1), _empty(x)
    cuda.call("noise_mse", x, noise, array(x), weight, 0, 0, g, array(out))
    eps = torch.from_numpy(randn(shape, seed=SEED, step=STEP, stream=2, dtype=np.float64))
    scale = (1.0 if weight is None else weight.double()) / max(1, int(np.prod(shape[1:])))
    _close(out, _gradients(lambda p: scale * _per_sample((p - eps) ** 2), g, x)[0], dtype)


def _kl(mean1: Tensor, logvar1: Tensor, mean2: Tensor, logvar2: Tensor) -> Tensor:
    d = logvar1 - logvar2
    return _per_sample(0.5 * ((torch.expm1(d) - d) + (mean1 - mean2) ** 2 * torch.exp(-logvar2)))


@pytest.mark.parametrize("second", [False, True])
@every_dtype
@every_shape
def test_gaussian_kl(cuda: Library, shape: tuple[int, ...], dtype: torch.dtype, second: bool) -> None:
    batch, compute = shape[0], compute_of(dtype)
    values = [_random(shape, dtype, i) for i in range(4)]
    views = [view(v) if i < 2 or second else view(None) for i, v in enumerate(values)]
    kl, code = torch.full((batch,), torch.nan, dtype=compute), int(compute == torch.float64)
    none = [[0, 0]] * 4
    cuda.call("gaussian_kl", values[0], code, *views, kl, workspace(values[0], compute), 0, *none)
    wanted = values if second else [*values[:2], torch.zeros_like(values[0]), torch.zeros_like(values[0])]
    _relative(kl, gaussian_kl(*(_truth(v) for v in wanted)), compute)
    g, outs = _random((batch,), compute, 5), [_empty(v) for v in values[: 4 if second else 2]]
    arrays = [array(out) for out in outs] + none[len(outs) :]
    cuda.call("gaussian_kl", values[0], code, *views, 0, 0, g, *arrays)
    for out, expected in zip(outs, _gradients(_kl, g, *wanted), strict=False):
        _close(out, expected, dtype)


def test_views_that_share_a_value_or_stride_over_samples(cuda: Library) -> None:
    """A logvar of one value a sample, one for all, and a mean that is every other row of a larger array."""
    for size in (8, 2052):
        wide = _random((6, size), torch.float32)
        mean, shared, single = wide[::2], _random((3, 1), torch.float32, 1), _random((1, 1), torch.float32, 2)
        kl, none = torch.empty(3), [[0, 0]] * 4
        cuda.call("gaussian_kl", mean, 0, view(wide, 2 * size), view(shared, 1, 0), view(wide, 0), view(single, 0, 0),
                  kl, workspace(mean, torch.float32), 0, *none)  # fmt: skip
        _relative(kl, gaussian_kl(mean.numpy(), shared.numpy(), wide[:1].numpy(), single.numpy()), torch.float32)


def _bins(x0: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """The terms as the difference of two tails, for autograd: mirrored to where both are small, and in logarithms."""
    level = (127.5 * (x0 + 1)).round().clamp(0, 255)
    first, last = level == 0, level == 255
    center, inverse = level / 127.5 - 1 - mean, torch.exp(-log_scale)
    center = torch.where(first | ((center < 0) & ~last), -center, center)
    near = torch.special.log_ndtr((1 / 255 - center) * inverse)
    far = torch.special.log_ndtr((-1 / 255 - center) * inverse)
    return -near - torch.where(first | last, 0.0, torch.log1p(-torch.exp(far - near)))


@every_dtype
@every_shape
def test_discretized_gaussian_nll(cuda: Library, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, compute = shape[0], compute_of(dtype)
    x0 = _random(shape, dtype).clamp(-1, 1)
    mean, log_scale = (x0 + 0.05 * _random(shape, dtype, 1)).to(dtype), (_random(shape, dtype, 2) * 0.5 - 3).to(dtype)
    nll, code = torch.full((batch,), torch.nan, dtype=compute), int(compute == torch.float64)
    views, space, none = [view(x0), view(mean), view(log_scale)], workspace(x0, compute), [0, 0]
    cuda.call("discretized_gaussian_nll", x0, code, *views, nll, space, 0, none, none)
    _relative(nll, discretized_gaussian_nll(_truth(x0), _truth(mean), _truth(log_scale)), compute)
    g, g_mean, g_scale = _random((batch,), compute, 3), _empty(x0), _empty(x0)
    cuda.call("discretized_gaussian_nll", x0, code, *views, 0, 0, g, array(g_mean), array(g_scale))
    _, *expected = _gradients(lambda *v: _per_sample(_bins(*v)), g, x0, mean, log_scale)
    # where a bin is narrow the plain formula loses digits itself
    limit = max(STORED[dtype], 1e-5 if compute == torch.float32 else 1e-9)
    for out, want in zip((g_mean, g_scale), expected, strict=True):
        scale = np.abs(want).max() if want.size else 1
        np.testing.assert_allclose(out.double().numpy(), want, rtol=limit, atol=limit * scale)


def _vlb_table() -> np.ndarray:
    rows = np.array([
        # x0_x, x0_out, clip, mean_x0, mean_x, logvar_q, logvar_lo, logvar_hi, first
        [1.02, -0.2, 0.9873, 1.0, 0.0, -6.0, -6.5, -5.0, 1.0],
        [1.10, -0.5, 0.9873, 0.4, 0.6, -6.0, -6.2, -4.0, 0.0],
        [1.50, -1.1, np.inf, 0.1, 0.9, -4.0, -4.3, -3.0, 0.0],
    ])  # fmt: skip
    assert rows.shape == (3, 9)
    return rows


@pytest.mark.parametrize("learned", [False, True])
@every_dtype
@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) > 1], ids=str)
def test_vlb_terms(cuda: Library, shape: tuple[int, ...], dtype: torch.dtype, learned: bool) -> None:
    batch, compute = shape[0], compute_of(dtype)
    x0, x_t = (0.7 * _random(shape, dtype)).clamp(-1, 1), _random(shape, dtype, 1)
    out = _random((batch, shape[1] * (2 if learned else 1), *shape[2:]), dtype, 2)
    # x_t near what the output says of x0, so that terms are moderate
    half = out[:, : shape[1]]
    x_t = ((x0.double() + 0.3 * half.double()) / 1.1 + 0.02 * x_t.double()).to(dtype)
    table, t = torch.from_numpy(_vlb_table()), torch.arange(batch) % 3
    if batch == 2:
        t[:] = torch.tensor([2, 0])
    terms, size = torch.full((batch,), torch.nan, dtype=compute), out[0].numel() if batch else 0
    inputs = [array(x0), array(x_t), array(out), size, table, 3, t]
    cuda.call("vlb_terms", x0, *inputs, terms, workspace(x0, compute), 0, [0, 0])
    expected = vlb_terms(_truth(x0), _truth(x_t), _truth(out), table.numpy(), t.numpy())
    # x0 is a difference of larger numbers, and the term of its error's square is multiplied by e^6
    np.testing.assert_allclose(terms.double().numpy(), expected, rtol=2e-5 if compute == torch.float32 else 1e-11)

    def bound(out: Tensor) -> Tensor:
        c = [table[t, i].reshape(-1, *[1] * (x0.dim() - 1)) for i in range(9)]
        prediction = torch.maximum(torch.minimum(c[0] * x_t.double() + c[1] * out[:, : shape[1]], c[2]), -c[2])
        logvar = c[6] + (c[7] - c[6]) * (out[:, shape[1] :] + 1) / 2 if learned else c[6].expand(x0.shape)
        d = c[5] - logvar
        term = 0.5 * ((torch.expm1(d) - d) + (c[3] * (x0.double() - prediction)) ** 2 * torch.exp(-logvar))
        bins = _bins(x0.double(), c[3] * prediction + c[4] * x_t.double(), 0.5 * logvar)
        return _per_sample(torch.where(c[8] != 0, bins, term))

    g, g_out = _random((batch,), compute, 3), _empty(out)
    cuda.call("vlb_terms", x0, *inputs, 0, 0, g, array(g_out))
    want = _gradients(bound, g, out)[0]
    limit = max(STORED[dtype], 2e-5 if compute == torch.float32 else 1e-9)
    scale = np.abs(want).max() if want.size else 1
    np.testing.assert_allclose(g_out.double().numpy(), want, rtol=limit, atol=limit * scale)


@pytest.mark.parametrize("size", [5, 1500])
def test_a_term_outside_its_table_is_nan(cuda: Library, size: int) -> None:
    x, table, t = torch.zeros(3, size), torch.from_numpy(_vlb_table()), torch.tensor([1, 3, -1])
    terms, g, g_out = torch.zeros(3), torch.ones(3), torch.zeros(3, size)
    inputs = [array(x), array(x), array(x), size, table, 3, t]
    cuda.call("vlb_terms", x, *inputs, terms, workspace(x, torch.float32), 0, [0, 0])
    assert terms.isnan().tolist() == [False, True, True] and cuda.error() == OPS.index("vlb_terms") + 1
    cuda.call("vlb_terms", x, *inputs, 0, 0, g, array(g_out))
    assert g_out.isnan().all(1).tolist() == [False, True, True] and cuda.error() == OPS.index("vlb_terms") + 1


@pytest.mark.parametrize("size", [1, 2, 5, 100, 513, 1024, 1025, 5000])
def test_a_samples_sum_has_the_same_bits_in_any_batch(cuda: Library, size: int) -> None:
    mean, logvar, none = _random((7, size), torch.float32), _random((7, size), torch.float32, 1), [[0, 0]] * 4

    def run(first: int, last: int) -> Tensor:
        m, v, kl = mean[first:last], logvar[first:last], torch.empty(last - first)
        space = workspace(m, torch.float32)
        cuda.call("gaussian_kl", m, 0, view(m), view(v), view(None), view(None), kl, space, 0, *none)
        return kl

    whole = run(0, 7)
    for batch in (1, 2):
        for first in range(8 - batch):
            assert torch.equal(run(first, first + batch), whole[first : first + batch])


def test_many_short_samples(cuda: Library) -> None:
    n = 70_000  # more than an axis of blocks other than the first can hold
    out = torch.empty(n, 2)
    before = cuda.launches("randn"), cuda.launches("gaussian_kl"), cuda.launches("sum_chunks")
    cuda.call("randn", out, draw(SEED), array(out))
    assert torch.equal(out, torch.from_numpy(randn((n, 2), seed=SEED)))
    kl = torch.empty(n)
    none = [[0, 0]] * 4
    cuda.call("gaussian_kl", out, 0, view(out), view(out), view(None), view(None), kl, 0, 0, *none)
    _relative(kl, gaussian_kl(out.numpy(), out.numpy()), torch.float32)
    after = cuda.launches("randn"), cuda.launches("gaussian_kl"), cuda.launches("sum_chunks")
    assert [a - b for a, b in zip(after, before, strict=True)] == [1, 1, 0]


def test_launches_are_counted(cuda: Library) -> None:
    step = _Step((2, 2048), torch.float32, True, clip=2, rescale=0.5)
    before = [cuda.launches(op) for op in OPS]
    step.run(cuda)
    after = [cuda.launches(op) for op in OPS]
    counted = {op: b - a for op, a, b in zip(OPS, before, after, strict=True) if a != b}
    assert counted == {"reverse_step": 1, "reverse_step_rescale": 1, "reverse_step_threshold": 1}


def test_sizes_out_of_range_are_said(cuda: Library) -> None:
    out = torch.empty(2, 3)
    for bad, text in ((draw(0, step=2**32), "step in [0, 2^32)"), (draw(0, stream=256), "stream in [0, 256)")):
        with pytest.raises(AssertionError, match=text.replace("[", r"\[").replace("^", r"\^").replace(")", r"\)")):
            cuda.call("randn", out, bad, array(out))
