"""Kinds of guidance: what a row takes as the unconditional output (kernels/README.md section 4).

CFG-Zero* (Fan et al. 2025) and adaptive projected guidance (Sadat et al. 2024), by the papers'
formulas in float64, which compute the output itself, on every backend.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from ops.cases import DTYPES, name, truth
from ops.guidance_rows import GAMMA, KINDS, PLAIN, SHAPE, inputs, table_of
from tolerances import ROUNDING
from torch import Tensor

from fastdiff import ops, reference
from fastdiff.ops.step import WHOLE, StepArguments, workspace_for
from fastdiff.table import INDEX


def papers(
    kind: dict[str, float], c: NDArray, u: NDArray, x: NDArray, m: NDArray, g: float
) -> tuple[NDArray, NDArray | None]:
    """Returns the guided output of one sample, and the difference that momentum remembers."""
    which = kind["guidance_kind"]
    if g == 1:
        return c, None
    if which == 0:
        return u + g * (c - u), None
    if which == 1:  # v = (1 - w) s v_uncond + w v_cond
        s = (c * u).sum() / ((u**2).sum() + 1e-8)
        return (1 - g) * s * u + g * c, None
    v = c - u + kind.get("guidance_momentum", 0.0) * m
    bound = kind.get("guidance_bound", 0.0)
    d = v * min(1.0, bound / np.sqrt((v**2).sum())) if bound else v
    along = c + kind.get("guidance_x", 0.0) * x
    along = along / np.sqrt((along**2).sum())
    parallel = (d * along).sum() * along
    d = d - parallel + kind.get("guidance_parallel", 0.0) * parallel
    out = c + (g - 1) * d if which in (2, 4) else u + g * d
    return out, v if which >= 4 else None


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("kind", [PLAIN, *KINDS.values()], ids=["plain", *KINDS])
def test_the_output_is_the_papers(kind: dict[str, float], dtype: torch.dtype, backend: str) -> None:
    """Also the difference in slot 4; samples of strength 1 keep theirs."""
    x, output, slots, gamma = inputs(SHAPE, dtype)
    row = torch.zeros(5, dtype=torch.int64)
    got, new = ops.reverse_step(x, output, table_of(kind), row, slots=slots, guidance=gamma)
    limit = 64 * ROUNDING[name(dtype)]
    c, u = (truth(half).astype(np.float64) for half in output.chunk(2))
    assert torch.equal(new[:3], slots[:3])
    for b, g in enumerate(GAMMA):
        wide = (truth(v).astype(np.float64) for v in (x[b], slots[3, b]))
        want, kept = papers(kind, c[b], u[b], *wide, g)
        np.testing.assert_allclose(truth(got[b]), want, rtol=limit, atol=8 * limit)
        if kept is None:
            assert torch.equal(new[3, b], slots[3, b])
        else:
            np.testing.assert_allclose(new[3, b].numpy(), kept, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(
    "shape", [(5, 3), (4, 1), (3, 2, 1030), (2, WHOLE + 7), (0, 4), (3, 0)], ids=str
)
def test_rows_of_all_kinds_equal_the_oracle(
    shape: tuple[int, ...], dtype: torch.dtype, backend: str
) -> None:
    """To a few roundings: the sums have an order of their own on every backend."""
    x, output, slots, gamma = inputs(shape, dtype)
    table = table_of(
        PLAIN, *KINDS.values(), x__x0=0.5, x0_x=1.1, x0_out=-0.3, clip_mode=1, clip_bound=1.5
    )
    table[::3, INDEX["out_uncond"]] = 1
    table[:, INDEX["guidance_weight"]] = torch.tensor([1.0, 0.5, 1.0, 2.0])[torch.arange(12) % 4]
    for first in range(12):
        row = (first + torch.arange(shape[0])) % 12
        got, new = ops.reverse_step(x, output, table, row, slots=slots, guidance=gamma)
        want = reference.reverse_step(
            truth(x), truth(output), table.numpy(), row.numpy(), slots=slots.numpy(),
            guidance=gamma.numpy(),
        )  # fmt: skip
        limit = 64 * ROUNDING[name(dtype)]
        np.testing.assert_allclose(truth(got), want.x_s, rtol=limit, atol=4 * limit)
        np.testing.assert_allclose(new.numpy(), want.slots, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("size", [3, 700, WHOLE + 1])
def test_a_sample_has_the_same_bits_in_any_batch(
    size: int, dtype: torch.dtype, backend: str
) -> None:
    """With the other prepasses after it, next to rows of other kinds, in place or not."""
    x, output, slots, gamma = inputs((5, size), dtype)
    table = table_of(
        *KINDS.values(), guidance_rescale=0.6, clip_mode=2, clip_bound=5, clip_ratio=0.9, x0_x=0.5,
        x0_out=0.9, x__x0=0.7,
    )  # fmt: skip
    for shift in (0, 4, 8):
        row = (torch.arange(5) + shift) % len(table)
        some = {"slots": slots, "guidance": gamma}
        together, kept = ops.reverse_step(x, output, table, row, **some)
        for chosen in ([0], [3], [4, 1, 3]):
            at = torch.tensor(chosen)
            halves, held = output[torch.cat([at, at + 5])], slots[:, at].clone()
            again, new = ops.reverse_step(
                x[at], halves, table, row[at], slots=held, guidance=gamma[at]
            )
            assert torch.equal(again, together[at]) and torch.equal(new, kept[:, at])
            ops.reverse_step(
                x[at], halves, table, row[at], slots=held, guidance=gamma[at],
                out=torch.empty_like(x[at]), slots_out=held,
            )  # fmt: skip
            assert torch.equal(held, new)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_the_other_prepasses_read_what_the_kind_leaves(dtype: torch.dtype, backend: str) -> None:
    """Rescale and dynamic threshold are those of the guided output."""
    x, output, slots, gamma = inputs((5, 400), dtype)
    settings: dict[str, float] = {"guidance_rescale": 0.6, "clip_mode": 2, "clip_bound": 5}
    settings |= {"clip_ratio": 0.9, "x0_x": 0.5, "x0_out": 0.9, "x__x0": 0.7}
    table = table_of(*KINDS.values(), **settings)
    limit = 64 * ROUNDING[name(dtype)]
    for first in range(0, len(table), 3):
        row = (torch.arange(5) + first) % len(table)
        got, _ = ops.reverse_step(x, output, table, row, slots=slots, guidance=gamma)
        want = reference.reverse_step(
            truth(x), truth(output), table.numpy(), row.numpy(), slots=slots.numpy(),
            guidance=gamma.numpy(),
        )  # fmt: skip
        np.testing.assert_allclose(truth(got), want.x_s, rtol=limit, atol=4 * limit)


@pytest.mark.parametrize("kind", KINDS.values(), ids=[*KINDS])
def test_strength_1_and_no_guidance_read_no_other_half(
    kind: dict[str, float], backend: str
) -> None:
    """NaN in the unconditional half, in x and in the slots is not read, and no slot is written."""
    x, output, slots, _ = inputs(SHAPE, torch.float32)
    table, row = table_of(kind), torch.zeros(5, dtype=torch.int64)
    output[5:], x[:], slots[:] = torch.nan, torch.nan, torch.nan
    ones = torch.ones(5)
    got, new = ops.reverse_step(x, output, table, row, slots=slots, guidance=ones)
    assert torch.equal(got, output[:5]) and new.isnan().all()
    alone = ops.reverse_step(x, output[:5], table, row)
    assert torch.equal(alone, output[:5])  # type: ignore[arg-type]


def test_an_unwritten_slot_is_not_read(backend: str) -> None:
    """The first row with momentum leaves its difference in slot 4 and reads none."""
    x, output, slots, gamma = inputs(SHAPE, torch.float32)
    row = torch.zeros(5, dtype=torch.int64)
    table = table_of(KINDS["first of momentum"])
    some: dict[str, Any] = {"guidance": gamma}
    got, new = ops.reverse_step(x, output, table, row, slots=slots * torch.nan, **some)
    want, kept = ops.reverse_step(x, output, table, row, slots=slots, **some)
    assert torch.equal(got, want) and not got.isnan().any()
    on = gamma != 1
    assert torch.equal(new[3, on], kept[3, on]) and not new[3, on].isnan().any()
    alone = ops.reverse_step(x, output, table, row, **some)
    assert torch.equal(alone, got)  # type: ignore[arg-type]


def test_a_spoiled_sample_spoils_no_other(backend: str) -> None:
    x, output, slots, gamma = inputs(SHAPE, torch.float32)
    table = table_of(*KINDS.values())
    row = torch.tensor([0, 1, 3, 6, 8])
    want, _ = ops.reverse_step(x, output, table, row, slots=slots, guidance=gamma)
    output[3, 0, 5] = torch.nan
    got, _ = ops.reverse_step(x, output, table, row, slots=slots, guidance=gamma)
    rest = [0, 1, 2, 4]
    assert got[3, 0, 5].isnan() and torch.equal(got[rest], want[rest])


def test_outputs_of_zeros_have_finite_results(backend: str) -> None:
    """Of zeros there is no direction: nothing is projected, scaled or divided."""
    x, output, slots, gamma = inputs((5, 30), torch.float32)
    for k in range(len(KINDS)):
        row = torch.full((5,), k)
        got, _ = ops.reverse_step(
            x * 0, output * 0, table_of(*KINDS.values()), row, slots=slots * 0, guidance=gamma
        )
        assert torch.equal(got, torch.zeros(5, 30))


def test_a_bound_step_equals_the_op(backend: str) -> None:
    """In one workspace and in place, whatever an earlier call left in it."""
    x, output, slots, gamma = inputs((5, WHOLE + 1), torch.float32)
    table, row = table_of(*KINDS.values()), torch.tensor([0, 2, 5, 8, 10])
    out, held, workspace = x.clone(), slots.clone(), workspace_for(x).fill_(torch.nan)
    step = StepArguments(
        out, None, table, row, slots=held, guidance=gamma, out=out, slots_out=held,
        workspace=workspace,
    ).bind("model_output")  # fmt: skip
    state, memory = x, slots
    for k in range(3):
        other = torch.cat([half.roll(k, 0) for half in output.chunk(2)])
        state, memory = ops.reverse_step(state, other, table, row, slots=memory, guidance=gamma)
        step(other)
        assert torch.equal(out, state) and torch.equal(held, memory), k


GRADIENTS = ["zero star", "a part along", "on x0", "from u", "momentum, on x0", "momentum, from u"]


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("rescale", [0.0, 0.5])
def test_gradients(kind: str, rescale: float) -> None:
    """To x, the output, the slots and the strength, through the sums over the sample."""
    x, output, slots, _ = inputs((3, 6), torch.float64)
    gamma = torch.tensor([2.5, 0.0, -1.0], dtype=torch.float64)
    table = table_of(
        KINDS[kind] | {"guidance_bound": 0.8}, guidance_rescale=rescale, x__x0=0.5, x0_x=1, x0_out=2
    )
    row = torch.zeros(3, dtype=torch.int64)

    def step(x: Tensor, output: Tensor, slots: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        return ops.reverse_step(x, output, table, row, slots=slots, guidance=gamma)  # type: ignore[return-value]

    leaves = [v.clone().requires_grad_() for v in (x, output, slots)]
    assert torch.autograd.gradcheck(lambda *v: step(*v, gamma), leaves)
    gamma = torch.tensor([2.5, 0.3, -1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(step, (*leaves, gamma))


def test_a_missing_slot_is_named(backend: str) -> None:
    if backend not in ("cpu", "torch"):
        pytest.skip("GPUs do not read their rows from the host")
    x, output, slots, gamma = inputs(SHAPE, torch.float32)
    table, row = table_of(KINDS["momentum"]), torch.zeros(5, dtype=torch.int64)
    for given in (None, slots[:3]):
        for used in (None, -1):
            with pytest.raises(ValueError, match=r"slots"):
                ops.reverse_step(x, output, table, row, slots=given, guidance=gamma, used=used)
    table[0, INDEX["s4.x"]] = 1
    with pytest.raises(ValueError, match="expected coefficients 0 of slot 4, .* got others"):
        ops.reverse_step(x, output, table, row, slots=slots, guidance=gamma)


@pytest.mark.parametrize("size", [30, 1100])
def test_the_log_probability_is_of_the_step_with_its_kind(size: int, backend: str) -> None:
    """As an output of the step and by step_log_prob, with the same bits, and as a normal one's."""
    x, output, slots, gamma = inputs((5, size), torch.float64)
    table, row = table_of(*KINDS.values(), x__z=0.5), torch.arange(5)
    for first in (0, 3, 6):
        rows, some = row + first, {"slots": slots, "guidance": gamma}
        out, found = torch.empty_like(x), torch.empty(5, dtype=torch.float64)
        ops.reverse_step(x, output, table, rows, seed=3, out=out, log_prob_out=found, **some)
        again = ops.step_log_prob(x, output, out, table, rows, **some)
        assert torch.equal(found, again)
        mean, _ = ops.reverse_step(x, output, table, rows, noise=torch.zeros_like(x), **some)
        want = torch.distributions.Normal(mean, 0.5).log_prob(out).sum(1)
        torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-10)
