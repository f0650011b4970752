"""The loop of k-diffusion's fixed-grid samplers: a plan's rows, callbacks and noise as its hosts
know them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...sampling.adaptive.rows import run
from ...sampling.adaptive.samplers import path
from .formulas import FORMULAS
from .plans import Recipe, recipe

Model = Callable[..., Tensor]
Callback = Callable[[dict[str, Any]], Any]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]


def sample(
    name: str,
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None,
    callback: Callback | None,
    disable: bool | None,
    noise_sampler: NoiseSampler | None,
    options: Mapping[str, Any],
) -> Tensor:
    """Runs a sampler of `FORMULAS` along sigmas [n + 1], which are read once.

    Raises ValueError for sigmas that are not one finite number each, and TypeError for an x that is
    not floating.
    """
    where = f"fastdiff.k_diffusion.sample_{name}"
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 1:
        raise TypeError(f"{where}: expected x as a floating tensor [B, …].")
    grid = torch.as_tensor(sigmas).detach()
    levels = tuple(grid.double().flatten().tolist())
    if (
        grid.ndim != 1
        or not levels
        or not all(0 <= v < float("inf") for v in levels)
        or not all(levels[:-1])
    ):
        raise ValueError(
            f"{where}: expected sigmas [n + 1] > 0, the last one may be 0, got {levels}."
        )
    if noise_sampler is not None and name == "dpmpp_sde":
        options = {
            **options,
            "nested": True,
        }  # what it gives for a whole step knows the draw inside it
    chosen = recipe(name, levels, tuple(sorted((k, _plain(v)) for k, v in options.items())))
    return run_recipe(
        chosen, model, x, grid, extra_args, callback, disable, noise_sampler, FORMULAS[name].tree
    )


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, (float, Tensor)) else value


def run_recipe(
    made: Recipe,
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None,
    callback: Callback | None,
    disable: bool | None,
    noise_sampler: NoiseSampler | None,
    tree: bool,
    further: Callable[[int], dict[str, Any]] | None = None,
) -> Tensor:
    """x at the end of the plan. Callbacks get what k-diffusion's get, and `further(step)`.

    Noise is noise_sampler(sigma, sigma_next); without it a row's draw, or with `tree` a Brownian
    path's, of a seed drawn from torch's global CPU generator, from which a plan without noise draws
    nothing.
    """
    plan, arguments = made.plan, dict(extra_args or {})
    told = torch.tensor(plan.column("t"), dtype=x.dtype, device=x.device)
    hats = told.to(sigmas.dtype).to(sigmas.device)
    per_sample = told[:, None].expand(-1, x.shape[0]).contiguous()

    def predict(row: int, x: Tensor) -> Tensor:
        return model(x, per_sample[row], **arguments)

    def report(row: int, x: Tensor, denoised: Tensor) -> None:
        if callback is not None and made.first[row]:
            step = made.steps[row]
            seen = {
                "x": x,
                "i": step,
                "sigma": sigmas[step],
                "sigma_hat": hats[row],
                "denoised": denoised,
            }
            callback(seen | (further(step) if further else {}))

    seed: int | None = None
    noise: Callable[[int], Tensor] | None = None
    if made.ends and noise_sampler is not None:
        ask = noise_sampler
        asked = {row: sigmas.new_tensor(pair) for row, pair in made.ends.items()}
        noise = lambda row: ask(*asked[row])  # noqa: E731
    elif made.ends:
        seed = int(torch.randint(2**63 - 1, ()))
        if tree:
            wide = torch.float64 if x.dtype == torch.float64 else torch.float32
            noise = path(plan, x.shape, seed, None, wide, x.device)
    with tqdm(total=len(made.sigmas) - 1, disable=disable) as bar:

        def done(row: int) -> None:
            if row + 1 == len(plan) or made.steps[row + 1] != made.steps[row]:
                bar.update()

        return run(
            plan,
            predict,
            x,
            seed=seed,
            noise=noise,
            watch=report if callback is not None else None,
            done=done,
        )
