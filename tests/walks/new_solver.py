"""Someone who writes a solver: CONTRIBUTING.md, "Add a solver". It is Euler's, under a new name."""

from collections.abc import Sequence

import torch

from fastdiff import Sampler, Schedule
from fastdiff.solvers.grids import Time
from fastdiff.solvers.registry import SOLVERS, solver
from fastdiff.solvers.trace import Linear, Trace


@solver("my_euler", paper="Karras et al. 2022, algorithm 2 without its second-order part", order=1)
def my_euler(p: Trace, times: Sequence[Time]) -> Linear:
    """x_s = (sigma_s/sigma_t) x_t + (alpha_s - sigma_s alpha_t/sigma_t) x0."""
    x = p.start
    for t, s in zip(times, times[1:], strict=False):
        x0, _, _ = p.predict(x, t)
        x = (s.sigma / t.sigma) * p.x() + (s.alpha - s.sigma * t.alpha / t.sigma) * x0
    return x


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.5 * x


def draw(name: str) -> torch.Tensor:
    sampler = Sampler(network, Schedule.cosine(1000), solver=name, steps=5)
    return sampler.sample((2, 3, 8, 8), seed=0)


assert SOLVERS["my_euler"].order == 1
print(Sampler(network, Schedule.cosine(1000), solver="my_euler", steps=5).plan)
assert torch.equal(draw("my_euler"), draw("euler"))
