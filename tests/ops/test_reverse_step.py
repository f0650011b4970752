"""`reverse_step` against the oracle for the same rows, its prepasses, and its gradients.

This file is over 400 lines because all cases share one builder of random rows and its oracle.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops.cases import DTYPES, SHAPES, name, random_table, truth
from tolerances import ROUNDING

from fastdiff import Schedule, ops, reference
from fastdiff import backend as backend_module
from fastdiff.backend.eager.common import compute_dtype
from fastdiff.reference.reverse_step import Step
from fastdiff.solvers import make_plan
from fastdiff.table import COLUMNS, INDEX

ROWS = 6


def _run(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    guided: bool,
    learned: bool,
    seed: int = 0,
) -> tuple[dict[str, torch.Tensor], Step]:
    """Returns all outputs of the op for random inputs, and those of the oracle."""
    g = torch.Generator().manual_seed(seed)
    compute, batch = compute_dtype(torch.empty(0, dtype=dtype)), shape[0]
    x = torch.randn(shape, generator=g).to(dtype)
    channels = 2 * shape[1] if learned else shape[1] if len(shape) > 1 else None
    out_shape = (
        batch * (2 if guided else 1),
        *((channels,) if channels is not None else ()),
        *shape[2:],
    )
    out = torch.randn(out_shape, generator=g).to(out_dtype)
    table = random_table(ROWS, seed, learned=learned)
    row = torch.arange(batch) % ROWS
    slots = torch.randn((4, *shape), generator=g).to(compute)
    gradient = torch.randn(shape, generator=g).to(dtype)
    ids = torch.arange(batch) + 2**40
    gamma = (
        torch.tensor([1.0, 0.0, 2.5, -1.0, 7.5])[torch.arange(batch) % 5].to(compute)
        if guided
        else None
    )
    results = {
        "x_s": torch.full(shape, torch.nan, dtype=dtype),
        "slots": slots.clone(),
        "x0": torch.full(shape, torch.nan, dtype=compute),
        "network_input": torch.full(
            (batch * (2 if guided else 1), *shape[1:]), torch.nan, dtype=compute
        ),
        "row": torch.full((batch,), -1),
        "timestep": torch.full((batch * (2 if guided else 1),), -1),
    }
    ops.reverse_step(
        x,
        out,
        torch.from_numpy(table),
        row,
        slots=slots,
        seed=2**63 + 5,
        sample_ids=ids,
        guidance=gamma,
        gradient=gradient,
        out=results["x_s"],
        slots_out=results["slots"],
        x0_out=results["x0"],
        input_out=results["network_input"],
        row_out=results["row"],
        time_out=results["timestep"],
    )
    wide = np.float64 if dtype == torch.float64 else np.float32
    expected = reference.reverse_step(
        truth(x).astype(wide),
        truth(out),
        table,
        row.numpy(),
        slots=slots.numpy(),
        seed=2**63 + 5,
        sample_ids=ids.numpy(),
        guidance=None if gamma is None else gamma.numpy(),
        gradient=truth(gradient),
    )
    return results, expected


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_bits(shape: tuple[int, ...], learned: bool, guided: bool, backend: str) -> None:
    learned = learned and len(shape) > 1 and shape[1] > 0
    results, expected = _run(shape, torch.float32, torch.float32, guided, learned)
    for key, got in results.items():
        assert np.array_equal(got.numpy(), getattr(expected, key)), key


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_float64(learned: bool, guided: bool, backend: str) -> None:
    results, expected = _run((5, 3, 9), torch.float64, torch.float64, guided, learned)
    for key, got in results.items():
        # bits, but for the platform's exp of learned variances: one unit in its last place
        limit = 8 * ROUNDING["float64"] if learned else 0.0
        np.testing.assert_allclose(
            got.numpy(), getattr(expected, key), rtol=limit, atol=8 * limit, err_msg=key
        )


@pytest.mark.parametrize("out_dtype", DTYPES, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=name)
def test_mixed_types_are_float32_arithmetic_rounded_once(
    dtype: torch.dtype, out_dtype: torch.dtype, backend: str
) -> None:
    results, expected = _run((6, 4, 5), dtype, out_dtype, True, True)
    assert torch.equal(results["x_s"], torch.from_numpy(expected.x_s).to(dtype))
    for key in ("slots", "x0", "network_input"):
        assert np.array_equal(results[key].numpy(), getattr(expected, key)), key


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=name)
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("shape", [(9, 3), (9, 700), (9, 0)], ids=str)
def test_the_next_time(
    shape: tuple[int, ...], copies: int, dtype: torch.dtype, backend: str
) -> None:
    """Whole times are rounded half to even; others are float32. Samples are at any rows."""
    t = [0.5, 1.5, 2.5, -0.5, -1.5, 999.4999, 1e6 + 0.5, 0.49999999999999994, 1 / 3]
    table = torch.zeros(len(t), len(COLUMNS), dtype=torch.float64)
    table[:, INDEX["t"]], table[:, INDEX["x.x"]] = torch.tensor(t, dtype=torch.float64), 0.5
    table[:, INDEX["next"]] = torch.arange(len(t) - 1, -1, -1)
    row, x = torch.tensor([8, 0, 1, 1, 2, 3, 7, 6, 5]), torch.ones(shape)
    following, times = torch.full((9,), -1), torch.full((9 * copies,), -7, dtype=dtype)
    ops.reverse_step(x, None, table, row, out=torch.empty_like(x), time_out=times)
    expected = reference.reverse_step(x.numpy(), None, table.numpy(), row.numpy())
    exact = expected.timestep if dtype == torch.int64 else expected.time.astype(np.float32)
    assert np.array_equal(times.numpy(), np.tile(exact, copies))
    if dtype == torch.int64:
        # what Python's round says, which rounds half to even too
        assert times[:9].tolist() == [round(t[len(t) - 1 - k]) for k in row.tolist()]
    times.fill_(-7)
    ops.reverse_step(
        x, None, table, row, out=torch.empty_like(x), time_out=times, row_out=following
    )
    assert np.array_equal(times.numpy(), np.tile(exact, copies))
    assert np.array_equal(following.numpy(), expected.row)


def test_the_next_time_of_no_samples(backend: str) -> None:
    x, table = torch.empty(0, 3), torch.zeros(1, len(COLUMNS), dtype=torch.float64)
    row = times = torch.empty(0, dtype=torch.int64)
    ops.reverse_step(x, None, table, row, out=x, time_out=times)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=name)
def test_a_time_that_is_not_a_number(dtype: torch.dtype, backend: str) -> None:
    table = torch.zeros(1, len(COLUMNS), dtype=torch.float64)
    table[0, INDEX["t"]] = torch.nan
    x, times = torch.ones(2, 3), torch.full((2,), 5, dtype=dtype)
    ops.reverse_step(x, None, table, torch.zeros(2, dtype=torch.int64), out=x, time_out=times)
    assert bool(times.isnan().all() if dtype == torch.float32 else times.eq(0).all())


@pytest.mark.parametrize("bad", [6.0, -1.0])
def test_the_time_of_a_next_row_outside_the_table(bad: float, backend: str) -> None:
    """An empty sample's rows are not checked on the CPU; a GPU checks none on the host."""
    table = torch.zeros(2, len(COLUMNS), dtype=torch.float64)
    table[:, INDEX["t"]], table[:, INDEX["next"]] = 3.0, torch.tensor([1.0, bad])
    x, row = torch.ones(2, 0), torch.tensor([0, 1])
    for dtype, last in ((torch.int64, 0.0), (torch.float32, torch.nan)):
        times = torch.full((2,), 5, dtype=dtype)
        ops.reverse_step(x, None, table, row, out=x, time_out=times)
        expected = torch.tensor([3.0, last]).to(dtype)
        torch.testing.assert_close(times, expected, rtol=0, atol=0, equal_nan=True)
    if backend in ("cuda", "triton"):
        with pytest.raises(IndexError, match="reverse_step"):
            backend_module.check(x.device)


def test_outputs_may_be_the_inputs_memory(backend: str) -> None:
    table = torch.from_numpy(random_table(ROWS, 3, learned=False))
    x, out, slots = torch.randn(6, 37), torch.randn(6, 37), torch.randn(4, 6, 37)
    gradient, row = torch.randn(6, 37), torch.arange(6)
    expected, fresh = ops.reverse_step(x, out, table, row, slots=slots, seed=1, gradient=gradient)
    ops.reverse_step(
        x, out, table, row, slots=slots, seed=1, gradient=gradient, out=x, slots_out=slots
    )
    assert torch.equal(x, expected) and torch.equal(slots, fresh)


def test_a_zero_coefficient_is_not_read(backend: str) -> None:
    """Every operand for which the row has no coefficient is NaN."""
    table = np.zeros((2, len(COLUMNS)))
    table[:, INDEX["network"]], table[:, INDEX["next"]] = 1, [1, 1]
    table[0, INDEX["x.x"]] = 0.5  # row 0 reads x alone
    table[1, [INDEX["x.s2"], INDEX["s1.out"]]] = 2.0, 1.0  # row 1 reads slot 2 and the output
    nan = torch.full((2, 5), torch.nan)
    x, out, slots = torch.ones(2, 5), nan.clone(), torch.full((4, 2, 5), torch.nan)
    x[1], out[1], slots[1, 1] = torch.nan, 3.0, 4.0
    x_s, fresh = ops.reverse_step(
        x, out, torch.from_numpy(table), torch.tensor([0, 1]), slots=slots
    )
    assert torch.equal(x_s, torch.tensor([[0.5] * 5, [8.0] * 5]))
    assert torch.equal(fresh[0, 1], torch.full((5,), 3.0)) and bool(torch.isnan(fresh[0, 0]).all())


def test_nan_passes_the_clip_and_infinity_does_not(backend: str) -> None:
    table = np.zeros((1, len(COLUMNS)))
    table[
        0,
        [INDEX["network"], INDEX["x0_out"], INDEX["clip_mode"], INDEX["clip_bound"], INDEX["x.x0"]],
    ] = 1.0
    out = torch.tensor([[torch.nan, torch.inf, -torch.inf, 0.5, -7.0]])
    got = ops.reverse_step(torch.zeros(1, 5), out, torch.from_numpy(table), torch.tensor([0]))
    assert torch.equal(got.nan_to_num(99.0), torch.tensor([[99.0, 1.0, -1.0, 0.5, -1.0]]))  # type: ignore[union-attr]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_gradients(guided: bool, learned: bool, backend: str) -> None:
    table = torch.from_numpy(random_table(ROWS, 5, learned=learned))
    g = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()

    x, out, slots = (
        leaf(4, 2, 3),
        leaf(8 if guided else 4, 4 if learned else 2, 3),
        leaf(4, 4, 2, 3),
    )
    gamma = torch.tensor([1.0, 0.5, 0.0, 3.0], dtype=torch.float64) if guided else None
    gradient, row = (
        torch.randn(4, 2, 3, dtype=torch.float64, generator=g),
        torch.tensor([0, 1, 2, 4]),
    )
    assert torch.autograd.gradcheck(
        lambda x, out, slots: ops.reverse_step(
            x, out, table, row, slots=slots, seed=3, guidance=gamma, gradient=gradient
        ),
        (x, out, slots),
    )


def test_many_short_samples(backend: str) -> None:
    table = torch.from_numpy(random_table(ROWS, 1, learned=False))
    batch = 70_000
    x, out, gradient = (torch.randn(batch, 2) for _ in range(3))
    slots, row = torch.randn(4, batch, 2), torch.arange(batch) % ROWS
    x_s, fresh = ops.reverse_step(x, out, table, row, slots=slots, seed=1, gradient=gradient)
    pick = torch.tensor([0, 1, 35_003, 65_536, 69_999])
    expected = reference.reverse_step(
        x[pick].numpy(),
        out[pick].numpy(),
        table.numpy(),
        row[pick].numpy(),
        slots=slots[:, pick].numpy(),
        seed=1,
        sample_ids=pick.numpy(),
        gradient=gradient[pick].numpy(),
    )
    assert np.array_equal(x_s[pick].numpy(), expected.x_s) and np.array_equal(
        fresh[:, pick].numpy(), expected.slots
    )


def _row(**columns: float) -> torch.Tensor:
    """Returns a table of one row; `x__out` is the column x.out."""
    table = torch.zeros(1, len(COLUMNS), dtype=torch.float64)
    for column, value in ({"network": 1, "input_scale": 1, "guidance_weight": 1} | columns).items():
        table[0, INDEX[column.replace("__", ".")]] = value
    return table


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
@pytest.mark.parametrize("phi", [0.7, 1.0])
def test_rescaled_guidance(phi: float, dtype: torch.dtype, backend: str) -> None:
    """It equals the oracle; with phi = 1 it has the deviation of the conditional output.

    Lin et al. 2024, eq. 15.
    """
    g = torch.Generator().manual_seed(3)
    x = torch.randn(4, 3, 900, generator=g).to(dtype)
    output = torch.randn(8, 3, 900, generator=g).to(dtype) + 0.5
    gamma = torch.tensor([7.5, 0.0, 1.0, -2.0], dtype=dtype)
    table, row = _row(guidance_rescale=phi, x__out=1.0), torch.zeros(4, dtype=torch.int64)
    got = ops.reverse_step(x, output, table, row, guidance=gamma)
    expected = reference.reverse_step(
        x.numpy(), output.numpy(), table.numpy(), 0, guidance=gamma.numpy()
    ).x_s
    limit = 4 * ROUNDING[name(dtype)]  # the factor's statistics are summed in another order
    np.testing.assert_allclose(got.numpy(), expected, rtol=limit, atol=limit)
    assert torch.equal(got[2], output[2]), "guidance 1 selects the conditional output, not rescaled"
    if phi == 1:
        deviation = output[:4].flatten(1).std(1)
        torch.testing.assert_close(got.flatten(1).std(1), deviation, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.995, 1.0])
def test_dynamic_threshold(ratio: float, dtype: torch.dtype, backend: str) -> None:
    """The quantile has the oracle's bits, with ties, zeros, subnormal numbers and infinities.

    A NaN spoils its own sample only.
    """
    g = torch.Generator().manual_seed(4)
    x = torch.randn(6, 2, 1301, generator=g).to(dtype)
    x[1] = x[1].round()  # ties
    x[2] = 0
    x[3] *= torch.finfo(torch.float32).tiny / 8
    x[4, 0, :20], x[4, 1, :7] = torch.inf, -torch.inf
    x[5] *= 50
    table = _row(x0_x=1.0, clip_mode=2, clip_bound=40.0, clip_ratio=ratio, x__x0=1.0)
    row = torch.zeros(6, dtype=torch.int64)
    got = ops.reverse_step(x, x, table, row, used=-1)
    wide = x.to(torch.float64 if dtype == torch.float64 else torch.float32)
    expected = reference.reverse_step(wide.numpy(), wide.numpy(), table.numpy(), 0).x_s
    # a quantile between two infinities is NaN, here as in torch.quantile
    torch.testing.assert_close(
        got, torch.from_numpy(expected).to(dtype), rtol=0, atol=0, equal_nan=True
    )
    x[0, 1, 5] = torch.nan
    spoiled = ops.reverse_step(x, x, table, row, used=-1)
    assert spoiled[0, 1, 5].isnan()
    torch.testing.assert_close(spoiled[1:], got[1:], rtol=0, atol=0, equal_nan=True)


def test_a_single_element_has_its_threshold(backend: str) -> None:
    """The threshold of a value is its size, at least 1 and at most 9."""
    table = _row(x0_x=1.0, clip_mode=2, clip_bound=9.0, clip_ratio=0.9, x__x0=1.0)
    x = torch.tensor([[0.5], [3.0], [-20.0]])
    got = ops.reverse_step(x, x, table, torch.zeros(3, dtype=torch.int64))
    assert got.flatten().tolist() == [0.5, 1.0, -1.0]


def test_a_dynamic_threshold_equals_that_of_diffusers(backend: str) -> None:
    """Imagen's thresholding; diffusers' quantile is torch's, which interpolates in float32: a rank
    of 760 is known to 3e-5 there, and neighbours in the tail are a tenth apart.
    """
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(
        thresholding=True, dynamic_thresholding_ratio=0.99, sample_max_value=2.5
    )
    g = torch.Generator().manual_seed(5)
    x = torch.randn(5, 3, 16, 16, generator=g) * torch.tensor([0.3, 1.0, 2.0, 5.0, 1.5]).view(
        -1, 1, 1, 1
    )
    table = _row(x0_x=1.0, clip_mode=2, clip_bound=2.5, clip_ratio=0.99, x__x0=1.0)
    got = ops.reverse_step(x, x, table, torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(got, scheduler._threshold_sample(x), rtol=5e-6, atol=1e-7)


def test_missing_operands_of_the_rows_in_use_raise(backend: str) -> None:
    if backend not in ("cpu", "torch"):
        pytest.skip("a GPU's rows are not read by the host")
    x, row = torch.randn(2, 4), torch.tensor([0, 0])
    learned = _row(noise_mode=1.0, logvar_lo=-1.0, x__z=1.0)
    for table, given, message in [
        (learned, {"seed": 1}, "model_output with a variance half, which row 0 reads at index 0"),
        (_row(x__z=1.0), {}, "seed or noise, which row 0 reads at index 0"),
        (_row(x__s2=1.0), {}, "at least 2 slots, which row 0 reads at index 0"),
    ]:
        with pytest.raises(ValueError) as error:
            ops.reverse_step(x, x, table, row, used=-1, out=torch.empty_like(x), **given)
        assert message in str(error.value)
    with pytest.raises(ValueError, match="model_output, which row 0 reads at index 0"):
        ops.reverse_step(x, None, _row(x__out=1.0), row, used=-1, out=torch.empty_like(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name)
def test_float64_is_rounded_once(dtype: torch.dtype, backend: str) -> None:
    """A float64 just above a tie of a 16-bit dtype; rounded to float32 first, it would be a tie."""
    half = 2.0**-11 if dtype == torch.float16 else 2.0**-8
    x = torch.tensor(
        [[1 + half + 2.0**-40, 1 + half, -1 - half - 2.0**-40, 0.1, torch.inf, torch.nan]],
        dtype=torch.float64,
    )
    table, row = _row(x0_x=1.0, x__x=1.0), torch.zeros(1, dtype=torch.int64)
    short, x0 = torch.empty(1, 6, dtype=dtype), torch.empty(1, 6, dtype=dtype)
    ops.reverse_step(x, x, table, row, used=-1, out=x.clone(), input_out=short, x0_out=x0)
    up = 1 + 2 * half
    expected = torch.tensor([[up, 1.0, -up, 0.1, torch.inf, torch.nan]], dtype=dtype)
    torch.testing.assert_close(short, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(x0, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name)
@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_16_bit_states_are_no_further_from_float64_than_diffusers(
    solver: str, dtype: torch.dtype, backend: str
) -> None:
    diffusers = pytest.importorskip("diffusers")
    schedule = Schedule.linear(1000)
    plan = make_plan(schedule, solver=solver, steps=50, timestep_spacing="leading")
    scheduler = (diffusers.DDPMScheduler if solver == "ddpm" else diffusers.DDIMScheduler)(
        clip_sample=False
    )
    scheduler.set_timesteps(50)
    g = torch.Generator().manual_seed(5)
    x, out = (torch.randn(16, 3, 16, 16, generator=g).to(dtype) for _ in range(2))
    k, noise = 30, torch.zeros_like(x)
    exact = reference.reverse_step(
        x.double().numpy(), out.double().numpy(), plan.table, k, noise=noise.double().numpy()
    )
    ours = ops.reverse_step(
        x, out, torch.tensor(plan.table), torch.full((16,), k), noise=noise, used=plan.used
    )
    with pytest.MonkeyPatch.context() as patch:
        if solver == "ddpm":
            import diffusers.schedulers.scheduling_ddpm as module

            patch.setattr(module, "randn_tensor", lambda *_, **__: noise)
        theirs = scheduler.step(out, scheduler.timesteps[k], x).prev_sample
    errors = [np.abs(v.double().numpy() - exact.x_s) for v in (ours, theirs)]
    assert errors[0].max() <= errors[1].max() and errors[0].mean() <= errors[1].mean()
