"""Fuzzes samplers: every solver, option, grid, schedule and prediction type, right and wrong.

A case draws a configuration and a small network of elementwise functions, whose samples have the
same bits in any batch. The configuration is refused in a sentence, at once or when it samples, or
its samples are finite and have the same bits in a second run, for a part of the ids in another
order, and as a stream.
"""

from __future__ import annotations

import math
import os
import random
from typing import Any

import torch
from campaign import Campaign, Report, described, is_sentence, kind_of
from tensors import draw_shape, normals
from torch import Tensor

from fastdiff import Sampler, Schedule
from fastdiff.sampling.requests import Request
from fastdiff.solvers import SOLVERS
from fastdiff.solvers.grids import SPACINGS

SCHEDULES = [
    Schedule.linear(1000),
    Schedule.linear(7),
    Schedule.linear(1),
    Schedule.scaled_linear(1000),
    Schedule.cosine(100),
    Schedule.sigmoid(50),
    Schedule.karras(40),
    Schedule.laplace(60),
    Schedule.exponential(60),
    Schedule.ve(1000),
    Schedule.vp(1000),
    Schedule.sub_vp(200),
    Schedule.flow(1000),
    Schedule.flow(30, shift=3.0),
    Schedule.linear(1000).rescale_zero_terminal_snr(),
    Schedule.from_betas([0.1, 0.2, 0.4]),
    Schedule.learned([5.0, 1.0, -1.0, -4.0], 4),
]
PREDICTIONS = ("epsilon", "x0", "v", "score", "flow", "edm")
ODD: tuple[Any, ...] = (
    -1, 0, 0.0, -0.5, 2, 1e-12, 1e6, 1e30, 10**9, math.nan, math.inf, -math.inf, "3", "", None,
    True, [], [1], (1.0, 2.0), {}, 2.5, torch.tensor(0.5), torch.zeros(2), lambda x: x,
)  # fmt: skip


def network(r: random.Random, twice: bool) -> Any:
    """Returns a bounded elementwise network (x, t, y=None), which may return twice the channels."""
    slope, bias, answer = r.uniform(0.1, 1.0), r.uniform(-0.3, 0.3), r.randrange(3)

    def model(x: Tensor, t: Tensor, y: Tensor | None = None) -> Any:
        time = (t.to(x.dtype) * 0.01).cos().view(-1, *(1,) * (x.ndim - 1))
        out = torch.tanh(slope * x + bias) * time
        if y is not None:
            out = out + 0.1 * y.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
        if twice:
            out = torch.cat([out, 0.5 * out], dim=1)
        if answer == 1:
            return (out, None)
        return out

    return model


def option(r: random.Random, value: Any) -> Any:
    """Returns a value of a solver's option: mostly one of the kind of its default."""
    if r.random() < 0.06:
        return r.choice(ODD)
    if isinstance(value, bool):
        return r.random() < 0.5
    if isinstance(value, int):
        return r.randint(0, 5)
    if isinstance(value, float):
        return r.choice((0.0, 0.3, 1.0, 1.0, 1.003, 2.0, 40.0, r.random()))
    if isinstance(value, str):
        return r.choice(("midpoint", "heun", "bh1", "bh2", "fixed_small", "fixed_large", "learned",
                         "learned_range", "snr", "nested", value))  # fmt: skip
    if isinstance(value, tuple):
        return r.choice(((), (0,), (0, 1)))
    return r.choice((value, None, 0.5))


def draw_settings(r: random.Random) -> tuple[dict[str, Any], bool]:
    """Returns the arguments of a sampler, and whether all of its numbers are of usual size."""
    solver = r.choice(list(SOLVERS))
    settings: dict[str, Any] = {"schedule": r.choice(SCHEDULES), "solver": solver}
    most = settings["schedule"].num_train_timesteps if r.random() < 0.9 else 1000
    settings["steps"] = min(r.choice((1, 2, 3, 4, 5, 7, 10, 20)), most)
    if r.random() < 0.8:
        settings["prediction_type"] = r.choice(PREDICTIONS)
    if r.random() < 0.6:
        settings["timestep_spacing"] = r.choice(SPACINGS)
    for name, value in SOLVERS[solver].options.items():
        if r.random() < 0.4:
            settings[name] = option(r, value)
    rare: dict[str, Any] = {
        "clip_range": (1.0, 2.5),
        "dynamic_threshold": (0.9, 0.995, 1.0),
        "guidance_rescale": (0.3, 1.0),
        "guidance_interval": ((0.1, 2.0), (0.0, math.inf)),
        "guidance_type": ("cfg", "cfg++", "cfg_zero_star", "apg"),
        "sde_rows": ((0, 1), (1, 3), [2, 2], (0, 20), (3, 1)),
        "timesteps": ([3, 1, 0], [900, 500, 20], [2.5, 1.5], [0]),
        "network_batch": (1, 2, 3, 5),
        "guidance_scale": (0, 1, 2.5, 7.5, -1.0, [1.0, 2.0]),
        "graph": ("auto", False, False, True),
        "on_oom": ("raise", "split"),
        "decode": (None, lambda x: x),
    }
    for name, values in rare.items():
        if r.random() < 0.15:
            settings[name] = r.choice(values)
    of_kind: dict[str, tuple[Any, ...]] = {
        "cfg_zero_star": (("zero_init_steps", (0, 1, 3)),),
        "apg": (
            ("apg_eta", (0, 0.5, 1)),
            ("apg_norm", (None, 0.5, 10.0)),
            ("apg_momentum", (0, -0.75, 0.5)),
            ("apg_space", ("x0", "output")),
        ),
    }
    for name, values in of_kind.get(settings.get("guidance_type", "cfg"), ()):
        if r.random() < 0.5:
            settings[name] = r.choice(values)
    odd = r.random() < 0.12
    if odd:
        settings[r.choice((*settings, *rare, "eta", "nonsense"))] = r.choice(ODD)
    return settings, not odd


def draw_call(r: random.Random, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `sample`, except the shape."""
    batch = r.choice((1, 2, 3, 5))
    shape = (batch, *draw_shape(r)[1:][-3:])
    shape = tuple(min(n, 12) for n in shape)
    ids = [r.choice((0, 1, 5, 2**56 - 1, r.getrandbits(56))) for _ in range(batch)]
    call: dict[str, Any] = {"seed": r.choice((0, 7, 2**63, 2**64 - 1, r.getrandbits(64)))}
    call["sample_ids"] = r.choice((None, ids, torch.tensor(ids, dtype=torch.int64)))
    strength = settings.get("guidance_scale", 1)
    if not isinstance(strength, int) or strength != 1 or r.random() < 0.2:
        call["cond"] = {"y": torch.arange(batch)}
        call["uncond"] = {"y": torch.zeros(batch, dtype=torch.int64)}
    if r.random() < 0.1:
        call["guidance_scale"] = torch.linspace(0.0, 3.0, batch)
        call["cond"], call["uncond"] = (
            {"y": torch.arange(batch)},
            {"y": torch.zeros(batch, dtype=torch.int64)},
        )
    if r.random() < 0.1:
        call["image"] = torch.zeros(shape)
        call[r.choice(("start", "strength"))] = r.choice((0, 1, 0.5, 0.8))
    elif r.random() < 0.1:
        call["x_T"] = normals(r, shape, torch.float32, 1.0)  # of equal numbers nothing is rescaled
    if r.random() < 0.08:
        call["mask"], call["known"] = (
            torch.zeros(shape[1:]),
            normals(r, shape[1:], torch.float32, 1.0),
        )
    if r.random() < 0.1:
        call["steps"] = r.choice((1, 3, [2] * batch, list(range(1, batch + 1))))
    if r.random() < 0.15:
        call["dtype"] = torch.float64
    if r.random() < 0.05:
        name = r.choice(("seed", "sample_ids", "steps", "start", "x_T", "image", "mask", "dtype",
                         "guidance_scale", "cond", "strength", "callback", "last_k"))  # fmt: skip
        call[name] = r.choice(ODD)
        if callable(call[name]):
            call[name] = "no function"  # one of other arguments raises Python's own error
        call["odd"] = True
    call["shape"] = shape
    return call


def _part(call: dict[str, Any], chosen: list[int]) -> dict[str, Any]:
    """Returns the arguments for some of the samples, in their order."""
    batch = call["shape"][0]
    ids = range(batch) if call["sample_ids"] is None else call["sample_ids"]
    part = dict(call, shape=(len(chosen), *call["shape"][1:]))
    part["sample_ids"] = [int(ids[b]) for b in chosen]
    for name, value in call.items():
        if name in ("mask", "known", "shape", "sample_ids"):
            continue
        if isinstance(value, Tensor) and value.ndim and len(value) == batch:
            part[name] = value[chosen]
        if isinstance(value, list) and len(value) == batch:
            part[name] = [value[b] for b in chosen]
        if isinstance(value, dict):
            part[name] = {k: v[chosen] for k, v in value.items()}
    return part


def run(r: random.Random, report: Report) -> None:
    """Executes one case: makes a sampler, samples, and compares the ways to sample."""
    settings, ordinary = draw_settings(r)
    call = draw_call(r, settings)
    odd = call.pop("odd", False)
    shape = call["shape"]
    twice = len(shape) > 1 and "learned" in str(settings.get("variance_type", ""))
    model = network(r, twice)
    if os.environ.get("FUZZ_SHOW"):
        print(f"settings {settings}\ncall {call}")
    try:
        sampler = Sampler(model, **settings)
        first = sampler.sample(**call)
    except Exception as error:
        if is_sentence(error):
            report.count(f"refused: {kind_of(str(error))}")
        else:
            report.finding(f"{settings['solver']} raised {described(error)}")
        return
    report.count("configurations sampled")
    report.count(f"solver {settings['solver']}")
    if tuple(first.shape) != shape and not odd:
        report.finding(f"{settings['solver']}: samples of shape {list(first.shape)}, not {shape}")
    if not bool(first.isfinite().all()):
        if settings.get("guidance_rescale"):
            # the network saturates: of equal outputs the deviation, which divides, is 0
            report.count("rescaled guidance of equal outputs")
            return
        kinds = "ordinary numbers" if ordinary and not odd else "odd arguments"
        report.finding(f"{settings['solver']}: samples are not finite for {kinds}")
        return
    if odd:
        return
    try:
        second = sampler.sample(**call)
        if not torch.equal(first, second):
            report.finding(f"{settings['solver']}: a second run has other bits")
        batch = shape[0]
        chosen = r.sample(range(batch), r.randint(1, batch))
        part = sampler.sample(**_part(call, chosen))
        if not torch.equal(part, first[chosen]):
            report.finding(f"{settings['solver']}: samples {chosen} of {batch} have other bits")
        report.count("compared with a part of the ids")
        if r.random() < 0.15 and not {"x_T", "image", "mask"} & call.keys():
            _other_doors(r, sampler, call, report, settings["solver"])
    except Exception as error:
        report.finding(f"{settings['solver']} raised at a later run {described(error)}")


def _other_doors(
    r: random.Random, sampler: Sampler, call: dict[str, Any], report: Report, solver: str
) -> None:
    """Compares `stream` and `serve` with `sample`, for ids from 0 or another first one."""
    first_id, shape = r.choice((0, 3, 2**56 - 9)), call["shape"]
    rest = {k: v for k, v in call.items() if k not in ("shape", "sample_ids")}
    ids = range(first_id, first_id + shape[0])
    expected = sampler.sample(shape, **rest, sample_ids=list(ids))
    batches = sampler.stream(
        shape[0], shape[1:], **rest, first_id=first_id, batch_size=r.choice((1, 2, 3))
    )
    # NaN, of a rescale of equal outputs, is no number
    if not torch.equal(torch.cat(list(batches)).nan_to_num(9e9), expected.nan_to_num(9e9)):
        report.finding(f"{solver}: a stream has other bits than sample")
    report.count("compared with a stream")
    if {"cond", "uncond", "guidance_scale", "steps"} & rest.keys():
        return
    requests = [Request(sample_id=i, seed=call["seed"]) for i in ids]
    served = sampler.serve(
        iter(requests), shape[1:], batch_size=r.choice((1, 2, 4)), dtype=call.get("dtype")
    )
    found = {request.sample_id: sample for request, sample in served}
    if not torch.equal(torch.stack([found[i] for i in ids]), expected):
        report.finding(f"{solver}: serve has other bits than sample")
    report.count("compared with serve")


CAMPAIGN = Campaign(run, cases=30_000, short=120, batch=200, seconds=30.0, memory=4 << 30)
