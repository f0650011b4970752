"""RePaint: inpainting by going back and forth in time (Lugmayr et al. 2022).

The plan has only the steps. The loop that executes it blends in the known part of the picture, at
the noise level of each row's next state.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from .ddim import ddim_step
from .grids import Time
from .options import Count, Share, shown
from .registry import Configuration, Peer, solver
from .trace import Linear, Trace

_MOST_ROWS = 2**20  # of a plan


def resampling(steps: int, jump_length: int, jump_n_sample: int) -> list[int]:
    """Returns the visited indices of the grid, from 0 to `steps`.

    Whenever a multiple of jump_length steps remains, the path goes back by jump_length steps,
    jump_n_sample - 1 times, unless that would reach the start (Lugmayr et al. 2022, section 4.2 and
    appendix B).

    Raises ValueError for a path of too many steps.
    """
    jumps = len(range(0, steps - jump_length, jump_length))
    if steps + jumps * (jump_n_sample - 1) * (jump_length + 1) > _MOST_ROWS:
        raise ValueError(
            f"fastdiff.Sampler: expected jumps that need {_MOST_ROWS} rows at most, got more with"
            f" jump_length {jump_length} and jump_n_sample {shown(jump_n_sample)}. Jump less often."
        )
    left = dict.fromkeys(range(0, steps - jump_length, jump_length), jump_n_sample - 1)
    path = [0]
    while path[-1] < steps:
        path.append(path[-1] + 1)
        remaining = steps - path[-1]
        if left.get(remaining, 0) > 0:
            left[remaining] -= 1
            path.append(path[-1] - jump_length)
    return path


def _calls(steps: int) -> int:
    """Network calls of a run with default options: each tenth point is visited ten times."""
    return steps + 10 * 9 * len(range(0, steps - 10, 10))


@solver(
    "repaint",
    paper="Lugmayr et al. 2022 (RePaint), algorithm 1",
    stochastic=True,
    total_calls=_calls,
    configurations=[Configuration(), Configuration({"jump_length": 2, "jump_n_sample": 2})],
    peer=Peer(steps=20, reason="has it only for a known picture"),
)
def repaint(
    p: Trace,
    times: Sequence[Time],
    *,
    jump_length: Count = 10,
    jump_n_sample: Count = 10,
    eta: Share = 1.0,
) -> Linear:
    """DDIM's step with eta, and x_t = alpha_ts x_s + sigma_ts z to go back.

    Going back is one row without a network call. eta = 1 gives DDPM's step. `resampling` explains
    jump_length and jump_n_sample.
    """
    x = p.start
    path = resampling(len(times) - 1, jump_length, jump_n_sample)
    for here, there in zip(path, path[1:], strict=False):
        t, s = times[here], times[there]
        if there > here:
            x0, eps, _ = p.predict(x, t)
            x = ddim_step(p, t, s, x0, eps, eta)
        else:
            alpha_st, variance_st = s.transition(t)
            x = alpha_st * p.pause(x, t) + sqrt(variance_st) * p.noise()
    return x
