"""Any explicit Runge-Kutta method, by its tableau (`tableaus`), on the probability flow.

The flow is dy/du = eps in u = rho = sigma/alpha with y = x/alpha (Karras et al. 2022, eq. 3), or
dy/du = eps - x0 in u = sigma/(alpha + sigma) with y = x/(alpha + sigma), which is flow time.

Between two network calls a method needs the state at the next stage, which is x, and of the rest as
few tensors as span what the later stages and the result need. These are the slots of the row, of
which there are four, enough for any method of nine stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log
from typing import Annotated, NamedTuple

from ..table import SLOTS
from .flow import velocity
from .grids import Time
from .karras import euler_step, slope
from .options import one_of
from .registry import Configuration, Peer, solver
from .tableaus import TABLEAUS, Tableau, TableauOption, tableau_of
from .trace import Linear, Trace

Variable = Annotated[str, one_of(("sigma", "flow"))]
Vector = list[float]  # the coefficients of y and of each stage's h k
_TOLERANCE = 1e-10


def coordinates(basis: Sequence[Vector], wanted: Vector) -> list[float] | None:
    """Returns the coefficients of a vector in a basis, or None outside its span.

    By Gauss' elimination with the largest pivots. basis: independent vectors.
    """
    size = len(basis)
    rows = [[*(vector[i] for vector in basis), wanted[i]] for i in range(len(wanted))]
    for k in range(size):
        pivot = max(range(k, len(rows)), key=lambda i, k=k: abs(rows[i][k]))  # type: ignore[misc]
        rows[k], rows[pivot] = rows[pivot], rows[k]
        for i in range(len(rows)):
            if i != k:
                factor = rows[i][k] / rows[k][k]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    if any(abs(row[size]) > _TOLERANCE for row in rows[size:]):
        return None
    found = [rows[k][size] / rows[k][k] for k in range(size)]
    return [value if abs(value) > _TOLERANCE else 0.0 for value in found]


class Row(NamedTuple):
    """The sums that a network call makes, each as its coefficients of the terms at hand.

    These are y at the stage, the stage's h k, and the remembered tensors.

    Attributes:
        following: of y at the next stage, or of the result.
        kept: of the tensors to remember.
    """

    following: list[float]
    kept: list[list[float]]


def rows_of(tableau: Tableau) -> list[Row]:
    """Returns a row for each stage.

    After the call of stage i the later stages' y are known as far as k_i. Of these vectors in y and
    k_0 … k_i the next one is x, and those that are remembered span the rest with it.
    """
    stages = len(tableau.b)
    targets = [[1.0, *row, *[0.0] * (stages - len(row))] for row in (*tableau.a, tableau.b)]
    memory: list[Vector] = []
    result = []
    for i in range(stages):
        slope = [float(j == i + 1) for j in range(stages + 1)]
        known = [targets[i], slope, *memory]
        later = [[*v[: i + 2], *[0.0] * (stages - 1 - i)] for v in targets[i + 1 :]]
        memory = later[:1]
        for vector in reversed(later[1:]):
            if coordinates(memory, vector) is None:
                memory.append(vector)
        following, *kept = (coordinates(known, vector) for vector in memory)
        assert following is not None, "what is remembered spans what later stages need"
        result.append(Row(following, [found for found in kept if found is not None]))
        memory = memory[1:]
    return result


@solver(
    "rk",
    paper="Butcher 2016, section 23: an explicit Runge-Kutta method by its tableau",
    order=4,
    calls=4,
    arrays=6,
    configurations=[
        Configuration(order=4),
        *(
            Configuration({"tableau": name}, order=found.order)
            for name, found in TABLEAUS.items()
            if name != "rk4"
        ),
        Configuration({"variable": "flow"}, order=4),
        Configuration({"tableau": "kutta3", "variable": "flow"}, order=3),
        Configuration({"tableau": (((), (0.6,)), (1 / 6, 5 / 6))}, order=2),
    ],
    peer=Peer("HeunDiscrete", {"timestep_spacing": "leading"}, sampler="heun", steps=25),
)
def rk(
    p: Trace, times: Sequence[Time], *, tableau: TableauOption = "rk4", variable: Variable = "sigma"
) -> Linear:
    """y_next = y + h Σ b_i k_i, with k_i at y + h Σ a_ij k_j.

    The step into clean data is Euler's; in `sigma` that from pure noise too.

    Args:
        tableau: a name of `fastdiff.solvers.tableaus.TABLEAUS`, or (a, b) or (a, b, c) as numbers.
        variable: `sigma` for rho, or `flow` for flow time.
    """
    method = tableau_of(tableau)
    rows = rows_of(method)
    most = max(len(row.kept) for row in rows)
    if most > SLOTS:
        raise ValueError(
            f"fastdiff.Sampler: expected a tableau that remembers at most {SLOTS} tensors between"
            f" network calls, got one that needs {most}."
        )
    flow = variable == "flow"
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        if s.sigma == 0 or (t.rho == inf and not flow):
            x = euler_step(t, s, p.x(), x0)
        else:
            x = _step(p, t, s, x0, method.c, rows, flow)
    return x


def _step(
    p: Trace, t: Time, s: Time, x0: Linear, c: Sequence[float], rows: Sequence[Row], flow: bool
) -> Linear:
    """Returns x_s, after the network calls of the stages behind the first."""
    derivative = velocity if flow else slope
    begin, end = _variable(t, flow), _variable(s, flow)
    at, y = t, Linear({})
    memory: list[Linear] = []
    for i, (fraction, row) in enumerate(zip(c, rows, strict=True)):
        if i:
            at = _point(p, t, s, begin + fraction * (end - begin), fraction, flow)
            x0, _, _ = p.predict(_size(at, flow) * y, at)
        change = (end - begin) * derivative(at, p.x(), x0)
        known = [p.x() / _size(at, flow), change, *memory]
        y = _combination(known, row.following)
        memory = [p.keep(_combination(known, factors)) for factors in row.kept]
    return _size(s, flow) * y


def _combination(known: Sequence[Linear], factors: Sequence[float]) -> Linear:
    total = Linear({})
    for factor, term in zip(factors, known, strict=True):
        total = total + factor * term
    return total


def _variable(point: Time, flow: bool) -> float:
    return point.sigma / (point.alpha + point.sigma) if flow else point.rho


def _size(point: Time, flow: bool) -> float:
    """Returns x/y."""
    return point.alpha + point.sigma if flow else point.alpha


def _point(p: Trace, t: Time, s: Time, value: float, fraction: float, flow: bool) -> Time:
    """Returns the point of a stage; at the ends of the step those of the grid, to the bit."""
    if fraction in (0.0, 1.0):
        return s if fraction else t
    if flow and value == 1.0:
        return t
    return p.at_log_snr(-2.0 * log(value / (1.0 - value) if flow else value))
