"""Linear multistep methods: PNDM (Liu et al. 2022), iPNDM, LMS and DEIS (Zhang & Chen 2023).

They integrate dx/drho = eps, with x the state over alpha and rho = sigma/alpha. A slope below is a
value of eps at an earlier point of the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf, log

import numpy as np

from .exponential import lagrange_basis
from .grids import Time
from .karras import euler_step, slope
from .options import Flag, Order3, Order4
from .registry import Configuration, Peer, solver
from .trace import Linear, Trace

# Adams-Bashforth's weights on an even grid, by the number of values, latest first
_ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def _combine(values: Sequence[Linear], weights: Sequence[float]) -> Linear:
    total = Linear({})
    for value, weight in zip(values, weights, strict=False):
        total = total + weight * value
    return total


def adams_bashforth(values: Sequence[Linear]) -> Linear:
    """The Adams-Bashforth combination on an even grid of the latest values, latest first.

    Its order is the number of values, at most 4; older values are left out.
    """
    return _combine(values, _ADAMS[min(len(values), len(_ADAMS)) - 1])


def transfer(t: Time, s: Time, x: Linear, eps: Linear) -> Linear:
    """Returns DDIM's step x_s = (alpha_s/alpha_t) x_t + (sigma_s - alpha_s sigma_t/alpha_t) eps.

    It is phi in Liu et al. 2022, eq. 11.
    """
    on_x, on_eps = _transfer(t, s)
    return on_x * x + on_eps * eps


def _transfer(t: Time, s: Time) -> tuple[float, float]:
    """Returns the coefficients of x_t and eps in `transfer`."""
    return s.alpha / t.alpha, s.sigma - s.alpha * t.sigma / t.alpha


def _step(t: Time, s: Time, x0: Linear, eps: Linear, change: Linear) -> Linear:
    """Returns DDIM's step plus the term that a change of slope adds, both times alpha_s.

    DDIM's step is alpha_s (x_t/alpha_t + (rho_s - rho_t) eps) = alpha_s x0 + sigma_s eps. At pure
    noise, where rho_t is infinite, the change is zero, because no earlier slope exists.
    """
    return s.alpha * x0 + s.sigma * eps + s.alpha * change


def _adams(t: Time, s: Time, slopes: Sequence[Linear]) -> Linear:
    """Returns (rho_s - rho_t)(Σ a_k d_k - d_0), the change of slope for `_step`.

    slopes: d_k, the latest first. a_k are the weights of an even grid; their sum is 1.
    """
    if len(slopes) == 1:
        return Linear({})
    return (s.rho - t.rho) * (adams_bashforth(slopes) - slopes[0])


@solver(
    "pndm",
    paper="Liu et al. 2022 (PNDM), eq. 11 to 13; algorithm 2",
    order=2,
    arrays=7,
    configurations=[
        Configuration(order=2),
        Configuration({"runge_kutta": True}, order=2),
        Configuration({"improved_start": True}, order=2),
    ],
    peer=Peer("PNDM", {"skip_prk_steps": True}, theirs=49),
)
def pndm(
    p: Trace, times: Sequence[Time], *, runge_kutta: Flag = False, improved_start: Flag = False
) -> Linear:
    """Adams-Bashforth of order 4 on eps, with DDIM's transfer as the step.

    The order rises over the first steps, unless an option replaces these.

    Args:
        runge_kutta: take the first three steps by pseudo Runge-Kutta, with four network calls each
            (F-PNDM).
        improved_start: take the first step by pseudo improved Euler, with two network calls
            (S-PNDM), as PLMS samplers do.
    """
    if runge_kutta and improved_start:
        raise ValueError(
            "fastdiff.Sampler: expected runge_kutta or improved_start, got both. Each replaces the"
            " first steps; choose one."
        )
    x = p.start
    past: list[Linear] = []
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        x0, eps = p.predict_eps(x, t)
        inner = s.log_snr < inf and t.log_snr > -inf
        if improved_start and i == 0 and inner:
            to_end = _transfer(t, s)
            first = p.keep(eps)
            _, e2 = p.predict_eps(transfer(t, s, p.x(), eps), s)
            start = (p.x() - to_end[1] * first) / to_end[0]
            x, past = transfer(t, s, start, 0.5 * (first + e2)), [first]
            continue
        if runge_kutta and i < 3 and inner:
            middle = p.at(round(0.5 * (t.t + s.t)))
            # the state at the start needs no slot, because the state of each stage determines it;
            # the slots are left for the history
            to_middle, to_end = _transfer(t, middle), _transfer(t, s)
            first = p.keep(eps)
            _, e2 = p.predict_eps(transfer(t, middle, p.x(), eps), middle)
            start, second = (p.x() - to_middle[1] * first) / to_middle[0], p.keep(e2)
            _, e3 = p.predict_eps(transfer(t, middle, start, e2), middle)
            start = (p.x() - to_middle[1] * second) / to_middle[0]
            base = p.keep(transfer(t, s, start, (first + 2.0 * second + 2.0 * e3) / 6.0))
            _, e4 = p.predict_eps(transfer(t, s, start, e3), s)
            x = base + (to_end[1] / 6.0) * e4
            past = [first, *past][:3]
            continue
        x = _step(t, s, x0, eps, _adams(t, s, [eps, *past]))
        if i < len(times) - 2:
            past = [p.keep(eps), *past][:3]
    return x


@solver(
    "ipndm",
    paper="Zhang & Chen 2023 (iPNDM), section 4; Adams-Bashforth in rho",
    order=2,
    arrays=7,
    configurations=[Configuration(order=2), Configuration({"order": 1}, order=1)],
    peer=Peer("IPNDM", {"num_train_timesteps": 1000}, betas=False, prediction_type="v"),
)
def ipndm(p: Trace, times: Sequence[Time], *, order: Order4 = 4) -> Linear:
    """x_s = x_t + (rho_s - rho_t) Σ a_k d_k, with the weights a_k of an even grid.

    order: number of slopes, 1 to 4; it rises over the first steps.
    """
    x, past = p.start, []  # type: ignore[var-annotated]
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        x0, _, _ = p.predict(x, t)
        d = slope(t, p.x(), x0)
        x = _step(t, s, x0, d, _adams(t, s, [d, *past]))
        if i < len(times) - 2:
            past = [p.keep(d), *past][: order - 1]
    return x


def lagrange_integrals(nodes: Sequence[float], begin: float, end: float) -> list[float]:
    """Returns the integral of each Lagrange basis polynomial of the nodes from `begin` to `end`."""
    return [float(basis.integ(lbnd=begin)(end)) for basis in lagrange_basis(nodes)]


@solver(
    "lms",
    paper="Adams-Bashforth on the uneven grid of rho (Karras et al. 2022, eq. 3)",
    order=2,
    arrays=7,
    configurations=[
        Configuration({"order": 1}, order=1),
        Configuration({"order": 2}, order=2),
        Configuration({"order": 3}, order=3),
        Configuration({"order": 4}, order=4, exact_start=True),
    ],
    peer=Peer("LMSDiscrete", {"timestep_spacing": "leading"}, sampler="lms"),
)
def lms(p: Trace, times: Sequence[Time], *, order: Order4 = 4) -> Linear:
    """x_s = x_t + Σ d_k ∫ l_k(rho) drho: a polynomial in rho interpolates the slopes.

    order: number of slopes, 1 to 4; it rises over the first steps.
    """
    x = p.start
    past: list[tuple[Linear, float]] = []
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        x0, _, _ = p.predict(x, t)
        if order == 1:
            x = euler_step(t, s, p.x(), x0)
            continue
        d = slope(t, p.x(), x0)
        known = [(d, t.rho), *past][:order]
        x = euler_step(t, s, p.x(), x0)
        if len(known) > 1:
            weights = lagrange_integrals([rho for _, rho in known], t.rho, s.rho)
            x = _step(t, s, x0, d, _combine([v for v, _ in known], weights) - (s.rho - t.rho) * d)
        if i < len(times) - 2 and t.rho < inf:
            past = [(p.keep(d), t.rho), *past][: order - 1]
    return x


def _ahead(steps: Sequence[float], as_published: bool) -> list[float]:
    """Returns the weights of the slopes, latest first, of Adams-Bashforth's method on any grid.

    Newton's polynomial through the slopes, integrated over the step and divided by its width.

    Args:
        steps: the width of the step to take and those of the steps before, latest first.
        as_published: with the slips of the published code, see `ipndm_v`.
    """
    h, back = steps[0], steps[1:]
    weights = [1.0] + [0.0] * len(back)
    # the k-th backward difference is 1 at the latest slope: Π distance_j/(node_i - node_j)
    nodes = [0.0]
    for step in back:
        nodes.append(nodes[-1] - step)
    for k in range(1, len(nodes)):
        scale = _product(-node for node in nodes[1 : k + 1])
        polynomial = np.polynomial.Polynomial.fromroots(nodes[:k])
        mean = float(polynomial.integ()(h)) / h / scale
        each = [
            scale / _product(nodes[i] - nodes[j] for j in range(k + 1) if j != i)
            for i in range(k + 1)
        ]
        if as_published and k == 2:
            mean = 0.5 * (1.0 - h**2 / (3.0 * scale))
        if as_published and k == 3:
            a, b = h + back[0], h + back[0] + back[1]
            share = 0.5 * (1.0 - h / (3.0 * a)) + (1.0 - h / (2.0 * a)) * h / (6.0 * b)
            mean = share * h * a * b / scale
            each[3] *= back[0] * back[2] / back[1] ** 2
        for i, value in enumerate(each):
            weights[i] += mean * value
    return weights


def _product(values: Iterable[float]) -> float:
    total = 1.0
    for value in values:
        total *= value
    return total


@solver(
    "ipndm_v",
    paper="Zhang & Chen 2023 (iPNDM) with Adams-Bashforth's weights of the grid's own steps",
    order=2,
    arrays=7,
    configurations=[
        Configuration({"order": 1}, order=1),
        Configuration({"order": 2}, order=2),
        Configuration({"order": 3}, order=3),
        Configuration({"order": 4}, order=4, exact_start=True),
        Configuration({"as_published": True, "order": 3}, order=2),
        Configuration({"as_published": True}),
    ],
    peer=Peer(sampler="lms"),
)
def ipndm_v(
    p: Trace, times: Sequence[Time], *, order: Order4 = 4, as_published: Flag = False
) -> Linear:
    """x_s = x_t + (rho_s - rho_t) Σ a_k d_k, with a_k of Newton's polynomial through the slopes.

    It is `lms` in another form, but for the step into clean data, which is Euler's.

    Args:
        order: number of slopes, 1 to 4; it rises over the first steps.
        as_published: the weights of the published code, which differ from the integrals at orders 3
            and 4: it divides 1 - h²/(3 h1 (h1 + h2)) by 2 for the second difference; in the third
            it adds a term that the integral subtracts, and takes h1/h2 for h2/h3 at the oldest
            slope, so that the weights do not add up to 1 on an uneven grid.
    """
    x = p.start
    past: list[tuple[Linear, float]] = []
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        x0, _, _ = p.predict(x, t)
        d = slope(t, p.x(), x0)
        past = [q for q in past if q[1] != t.rho]  # equal points give no slope
        known = [(d, t.rho), *past][: 1 if s.rho in (0, t.rho) else order]
        x = euler_step(t, s, p.x(), x0)
        if len(known) > 1:
            levels = [s.rho, *(rho for _, rho in known)]
            steps = [a - b for a, b in zip(levels, levels[1:], strict=False)]
            change = _combine([v for v, _ in known], _ahead(steps, as_published)) - d
            x = _step(t, s, x0, d, (s.rho - t.rho) * change)
        if i < len(times) - 2 and t.rho < inf:
            past = [(p.keep(d), t.rho), *past][: order - 1]
    return x


def _deis_two(a: float, b: float) -> Callable[[float], float]:
    """Returns the antiderivative in rho of the polynomial in ln rho that is 1 at a and 0 at b."""
    return lambda r: 0.0 if r == 0 else r * (log(r) - log(b) - 1) / (log(a) - log(b))


def _deis_three(a: float, b: float, c: float) -> Callable[[float], float]:
    """Returns the same for the polynomial that is 1 at a and 0 at b and c."""

    def antiderivative(r: float) -> float:
        if r == 0:
            return 0.0
        value = (
            log(b) * (log(c) - log(r) + 1) - log(c) * log(r) + log(c) + log(r) ** 2 - 2 * log(r) + 2
        )
        return r * value / ((log(a) - log(b)) * (log(a) - log(c)))

    return antiderivative


@solver(
    "deis",
    paper="Zhang & Chen 2023 (DEIS), eq. 15, log-rho variant",
    order=3,
    arrays=6,
    configurations=[
        Configuration({"order": 1}, order=1),
        Configuration({"order": 2}, order=2),
        Configuration({"order": 3}, order=3, exact_start=True),
    ],
    peer=Peer("DEISMultistep", {"solver_order": 3, "timestep_spacing": "leading"}),
)
def deis(
    p: Trace, times: Sequence[Time], *, order: Order3 = 3, lower_order_final: Flag = False
) -> Linear:
    """x_s/alpha_s = x_t/alpha_t + Σ eps_k ∫ l_k(ln rho) drho: a polynomial in ln rho for eps.

    Args:
        order: number of values of eps, 1 to 3; it rises over the first steps.
        lower_order_final: the order falls to 1 over the last steps, which is more stable with few
            steps.
    """
    x = p.start
    past: list[tuple[Linear, float]] = []
    for i, (t, s) in enumerate(zip(times, times[1:], strict=False)):
        x0, eps = p.predict_eps(x, t)
        past = [q for q in past if q[1] != t.rho]  # equal points give no slope
        known = [(eps, t.rho), *past][
            : 1 if s.rho == 0 else min(order, len(times) - 1 - i) if lower_order_final else order
        ]
        nodes = [rho for _, rho in known]
        x = s.alpha * x0 + s.sigma * eps
        if len(known) > 1:
            weights = []
            for j, node in enumerate(nodes):
                rest = [rho for k, rho in enumerate(nodes) if k != j]
                whole = _deis_two(node, *rest) if len(rest) == 1 else _deis_three(node, *rest)
                weights.append(whole(s.rho) - whole(t.rho))
            x = _step(
                t, s, x0, eps, _combine([e for e, _ in known], weights) - (s.rho - t.rho) * eps
            )
        if i < len(times) - 2 and t.rho < inf:
            past = [(p.keep(eps), t.rho), *past][: order - 1]
    return x
