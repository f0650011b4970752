"""Drives a drop-in and its peer through the same way of being used, and compares what came out.

A row is a class with a configuration, and a way (ways.py) is a function of a `Drive`: one
scheduler of one side with a network, a start and draws that are the same on both sides. A `Drive`
records every tensor that a step returns, so most ways return nothing of their own. `difference`
compares the records of both sides: shapes, dtypes, values, and whether they raised. Where both
raise, fastdiff's error must be a sentence of its own.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from case import Case
from cases import CASES, diffusers, network, ours
from torch import Tensor

from fastdiff import randn

SHAPE = (2, 3, 4, 4)
STEPS = 5
# Loops of few long steps in float32, relative to the largest value: the peer rounds coefficients
# and states to float32, which its steps of high order amplify. A fault of meaning is over 1e-2.
TOLERANCE = 3e-4
_ROUNDED = {torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Deviates(AssertionError):
    """What a way gives differs from what the peer gives."""


class Row(NamedTuple):
    """A class with a configuration.

    mark: distinguishes the rows of one class.
    numbers: False where no generator repeats the peer's noise; then only shapes, dtypes
        and errors are compared.
    """

    case: Case
    mark: str = ""
    numbers: bool = True

    @property
    def id(self) -> str:
        return self.case.name.removesuffix("Scheduler") + (f"({self.mark})" if self.mark else "")


def _row(name: str, mark: str, *, config: dict[str, Any] | None = None, **more: Any) -> Row:
    numbers = more.pop("numbers", True)
    return Row(Case(f"{name}Scheduler", config or {}, **more), mark, numbers)


_MIN = {"final_sigmas_type": "sigma_min"}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_EPS = {"algorithm_type": "dpmsolver", **_MIN}
_LEARNED = {"variance_type": "learned_range"}
_NOISE = {"algorithm_type": "noise_prediction"}


def _angles(steps: int) -> dict[str, Any]:
    return {"num_inference_steps": steps, "intermediate_timesteps": None}


ROWS = [
    *(Row(case) for case in {case.name: case for case in reversed(CASES)}.values()),
    _row("CosineDPMSolverMultistep", "", kinds=("v_prediction",), numbers=False),
    _row("RePaint", "", kinds=("",), stochastic=True),
    _row("CogVideoXDPM", "", stochastic=True),
    _row("SCM", "", kinds=("",), stochastic=True, set=_angles),
    _row("DDPMWuerstchen", "", kinds=("",), stochastic=True),
    _row("MiniMaxH3", "", kinds=("",)),
    _row("DDIM", "eta", step={"eta": 0.7}, stochastic=True, config={"clip_sample": False}),
    _row("DDPM", "learned", config=_LEARNED, learned=True, stochastic=True),
    _row("PNDM", "prk"),
    _row("EulerDiscrete", "churn", step={"s_churn": 4.0}, stochastic=True),
    _row("EulerDiscrete", "karras", config={"use_karras_sigmas": True}),
    _row("DPMSolverMultistep", "3", config={"solver_order": 3}),
    _row("DPMSolverMultistep", "sde", config=_SDE, stochastic=True),
    _row("DPMSolverMultistep", "eps", config=_EPS),
    _row("DPMSolverSinglestep", "3", config={"solver_order": 3}),
    _row("DPMSolverSinglestep", "sde", config=_SDE, stochastic=True),
    _row("UniPCMultistep", "3", config={"solver_order": 3}),
    _row("UniPCMultistep", "flow", config={"use_flow_sigmas": True}, kinds=("flow_prediction",)),
    _row("SASolver", "3,4", config={"predictor_order": 3, "corrector_order": 4}, stochastic=True),
    _row("SASolver", "eps", config=_NOISE, stochastic=True),
    _row("EDMEuler", "churn", step={"s_churn": 4.0}, stochastic=True),
    _row("EDMDPMSolverMultistep", "sde", config=_SDE, stochastic=True),
    _row(
        "FlowMatchEulerDiscrete",
        "sde",
        config={"stochastic_sampling": True},
        kinds=("",),
        stochastic=True,
    ),
    _row("FlowMatchHeunDiscrete", "churn", step={"s_churn": 3.0}, kinds=("",), stochastic=True),
    _row("DDIM", "threshold", config={"thresholding": True, "sample_max_value": 1.5}),
]


GOALS = ("SCMScheduler", "DDPMWuerstchenScheduler")
"""The classes whose grid ends with the last step's goal."""

_MADE: dict[str, Any] = {}


@dataclass
class Drive:
    """One side of a row: makes schedulers, and takes steps as pipelines take them.

    Attributes:
        mine: whether this is fastdiff's side.
        seen: every tensor that steps returned, and what else a way showed.
        tolerance: how far both sides may differ, relative to the largest value.
    """

    row: Row
    mine: bool
    seen: list[Any] = field(default_factory=list)
    tolerance: float = TOLERANCE

    def __post_init__(self) -> None:
        self.kind = self.row.case.kinds[0]
        # what the caller of CogVideoX's solver holds: the x0 of the step before, and its timestep
        self.before: tuple[Any, Any] = (None, None)
        self.scheduler = self.new()
        self.generator: Any = torch.Generator().manual_seed(5)

    def new(self, **config: Any) -> Any:
        """A scheduler of the row."""
        kind = {"prediction_type": self.kind} if self.kind else {}
        config = {**self.row.case.config, **kind, **config}
        if self.mine:
            return getattr(ours, self.row.case.name)(**config)
        key = (self.row.id, *config.items())
        if repr(key) not in _MADE:  # some of the peer's constructors take a fifth of a second
            _MADE[repr(key)] = getattr(diffusers, self.row.case.name)(**config)
        return copy.deepcopy(_MADE[repr(key)])

    def begin(self, steps: int = STEPS, scheduler: Any = None) -> Any:
        """Calls set_timesteps, and returns the timesteps."""
        scheduler, case = self.scheduler if scheduler is None else scheduler, self.row.case
        self.before = (None, None)
        if case.name == "RePaintScheduler":
            scheduler.set_timesteps(steps, jump_length=steps, jump_n_sample=1)
        elif case.set:
            scheduler.set_timesteps(**case.set(steps))
        else:
            scheduler.set_timesteps(steps)
        return scheduler.timesteps[:-1] if case.name in GOALS else scheduler.timesteps

    def start(self, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = SHAPE) -> Tensor:
        scale = float(getattr(self.scheduler, "init_noise_sigma", 1.0))
        return randn(shape, seed=1).to(dtype) * scale

    def output(self, x: Tensor, t: Any, scheduler: Any = None) -> Tensor:
        """The network's output for a state."""
        scheduler = self.scheduler if scheduler is None else scheduler
        if hasattr(scheduler, "scale_model_input"):
            x = scheduler.scale_model_input(x, t)
        return network(x, self.kind, self.row.case.learned)

    def options(self, x: Tensor) -> dict[str, Any]:
        """The arguments of a row's step beyond output, timestep and state."""
        options = dict(self.row.case.step)
        if self.row.case.stochastic:
            options["generator"] = self.generator
        if self.row.case.name == "RePaintScheduler" and isinstance(x, Tensor):
            image = randn(tuple(x.shape), seed=7).to(x.dtype)
            options |= {"original_image": image, "mask": (image > 0).to(x.dtype)}
        return options

    def take(self, out: Tensor, t: Any, x: Tensor, scheduler: Any = None, **more: Any) -> Tensor:
        """A step with a given output; records what it returns, and returns the next state."""
        step = (self.scheduler if scheduler is None else scheduler).step
        more = {**self.options(x), "return_dict": False, **more}
        if self.row.case.name == "CogVideoXDPMScheduler":
            result = step(out, self.before[0], t, self.before[1], x, **more)
            self.before = (result[1], t)
        else:
            if self.row.case.name == "DDPMWuerstchenScheduler" and isinstance(t, Tensor):
                t = t.expand(len(x)) if t.ndim == 0 and isinstance(x, Tensor) else t
            result = step(out, t, x, **more)
        self.seen += [v.detach().clone() for v in result if isinstance(v, Tensor)]
        return result[0]

    def step(self, x: Tensor, t: Any, scheduler: Any = None, **more: Any) -> Tensor:
        """A network call and a step."""
        return self.take(self.output(x, t, scheduler), t, x, scheduler, **more)

    def loop(self, timesteps: Any, x: Tensor | None = None, scheduler: Any = None) -> Tensor:
        """Steps at timesteps."""
        x = self.start() if x is None else x
        for t in timesteps:
            x = self.step(x, t, scheduler)
        return x

    def show(self, *values: Any) -> None:
        """Records values."""
        self.seen += values


Way = Callable[[Drive], None]
WAYS: dict[str, Way] = {}
_ONLY: dict[str, Callable[[Row], bool]] = {}


def every(row: Row) -> bool:
    return True


def plain(row: Row) -> bool:
    """Whether a row is its class's first one: enough for what does not depend on the formula."""
    return not row.mark


def has(*names: str) -> Callable[[Row], bool]:
    """The rows whose class in diffusers has these methods."""
    return lambda row: (
        plain(row) and all(hasattr(getattr(diffusers, row.case.name), name) for name in names)
    )


def takes(argument: str) -> Callable[[Row], bool]:
    """The rows whose step has an argument."""
    return lambda row: argument in inspect.signature(_peer_of(row).step).parameters


def _peer_of(row: Row) -> Any:
    return getattr(diffusers, row.case.name)


def way(only: Callable[[Row], bool] = every) -> Callable[[Way], Way]:
    """Registers a way; only: the rows that have what it uses."""

    def register(function: Way) -> Way:
        WAYS[function.__name__] = function
        _ONLY[function.__name__] = only
        return function

    return register


def applies(name: str, row: Row) -> bool:
    return _ONLY[name](row)


def _run(function: Way, row: Row, mine: bool) -> tuple[Drive, Exception | None]:
    torch.default_generator.manual_seed(11)  # torch.manual_seed takes milliseconds
    drive = Drive(row, mine)
    try:
        function(drive)
    except Exception as error:  # compared with the peer's
        return drive, error
    return drive, None


def _values(expected: list[Any], got: list[Any], tolerance: float, numbers: bool) -> str | None:
    if len(expected) != len(got):
        return f"gave {len(got)} values for {len(expected)}"
    size = 1.0
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        if not isinstance(a, Tensor):
            near = isinstance(a, float) and isinstance(b, float) and abs(a - b) <= 1e-5 * abs(a)
            if not near and not (type(a) is type(b) and a == b):
                return f"gave {b!r} as value {i}, the peer {a!r}"
            continue
        if not isinstance(b, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            b_is, a_is = (
                f"{v.dtype} {list(v.shape)}" if isinstance(v, Tensor) else repr(v) for v in (b, a)
            )
            return f"gave {b_is} as value {i}, the peer {a_is}"
        if not numbers or not a.numel():
            continue
        finite = a.isfinite()
        if not torch.equal(finite, b.isfinite()):
            return f"gave other infinities or NaN as value {i}"
        a, b = a[finite].double(), b[finite].double()
        size = max(size, float(a.abs().max())) if a.numel() else size
        limit = max(tolerance, _ROUNDED.get(expected[i].dtype, 0.0))
        off = float((a - b).abs().max()) / size if a.numel() else 0.0
        if off > limit:
            return f"was off by {off:.1e} of the largest value in value {i}"
    return None


_SENTENCE = re.compile(r"^fastdiff\.[\w.]+: expected ", re.S)


def difference(function: Way, row: Row) -> str | None:
    """In what the drop-in differs from its peer when both are used this way; None if in nothing."""
    theirs, their_error = _run(function, row, False)
    mine, error = _run(function, row, True)
    if error is not None and not _SENTENCE.match(str(error)):
        return f"raised a bare {type(error).__name__}: {error}"
    if error is not None and their_error is not None:
        return None
    if error is not None:
        return f"raised {type(error).__name__}, the peer nothing: {error}"
    if their_error is not None:
        return f"raised nothing, the peer {type(their_error).__name__}: {their_error}"
    return _values(theirs.seen, mine.seen, mine.tolerance, row.numbers)
