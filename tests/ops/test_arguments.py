"""Arguments of every op as other types of numbers, results in memory that no kernel writes, and
inputs whose samples share memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_missing import OPERANDS, REPLACED
from torch import Tensor

from fastdiff import Schedule, ops
from fastdiff.solvers import make_plan
from fastdiff.theory.likelihood import vlb_table

BACKENDS = ["cpu", "torch"]
RESULTS = [
    (name, result)
    for name, operands in OPERANDS.items()
    for result in operands
    if result == "out" or result.endswith("_out")
]
STOCHASTIC = torch.tensor(make_plan(Schedule.linear(1000), solver="ddpm", steps=5).table)
# the numbers among each op's arguments, besides the operands
NUMBERS: dict[str, dict[str, int | float]] = {
    "randn": {"seed": 3, "step": 5, "stream": 130},
    "q_sample": {"seed": 3, "step": 5, "stream": 130},
    "reverse_step": {"seed": 3, "stream": 130, "used": -1},
    "reparameterize": {"seed": 3, "step": 5, "stream": 130},
    "noise_mse": {"seed": 3, "step": 5, "stream": 130},
    "group_norm_silu": {"groups": 2, "eps": 0.5},
}


def _operands(name: str, *left_out: str) -> dict[str, Any]:
    """The op's operands without its results and those that are left out."""
    results = {result for op, result in RESULTS if op == name}
    return {k: v for k, v in OPERANDS[name].items() if k not in results | set(left_out)}


def _first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.cpu_only
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["numpy", "0-d array", "0-d tensor", "0-d int32 tensor"])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_any_type_are_pythons(name: str, kind: str, backend: str) -> None:
    """A stream of 130 fills the upper bits of the noise counter, which an int32 has not."""
    make: dict[str, Callable[[int | float], Any]] = {
        "numpy": lambda v: np.float64(v) if isinstance(v, float) else np.int64(v),
        "0-d array": np.array,
        "0-d tensor": torch.tensor,
        "0-d int32 tensor": lambda v: torch.tensor(v, dtype=torch.int32 if v == int(v) else None),
    }
    given = {k: v for k, v in NUMBERS[name].items() if not (kind != "numpy" and k == "seed")}
    seeded = {"seed": 3} if "seed" in NUMBERS[name] else {}
    if name == "reverse_step":
        seeded |= {"table": STOCHASTIC}
    operands = _operands(name, "noise") | seeded
    call = getattr(ops, name)
    expected = call(**operands | given, backend=backend)
    got = call(**operands | {k: make[kind](v) for k, v in given.items()}, backend=backend)
    torch.testing.assert_close(_first(got), _first(expected), rtol=0, atol=0)


@pytest.mark.cpu_only
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_numpy_seed_has_a_gradient_and_all_64_bits(backend: str) -> None:
    x = torch.randn(2, 4, requires_grad=True)
    row, seed = torch.tensor([1, 2]), 2**64 - 3
    calls = [
        ops.reverse_step(x, x, STOCHASTIC, row, seed=s, backend=backend)
        for s in (seed, np.uint64(seed))
    ]
    assert torch.equal(calls[0], calls[1])  # type: ignore[arg-type]
    grads = [torch.autograd.grad(c.sum(), x)[0] for c in calls]  # type: ignore[union-attr]
    assert torch.equal(grads[0], grads[1])


WRONG_NUMBERS: dict[str, Any] = {
    "a text": "text",
    "sparse numbers": torch.tensor([1, 2, 3]).to_sparse(),
    "three numbers": torch.tensor([1, 2, 3]),
    "a nested tensor": torch.nested.nested_tensor([torch.tensor([1]), torch.tensor([2])]),
    "a complex number": torch.tensor(1j),
    "a list": [1],
}


@pytest.mark.cpu_only
@pytest.mark.parametrize("what", WRONG_NUMBERS)
@pytest.mark.parametrize(
    "name, number", [(n, k) for n, numbers in NUMBERS.items() for k in (*numbers, "mode")]
)
def test_what_is_no_number_is_refused(name: str, number: str, what: str) -> None:
    if name == "group_norm_silu" and number == "mode":
        number = "silu"  # it draws no noise
    given = {**_operands(name, "noise"), number: WRONG_NUMBERS[what]}
    with pytest.raises((TypeError, ValueError), match=rf"^fastdiff\.{name}: expected [^\n]*\Z"):
        getattr(ops, name)(**given)


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", ["float32", np.float32, 3])
def test_a_dtype_of_another_library_is_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match=r"^fastdiff\.randn: expected dtype as a torch\.dtype, got"):
        ops.randn((2, 3), seed=1, dtype=dtype)
    with pytest.raises(ValueError, match=r"^fastdiff\.randn: expected shape \[B, …\] of sizes"):
        ops.randn((True, 3), seed=1)


def _negated(value: Tensor) -> Tensor:
    return torch._neg_view(value)


def _leaf(value: Tensor) -> Tensor:
    return value.clone().requires_grad_()


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    "make, says", [(_negated, "whose memory"), (_leaf, "without requires_grad")]
)
@pytest.mark.parametrize("name, result", RESULTS)
def test_results_that_no_kernel_can_write_are_refused(
    name: str, result: str, make: Callable[[Tensor], Tensor], says: str
) -> None:
    """By every backend, in one sentence, and before anything is written."""
    value = OPERANDS[name][result]
    if not value.is_floating_point():
        pytest.skip("integers have no gradient and no negated views")
    operands = {k: v for k, v in OPERANDS[name].items() if k != "noise" or name != "q_sample"}
    wrong = make(value)
    before = wrong.detach().clone()
    for backend in BACKENDS:
        with pytest.raises(ValueError, match=rf"^fastdiff\.{name}: expected {result} {says}"):
            getattr(ops, name)(**operands | {result: wrong}, backend=backend)
    assert torch.equal(wrong.detach(), before)


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    "make, says", [(_negated, "whose memory"), (_leaf, "without requires_grad")]
)
def test_results_of_the_posterior_that_no_kernel_can_write_are_refused(
    make: Callable[[Tensor], Tensor], says: str
) -> None:
    for at, result in enumerate(("mean", "variance", "log_variance")):
        out = [torch.zeros(2, 4), torch.zeros(2), torch.zeros(2)]
        out[at] = make(out[at])
        with pytest.raises(ValueError, match=rf"^fastdiff\.q_posterior: expected {result} {says}"):
            ops.q_posterior(**OPERANDS["q_posterior"], out=tuple(out))  # type: ignore[arg-type]
    for wrong in (torch.tensor(0.5), (torch.zeros(2, 4),), 3):
        with pytest.raises(TypeError, match=r"^fastdiff\.q_posterior: expected out as the tensors"):
            ops.q_posterior(**OPERANDS["q_posterior"], out=wrong)  # type: ignore[arg-type]


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    "name", ["gaussian_kl", "discretized_gaussian_nll", "noise_mse", "vlb_terms", "step_log_prob"]
)
def test_a_workspace_that_is_not_needed_is_checked_too(name: str) -> None:
    wrong = torch.zeros(2, dtype=torch.complex64).conj()
    with pytest.raises(ValueError, match=rf"^fastdiff\.{name}: expected workspace whose memory"):
        getattr(ops, name)(**OPERANDS[name], workspace=wrong)


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    "name", ["gaussian_kl", "discretized_gaussian_nll", "noise_mse", "vlb_terms", "step_log_prob"]
)
def test_a_quantised_workspace_is_refused(name: str) -> None:
    wrong = torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)
    with pytest.raises(TypeError, match=rf"^fastdiff\.{name}: expected workspace of dtype"):
        getattr(ops, name)(**OPERANDS[name], workspace=wrong)


@pytest.mark.cpu_only
@pytest.mark.parametrize("backend", BACKENDS)
def test_times_of_samples_without_elements_are_looked_at(backend: str) -> None:
    given = _operands("q_sample", "noise") | {"x0": torch.zeros(2, 0), "t": torch.tensor([1, 1000])}
    with pytest.raises(IndexError, match=r"expected t in \[0, 1000\), got 1000 at index 1"):
        ops.q_sample(**given, backend=backend)


def test_more_slots_to_write_than_to_read_are_refused(backend: str) -> None:
    """The kernels would look for values to keep behind the end of the slots."""
    table = torch.tensor(make_plan(Schedule.linear(1000), solver="ddim", steps=3).table)
    x, rows = torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)
    given = {"slots": torch.zeros(1, 2, 3), "slots_out": torch.zeros(2, 2, 3)}
    with pytest.raises(ValueError, match="slots_out with at most the 1 entries of slots, got 2"):
        ops.reverse_step(x, x, table, rows, **given, out=torch.empty(2, 3))
    assert backend


@pytest.mark.cpu_only
def test_a_mask_without_a_column_in_use_is_refused_by_torch() -> None:
    x, rows = torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^fastdiff\.reverse_step: expected used with every col"):
        ops.reverse_step(x, x, STOCHASTIC, rows, seed=1, used=3, backend="torch")


def test_results_in_a_leaf_are_written_without_gradients() -> None:
    """As an optimizer does, under torch.no_grad."""
    leaf = torch.zeros(2, 4, requires_grad=True)
    with torch.no_grad():
        ops.randn((2, 4), seed=1, out=leaf)
    assert torch.equal(leaf.detach(), ops.randn((2, 4), seed=1))


@pytest.mark.parametrize("layout", ["a batch of one", "windows", "windows, channels last"])
@pytest.mark.parametrize("rank", [3, 4, 5])
def test_samples_that_share_memory(layout: str, rank: int, backend: str) -> None:
    """torch's own choice of a result's memory format would put the batch last."""
    inner = (4, 5, 2, 3)[: rank - 1]
    base = torch.randn(3 + int(np.prod(inner)), generator=torch.Generator().manual_seed(0))
    strides = [int(np.prod(inner[i + 1 :])) for i in range(len(inner))]
    if layout.endswith("last"):
        strides = [1, *(s * inner[0] for s in _dense(inner[1:]))]
    x = base.as_strided((3, *inner), (0 if layout == "a batch of one" else 1, *strides))
    for options in ({}, {"weight": torch.ones(4), "add": torch.randn(3, 4)}):
        got = ops.group_norm_silu(x, 2, **options)
        expected = ops.group_norm_silu(x.contiguous(), 2, **options)
        assert torch.equal(got, expected)


def _dense(shape: tuple[int, ...]) -> list[int]:
    return [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]


def test_a_gradient_that_no_input_has(backend: str) -> None:
    """A table that asks for one gets none, where the formula computes the others'."""
    table = STOCHASTIC.clone().requires_grad_()
    x = torch.randn(2, 4)
    row = torch.tensor([1, 2])
    out = ops.reverse_step(x, x, table, row, seed=1, used=-1)
    assert torch.autograd.grad(out.sum(), table, allow_unused=True) == (None,)  # type: ignore[union-attr]


def test_gradients_of_one_element_where_no_row_rescales(backend: str) -> None:
    """Of an unknown table, a step's formula also computes the factor that no row uses."""
    x, both = torch.randn(2, 1), torch.randn(4, 1, requires_grad=True)
    out = ops.reverse_step(
        x, both, STOCHASTIC, torch.tensor([1, 2]), seed=1, guidance=torch.full((2,), 3.0), used=-1
    )
    (gradient,) = torch.autograd.grad(out.sum(), both)  # type: ignore[union-attr]
    assert gradient.isfinite().all() and gradient.any()


def test_rows_and_ids_of_samples_without_elements_are_not_looked_at(backend: str) -> None:
    """A row that reads a slot, noise and an output that are missing; an id that names no sample."""
    table = STOCHASTIC.clone()
    table[:, 19] = 1.0  # reads slot 1
    x, row, ids = torch.zeros(2, 3, 0), torch.tensor([1, 2]), torch.tensor([-1, 2**60])
    assert ops.reverse_step(x, None, table, row, used=-1).shape == x.shape  # type: ignore[union-attr]
    got = ops.reverse_step(x, x, STOCHASTIC, row, seed=1, sample_ids=ids)
    assert got.shape == x.shape  # type: ignore[union-attr]


@pytest.mark.parametrize("n", [1024, 1025, 5000])
def test_sums_of_no_samples_of_any_length(n: int, backend: str) -> None:
    x = torch.zeros(0, n)
    bound, t = OPERANDS["vlb_terms"]["table"], torch.zeros(0, dtype=torch.int64)
    noisy = torch.tensor(make_plan(Schedule.linear(1000), solver="ddpm", steps=3).table)
    for result in (
        ops.gaussian_kl(x, x),
        ops.discretized_gaussian_nll(x, x, x),
        ops.noise_mse(x, seed=1),
        ops.vlb_terms(x, x, x, bound, t),
        ops.step_log_prob(x, x, x, noisy, t),
    ):
        assert result.shape == (0,)


def test_the_kinds_of_wrong_operands_have_nested_tensors() -> None:
    """tests/ops/test_missing.py puts them in every operand's place."""
    assert "a nested tensor" in REPLACED


def test_tables_of_schedules_and_plans_are_arrays() -> None:
    """They may be passed as they are, read-only or not, without a warning; bits are the same."""
    schedule = Schedule.cosine(100)
    plan = make_plan(schedule, solver="ddim", eta=1.0, steps=5)
    terms = vlb_table(schedule)
    x, t = torch.linspace(-1, 1, 24).view(2, 3, 4), torch.tensor([3, 90])
    row, net = torch.tensor([1, 2]), 0.5 * x

    def results(convert: Callable[[np.ndarray], Any]) -> list[Tensor]:
        alpha, sigma, table = convert(schedule.alpha), convert(schedule.sigma), convert(plan.table)
        x_s = ops.reverse_step(x, net, table, row, seed=0)
        assert isinstance(x_s, Tensor)
        return [
            ops.q_sample(x, t, alpha, sigma, seed=0),
            *ops.q_posterior(x, net, t, convert(schedule.alphas_cumprod)),
            ops.vlb_terms(x, x, net, convert(terms), t),
            x_s,
            ops.step_log_prob(x, net, x_s, table, row),
        ]

    def unchangeable(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.setflags(write=False)
        return array

    expected = results(torch.tensor)
    for convert in (np.asarray, unchangeable):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert all(map(torch.equal, results(convert), expected))
    with pytest.raises(TypeError, match="expected alpha as a tensor, got ndarray"):
        ops.q_sample(x, t, schedule.alpha.astype(np.float32), schedule.sigma, seed=0)
