"""The sampler: plan + network + kernel.

x_T ~ N(0, I) from stream 0 of the noise contract; then, per row of the plan, one network call and one fused
`reverse_step`. Between calls nothing is read from the device and, after the first step, nothing is allocated here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import ops
from .eager.common import compute_dtype
from .guidance import Conditions
from .schedule import Schedule
from .solvers import SOLVERS, Plan, find, make_plan

Model = Callable[..., Any]
Callback = Callable[[int, float, Tensor, Tensor], None]


class Sampler:
    """Draws samples of a diffusion model.

    Args:
        model: any callable (x, t, **cond); x [B, …], t int64 [B] timesteps. Returns a tensor like x or an object with
            `.sample`.
        schedule: the noise schedule it was trained with.
        solver, steps, timestep_spacing, eta and further options: see `fastdiff.solvers`; eta only for solvers that
            have it.
        prediction_type: epsilon, x0, v, score or flow.
        guidance_scale: gamma in u + gamma (c - u): 0 unconditional, 1 conditional and off (Ho & Salimans 2022, eq. 6,
            with gamma = 1 + w; Luo 2022, eq. 168).
        clip_range: x0 is held in [-clip_range, clip_range]; None for no clip.
        dynamic_threshold: ratio of dynamic thresholding (Saharia et al. 2022, section 2.3): x0 is held in [-s, s] and
            divided by s, the ratio-quantile of |x0| in the sample, held in [1, clip_range].
        guidance_rescale: phi, the share of the guided output that gets the conditional one's deviation (Lin et al. 2024,
            eq. 15 and 16).
        guidance_interval: (low, high) noise levels sigma/alpha between which guidance acts (Kynkäänniemi et al. 2024);
            outside, the unconditional call is not made, unless guidance_scale is a tensor.
        timesteps: descending timesteps to visit, instead of `steps` and `timestep_spacing`.

    Attributes:
        plan: the table it steps through. last_seed: the seed of the latest call that was given none.

    Raises:
        ValueError: for names, options or numbers outside these.
    """

    def __init__(
        self,
        model: Model,
        schedule: Schedule,
        *,
        solver: str = "ddim",
        steps: int = 25,
        prediction_type: str = "epsilon",
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        clip_range: float | None = None,
        timestep_spacing: str = "trailing",
        timesteps: Sequence[int] | None = None,
        dynamic_threshold: float | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        **options: Any,
    ):
        if not callable(model):
            raise TypeError(f"fastdiff.Sampler: expected a callable model(x, t, **cond), got {type(model).__name__}.")
        if not isinstance(schedule, Schedule):
            raise TypeError(f"fastdiff.Sampler: expected a fastdiff.Schedule, got {type(schedule).__name__}.")
        if eta != 0.0:
            options["eta"] = eta
        self.model = model
        self.schedule = schedule
        self.guidance_scale = _strength(guidance_scale)
        self.last_seed: int | None = None
        self._settings = {
            "solver": solver,
            "steps": steps,
            "prediction_type": prediction_type,
            "clip_range": clip_range,
            "timestep_spacing": timestep_spacing,
            **options,
        }
        # left out where they say nothing, so that folders written before them stay as they were
        further = {
            "timesteps": timesteps,
            "dynamic_threshold": dynamic_threshold,
            "guidance_rescale": guidance_rescale or None,
            "guidance_interval": guidance_interval,
        }
        self._settings |= {name: value for name, value in further.items() if value is not None}
        self.plan: Plan = make_plan(schedule, **self._settings)

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int] | None = None,
        *,
        seed: int | Tensor | None = None,
        sample_ids: Tensor | Sequence[int] | None = None,
        cond: Mapping[str, Any] | None = None,
        uncond: Mapping[str, Any] | None = None,
        guidance_scale: float | Tensor | None = None,
        x_T: Tensor | None = None,
        start: int = 0,
        callback: Callback | None = None,
        progress: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Samples [B, …] in the data's range; sample i of seed s is the same alone and in any batch.

        Args:
            shape: [B, …]; may be left out when x_T is given.
            seed: names the run: int in [0, 2**64) or int64 [B]; None draws one from torch's CPU generator and leaves
                it in `last_seed`.
            sample_ids: int64 [B], which samples of the run, default 0 … B-1.
            cond, uncond: keyword arguments of the model; tensors in them are indexed by sample. uncond is needed
                unless guidance_scale is 1.
            guidance_scale: overrides the sampler's; a tensor [B] gives every sample its own (both halves computed).
            x_T: the state to begin with, at row `start` of the plan, instead of noise.
            callback: called after each step with (row, t, x, x0); the tensors are buffers, clone what you keep.
            progress: show a bar over the steps.
            dtype: float32 (default) or float64 state.

        Raises:
            ValueError, TypeError: for arguments outside these, and where the model returns another shape.
        """
        shape, device, dtype = self._state(shape, x_T, dtype)
        batch = shape[0]
        if not 0 <= start <= len(self.plan):
            raise ValueError(f"fastdiff.Sampler.sample: expected start in [0, {len(self.plan)}], got {start}.")
        seed = self._seed(seed)
        ids = _ids(sample_ids, batch, device)
        if isinstance(seed, Tensor):
            seed = seed.to(device)
        gamma = self.guidance_scale if guidance_scale is None else _strength(guidance_scale, batch, device, dtype)
        calls = Conditions(cond, uncond, gamma, batch, device)
        if x_T is None:
            x = ops.randn(shape, seed=seed, sample_ids=ids, stream=0, dtype=dtype, device=device)
        else:
            x = x_T.to(dtype, copy=True, memory_format=torch.contiguous_format)
        if batch == 0:
            return x

        plan = self.plan
        table = torch.tensor(plan.table, device=device)
        times = table[:, plan.columns.index("t")].round().to(torch.int64)
        times = times[:, None].expand(-1, batch * calls.halves).contiguous()
        network_dtype = _parameter(self.model, "dtype", dtype)
        x_in = torch.empty((batch * calls.halves, *shape[1:]), dtype=network_dtype, device=device)
        x_in.view(calls.halves, *shape).copy_(x * float(plan.column("input_scale")[start]))
        row = torch.full((batch,), start, dtype=torch.int64, device=device)
        row_out = torch.empty_like(row)
        slots = torch.empty((plan.slots, *shape), dtype=dtype, device=device) if plan.slots else None
        x0 = torch.empty_like(x) if callback else None
        rooms = torch.empty((2, batch), dtype=dtype, device=device)
        for i in tqdm(range(start, len(plan)), disable=not progress, desc="sampling", unit="step"):
            guided = calls.guidance is not None and not (calls.host and plan.column("guidance_weight")[i] == 0)
            out = None
            if plan.column("network")[i]:
                out = self._predict(x_in, times[i], calls.arguments) if guided or calls.halves == 1 else self._predict(
                    x_in[:batch], times[i][:batch], calls.conditional
                )  # fmt: skip
            ops.reverse_step(
                x, out, table, row, seed=seed, sample_ids=ids, guidance=calls.guidance if guided else None,
                used=plan.used, slots=slots, workspace=rooms,
                out=x, slots_out=slots, x0_out=x0, input_out=x_in, row_out=row_out,
            )  # fmt: skip
            row, row_out = row_out, row
            if callback:
                callback(i, float(plan.column("t")[i]), x, x0)  # type: ignore[arg-type]
        return x

    def stream(
        self,
        n: int,
        shape: Sequence[int],
        *,
        batch_size: int = 64,
        first_id: int = 0,
        seed: int | None = None,
        cond: Mapping[str, Any] | None = None,
        uncond: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> Iterator[Tensor]:
        """Yields samples first_id … first_id + n - 1 of a run in batches [<= batch_size, *shape].

        shape is one sample's; tensors in cond and uncond have n rows; other arguments as for `sample`. The pictures
        are those of one `sample` call over all ids.
        """
        if n < 0 or batch_size < 1:
            raise ValueError(f"fastdiff.Sampler.stream: expected n >= 0 and batch_size >= 1, got {n}, {batch_size}.")
        chosen = self._seed(seed)
        for name, given in (("cond", cond), ("uncond", uncond)):
            for key, value in (given or {}).items():
                if isinstance(value, Tensor) and value.ndim and value.shape[0] != n:
                    raise ValueError(
                        f"fastdiff.Sampler.stream: expected {name}[{key!r}] with {n} rows, got {value.shape[0]}."
                    )
        return self._stream(n, tuple(shape), batch_size, first_id, chosen, cond, uncond, arguments)

    def _stream(self, n, shape, batch_size, first_id, seed, cond, uncond, arguments):
        def part(given: Mapping[str, Any] | None, rows: slice) -> dict[str, Any] | None:
            if given is None:
                return None
            return {k: v[rows] if isinstance(v, Tensor) and v.ndim else v for k, v in given.items()}

        for begin in range(0, n, batch_size):
            rows = slice(begin, min(begin + batch_size, n))
            ids = torch.arange(first_id + rows.start, first_id + rows.stop)
            yield self.sample(
                (len(ids), *shape), seed=seed, sample_ids=ids, cond=part(cond, rows), uncond=part(uncond, rows),
                **arguments,
            )  # fmt: skip

    def _predict(self, x: Tensor, t: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        out = self.model(x, t, **arguments)
        out = getattr(out, "sample", out)
        if not isinstance(out, Tensor):
            raise TypeError(
                f"fastdiff.Sampler: expected the model to return a tensor or an object with .sample, "
                f"got {type(out).__name__}."
            )
        return out

    def _state(
        self, shape: Sequence[int] | None, x_T: Tensor | None, dtype: torch.dtype | None
    ) -> tuple[tuple[int, ...], torch.device, torch.dtype]:
        where = "fastdiff.Sampler.sample"
        if x_T is not None:
            if not isinstance(x_T, Tensor) or not x_T.is_floating_point() or x_T.ndim < 1:
                raise TypeError(f"{where}: expected x_T as a floating tensor [B, …].")
            if shape is not None and tuple(shape) != tuple(x_T.shape):
                raise ValueError(f"{where}: expected x_T of shape {list(shape)}, got {list(x_T.shape)}.")
            shape, device = x_T.shape, x_T.device
            dtype = dtype or compute_dtype(x_T)
        else:
            device = _parameter(self.model, "device", torch.device("cpu"))
        if shape is None or len(tuple(shape)) < 1 or any(not isinstance(s, int) or s < 0 for s in shape):
            raise ValueError(f"{where}: expected shape [B, …] of sizes >= 0, got {shape}.")
        if (dtype or torch.float32) not in (torch.float32, torch.float64):
            raise TypeError(f"{where}: expected dtype float32 or float64 (the state's), got {dtype}.")
        return tuple(shape), device, dtype or torch.float32

    def _seed(self, seed: int | Tensor | None) -> int | Tensor:
        if seed is None:
            seed = int(torch.randint(2**63 - 1, ()))
            self.last_seed = seed
        return seed

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Writes a folder with config.json and model.safetensors, from which `from_pretrained` makes this sampler.

        Raises TypeError unless the model is one of fastdiff.models.
        """
        from .pretrained import save

        save(path, self.model, self.schedule, {**self._settings, "guidance_scale": self.guidance_scale})

    @classmethod
    def from_pretrained(cls, path: str | PathLike[str], **overrides: Any) -> Sampler:
        """The sampler of a folder, or of a shipped model's name (`fashion-mnist`); overrides replace its settings.

        The folder's options of a solver are left out when another solver that lacks them is asked for.

        Raises FileNotFoundError and ValueError, each with the file's name, for folders that can't be read.
        """
        from .pretrained import load

        model, schedule, settings = load(path)
        solver = find(overrides.get("solver", settings.get("solver", "ddim")))
        others = {option for other in SOLVERS.values() for option in other.options} - set(solver.options)
        kept = {k: v for k, v in settings.items() if k not in others}
        return cls(model, schedule, **{**kept, **overrides})

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in self._settings.items() if v is not None)
        return f"Sampler({type(self.model).__name__}, {self.schedule!r}, {settings})"


def _parameter(model: Model, attribute: str, default: Any) -> Any:
    """The device or dtype of the model's first floating parameter."""
    if isinstance(model, torch.nn.Module):
        for p in model.parameters():
            if p.is_floating_point():
                return getattr(p, attribute)
    return default


def _ids(ids: Tensor | Sequence[int] | None, batch: int, device: torch.device) -> Tensor:
    if ids is None:
        return torch.arange(batch, device=device)
    ids = torch.as_tensor(ids, device=device)
    if ids.dtype != torch.int64 or ids.shape != (batch,):
        raise ValueError(
            f"fastdiff.Sampler.sample: expected {batch} integer sample_ids, got {ids.dtype} of shape {list(ids.shape)}."
        )
    if ids.device.type == "cpu" and batch and not (0 <= int(ids.min()) and int(ids.max()) < 2**56):
        raise ValueError("fastdiff.Sampler.sample: expected sample_ids in [0, 2**56). They name samples of the run.")
    return ids


def _strength(
    gamma: float | Tensor, batch: int = 0, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Any:
    if isinstance(gamma, Tensor) and device is not None:
        if gamma.shape != (batch,):
            raise ValueError(f"fastdiff.Sampler: expected guidance_scale as a number or a tensor [{batch}].")
        return gamma.to(device, dtype)
    if isinstance(gamma, bool) or not isinstance(gamma, (int, float)) or not math.isfinite(gamma):
        raise ValueError(f"fastdiff.Sampler: expected a finite guidance_scale, got {gamma!r}.")
    return float(gamma)
