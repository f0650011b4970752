"""Gaussian data with the optimal denoiser: expectations of the bound without sampling error."""

from __future__ import annotations

import numpy as np
import torch
from gaussian import Gaussian

from fastdiff import Schedule
from fastdiff.sampling.model_call import ModelCall
from fastdiff.schedule import Time
from fastdiff.theory.likelihood.bound import TimestepTerm, prior_term

VE = Schedule.ve(30, sigma_max=20.0)
SUB_VP = Schedule.sub_vp(15, beta_max=4.0)  # it ends at sigma = 0.87, far from pure noise
SCHEDULES = [
    Schedule.linear(200),
    Schedule.linear(10),
    Schedule.cosine(50),
    VE,
    Schedule.flow(20),
    SUB_VP,
]
NATURAL = {"vp": "epsilon", "ve": "epsilon", "flow": "flow", "sub_vp": "epsilon"}


class Optimal(Gaussian):
    """The optimal network, which takes the timestep in continuous schedules too."""

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return super().__call__(x, t.long())

    def network_time(self, point: Time) -> float:
        return point.t


def mmse(schedule: Schedule, std: float) -> np.ndarray:
    """E (x0 - x̂0)² of N(m, s²) data: s² sigma²/V."""
    return std**2 * schedule.sigma**2 / (schedule.alpha**2 * std**2 + schedule.sigma**2)


def corners(mean: float, std: float, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """(x0, eps) [4, 1] for exact expectations over N(m, s²) x N(0, 1).

    The mean of a polynomial of degree 2 over these four points is its expectation.
    """
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    return mean + std * signs[:, :1], signs[:, 1:]


def expected_terms(
    schedule: Schedule, kind: str, variance, mean: float, std: float
) -> tuple[np.ndarray, float]:
    """(E L_t [T], E prior) of N(m, s²) data with the optimal denoiser, without sampling error."""
    x0, eps = corners(mean, std)
    model = Optimal(schedule, kind, mean, std)
    call = ModelCall(model, schedule, kind, where="test", learned=True)
    term = TimestepTerm(call, x0, variance, "gaussian", None)
    values = []
    for t in range(schedule.num_train_timesteps):
        x_t = schedule.alpha[t] * x0 + schedule.sigma[t] * eps
        values.append(term.of(x_t, torch.full((4,), t)).mean().item())
    return np.array(values), prior_term(x0, schedule).mean().item()
