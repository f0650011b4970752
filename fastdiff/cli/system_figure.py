"""The figure of a trained system: its samples and, for points of the plane, density and score."""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import images
from ..data import Data, Toy
from ..grad_mode import restored
from ..pretrained.files import write_atomically
from ..sampler import Sampler
from ..sampling.model_call import ModelCall
from ..theory.likelihood import nll
from .figures import check_target

GRID = 72  # points along each axis where a density is computed
SHOWN = 2_000  # points of the scatter plot
DRAWS = 64  # latents for the density of one point
LOWEST = math.exp(-12.0)  # lower densities are left white


def check(system: Any, data: Data, path: str | PathLike[str]) -> None:
    """Raises what `draw` would raise, before a training.

    ValueError for a system that can't draw samples of x alone; and see `figures.check_target`.
    Points need matplotlib.
    """
    given = getattr(system, "given", ())
    if given or not (hasattr(system, "sample") or hasattr(system, "for_sampler")):
        name = type(system).__name__
        got = f"{name}, which needs {given[0]} images" if given else name
        raise ValueError(
            f"expected a system that draws samples of x alone, got a {got}. Leave out --plot."
        )
    if not isinstance(data, Toy) and data.levels is None:
        raise ValueError(
            f"expected pictures or points of the plane for --plot, got {data.name}. Leave it out."
        )
    check_target(path, drawn=isinstance(data, Toy))


def draw(system: Any, data: Data, path: str | PathLike[str], *, seed: int = 0) -> None:
    """Writes the figure as PNG. Raises ValueError and RuntimeError, see `check`."""
    check(system, data, path)
    if not isinstance(data, Toy):
        pictures = (
            images.to_uint8(samples(system, 64, data.shape, seed=seed)).permute(0, 2, 3, 1).numpy()
        )
        sheet = images.grid(pictures, None, [], columns=8)
        write_atomically(Path(path), lambda p: sheet.save(p, format="PNG"))
    else:
        _points(system, data, Path(path), seed)


@restored
@torch.no_grad()
def samples(system: Any, n: int, shape: tuple[int, ...], *, seed: int, steps: int = 100) -> Tensor:
    """Returns n samples [n, *shape], by the system itself or by DDPM with its network."""
    if hasattr(system, "sample"):
        return system.sample(n, seed=seed).cpu()
    network, schedule, settings = system.for_sampler()
    steps = min(steps, schedule.num_train_timesteps)
    sampler = Sampler(network, schedule, **{"solver": "ddpm", "steps": steps, **settings})
    return sampler.sample((n, *shape), seed=seed).cpu()


def _points(system: Any, data: Toy, path: Path, seed: int) -> None:
    from .figures import new, save

    low, high = data.points.amin(0) - 0.4, data.points.amax(0) + 0.4
    side = [torch.linspace(float(low[i]), float(high[i]), GRID) for i in range(2)]
    grid = torch.cartesian_prod(*side)
    densities = {"the data's density": data.log_density(grid).exp(), **_density(system, grid, seed)}
    panels = len(densities) + 1
    aspect = float((high[1] - low[1]) / (high[0] - low[0]))
    figure = new(4.4 * panels, 4.4 * aspect + 0.5)
    axes = figure.subplots(1, panels, sharex=True, sharey=True)
    peak = float(densities["the data's density"].max())
    for axis, (title, density) in zip(axes, densities.items(), strict=False):
        shown = density.reshape(GRID, GRID).T.numpy()
        axis.pcolormesh(
            *(s.numpy() for s in side),
            np.where(shown < LOWEST, np.nan, shown),
            cmap="Blues",
            vmin=0,
            vmax=peak,
            shading="nearest",
            rasterized=True,
        )
        axis.set_title(title, fontsize=10, loc="left")
    x = samples(system, SHOWN, data.shape, seed=seed).numpy()
    axes[-1].scatter(x[:, 0], x[:, 1], s=3, color="#1b6ca8", linewidths=0, alpha=0.6)
    title = f"{SHOWN:,} samples"
    if hasattr(system, "for_sampler"):
        axes[-1].quiver(*_field(system, side), color="#d1495b", width=0.003, alpha=0.8)
        title += " and the score at σ/α = ½"
    axes[-1].set_title(title, fontsize=10, loc="left")
    for axis in axes:
        axis.set_aspect("equal")
        axis.set_xlim(float(low[0]), float(high[0]))
        axis.set_ylim(float(low[1]), float(high[1]))
        axis.tick_params(labelsize=8)
    save(figure, path)


@restored
def _density(system: Any, grid: Tensor, seed: int) -> dict[str, Tensor]:
    """Returns {title: the model's density [N] at points [N, 2]}, by the tightest method it has."""
    ids = torch.arange(len(grid))
    if hasattr(system, "log_prob"):
        with torch.no_grad():
            return {"the model's": system.log_prob(grid).double().exp()}
    if hasattr(system, "for_likelihood"):
        tolerance: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}
        found = nll(
            x=grid,
            **system.for_likelihood(),
            divergence="exact",
            seed=seed,
            sample_ids=ids,
            **tolerance,
        )
        return {"the model's, by its probability flow": (-found.nats).exp()}
    if not hasattr(system, "bound"):
        return {}
    parts, weights = [], {"samples": DRAWS, "importance": True}
    with torch.no_grad():
        for part, some in zip(grid.split(2048), ids.split(2048), strict=True):
            parts.append(-sum(system.bound(part, seed=seed, sample_ids=some, **weights).values()))
    return {f"the model's, by {DRAWS} importance weights": torch.cat(parts).double().exp()}


@restored
@torch.no_grad()
def _field(system: Any, side: list[Tensor], every: int = 5) -> tuple[np.ndarray, ...]:
    """Returns (x, y, u, v): the score (u, v) = σ·∇ ln p_t(x_t) where σ/α = ½, at points (x, y).

    The points are in the data's coordinates: x_t = α·(x, y).
    """
    network, schedule, settings = system.for_sampler()
    level = schedule.at(int(np.abs(schedule.log_snr - 2 * math.log(2)).argmin()))
    call = ModelCall(
        network, schedule, settings["prediction_type"], where="fastdiff.cli.system_figure"
    )
    c = call.parametrization.at(level.alpha, level.sigma)
    points = torch.cartesian_prod(*(s[::every] for s in side))
    x_t = points * level.alpha
    score = -(c.eps_x * x_t + c.eps_out * call(c.scale * x_t, level))
    return (*points.T.numpy(), *score.T.numpy())
