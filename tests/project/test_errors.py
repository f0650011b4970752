"""Bad input gets one sentence: where, expected, got, do. The table below is the contract.

This file is over 400 lines because the table has a line for every refusal.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff import Sampler, Schedule, ops, prediction
from fastdiff.solvers import SOLVERS, make_plan
from fastdiff.solvers.grids import SPACINGS

S = Schedule.linear(1000)
A, B = torch.tensor(S.alpha), torch.tensor(S.sigma)
X = torch.zeros(4, 3, 2, 2)
T = torch.zeros(4, dtype=torch.int64)
PLAN = make_plan(S, solver="ddpm", steps=10)
TABLE = torch.tensor(PLAN.table)
META = torch.zeros(4, 3, 2, 2, device="meta")


def net(x: torch.Tensor, t: torch.Tensor, **_: Any) -> torch.Tensor:
    return x


def at(i: int, value: int) -> torch.Tensor:
    t = T.clone()
    t[i] = value
    return t


OPS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: ops.q_sample(X, at(3, 1000), A, B, seed=0),
        IndexError,
        "fastdiff.q_sample: expected t in [0, 1000), got 1000 at index 3. Timesteps count from 0.",
    ),
    (
        lambda: ops.q_sample(X, at(1, -1), A, B, seed=0),
        IndexError,
        "fastdiff.q_sample: expected t in [0, 1000), got -1 at index 1. Timesteps count from 0.",
    ),
    (
        lambda: ops.q_sample(X, T[:2], A, B, seed=0),
        ValueError,
        "fastdiff.q_sample: expected t of shape [4], got [2].",
    ),
    (
        lambda: ops.q_sample(X, T.float(), A, B, seed=0),
        TypeError,
        "fastdiff.q_sample: expected t as an int64 tensor [4], got float32.",
    ),
    (
        lambda: ops.q_sample(X, T, A.float(), B, seed=0),
        TypeError,
        "fastdiff.q_sample: expected alpha as a one-dimensional float64 tensor or array. Use"
        " Schedule's.",
    ),
    (
        lambda: ops.q_sample(X, T, A, B[:5], seed=0),
        ValueError,
        "fastdiff.q_sample: expected sigma of shape [1000], got [5].",
    ),
    (
        lambda: ops.q_sample(X.int(), T, A, B, seed=0),
        TypeError,
        "fastdiff.q_sample: expected x0 of dtype float64, float32, float16 or bfloat16, got int32.",
    ),
    (
        lambda: ops.q_sample(torch.tensor(1.0), T, A, B, seed=0),
        ValueError,
        "fastdiff.q_sample: expected x0 of shape [B, …], got a scalar. Add a batch dimension.",
    ),
    (
        lambda: ops.q_sample(X, T, A, B),
        ValueError,
        (
            "fastdiff.q_sample: expected noise or seed, got neither. Pass seed= for reproducible"
            " noise."
        ),
    ),
    (
        lambda: ops.q_sample(X, T, A, B, noise=X[:, :1]),
        ValueError,
        "fastdiff.q_sample: expected noise of shape [4, 3, 2, 2], got [4, 1, 2, 2].",
    ),
    (
        lambda: ops.q_sample(X, T, A, B, noise=META),
        ValueError,
        "fastdiff.q_sample: expected noise on cpu like x0, got meta. Move it there.",
    ),
    (
        lambda: ops.q_sample(X, T, A, B, seed=-1),
        ValueError,
        "fastdiff.q_sample: expected seed in [0, 2**64), got -1.",
    ),
    (
        lambda: ops.q_sample(X, T, A, B, seed=0.5),
        TypeError,
        "fastdiff.q_sample: expected seed as an int or an int64 tensor, got float.",
    ),
    (
        lambda: ops.q_sample(X, T, A, B, seed=0, out=X.double()),
        ValueError,
        (
            "fastdiff.q_sample: expected a contiguous out of dtype float32, got float64 with"
            " strides (12, 4, 2, 1)."
        ),
    ),
    (
        lambda: ops.randn((), seed=0),
        ValueError,
        "fastdiff.randn: expected shape [B, …] of sizes >= 0, got [].",
    ),
    (
        lambda: ops.randn((2, -1), seed=0),
        ValueError,
        "fastdiff.randn: expected shape [B, …] of sizes >= 0, got [2, -1].",
    ),
    (
        lambda: ops.randn((2, 3), seed=0, step=2**32),
        ValueError,
        "fastdiff.randn: expected step in [0, 2**32), got 4294967296.",
    ),
    (
        lambda: ops.randn((2, 3), seed=0, mode="quick"),
        ValueError,
        "fastdiff.randn: expected mode in ['exact', 'fast'], got 'quick'.",
    ),
    (
        lambda: ops.randn((2, 3), seed=0, dtype=torch.int32),
        TypeError,
        "fastdiff.randn: expected dtype of dtype float64, float32, float16 or bfloat16, got int32.",
    ),
    (
        lambda: ops.randn((2, 3), seed=0, sample_ids=T),
        ValueError,
        "fastdiff.randn: expected sample_ids of shape [2], got [4].",
    ),
    (
        lambda: ops.reverse_step(X, X, TABLE, at(2, 11), seed=0),
        IndexError,
        (
            "fastdiff.reverse_step: expected row in [0, 11), got 11 at index 2. Rows belong to the"
            " table."
        ),
    ),
    (
        lambda: ops.reverse_step(X, X, TABLE[:, :9], T, seed=0),
        ValueError,
        (
            "fastdiff.reverse_step: expected table as float64 [R, 62], got float64 [11, 9]. Use"
            " plan.table."
        ),
    ),
    (
        lambda: ops.reverse_step(X, X[:2], TABLE, T, seed=0),
        ValueError,
        "fastdiff.reverse_step: expected model_output of shape [4, 3, 2, 2], got [2, 3, 2, 2].",
    ),
    (
        lambda: ops.reverse_step(X, X, TABLE, T, seed=0, guidance=torch.ones(4)),
        ValueError,
        (
            "fastdiff.reverse_step: expected model_output of shape [8, 3, 2, 2] for guidance"
            " (conditional half first), got [4, 3, 2, 2]."
        ),
    ),
    (
        lambda: ops.reverse_step(X, X, TABLE, T),
        ValueError,
        "fastdiff.reverse_step: expected seed or noise, for rows that draw noise.",
    ),
    (
        lambda: ops.reverse_step(X, None, TABLE, T, seed=0),
        ValueError,
        "fastdiff.reverse_step: expected model_output, which rows of this table read.",
    ),
    (
        lambda: ops.reverse_step(X, X, TABLE, T, seed=0, out=X.clone(), time_out=X[:3, 0, 0, 0]),
        ValueError,
        "fastdiff.reverse_step: expected time_out of shape [4] or [8], got [3].",
    ),
    (
        lambda: ops.reverse_step(X, X, TABLE, T, seed=0, out=X.clone(), time_out=T.double()),
        TypeError,
        "fastdiff.reverse_step: expected time_out of int64 or float32, got torch.float64.",
    ),
    (
        lambda: ops.reverse_step(X, X, TABLE, T, seed=0, slots=X[None].double()),
        TypeError,
        "fastdiff.reverse_step: expected slots of dtype torch.float32, got torch.float64.",
    ),
    (
        lambda: ops.reverse_step(X, X, TABLE, T, seed=0, out=X.clone(), log_prob_out=X[0, 0, 0]),
        ValueError,
        "fastdiff.reverse_step: expected log_prob_out of shape [4], got [2].",
    ),
    (
        lambda: ops.step_log_prob(X, X, X, TABLE, T, reduce="max"),
        ValueError,
        "fastdiff.step_log_prob: expected reduce in ['sum', 'mean'], got 'max'.",
    ),
    (
        lambda: ops.randn((2, 3), seed=0, backend="gpu"),
        ValueError,
        "fastdiff.use: expected a backend in ['triton', 'cuda', 'cpu', 'torch'], got 'gpu'.",
    ),
]

SAMPLING: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: Sampler(net, S, solver="dppm"),
        ValueError,
        f"fastdiff.Sampler: expected solver in {sorted(SOLVERS)}, got 'dppm'. Did you mean 'ddpm'?",
    ),
    (
        lambda: Sampler(net, S, steps=1001),
        ValueError,
        "fastdiff.Sampler: expected steps in [1, 1000], got 1001. The schedule has 1000.",
    ),
    (
        lambda: Sampler(net, S, steps=0),
        ValueError,
        "fastdiff.Sampler: expected steps in [1, 1000], got 0. The schedule has 1000.",
    ),
    (
        lambda: Sampler(net, S, solver="ddim", stpes=10),
        ValueError,
        (
            "fastdiff.Sampler: solver 'ddim' takes the options ['eta', 'use_clipped_model_output'],"
            " got 'stpes'. Did you mean 'steps'?"
        ),
    ),
    (
        lambda: Sampler(net, S, solver="ddpm", variance_type="huge"),
        ValueError,
        (
            "fastdiff.Sampler: expected variance_type in ['fixed_large', 'fixed_small', 'learned',"
            " 'learned_range', 'optimal'], got 'huge'."
        ),
    ),
    (
        lambda: Sampler(net, S, solver="ddim", eta=1.5),
        ValueError,
        "fastdiff.Sampler: expected eta in [0, 1], got 1.5.",
    ),
    (
        lambda: Sampler(net, S, clip_range=-1.0),
        ValueError,
        "fastdiff.Sampler: expected clip_range > 0 (the c of [-c, c]) or None, got -1.0.",
    ),
    (
        lambda: Sampler(net, S, prediction_type="noise"),
        ValueError,
        (
            "fastdiff.prediction: expected prediction_type in ['epsilon', 'x0', 'v', 'score',"
            " 'flow', 'edm'], got 'noise'."
        ),
    ),
    (
        lambda: Sampler(net, S, timestep_spacing="karas"),
        ValueError,
        f"fastdiff.Sampler: expected timestep_spacing in {list(SPACINGS)}, got 'karas'."
        " Did you mean 'karras'?",
    ),
    (
        lambda: Sampler(net, S, guidance_scale=float("nan")),
        ValueError,
        "fastdiff.Sampler: expected a finite guidance_scale, got nan.",
    ),
    (
        lambda: Sampler("net", S),
        TypeError,  # type: ignore[arg-type]
        "fastdiff.Sampler: expected a callable model(x, t, **cond), got str.",
    ),
    (
        lambda: Sampler(net, S.alpha),
        TypeError,  # type: ignore[arg-type]
        "fastdiff.Sampler: expected a fastdiff.Schedule, got ndarray.",
    ),
    (
        lambda: Sampler(net, S).sample(),
        ValueError,
        "fastdiff.Sampler.sample: expected shape [B, …] of sizes >= 0, got None.",
    ),
    (
        lambda: Sampler(net, S).sample((2, 3), x_T=torch.zeros(2, 4)),
        ValueError,
        "fastdiff.Sampler.sample: expected x_T of shape [2, 3], got [2, 4].",
    ),
    (
        lambda: Sampler(net, S).sample((2, 3), sample_ids=[1]),
        ValueError,
        "fastdiff.Sampler.sample: expected 2 integer sample_ids, got torch.int64 of shape [1].",
    ),
    (
        lambda: Sampler(net, S).sample((2, 3), sample_ids=[-1, 0]),
        ValueError,
        "fastdiff.Sampler.sample: expected sample_ids in [0, 2**56). They name samples of the run.",
    ),
    (
        lambda: Sampler(net, S).sample((2, 3), dtype=torch.float16),
        TypeError,
        (
            "fastdiff.Sampler.sample: expected dtype float32 or float64 (the state's), got"
            " torch.float16."
        ),
    ),
    (
        lambda: Sampler(net, S).sample((2, 3), cond={"y": T}),
        ValueError,
        "fastdiff.Sampler: expected cond['y'] with 2 rows, one per sample, got 4.",
    ),
    (
        lambda: Sampler(net, S).sample((2, 3), guidance_scale=2.0),
        ValueError,
        (
            "fastdiff.Sampler: expected uncond with a guidance_scale other than 1. Pass the keyword"
            " arguments of the unconditional call."
        ),
    ),
    (
        lambda: Sampler(net, S).sample((4, 3), guidance_scale=2.0, cond={"y": T}, uncond={}),
        ValueError,
        "fastdiff.Sampler: expected the same keys in cond and uncond, got ['y'] and [].",
    ),
    (
        lambda: Sampler(net, S).sample((2, 3), start=26),
        ValueError,
        "fastdiff.Sampler.sample: expected start in [0, 25], got 26.",
    ),
    (
        lambda: Sampler(lambda x, t: x[:1], S).sample((2, 3), seed=0),
        ValueError,
        (
            "fastdiff.Sampler: expected a model output of shape [2, 3], like its input, got [1, 3]."
            " Only learned variance adds to it: twice the channels."
        ),
    ),
    (
        lambda: Sampler(lambda x, t: None, S).sample((2, 3), seed=0),
        TypeError,
        (
            "fastdiff.Sampler: expected the model to return a floating tensor, an object with"
            " .sample or a tuple that begins with one, got NoneType."
        ),
    ),
    (
        lambda: Sampler(net, S).stream(2, (3,), sead=1),
        TypeError,
        "fastdiff.Sampler.stream: expected arguments of sample, got 'sead'.",
    ),
    (
        lambda: Schedule.from_betas([0.1, np.nan]),
        ValueError,
        "fastdiff.Schedule.from_betas: expected betas inside (0, 1), got nan at index 1.",
    ),
    (
        lambda: Schedule.from_alphas_cumprod([0.9, 0.95]),
        ValueError,
        (
            "fastdiff.Schedule.from_alphas_cumprod: expected strictly decreasing values, got 0.95"
            " at index 1 after 0.9. Noise grows with t."
        ),
    ),
    (
        lambda: Schedule.linear(0),
        ValueError,
        "fastdiff.Schedule.linear: expected num_train_timesteps >= 1, got 0.",
    ),
    (
        lambda: Schedule.linear(10, beta_end=1.0),
        ValueError,
        "fastdiff.Schedule.linear: expected betas inside (0, 1), got 1.0 at index 9.",
    ),
    (
        lambda: Schedule.from_betas([[0.1]]),
        ValueError,
        "fastdiff.Schedule.from_betas: expected betas of shape [T], got shape [1, 1].",
    ),
    (
        lambda: Schedule.from_config({"name": "linera"}),
        ValueError,
        (
            "fastdiff.Schedule.from_config: expected name in ['cosine', 'exponential', 'flow',"
            " 'from_alphas_cumprod', 'from_betas', 'karras', 'laplace', 'learned', 'linear',"
            " 'scaled_linear', 'sigmoid', 'sub_vp', 've', 'vp'], got 'linera'."
        ),
    ),
    (
        lambda: Schedule.from_config({"name": "linear", "beta": 1}),
        ValueError,
        "fastdiff.Schedule.from_config: unknown key among ['beta'] for schedule 'linear'.",
    ),
    (
        lambda: prediction.convert("eps", "x0", 0, 0, 1, 1),
        ValueError,
        (
            "fastdiff.prediction: expected prediction_type in ['epsilon', 'x0', 'v', 'score',"
            " 'flow', 'edm'], got 'eps'."
        ),
    ),
    (
        lambda: fastdiff.to_uint8(torch.tensor([float("nan")])),
        ValueError,
        "fastdiff.to_uint8: expected numbers, got NaN. The network or the schedule diverged.",
    ),
]


@pytest.mark.parametrize("call, kind, message", OPS, ids=[m[:60] for _, _, m in OPS])
def test_ops(call: Callable[[], Any], kind: type[Exception], message: str, backend: str) -> None:
    if backend == "cuda" and kind is IndexError:
        pytest.skip("GPU kernels answer with NaN and an error word: see the ops' tests")
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        call()


@pytest.mark.parametrize("call, kind, message", SAMPLING, ids=[m[:60] for _, _, m in SAMPLING])
def test_sampling(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        call()


def _named_in_errors() -> dict[str, str]:
    """Every `fastdiff.<path>` with which a message of the package begins -> a file that has it.

    A message is "<path>: expected …"; a path that is passed on is a `where`. Of a path with a
    placeholder, such as fastdiff.{name}, the part before it counts.
    """
    found = {}
    for file in sorted(Path(fastdiff.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            texts: list[tuple[ast.AST, str]] = []
            if isinstance(node, ast.keyword) and node.arg == "where":
                texts.append((node.value, "where"))
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                texts.append((node.value, node.targets[0].id.strip("_").lower()))
            elif isinstance(node, (ast.JoinedStr, ast.Constant)):
                texts.append((node, "message"))
            for value, kind in texts:
                parts = value.values if isinstance(value, ast.JoinedStr) else [value]
                text = "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in parts)
                end = "$" if kind == "where" else ": expected"
                match = re.match(rf"(fastdiff(?:\.[\w{{}}]+)+){end}", text)
                if match and kind in ("where", "message"):
                    path = re.sub(r"\.\w*\{\}.*", "", match[1])
                    found[path] = file.name
    return found


NAMED = _named_in_errors()


@pytest.mark.parametrize("path", sorted(NAMED))
def test_errors_name_what_exists(path: str) -> None:
    """A reader finds the function, class or module that a message names."""
    value: Any = fastdiff
    names = path.split(".")
    for i, name in enumerate(names[1:], 2):
        try:
            value = getattr(value, name)
        except AttributeError:
            assert importlib.util.find_spec(".".join(names[:i])), f"{path} of {NAMED[path]}"
            value = importlib.import_module(".".join(names[:i]))


def test_messages_are_found() -> None:
    assert {"fastdiff.q_sample", "fastdiff.theory.likelihood.nll", "fastdiff.Trainer"} <= set(NAMED)
