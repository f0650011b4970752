"""Inputs for the op tests: shapes, dtypes and random tables that use every column but one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.table import COLUMNS, INDEX

SHAPES = [
    (1, 1),
    (3, 5),
    (2, 3, 7),
    (4, 3, 8, 8),
    (5, 2, 1, 33),
    (7,),
    (2, 1, 65, 67),
    (0, 3),
    (3, 0),
    (300, 2),
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def random_table(rows: int, seed: int = 0, *, learned: bool = True) -> np.ndarray:
    """Returns a table [rows, 62] with about half its coefficients zero and all modes in its rows.

    No row has rescaled guidance or a kind of guidance, whose results depend on the order of sums.
    """
    random = np.random.default_rng(seed)
    table = np.where(
        random.random((rows, len(COLUMNS))) < 0.5, random.standard_normal((rows, len(COLUMNS))), 0.0
    )
    index = np.arange(rows)
    table[:, INDEX["network"]] = 1
    table[:, INDEX["t"]] = 10 * index[::-1]
    table[:, INDEX["guidance_weight"]] = np.array([1.0, 0.5, 0.0, 2.0])[index % 4]
    table[:, INDEX["guidance_rescale"]] = 0
    table[:, INDEX["clip_mode"]] = np.array([0, 1, 2])[index % 3]
    table[:, INDEX["clip_bound"]] = np.array([0.0, 0.7, 1.5])[index % 3]
    table[:, INDEX["clip_ratio"]] = np.array([0.0, 0.0, 0.8])[index % 3]
    table[:, INDEX["noise_index"]] = index
    table[:, INDEX["noise_mode"]] = (index % 3 == 1) & learned
    table[:, INDEX["logvar_lo"]], table[:, INDEX["logvar_hi"]] = -4.0, -1.0
    table[:, INDEX["next"]] = np.minimum(index + 1, rows - 1)
    table[:, INDEX["out_uncond"]] = index % 2
    table[:, INDEX["guidance_kind"] :] = 0
    table[0, INDEX["s1.x"] : INDEX["s1.z"] + 1] = 0  # a slot that keeps its value
    table[1, INDEX["x0_x"] : INDEX["x0_out"] + 1] = 0  # a row without a prediction
    return table


def outside(backend: str, call: Callable[[], torch.Tensor], message: str, bad: int) -> None:
    """Checks what an op does with sample `bad`, whose time is outside its table.

    The CPU raises `message` before it writes; a GPU makes that sample NaN and reports it later.
    """
    if backend not in ("cuda", "triton"):
        with pytest.raises(IndexError) as error:
            call()
        assert message in str(error.value)
        return
    result = call()
    assert (
        result[bad].isnan().all()
        and not result[[i for i in range(len(result)) if i != bad]].isnan().any()
    )
    with pytest.raises(IndexError, match=message.split(":")[0] + ".*those samples are NaN"):
        fastdiff.backend.check(result.device)
    fastdiff.backend.check(result.device)  # the error is raised once


def truth(x: torch.Tensor) -> np.ndarray:
    """Returns an array for the oracle: bfloat16 as float32, which holds it exactly."""
    return x.float().numpy() if x.dtype == torch.bfloat16 else x.numpy()
