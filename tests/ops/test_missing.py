"""Operands of every op that are missing or no tensors: an error in a sentence, never a crash.

Each call runs in a forked process, so that a crash fails one test.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff import Schedule, ops
from fastdiff.solvers import make_plan
from fastdiff.theory.likelihood import vlb_table

SCHEDULE = Schedule.linear(1000)
PLAN = make_plan(SCHEDULE, solver="dpm++2m", steps=6)
NOISY = make_plan(SCHEDULE, solver="dpm++2m_sde", steps=6)
T = torch.tensor([1, 2])


def _tensor(seed: int = 0) -> Tensor:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))


# the arguments of each op; the values may be replaced one at a time
OPERANDS: dict[str, dict[str, Any]] = {
    "randn": {"shape": (2, 4), "seed": 1, "sample_ids": torch.arange(2), "out": _tensor()},
    "q_sample": {
        "x0": _tensor(),
        "t": T,
        "alpha": torch.tensor(SCHEDULE.alpha),
        "sigma": torch.tensor(SCHEDULE.sigma),
        "noise": _tensor(1),
        "seed": torch.arange(2),
        "sample_ids": torch.arange(2),
        "out": _tensor(2),
    },
    "q_posterior": {
        "x0": _tensor(),
        "x_t": _tensor(1),
        "t": T,
        "alphas_cumprod": torch.tensor(SCHEDULE.alphas_cumprod),
    },
    "reverse_step": {
        "x_t": _tensor(),
        "model_output": _tensor(1),
        "table": torch.tensor(PLAN.table),
        "row": T,
        "slots": torch.zeros(1, 2, 4),
        "noise": _tensor(2),
        "seed": torch.arange(2),
        "sample_ids": torch.arange(2),
        "gradient": _tensor(3),
        "out": _tensor(4),
        "slots_out": torch.zeros(1, 2, 4),
        "x0_out": _tensor(5),
        "input_out": _tensor(6),
        "row_out": torch.zeros(2, dtype=torch.int64),
        "time_out": torch.zeros(2, dtype=torch.int64),
        "log_prob_out": torch.zeros(2),
    },
    "step_log_prob": {
        "x_t": _tensor(),
        "model_output": _tensor(1),
        "x_s": _tensor(2),
        "table": torch.tensor(NOISY.table),
        "row": T,
        "slots": torch.zeros(1, 2, 4),
        "gradient": _tensor(3),
        "out": torch.zeros(2),
    },
    "gaussian_kl": {
        "mean1": _tensor(),
        "logvar1": _tensor(1),
        "mean2": _tensor(2),
        "logvar2": _tensor(3),
        "out": torch.zeros(2),
    },
    "discretized_gaussian_nll": {
        "x0": _tensor(),
        "mean": _tensor(1),
        "log_scale": _tensor(2),
        "out": torch.zeros(2),
    },
    "reparameterize": {
        "mean": _tensor(),
        "logvar": _tensor(1),
        "seed": torch.arange(2),
        "sample_ids": torch.arange(2),
        "out": _tensor(2),
    },
    "noise_mse": {
        "prediction": _tensor(),
        "weight": torch.ones(2),
        "seed": torch.arange(2),
        "sample_ids": torch.arange(2),
        "out": torch.zeros(2),
    },
    "vlb_terms": {
        "x0": _tensor(),
        "x_t": _tensor(1),
        "model_output": _tensor(2),
        "table": torch.tensor(vlb_table(SCHEDULE)),
        "t": T,
        "out": torch.zeros(2),
    },
    "group_norm_silu": {
        "x": _tensor()[:, :, None],
        "groups": 2,
        "weight": torch.ones(4),
        "bias": torch.ones(4),
        "scale": torch.ones(2, 4),
        "shift": torch.ones(2, 4),
        "add": torch.ones(2, 4),
        "out": _tensor()[:, :, None].contiguous(),
    },
}
REPLACED: dict[str, Callable[[Any], Any]] = {
    "None": lambda value: None,
    "an array": lambda value: np.asarray(value),
    "a list": lambda value: np.asarray(value).tolist(),
    "a scalar": lambda value: torch.tensor(0.5),
    "a text": lambda value: "text",
    "integers": lambda value: torch.as_tensor(value).int(),
    "complex numbers": lambda value: torch.as_tensor(value).to(torch.complex64),
    "half the batch": lambda value: torch.as_tensor(value)[:1],
    "nothing": lambda value: torch.as_tensor(value)[:0],
    "a sparse tensor": lambda value: torch.as_tensor(value).to_sparse(),
    "a nested tensor": lambda value: torch.nested.nested_tensor([value, value]),
}


def _status(call: Callable[[], Any]) -> str:
    """What a call does in a process of its own: "returns", "refuses", or what is wrong."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        text = "returns"
        try:
            call()
        except (ValueError, TypeError, IndexError) as error:
            one = str(error).startswith("fastdiff.") and "\n" not in str(error)
            text = "refuses" if one else f"{type(error).__name__}: {error}"
        except BaseException as error:  # the test says what it was
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode()[:4000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"died of {signal.Signals(os.WTERMSIG(status)).name}"
    return text


def test_every_op_is_called() -> None:
    assert OPERANDS.keys() == set(ops.__all__)
    for name, operands in OPERANDS.items():
        given = {k: v for k, v in operands.items() if not (k == "noise" and "seed" in operands)}
        getattr(ops, name)(**given)


CASES = [(name, operand) for name, operands in OPERANDS.items() for operand in operands]


@pytest.mark.cpu_only
@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name, operand", CASES)
def test_a_wrong_operand_is_refused_or_right(name: str, operand: str, backend: str) -> None:
    wrong = {}
    for kind, replace in REPLACED.items():
        try:
            value = replace(OPERANDS[name][operand])
        except (TypeError, ValueError, IndexError, RuntimeError):
            continue  # there is no such value
        arguments = {**OPERANDS[name], operand: value}
        got = _status(lambda a=arguments: getattr(ops, name)(**a, backend=backend))
        if got not in ("returns", "refuses"):
            wrong[kind] = got
    assert not wrong


@pytest.mark.parametrize("name", ["randn", "q_sample", "reparameterize", "noise_mse"])
def test_noise_without_a_seed_is_refused(name: str) -> None:
    arguments = {k: v for k, v in OPERANDS[name].items() if k not in ("noise", "sample_ids")}
    with pytest.raises((TypeError, ValueError), match=rf"^fastdiff\.{name}: expected .*seed"):
        getattr(ops, name)(**{**arguments, "seed": None})


def _overlapping() -> dict[str, tuple[str, dict[str, Any]]]:
    """(op, arguments) whose result shares a part of an input's memory."""
    both = torch.randn(3, 4)
    first, shifted = both[:2], both.view(-1)[2:10].view(2, 4)
    late = both[1:]
    levels = {k: OPERANDS["q_sample"][k] for k in ("t", "alpha", "sigma")}
    step = {k: OPERANDS["reverse_step"][k] for k in ("table", "row", "slots")}
    return {
        "q_sample": ("q_sample", {"x0": first, **levels, "seed": 1, "out": shifted}),
        "q_sample, noise": (
            "q_sample",
            {"x0": _tensor(), **levels, "noise": first, "out": late},
        ),
        "reparameterize": (
            "reparameterize",
            {"mean": _tensor(), "logvar": first, "seed": 1, "out": late},
        ),
        "group_norm_silu": (
            "group_norm_silu",
            {"x": first[:, :, None], "groups": 2, "out": late[:, :, None]},
        ),
        "reverse_step": (
            "reverse_step",
            {"x_t": first, "model_output": _tensor(), **step, "out": shifted},
        ),
        "reverse_step, output": (
            "reverse_step",
            {"x_t": _tensor(), "model_output": first, **step, "out": late},
        ),
        "reverse_step, results": (
            "reverse_step",
            {"x_t": _tensor(), "model_output": _tensor(), **step, "out": first, "input_out": first},
        ),
    }


@pytest.mark.parametrize("case", _overlapping())
def test_results_in_a_part_of_an_inputs_memory_are_refused(case: str) -> None:
    name, arguments = _overlapping()[case]
    if name == "reverse_step":
        arguments["slots_out"] = torch.zeros(1, 2, 4)
    with pytest.raises(ValueError, match=rf"^fastdiff\.{name}: expected \w+ in the memory of an"):
        getattr(ops, name)(**arguments)


def test_results_in_an_inputs_own_memory_are_right() -> None:
    """Element by element, and in memory next to an input."""
    levels = {k: OPERANDS["q_sample"][k] for k in ("t", "alpha", "sigma")}
    both = torch.randn(4, 4)
    first, second = both[:2], both[2:]
    expected = ops.q_sample(first, **levels, seed=1)
    assert torch.equal(ops.q_sample(first, **levels, seed=1, out=second), expected)
    assert torch.equal(ops.q_sample(first, **levels, seed=1, out=first), expected)


@pytest.mark.parametrize("name", ["q_sample", "reparameterize", "group_norm_silu", "reverse_step"])
def test_results_on_another_device_are_refused(name: str) -> None:
    arguments = {k: v for k, v in OPERANDS[name].items() if k not in ("noise", "gradient")}
    with pytest.raises(ValueError, match=rf"^fastdiff\.{name}: expected out on cpu"):
        getattr(ops, name)(**{**arguments, "out": arguments["out"].to("meta")})
