"""The tracer: a solver written as in its paper becomes the rows of a table.

A solver is a Python loop over a grid of times in which x, x0, eps, the raw output, remembered terms
and noise are `Linear` terms, sums of symbols with float coefficients. `Trace.predict(x, t)` is a
network call: it closes the row before, with x as the next state of that row, and opens a new one.
Every value between two calls is linear in the symbols of the open row, so a row is a list of
coefficients, and one kernel executes the rows of all solvers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..prediction import Parametrization
from ..schedule import Time
from ..table import COLUMNS, INDEX, OPERANDS, SLOTS

Symbol = tuple[str, int]  # (operand, row) or ("slot", number of the remembered term)


class Linear:
    """A sum of symbols with float coefficients. It adds, subtracts and scales like a tensor."""

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[Symbol, float]):
        self.terms = {symbol: float(c) for symbol, c in terms.items() if c != 0}

    def __add__(self, other: Linear) -> Linear:
        if not isinstance(other, Linear):
            return NotImplemented
        terms = dict(self.terms)
        for symbol, c in other.terms.items():
            terms[symbol] = terms.get(symbol, 0.0) + c
        return Linear(terms)

    def __mul__(self, factor: float) -> Linear:
        return Linear({symbol: c * float(factor) for symbol, c in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Linear:
        return Linear({symbol: c / float(divisor) for symbol, c in self.terms.items()})

    def __neg__(self) -> Linear:
        return self * -1.0

    def __sub__(self, other: Linear) -> Linear:
        return self + (-other)

    def __repr__(self) -> str:
        return " + ".join(f"{c:.6g} {name}[{row}]" for (name, row), c in self.terms.items()) or "0"


class Prediction(NamedTuple):
    """The results of a network call: x0 after the clip, eps before it, and the raw output."""

    x0: Linear
    eps: Linear
    out: Linear


class Points(Protocol):
    """Gives points between those of a grid, and the network time there; a Schedule is one."""

    def at(self, t: float) -> Time:
        """Returns the point of a timestep."""

    def at_log_snr(self, log_snr: float) -> Time:
        """Returns the point of a log-SNR."""

    def network_time(self, point: Time) -> float:
        """Returns the number that the network gets as its time."""


class Row(NamedTuple):
    """A finished row.

    Attributes:
        at: the point of its state.
        header: columns that are no coefficients of the outputs.
        next_x: the next state.
        remembered: the terms that it keeps, by their numbers in the trace.
    """

    at: Time
    header: dict[str, float]
    next_x: Linear
    remembered: dict[int, Linear]


class Trace:
    """Records the rows of a solver, as the module's docstring describes.

    `start` is the x that a formula starts with. To continue with another formula, set it to the
    result of the first one. `holds` is a number of last rows whose remembered terms stay in their
    slots after the end, for callers that go on from there.

    Args:
        parametrization: how x0 and eps follow from x and the output (`fastdiff.prediction`), or the
            name of a prediction type.
        points: gives points between those of the grid.
        clip_range: bound of the static clip on x0, or None for no clip; with dynamic_threshold the
            largest threshold.
        dynamic_threshold: the quantile of |x0| used as the threshold, or None for a static clip.
        guidance_rescale: phi of rescaled guidance; 0 is off.
        guidance_interval: noise levels sigma/alpha (low, high) between which guidance acts, or None
            for all.
        renoise_uncond: whether the noise that rows add again is that of the unconditional output
            (CFG++, Chung et al. 2024).
    """

    def __init__(
        self,
        parametrization: Parametrization | str,
        points: Points,
        *,
        clip_range: float | None = None,
        dynamic_threshold: float | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        renoise_uncond: bool = False,
    ):
        self.points = points
        self.at, self.at_log_snr = points.at, points.at_log_snr
        self.space: str = getattr(points, "space", "vp")
        self.parametrization = (
            Parametrization(parametrization)
            if isinstance(parametrization, str)
            else parametrization
        )
        self.guidance_rescale = guidance_rescale
        self.guidance_interval = guidance_interval
        self.renoise_uncond = renoise_uncond
        self._clip: dict[str, float] = {}
        if dynamic_threshold is not None:
            bound = 1.0 if clip_range is None else clip_range
            self._clip = {"clip_mode": 2.0, "clip_bound": bound, "clip_ratio": dynamic_threshold}
        elif clip_range is not None:
            self._clip = {"clip_mode": 1.0, "clip_bound": clip_range}
        self.holds = 0
        self.rows: list[Row] = []
        self.start = Linear({("x", 0): 1.0})
        self._at: Time | None = None  # the point of the open row's state; None if no row is open
        self._header: dict[str, float] = {}
        self._remembered: dict[int, Linear] = {}
        self._remembered_total = 0

    def predict(self, x: Linear, t: Time, *, time_of: Time | None = None) -> Prediction:
        """Records a network call on x at time t.

        time_of: the point that gives the network time; None for t.
        """
        self._close(x)
        self._at, row = t, len(self.rows)
        c = self.parametrization.at(t.alpha, t.sigma)
        self._header = {
            "network": 1.0,
            "t": self.points.network_time(time_of or t),
            "input_scale": c.scale,
        }
        self._header |= {"guidance_weight": 1.0, "x0_x": c.x0_x, "x0_out": c.x0_out}
        if (
            self.guidance_interval is not None
            and not self.guidance_interval[0] <= t.rho <= self.guidance_interval[1]
        ):
            self._header["guidance_weight"] = 0.0  # strength 1: the conditional output alone
        elif self.guidance_rescale:
            self._header["guidance_rescale"] = self.guidance_rescale
        self._header |= self._clip
        out = Linear({("out", row): 1.0})
        return Prediction(
            Linear({("x0", row): 1.0}), c.eps_x * Linear({("x", row): 1.0}) + c.eps_out * out, out
        )

    def predict_eps(self, x: Linear, t: Time) -> tuple[Linear, Linear]:
        """Records a network call and returns (x0, eps), for solvers that integrate eps.

        Where x0 is clipped, eps = (x - alpha x0)/sigma follows from the clipped x0.
        """
        x0, eps, _ = self.predict(x, t)
        return x0, (self.x() - t.alpha * x0) / t.sigma if self._clip else eps

    def x(self) -> Linear:
        """Returns the state of the open row."""
        return Linear({("x", len(self.rows)): 1.0})

    def between(self, t: Time, s: Time, fraction: float) -> Time:
        """Returns the point at a fraction of the interval from t to s in log-SNR.

        s is not clean data.
        """
        return self.at_log_snr(t.log_snr + fraction * (s.log_snr - t.log_snr))

    def pause(self, x: Linear, t: Time) -> Linear:
        """Opens a row without a network call, on x at time t, and returns its state."""
        self._close(x)
        self._at, self._header = t, {"input_scale": 1.0, "guidance_weight": 1.0}
        return self.x()

    def noise(self, *, log_variance: tuple[float, float] | None = None) -> Linear:
        """Returns the open row's draw of standard normal noise; a row has one.

        log_variance: (low, high) for learned variance: the draw has the log-variance low + (high -
            low)(v + 1)/2, where v is the second half of the output (Nichol & Dhariwal 2021, eq.
            15). None for variance 1.
        """
        if self._at is None:
            raise ValueError(
                "fastdiff.solvers: expected an open row to draw noise in, got none. Open it with"
                " pause()."
            )
        self._header["noise_index"] = float(len(self.rows))
        if log_variance is not None:
            self._header |= {
                "noise_mode": 1.0,
                "logvar_lo": log_variance[0],
                "logvar_hi": log_variance[1],
            }
        return Linear({("z", len(self.rows)): 1.0})

    def keep(self, value: Linear) -> Linear:
        """Remembers a term and returns its symbol, which later rows may use."""
        self._remembered[self._remembered_total] = value
        self._remembered_total += 1
        return Linear({("slot", self._remembered_total - 1): 1.0})

    def _close(self, next_x: Linear) -> None:
        if self._at is None:
            if next_x.terms != self.start.terms or self._remembered:
                raise ValueError(
                    "fastdiff.solvers: expected the first network call on the start, got a changed"
                    " state."
                )
            return
        self.rows.append(Row(self._at, self._header, next_x, self._remembered))
        self._at, self._header, self._remembered = None, {}, {}

    def finish(self, x: Linear) -> None:
        """Ends the rows with x, the result of the solver."""
        self._close(x)

    def levels(self, end: Time) -> NDArray[np.float64]:
        """Returns (alpha, sigma) of the state before each row of the finished table.

        end: the point of the result.
        """
        return np.array([(t.alpha, t.sigma) for t in (*(row.at for row in self.rows), end)])

    def table(self, x: Linear | None = None) -> NDArray[np.float64]:
        """Returns the finished table [rows + 1, 62], with the identity as its last row.

        x: the result of the solver; None where `finish` was given it.
        """
        if x is not None:
            self._close(x)
        slots = self._allocate()
        if self.renoise_uncond:
            if slots:
                raise ValueError(
                    "fastdiff.Sampler: expected a solver of one network call a step, such as ddim,"
                    " euler or euler_ancestral, with guidance_type 'cfg++', got one that reads"
                    " earlier calls."
                )
            self.rows = [self._renoised(i, row) for i, row in enumerate(self.rows)]
        table = np.zeros((len(self.rows) + 1, len(COLUMNS)))
        for i, row in enumerate(self.rows):
            for name, number in row.header.items():
                table[i, INDEX[name]] = number
            table[i, INDEX["next"]] = i + 1
            outputs = {"x": row.next_x} | {
                f"s{slots[k]}": v for k, v in row.remembered.items() if k in slots
            }
            for to, value in outputs.items():
                for symbol, c in value.terms.items():
                    table[i, INDEX[f"{to}.{self._operand(symbol, i, slots)}"]] = c
        last = len(self.rows)
        table[last, [INDEX["next"], INDEX["x.x"], INDEX["input_scale"]]] = last, 1.0, 1.0
        return table

    def _renoised(self, number: int, row: Row) -> Row:
        """Returns a row whose next x reads the unconditional output as its noise.

        A step on x_t = alpha x0 + sigma eps is a sum D x0 + E eps + …, whatever it is written in.
        Here D reads the guided x0, and eps = eps_x x + eps_out u the unconditional output u.
        """
        if not row.header.get("network") or row.header["guidance_weight"] == 0:
            return row
        symbols = {name: Linear({(name, number): 1.0}) for name in ("x", "x0", "out")}
        on = {name: row.next_x.terms.get((name, number), 0.0) for name in symbols}
        c = self.parametrization.at(row.at.alpha, row.at.sigma)
        if c.eps_out == 0:  # eps is a part of x alone
            return row
        on_eps = on["out"] / c.eps_out
        on_x = on["x"] - on_eps * c.eps_x  # what is left of x is alpha x0 + sigma eps
        on_x0, on_eps = on["x0"] + on_x * row.at.alpha, on_eps + on_x * row.at.sigma
        rest = Linear({s: v for s, v in row.next_x.terms.items() if s[0] not in symbols})
        noise = c.eps_x * symbols["x"] + c.eps_out * symbols["out"]
        return row._replace(
            header=row.header | {"out_uncond": 1.0},
            next_x=on_x0 * symbols["x0"] + on_eps * noise + rest,
        )

    def _operand(self, symbol: Symbol, row: int, slots: Mapping[int, int]) -> str:
        name, origin = symbol
        if name == "slot":
            return f"s{slots[origin]}"
        if origin != row or name not in OPERANDS:
            raise ValueError(
                f"fastdiff.solvers: expected terms of row {row}, got {name} of row {origin}."
                " Remember it with keep()."
            )
        return name

    def _allocate(self) -> dict[int, int]:
        """Returns the slot, 1 to 4, of each remembered term that is used.

        A linear scan: a term has its slot from its row to the row of its last use.
        """
        last_use: dict[int, int] = {}
        for i, row in enumerate(self.rows):
            for value in (row.next_x, *row.remembered.values()):
                last_use |= {number: i for (name, number) in value.terms if name == "slot"}
        if last_use and self.holds:
            for row in self.rows[-self.holds :]:
                last_use |= dict.fromkeys(row.remembered, len(self.rows))
        free = list(range(1, SLOTS + 1))
        held: dict[int, int] = {}
        slots: dict[int, int] = {}
        for i, row in enumerate(self.rows):
            # a row reads before it writes, so it may write to a slot that it reads for the last
            # time
            for number in [k for k in held if last_use[k] <= i]:
                free.append(held.pop(number))
            free.sort()
            for number in row.remembered:
                if number not in last_use:
                    continue
                if not free:
                    raise ValueError(
                        f"fastdiff.solvers: expected at most {SLOTS} remembered terms at row {i},"
                        " got more."
                    )
                held[number] = slots[number] = free.pop(0)
        return slots
