"""The registry of solvers. A formula is registered under its name with all that others need of it.

The order tests, the guards, the benchmarks and the list that `fastdiff solvers` prints read it, so
a new solver needs its formula's file, with this decorator on it, and one line in
`solvers/__init__.py`:

    @solver("midpoint", paper="Runge 1895, eq. 5", order=2, calls=2)
    def midpoint(p: Trace, times: Sequence[Time]) -> Linear: ...
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_type_hints

from .aliases import SAMPLERS, grid_name
from .options import Domain, domains, one_of
from .trace import Linear

DEFAULT_SPACING = "trailing"
Formula = Callable[..., Linear]


class Configuration(NamedTuple):
    """Options that tests run a solver with, and its order of convergence under them.

    Attributes:
        options: the formula's options; {} are its defaults.
        order: the order that the tests measure, on the probability-flow ODE if tau is 0 and else
            the weak order (of mean and variance) on the reverse SDE; None if it is not measured.
        tau: the noise of the reverse SDE that the solver follows, 1 for Anderson's, as a number or
            as a function of rho.
        exact_start: whether the order shows only after an exact start. A multistep method starts
            at first order, and the error of that start hides an order above 2.
    """

    options: Mapping[str, Any] = {}
    order: int | None = None
    tau: float | Callable[[float], float] = 0.0
    exact_start: bool = False


class Peer(NamedTuple):
    """The same steps in another library, which benchmarks compare a solver with.

    Attributes:
        scheduler: diffusers' class, without "Scheduler"; "" if it has none.
        config: the scheduler's configuration.
        betas: whether the scheduler takes the training schedule (not for flow matching).
        sampler: k-diffusion's function, without "sample_"; "" if it has none.
        arguments: of k-diffusion's function.
        steps, theirs: steps of the solver and of the peer with the same number of network calls.
        reason: why diffusers has no scheduler, as the end of a sentence.
        space: the space of the benchmark's schedule, "vp" or "flow".
        prediction_type: of the benchmark's network.
    """

    scheduler: str = ""
    config: Mapping[str, Any] = {}
    betas: bool = True
    sampler: str = ""
    arguments: Mapping[str, float] = {}
    steps: int = 50
    theirs: int = 50
    reason: str = "has no scheduler for it"
    space: str = "vp"
    prediction_type: str = "epsilon"


class Solver(NamedTuple):
    """A registered solver: formula(trace, times, **options) returns the last x.

    Attributes:
        name: the public name.
        formula: see `fastdiff.solvers.trace`. It checks its options.
        domains: what each option may be (fastdiff.solvers.options).
        paper: where the formula is published, with its equation or algorithm.
        order: of convergence on smooth problems; the weak order of a stochastic solver.
        calls: network calls of a step.
        stochastic: whether it draws noise with its default options.
        reverse: whether it runs from data to noise.
        noiseless: options that turn its noise off, so that it follows the probability flow from
            noise to data; None if it does not follow that flow.
        total_calls: network calls of a run by its number of steps, if it is not `calls` for each
            step and one for the step into clean data.
        arrays: tensors of the state's size that its costliest row may read and write. x, the
            network's output and the next x are 3; each slot that is read or written is one more.
        configurations: what tests run it with.
        peer: what benchmarks compare it with.
    """

    name: str
    formula: Formula
    domains: Mapping[str, Domain]
    paper: str
    order: int
    calls: int
    stochastic: bool
    reverse: bool
    noiseless: Mapping[str, Any] | None
    total_calls: Callable[[int], int] | None
    arrays: int
    configurations: tuple[Configuration, ...]
    peer: Peer

    @property
    def options(self) -> dict[str, Any]:
        """Option names with their defaults: the formula's keyword-only parameters."""
        parameters = inspect.signature(self.formula).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def network_calls(self, steps: int) -> int:
        """Returns the network calls of a run that ends in clean data."""
        if self.total_calls is not None:
            return self.total_calls(steps)
        return steps if self.reverse else self.calls * (steps - 1) + 1


SOLVERS: dict[str, Solver] = {}


def solver(
    name: str,
    *,
    paper: str,
    order: int = 1,
    calls: int = 1,
    stochastic: bool = False,
    reverse: bool = False,
    noiseless: Mapping[str, Any] | None = None,
    total_calls: Callable[[int], int] | None = None,
    arrays: int = 3,
    configurations: Sequence[Configuration] | None = None,
    peer: Peer | None = None,
) -> Callable[[Formula], Formula]:
    """Registers a formula under a public name; the arguments are the attributes of `Solver`.

    The formula then checks its options, which it declares by the types of its keyword-only
    parameters (`fastdiff.solvers.options`), and raises ValueError for a value outside its domain.

    Without configurations the tests measure the order with default options, of the probability
    flow or, of a stochastic solver, of the reverse SDE with tau = 1. A deterministic solver that
    runs from noise to data follows the probability flow with any options.
    """
    if configurations is None:
        configurations = [Configuration(order=order, tau=1.0 if stochastic else 0.0)]
    if noiseless is None and not stochastic and not reverse:
        noiseless = {}

    def register(formula: Formula) -> Formula:
        if name in SOLVERS:
            raise ValueError(
                f"fastdiff.solvers: expected a new name, got {name!r} twice. Rename one."
            )
        known = domains(formula, get_type_hints(formula, include_extras=True))

        @functools.wraps(formula)
        def checked(*arguments: Any, **options: Any) -> Linear:
            read = {k: known[k].check(k, v) if k in known else v for k, v in options.items()}
            return formula(*arguments, **read)

        SOLVERS[name] = Solver(
            name,
            checked,
            known,
            paper,
            order,
            calls,
            stochastic,
            reverse,
            noiseless,
            total_calls,
            arrays,
            tuple(configurations),
            peer or Peer(),
        )
        return checked

    return register


def find(name: str) -> Solver:
    """Returns the solver of this name or alias. Raises ValueError with the known names."""
    if isinstance(name, str) and name not in SOLVERS and name in SAMPLERS:
        name = SAMPLERS[name].solver
    chosen: str = one_of(sorted(SOLVERS), SAMPLERS).check("solver", name)
    return SOLVERS[chosen]


def resolve(name: str, options: Mapping[str, Any], spacing: str) -> tuple[str, dict[str, Any], str]:
    """Returns (solver, options, grid) in fastdiff's own names.

    An alias (`fastdiff.solvers.aliases`) brings options, which those passed replace, and in some
    cases a grid. Other names are returned as they are.

    Raises ValueError where the alias names a grid and another one than the default is passed.
    """
    spacing = grid_name(spacing)
    if not isinstance(name, str) or name in SOLVERS or name not in SAMPLERS:
        return name, dict(options), spacing
    alias = SAMPLERS[name]
    if alias.spacing is not None:
        if spacing not in (alias.spacing, DEFAULT_SPACING):
            raise ValueError(
                f"fastdiff.Sampler: expected timestep_spacing {alias.spacing!r} or none with the"
                f" solver {name!r}, which names it, got {spacing!r}."
            )
        spacing = alias.spacing
    return alias.solver, {**alias.options, **options}, spacing
