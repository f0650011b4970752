"""Noise, q_sample and reverse_step in Triton's interpreter against the NumPy oracle, bit for bit.

tests/backend/test_triton.py starts this file with TRITON_INTERPRET=1. The other files of the folder
import the conversions and comparisons at the top. The file is long because reverse_step has many
arguments.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from fastdiff_kernels import launch
from fastdiff_kernels.noise import philox
from triton.runtime import interpreter

from fastdiff import reference
from fastdiff.ops.step import StepArguments
from fastdiff.rng import windowed
from fastdiff.table import COLUMNS, FURTHER, HEADER, INDEX

BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
DTYPES = list(BITS)
FIRST = len(HEADER)  # the column of the first coefficient


def round_as_the_gpu_does(builder, source, dtype):
    """Replaces the interpreter's conversion to bfloat16 by the GPU's, which rounds to even.

    Triton 3.6's interpreter drops the last bits of a float32, and cannot convert a float64.
    """
    if dtype.scalar != tl.bfloat16:
        return builder.cast_impl(source, dtype)
    rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16()
    return interpreter.TensorHandle(rounded.view(torch.uint16).numpy(), dtype.scalar)


interpreter.InterpreterBuilder.create_fp_trunc = round_as_the_gpu_does


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compute(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which kernels compute on values of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def numbers(value: torch.Tensor) -> np.ndarray:
    """Returns an array for the oracle: 16-bit values as float32, which holds them exactly."""
    return (value if value.dtype == torch.float64 else value.float()).numpy()


def same_bits(got: torch.Tensor, expected: np.ndarray) -> None:
    """Compares the bits of `got` with those of `expected`, rounded once to its dtype.

    NaNs of any payload are equal.
    """
    want = torch.from_numpy(np.ascontiguousarray(expected)).to(got.dtype)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(
        got.nan_to_num(7.0).view(BITS[got.dtype]), want.nan_to_num(7.0).view(BITS[got.dtype])
    )


def poisoned(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, -777.0, dtype=dtype)


@triton.jit
def philox_kernel(out, c0, c1, c2, c3, k0, k1):
    i = tl.arange(0, 1)
    zero = tl.zeros([1], tl.uint32)
    w0, w1, w2, w3 = philox(
        zero + c0.to(tl.uint32),
        zero + c1.to(tl.uint32),
        zero + c2.to(tl.uint32),
        zero + c3.to(tl.uint32),
        zero + k0.to(tl.uint32),
        zero + k1.to(tl.uint32),
    )
    tl.store(out + i, w0.to(tl.int64))
    tl.store(out + 1 + i, w1.to(tl.int64))
    tl.store(out + 2 + i, w2.to(tl.int64))
    tl.store(out + 3 + i, w3.to(tl.int64))


@pytest.mark.parametrize(
    "counter_and_key, words",
    [  # Random123's kat_vectors, philox4x32 with 10 rounds
        (
            "00000000 00000000 00000000 00000000 00000000 00000000",
            "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        ),
        (
            "ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_words(counter_and_key: str, words: str) -> None:
    out = torch.zeros(4, dtype=torch.int64)
    philox_kernel[(1,)](out, *(int(word, 16) for word in counter_and_key.split()))
    assert [f"{word:08x}" for word in out.tolist()] == words.split()


def test_golden_bits() -> None:
    path = Path(__file__).parents[2] / "golden" / "noise_v1.json"
    golden = json.loads(path.read_text(encoding="utf-8"))["cases"]
    for case in golden:
        out = poisoned((1, case["elements"]))
        launch.randn(
            out,
            case["seed"],
            None,
            torch.tensor([case["sample_id"]]),
            case["step"],
            case["stream"],
            False,
        )
        assert (
            " ".join(f"{word:08x}" for word in out.view(torch.uint32)[0].tolist()) == case["bits"]
        )
    assert len(golden) > 5


@pytest.mark.parametrize(
    "shape",
    [(3, 1), (5, 2), (300, 7), (4, 129), (7, 3, 4, 4), (2, 1000), (1, 2501), (2, 3, 32, 32)],
)
@pytest.mark.parametrize(
    "seed, step, stream", [(0, 0, 0), (2**63 + 5, 7, 1), (2**64 - 1, 2**32 - 1, 5)]
)
def test_randn_has_the_oracles_bits(
    shape: tuple[int, ...], seed: int, step: int, stream: int
) -> None:
    out = poisoned(shape)
    launch.randn(out, seed, None, None, step, stream, False)
    same_bits(out, reference.randn(shape, seed=seed, step=step, stream=stream))


@pytest.mark.parametrize("offset", [4, 1024, 2**20 + 8, 2**33 + 4])
@pytest.mark.parametrize("size", [3, 1030])
def test_a_window_has_the_noise_of_the_whole(offset: int, size: int) -> None:
    out = poisoned((3, size))
    launch.randn(out, 5, None, None, 7, windowed(1, offset), False)
    same_bits(out, reference.randn((3, size), seed=5, step=7, stream=1, offset=offset))


@pytest.mark.parametrize("stream", range(6))
@pytest.mark.parametrize("dtype", DTYPES)
def test_randn_takes_a_seed_and_an_id_per_sample(dtype: torch.dtype, stream: int) -> None:
    ids = torch.tensor([5, 0, 2**32, 2**56 - 1, 2**40 + 17])
    seeds = torch.tensor([-1, 2**62, -(2**63), 3, 0])
    out = poisoned((5, 37), dtype)
    launch.randn(out, None, seeds, ids, 11, stream, False)
    unsigned = seeds.numpy().view(np.uint64)
    same_bits(
        out, reference.randn((5, 37), seed=unsigned, sample_ids=ids.numpy(), step=11, stream=stream)
    )


def test_fast_noise_is_near_the_exact_noise() -> None:
    """In the interpreter log, sin and cos are NumPy's; on a GPU the tolerance is FAST_NOISE."""
    fast, exact = poisoned((2, 4096)), poisoned((2, 4096))
    launch.randn(fast, 9, None, None, 0, 0, True)
    launch.randn(exact, 9, None, None, 0, 0, False)
    torch.testing.assert_close(fast, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_q_sample(dtype: torch.dtype, indexed: bool, given: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(5, 3, 7, 7, generator=generator).to(dtype)
    noise = torch.randn(5, 3, 7, 7, generator=generator).to(dtype) if given else None
    alpha, sigma = torch.rand(2, 9 if indexed else 5, generator=generator, dtype=torch.float64)
    t = torch.tensor([8, 0, 3, 3, 7]) if indexed else None
    ids = torch.tensor([4, 2**33, 1, 0, 9])
    out = poisoned(tuple(x0.shape), dtype)
    launch.q_sample(out, x0, t, alpha, sigma, noise, 2**63 + 1, None, ids, 3, 2, False)
    expected = reference.q_sample(
        numbers(x0),
        None if t is None else t.numpy(),
        alpha.numpy(),
        sigma.numpy(),
        noise=None if noise is None else numbers(noise),
        seed=2**63 + 1,
        sample_ids=ids.numpy(),
        step=3,
    )
    same_bits(out, expected)
    launch.check("cpu")


def test_an_index_outside_makes_its_sample_nan_and_sets_the_error_word() -> None:
    x0, table = torch.ones(4, 6), torch.ones(5, dtype=torch.float64)
    out = poisoned((4, 6))
    launch.q_sample(
        out, x0, torch.tensor([0, 5, -1, 4]), table, table, x0, None, None, None, 0, 2, False
    )
    assert out.isnan().all(1).tolist() == [False, True, True, False] and out[[0, 3]].eq(2).all()
    with pytest.raises(IndexError, match="q_sample"):
        launch.check("cpu")
    launch.check("cpu")  # reset

    rows, used = random_table(np.random.default_rng(0), learned=False)
    rows[:, INDEX["next"]] = [3, 0, 6, 2, 1, 0]  # the row after row 2 is outside
    slots = torch.randn(4, 4, 6)
    kept, x_s, following = slots.clone(), poisoned((4, 6)), torch.full((4,), -7)
    network_input, times = poisoned((4, 6)), torch.full((8,), -7)
    row = torch.tensor([6, 0, -1, 2])
    launch.reverse_step(
        StepArguments(
            x0,
            x0,
            torch.from_numpy(rows),
            row,
            out=x_s,
            slots=slots,
            noise=x0,
            gradient=x0,
            used=used,
            slots_out=slots,
            input_out=network_input,
            row_out=following,
            time_out=times,
        )
    )
    assert x_s.isnan().all(1).tolist() == [True, False, True, False]
    assert network_input.isnan().all(1).tolist() == [True, False, True, True]
    assert torch.equal(slots[:, [0, 2]], kept[:, [0, 2]]) and following.tolist() == [6, 3, -1, 6]
    assert times.tolist() == [0, round(rows[3, INDEX["t"]]), 0, 0] * 2
    with pytest.raises(IndexError, match="reverse_step"):
        launch.check("cpu")


def mask_of(table: np.ndarray) -> int:
    """Returns the bit mask of the columns that are not zero in some row."""
    return sum(1 << int(i) for i in (table != 0).any(0).nonzero()[0])


def random_table(
    generator: np.random.Generator, learned: bool, rows: int = 6
) -> tuple[np.ndarray, int]:
    """Returns a table with many zero coefficients, and the bit mask of the columns it uses.

    It uses every column somewhere, but those of the prepasses.
    """
    drawn = len(COLUMNS) - len(FURTHER)
    table = np.zeros((rows, len(COLUMNS)))
    table[:, :drawn] = generator.normal(size=(rows, drawn))
    table[:, FIRST:drawn] *= generator.random((rows, drawn - FIRST)) < 0.5
    table[1, FIRST:] = 0  # the next x is all zero, slots keep their values
    table[:, INDEX["network"]] = 1
    table[:, INDEX["t"]] = np.array([0.5, 1.5, 1e6 + 0.5, -0.5, 998.6, 1 / 3])[:rows]
    table[:, INDEX["guidance_weight"]] = generator.choice([0.0, 0.5, 1.0], rows)
    table[:, INDEX["guidance_rescale"]] = 0
    table[:, INDEX["out_grad"]] *= generator.random(rows) < 0.5
    table[:, [INDEX["x0_x"], INDEX["x0_out"]]] *= generator.random((rows, 2)) < 0.8
    table[:, INDEX["clip_mode"]] = generator.integers(0, 2, rows)
    table[:, INDEX["clip_bound"]] = generator.random(rows)
    table[:, INDEX["clip_ratio"]] = 0
    table[:, INDEX["noise_index"]] = generator.integers(0, 2**32, rows)
    table[:, INDEX["noise_mode"]] = generator.integers(0, 2, rows) if learned else 0
    table[:, [INDEX["logvar_lo"], INDEX["logvar_hi"]]] = -9, 3
    table[:, INDEX["next"]] = generator.integers(0, rows, rows)
    table[:, INDEX["out_uncond"]] = np.arange(rows) % 2
    return table, mask_of(table)


@pytest.mark.parametrize("known", [True, False], ids=["mask", "no-mask"])
@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reverse_step_carries_out_any_row(
    dtype: torch.dtype, guided: bool, learned: bool, known: bool
) -> None:
    generator = np.random.default_rng([7, guided, learned, known])
    batch, shape = 13, (4, 5, 3)
    wide = compute(dtype)

    def normal(*size: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.from_numpy(generator.normal(size=size)).to(dtype)

    table, used = random_table(generator, learned)
    x_t, slots = normal(batch, *shape), normal(4, batch, *shape, dtype=wide)
    output = normal(
        (1 + guided) * batch,
        (1 + learned) * 4,
        5,
        3,
        dtype=torch.bfloat16 if dtype == torch.float32 else dtype,
    )
    row = torch.from_numpy(generator.integers(0, 6, batch))
    gamma = torch.tensor([0, 1, 2.5, -0.3] * 4, dtype=wide)[:batch] if guided else None
    gradient = normal(batch, *shape)
    ids = torch.from_numpy(generator.integers(0, 2**56, batch))
    seeds = torch.from_numpy(generator.integers(-(2**63), 2**63 - 1, batch))
    expected = reference.reverse_step(
        numbers(x_t),
        numbers(output),
        table,
        row.numpy(),
        slots=slots.numpy(),
        seed=seeds.numpy().view(np.uint64),
        sample_ids=ids.numpy(),
        guidance=None if gamma is None else gamma.numpy(),
        gradient=numbers(gradient),
        stream=1,
    )

    x_s, x0_out, following = (
        poisoned((batch, *shape), dtype),
        poisoned((batch, *shape), torch.float16),
        row.clone(),
    )
    network_input = poisoned(
        tuple(expected.network_input.shape), torch.bfloat16 if guided else torch.float32
    )
    whole, times = torch.full(expected.time.shape, -7), poisoned(expected.time.shape)
    separate = torch.full_like(slots, -777.0)
    before = launch.launches["reverse_step"]
    for memory in (separate, slots):  # the second time in place, for x_t too
        target = x_s if memory is separate else x_t
        launch.reverse_step(
            StepArguments(
                x_t,
                output,
                torch.from_numpy(table),
                row,
                out=target,
                slots=slots,
                seed=seeds,
                sample_ids=ids,
                guidance=gamma,
                gradient=gradient,
                used=used if known else -1,
                slots_out=memory,
                x0_out=x0_out,
                input_out=network_input,
                row_out=following,
                time_out=whole if memory is separate else times,
            )
        )
        same_bits(target, expected.x_s)
        same_bits(memory, expected.slots)
        same_bits(x0_out, expected.x0)
        same_bits(network_input, expected.network_input)
        assert following.tolist() == expected.row.tolist()
    assert whole.tolist() == expected.timestep.tolist()
    same_bits(times, expected.time)
    assert launch.launches["reverse_step"] == before + 2
    launch.check("cpu")


@pytest.mark.parametrize("size", [1, 2, 3, 6, 130, 1500])
def test_reverse_step_for_samples_of_any_size(size: int) -> None:
    generator = np.random.default_rng(size)
    batch = 1 + 600 // size
    table, used = random_table(generator, learned=False)
    x_t, output, noise, gradient = torch.from_numpy(generator.normal(size=(4, batch, size))).float()
    slots = torch.from_numpy(generator.normal(size=(4, batch, size))).float()
    row = generator.integers(0, 6, batch)
    expected = reference.reverse_step(
        x_t.numpy(),
        output.numpy(),
        table,
        row,
        slots=slots.numpy(),
        noise=noise.numpy(),
        gradient=gradient.numpy(),
    )
    times = torch.full((2 * batch,), -7)
    launch.reverse_step(
        StepArguments(
            x_t,
            output,
            torch.from_numpy(table),
            torch.from_numpy(row),
            out=x_t,
            slots=slots,
            noise=noise,
            gradient=gradient,
            used=used,
            slots_out=slots,
            time_out=times,
        )
    )
    same_bits(x_t, expected.x_s)
    same_bits(slots, expected.slots)
    assert times.tolist() == expected.timestep.tolist() * 2


def test_a_zero_coefficient_is_not_read() -> None:
    """Every operand without a coefficient in the row is NaN; other rows use all columns."""
    generator = np.random.default_rng(3)
    table, used = random_table(generator, learned=True)
    table[0, INDEX["guidance_weight"] : INDEX["logvar_lo"]] = 0
    table[0, FIRST:] = 0
    table[0, [INDEX["x.x"], INDEX["x.s1"], INDEX["s1.s2"]]] = 0.5, 2.0, 3.0
    x_t, slots = torch.ones(2, 10), torch.full((4, 2, 10), torch.nan)
    slots[0], slots[1] = 1.0, 2.0
    nan, gamma = torch.full((4, 20), torch.nan), torch.tensor([0.0, 3.0])
    launch.reverse_step(
        StepArguments(
            x_t,
            nan,
            torch.from_numpy(table),
            torch.zeros(2, dtype=torch.int64),
            out=x_t,
            slots=slots,
            noise=nan[:2, :10].contiguous(),
            guidance=gamma,
            gradient=nan[:2, :10].contiguous(),
            used=used,
            slots_out=slots,
        )
    )
    assert (
        x_t.eq(2.5).all()
        and slots[0].eq(6).all()
        and slots[1].eq(2).all()
        and slots[2:].isnan().all()
    )

    table[0, INDEX["s1.x"] :] = 0
    table[0, INDEX["s2.s3"]] = 1.0  # a NaN that is read and must stay out of the next x
    x_t, slots[0] = torch.ones(2, 10), 1.0
    launch.reverse_step(
        StepArguments(
            x_t,
            nan,
            torch.from_numpy(table),
            torch.zeros(2, dtype=torch.int64),
            out=x_t,
            slots=slots,
            noise=nan[:2, :10].contiguous(),
            guidance=gamma,
            gradient=nan[:2, :10].contiguous(),
            used=used,
            slots_out=slots,
        )
    )
    assert x_t.eq(2.5).all() and slots[0].eq(1).all() and slots[1:].isnan().all()


def test_nan_passes_the_clip_and_infinity_does_not() -> None:
    table = np.zeros((1, len(COLUMNS)))
    for column, value in {"x0_x": 1, "clip_mode": 1, "clip_bound": 2, "x.x0": 1}.items():
        table[0, INDEX[column]] = value
    x_t = torch.tensor([[torch.nan, torch.inf, -torch.inf, 2.5, -2.5, 1.5]])
    launch.reverse_step(
        StepArguments(
            x_t,
            None,
            torch.from_numpy(table),
            torch.zeros(1, dtype=torch.int64),
            out=x_t,
            used=mask_of(table),
        )
    )
    same_bits(x_t, np.array([[np.nan, 2.0, -2.0, 2.0, -2.0, 1.5]], np.float32))


@pytest.mark.parametrize("size", [1, 2, 100, 784, 3072, 2**20 + 1])
def test_tiles_waste_few_elements(size: int) -> None:
    """Tiles exceed a sample by at most 15 %, or by its size if it has 128 elements or fewer."""
    samples, elements = launch.tile_shape(size)
    assert samples * elements == launch.TILE and elements % 4 == 0
    assert -(-size // elements) * elements <= max(4, 1.15 * size, 2 * size if size <= 128 else 0)


def test_a_table_of_zeros_gives_zeros() -> None:
    """Nothing is read: the state is NaN."""
    x_s, x0_out, table = (
        poisoned((3, 5)),
        poisoned((3, 5)),
        torch.zeros(1, len(COLUMNS), dtype=torch.float64),
    )
    launch.reverse_step(
        StepArguments(
            torch.full((3, 5), torch.nan),
            None,
            table,
            torch.zeros(3, dtype=torch.int64),
            out=x_s,
            used=0,
            x0_out=x0_out,
        )
    )
    assert x_s.eq(0).all() and x0_out.eq(0).all()


def test_an_empty_batch_launches_nothing() -> None:
    before = launch.launches["randn"]
    launch.randn(torch.empty(0, 3), 1, None, None, 0, 0, False)
    assert launch.launches["randn"] == before
