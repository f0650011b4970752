"""The loop of k-diffusion's samplers on a fixed grid: the rows of a plan, with its callbacks and
noise samplers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...sampling.adaptive.samplers import path
from ...sampling.model_call import Network
from ...sampling.stepper import run_plan
from .formulas import FORMULAS
from .plans import Recipe, point, recipe

Model = Callable[..., Any]
Callback = Callable[[dict[str, Any]], Any]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]


class Denoiser:
    """A user's denoiser with its further arguments; see `fastdiff.sampling.model_call.Network`.

    Args:
        model: (x [B, …], sigma [B], **extra_args) -> x0 [B, …]. One that defines
            `network_time(point)` gets that number, float32, instead of sigma.
        extra_args: keyword arguments of every call.
        where: the name that error messages begin with.
    """

    def __init__(self, model: Model, extra_args: Mapping[str, Any] | None, *, where: str):
        self.where = where
        self._network = Network(model, where=where)
        self._time = getattr(model, "network_time", None)
        self._arguments = dict(extra_args or {})

    def times(self, sigmas: Sequence[float], x: Tensor) -> Tensor:
        """The times [n] that the network gets at these noise levels, in x's dtype by default."""
        if self._time is None:
            return torch.tensor(sigmas, dtype=x.dtype).to(x.device)
        times = [self._time(point(sigma)) for sigma in sigmas]
        return torch.tensor(times, dtype=torch.float32).to(x.device)

    def __call__(self, x: Tensor, times: Tensor) -> Tensor:
        """The checked output for x [B, …] at the network's times [B], in x's dtype if that is
        float32 or float64.
        """
        # under autocast the network's layers choose their dtypes
        inputs = x if torch.is_autocast_enabled(x.device.type) else self._network.input(x)
        out = self._network.forward(inputs, times, self._arguments, learned=False)
        return out.to(x.dtype) if x.dtype in (torch.float32, torch.float64) else out


class Edits:
    """What a callback writes into the x and the denoised that it is shown.

    k-diffusion continues with the x that the callback leaves. Most of its samplers use the written
    denoised as well. Those that compute the slope d = (x - denoised)/sigma before the callback keep
    it: then the written x' goes with denoised + x' - x, which has the same slope. Where the state
    is wider than the tensor shown, it changes only in the elements that were written.

    Args:
        where: the name that error messages begin with.
        state: [B, …] the state of the run, which `apply` changes.
        shown: [B, …] the tensor that the callback gets as x.
        denoised: [B, …] the network's output.
        slope_first: whether the slope was computed before the callback.
    """

    def __init__(
        self, where: str, state: Tensor, shown: Tensor, denoised: Tensor, slope_first: bool
    ):
        self.where, self.state, self.shown, self.denoised = where, state, shown, denoised
        self._x = shown.clone()
        # copies, because the callback may write into what they are copied from
        self._slope = (state.clone(), denoised.to(state.dtype, copy=True)) if slope_first else None

    def apply(self) -> Tensor:
        """Changes the state as the callback changed `shown`, and returns the denoised to go on
        with. Nothing is read from the device.

        Raises:
            ValueError: for an x whose shape or dtype the callback has changed.
        """
        if self.shown.shape != self._x.shape or self.shown.dtype != self._x.dtype:
            raise ValueError(
                f"{self.where}: expected the callback to leave x as {list(self._x.shape)} of"
                f" {self._x.dtype}, got {list(self.shown.shape)} of {self.shown.dtype}. Write into"
                " x in place."
            )
        changed = self.shown != self._x
        if self.shown is not self.state:
            self.state.copy_(torch.where(changed, self.shown.to(self.state.dtype), self.state))
        if self._slope is None:
            return self.denoised
        x, denoised = self._slope
        return torch.where(changed, denoised + (self.state - x), denoised)


def drawn(
    noise_sampler: NoiseSampler, sigma: Tensor, sigma_next: Tensor, x: Tensor, where: str
) -> Tensor:
    """The noise [B, …] of a noise_sampler, which broadcasts to x as in k-diffusion.

    Raises ValueError for noise that does not, or would change x's shape.
    """
    noise = torch.as_tensor(noise_sampler(sigma, sigma_next), device=x.device)
    noise = noise if noise.is_floating_point() else noise.to(x.dtype)
    try:
        return noise.broadcast_to(x.shape)
    except RuntimeError:
        raise ValueError(
            f"{where}: expected noise_sampler to return noise that broadcasts to {list(x.shape)},"
            f" got {list(noise.shape)}."
        ) from None


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

    Raises:
        ValueError: for sigmas that are not [n + 1] finite numbers above 0 (the last may be 0).
        TypeError: for an x that is not floating, and for a model that is not callable.
    """
    where = f"fastdiff.integrations.k_diffusion.sample_{name}"
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
        # its noise for a whole step contains its draw for the first part of the step
        options = {**options, "nested": True}
    chosen = recipe(name, levels, tuple(sorted((k, _plain(v)) for k, v in options.items())))
    denoiser = Denoiser(model, extra_args, where=where)
    of = FORMULAS[name]
    return run_recipe(
        chosen, denoiser, x, grid, callback, disable, noise_sampler, of.tree, of.slope_first
    )


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, (float, Tensor)) else value


def run_recipe(
    made: Recipe,
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    callback: Callback | None,
    disable: bool | None,
    noise_sampler: NoiseSampler | None,
    tree: bool,
    slope_first: bool,
    further: Callable[[int, Tensor], dict[str, Any]] | None = None,
) -> Tensor:
    """Returns x at the end of the plan.

    Callbacks get what k-diffusion's callbacks get, and `further(step, denoised)`. What they write
    into x and denoised counts where it does in k-diffusion: see `Edits`. Noise comes from
    noise_sampler(sigma, sigma_next). Without one it is the row's draw of the noise contract, or
    with `tree` the increment of a Brownian path, of a seed drawn from torch's global CPU generator;
    a plan without noise draws no seed.
    """
    plan = made.plan
    levels = plan.column("t").tolist()
    hats = torch.tensor(levels, dtype=x.dtype, device=x.device).to(sigmas)
    times = denoiser.times(levels, x)[:, None].expand(-1, x.shape[0]).contiguous()

    def predict(row: int, x: Tensor) -> Tensor:
        return denoiser(x, times[row])

    def report(row: int, state: Tensor, seen: Tensor, denoised: Tensor) -> Tensor:
        if callback is None or not made.first[row]:
            return denoised
        step = made.steps[row]
        # k-diffusion's first state is the caller's tensor, unless churn came before
        edits = Edits(denoiser.where, state, x if row == 0 else seen, denoised, slope_first)
        values = {
            "x": edits.shown,
            "i": step,
            "sigma": sigmas[step],
            "sigma_hat": hats[row],
            "denoised": denoised,
        }
        callback(values | (further(step, denoised) if further else {}))
        return edits.apply()

    seed: int | None = None
    noise: Callable[[int], Tensor] | None = None
    if made.ends and noise_sampler is not None:
        draw = noise_sampler
        intervals = {row: sigmas.new_tensor(pair) for row, pair in made.ends.items()}

        def noise(row: int) -> Tensor:
            sigma, sigma_next = intervals[row]
            return drawn(draw, sigma, sigma_next, x, denoiser.where)

    elif made.ends:
        seed = int(torch.randint(2**63 - 1, ()))
        if tree:
            compute = torch.float64 if x.dtype == torch.float64 else torch.float32
            noise = path(plan, x.shape, seed, None, compute, x.device)
    with tqdm(total=len(made.sigmas) - 1, disable=disable) as bar:

        def done(row: int) -> None:
            if row + 1 == len(plan) or made.steps[row + 1] != made.steps[row]:
                bar.update()

        return run_plan(
            plan,
            predict,
            x,
            seed=seed,
            noise=noise,
            watch=report if callback is not None else None,
            done=done,
        )
