"""The sampler: plan + network + kernel.

x_T ~ N(0, I) from stream 0 of the noise contract; then, per row of the plan, one network call and
one fused `reverse_step` (fastdiff.sampling). Between calls nothing is read from the device and,
after the first step, nothing is allocated here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .prediction import Parametrization
from .sampling.arguments import Given, state
from .sampling.engine import Engine, Run
from .sampling.guidance import strength
from .sampling.model_call import Model, Network
from .sampling.plans import Plans
from .sampling.requests import Request, Requests, Source
from .schedule import Schedule
from .solvers import SOLVERS, Plan, find

Callback = Callable[[int, Any, Tensor, Tensor], None]
DEFAULT_SOLVER = "dpm++2m"


class Sampler:
    """Draws samples of a diffusion model.

    Args:
        model: any callable (x, t, **cond); x [B, …], t [B] on x's device: int64 timesteps, float32
            times of a continuous schedule, or what the model's own `network_time(point)` says of a
            `Time`, float32. Returns a tensor like x or an object with `.sample`.
        schedule: the noise schedule it was trained with; may be left out with a ready plan.
        plan: a ready table of steps instead of solver, steps and the like.
        solver, steps, timestep_spacing, eta and further options: see `fastdiff.solvers`; eta only
            for solvers that have it.
        prediction_type: epsilon, x0, v, score or flow, or a `fastdiff.prediction.Parametrization`.
        guidance_scale: gamma in u + gamma (c - u): 0 unconditional, 1 conditional and off, below 0
            away from the condition (Ho & Salimans 2022, eq. 6, with gamma = 1 + w; Luo 2022, eq.
            168); a sequence has one per row of the plan.
        clip_range: x0 is held in [-clip_range, clip_range]; None for no clip.
        dynamic_threshold: ratio of dynamic thresholding (Saharia et al. 2022, section 2.3): x0 is
            held in [-s, s] and divided by s, the ratio-quantile of |x0| in the sample, held in [1,
            clip_range].
        guidance_rescale: phi, the share of the guided output that gets the conditional one's
            deviation (Lin et al. 2024, eq. 15 and 16).
        guidance_interval: (low, high) noise levels sigma/alpha between which guidance acts
            (Kynkäänniemi et al. 2024); outside, the unconditional call is not made, unless
            guidance_scale is a tensor.
        timesteps: descending timesteps to visit, instead of `steps` and `timestep_spacing`.
        network_batch: every network call gets exactly so many rows, several calls or filled up: a
            sample's bits do then not depend on its batch, whatever the network.
        on_oom: `raise` stops where memory runs out and names the largest batch that fits; `split`
            cuts the network calls and warns once.
        graph: CUDA graphs of a step: `auto` where they can be had, True or an error, False.
        compile: torch.compile for the network; a dict holds its arguments.
        network_dtype, channels_last: the network's, in a copy of it; the state stays float32.

    Attributes:
        plan: the table it steps through. last_seed: the seed of the latest call that was given
            none.

    Raises:
        ValueError: for names, options or numbers outside these.
    """

    def __init__(
        self,
        model: Model,
        schedule: Schedule | None = None,
        *,
        plan: Plan | None = None,
        solver: str = DEFAULT_SOLVER,
        steps: int = 25,
        prediction_type: str | Parametrization = "epsilon",
        guidance_scale: float | Sequence[float] = 1.0,
        eta: float = 0.0,
        clip_range: float | None = None,
        timestep_spacing: str = "trailing",
        timesteps: Sequence[int] | None = None,
        dynamic_threshold: float | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        network_batch: int | None = None,
        on_oom: str = "raise",
        graph: bool | str = "auto",
        compile: bool | Mapping[str, Any] = False,
        network_dtype: torch.dtype | None = None,
        channels_last: bool = False,
        **options: Any,
    ):
        self.model = model
        network = Network(model, dtype=network_dtype, channels_last=channels_last, compile=compile)
        if not isinstance(schedule, Schedule) and (schedule is not None or plan is None):
            raise TypeError(
                f"fastdiff.Sampler: expected a fastdiff.Schedule, got {type(schedule).__name__}."
            )
        if eta != 0.0:
            options["eta"] = eta
        self.schedule = schedule
        strength(guidance_scale)
        self.guidance_scale = (
            float(guidance_scale) if not isinstance(guidance_scale, Sequence) else guidance_scale
        )
        self.last_seed: int | None = None
        self._settings: dict[str, Any] = {}
        if plan is None:
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
        elif options:
            raise ValueError(
                "fastdiff.Sampler: expected no solver's options with a ready plan, got"
                f" {min(options)!r}."
            )
        self._plans = Plans(schedule, self._settings, plan, model)
        self._engine = Engine(
            network, self._plans, network_batch=network_batch, on_oom=on_oom, graph=graph
        )

    @classmethod
    def from_diffusers(
        cls, pipe: Any, *, steps: int | None = None, decode: Any = None, **settings: Any
    ) -> Sampler:
        """The sampler of a diffusers pipeline: its network and the plan of its scheduler, on
        latents.

        Prompts are not encoded: pass `sample` what the network is called with, as
            cond={"encoder_hidden_states": …} and
        uncond. x_T is the scheduled state: the pipeline's latents times init_noise_sigma.

        Args:
            pipe: a pipeline with `scheduler` and `unet` or `transformer`; neither is changed.
            steps: num_inference_steps, default 25 where neither timesteps nor sigmas are given.
            decode: the pipeline's VAE to get pictures, its latents' scaling undone; None for
                latents.
            settings: further arguments of the scheduler's set_timesteps (timesteps, sigmas, mu, …)
                and of its step (eta, s_churn, …), and of `Sampler` (guidance_scale, network_batch,
                graph, …).

        Raises:
            TypeError: for objects without those parts, schedulers without a twin
                (`fastdiff.from_scheduler`).
            ValueError: for settings outside these, and where the scheduler makes no plan.
        """
        # by name, as at the package's top: integrations stand above the sampler and are imported
        # only when asked for
        module = importlib.import_module("fastdiff.integrations.diffusers.sampler")
        return module.from_pipeline(pipe, steps=steps, decode=decode, **settings)

    @property
    def plan(self) -> Plan:
        return self._plans.own

    def sample(
        self,
        shape: Sequence[int] | None = None,
        *,
        seed: int | Tensor | None = None,
        sample_ids: Tensor | Sequence[int] | None = None,
        cond: Mapping[str, Any] | None = None,
        uncond: Mapping[str, Any] | None = None,
        guidance_scale: float | Tensor | Sequence[float] | None = None,
        steps: int | Sequence[int] | None = None,
        x_T: Tensor | None = None,
        start: int | Sequence[int] = 0,
        image: Tensor | None = None,
        strength: float | Sequence[float] | None = None,
        mask: Tensor | None = None,
        known: Tensor | None = None,
        classifier: Callable[[Tensor, Tensor], Tensor] | None = None,
        classifier_scale: float = 1.0,
        guidance: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        through_network: bool = False,
        callback: Callback | None = None,
        progress: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Samples [B, …] in the data's range; sample i of seed s is the same alone and in any
        batch.

        Args:
            shape: [B, …]; may be left out when x_T or image is given.
            seed: names the run: int in [0, 2**64) or int64 [B]; None draws one from torch's CPU
                generator and leaves it in `last_seed`.
            sample_ids: int64 [B], which samples of the run, default 0 … B-1.
            cond, uncond: keyword arguments of the model; tensors in them are indexed by sample.
                uncond is needed unless guidance_scale is 1; it may hold what the samples should
                keep away from.
            guidance_scale: overrides the sampler's; a tensor [B] gives every sample its own (both
                halves computed), a list one per row of the plan (rows of strength 1 and 0 make one
                call).
            steps: overrides the sampler's, for all or for each sample.
            x_T: the state to begin with, at row `start` of the plan, instead of noise.
            start: the row to begin at, for all or for each sample, with x_T or image.
            image: clean data to begin from: it is noised to the level of row `start`, or of the row
                from which on the share `strength` of the rows is left.
            mask, known: inpainting by replacement (Lugmayr et al. 2022, eq. 8): where mask is 0, x
                is set to known, noised to its level, after every step. They broadcast to the shape.
            classifier: (x_t, t) -> log p(y|x_t) [B], or its gradient by x_t; classifier_scale its
                strength s, score + s grad log p (Dhariwal & Nichol 2021, eq. 14; Luo 2022, eq.
                166).
            guidance: (x0, x_t, t) -> x0, called at every step with the prediction (after the clip),
                to use another one, for posterior sampling for instance. eps follows from what it
                returns.
            through_network: x0 comes to guidance with its gradient by x_t, through the network
                (Chung et al. 2023, DPS).
            callback: called after each step with (row, t, x, x0); the tensors are buffers, clone
                what you keep. Where samples are at different rows it gets (step, t [B], x, x0).
            progress: show a bar over the steps.
            dtype: float32 (default) or float64 state.

        Raises:
            ValueError, TypeError: for arguments outside these, and where the model returns another
                shape.
            torch.OutOfMemoryError: with the largest batch that fits, see `on_oom`.
        """
        shape, device, dtype = state(
            self._engine.network, shape, x_T if x_T is not None else image, dtype
        )
        given = Given(
            self._seed(seed),
            sample_ids,
            cond,
            uncond,
            self._scale(guidance_scale),
            steps,
            start,
            strength,
            x_T,
            image,
            mask,
            known,
        )
        hooks: dict[str, Any] = {
            "callback": callback,
            "classifier": classifier,
            "classifier_scale": classifier_scale,
        }
        hooks |= {"guidance": guidance, "through_network": through_network}
        run = Run(device, dtype, shape[1:], mask is not None, **hooks)
        program = self._engine.program(run)
        batch = self._engine.prepare(program, given, shape, np.arange(shape[0]))
        if shape[0] == 0:
            return torch.empty(shape, dtype=dtype, device=device)
        bar = None
        if progress:
            longest = int((program.stop[batch.rows] - batch.rows).max())
            bar = tqdm(total=longest, desc="sampling", unit="step")
        x = None
        for tickets, done in self._engine.run(
            program, run, Source(batch), shape[0], bar.update if bar else None
        ):
            if len(tickets) == shape[0]:
                x = done
                continue
            x = torch.empty(shape, dtype=dtype, device=device) if x is None else x
            x[torch.from_numpy(tickets).to(device)] = done
        if bar:
            bar.close()
        assert x is not None
        return x

    def stream(
        self,
        n: int,
        shape: Sequence[int],
        *,
        batch_size: int = 64,
        first_id: int = 0,
        seed: int | Tensor | None = None,
        **arguments: Any,
    ) -> Iterator[Tensor]:
        """Yields samples first_id … first_id + n - 1 of a run in batches [<= batch_size, *shape],
        in order.

        shape is one sample's; arguments are `sample`'s, those that are per sample with n entries.
        At most batch_size samples are in flight, and one that is done makes room for the next. The
        samples are those of one `sample` call.
        """
        where = "fastdiff.Sampler.stream"
        if n < 0 or batch_size < 1:
            raise ValueError(
                f"{where}: expected n >= 0 and batch_size >= 1, got {n}, {batch_size}."
            )
        for name in ("cond", "uncond"):
            for key, value in (arguments.get(name) or {}).items():
                if isinstance(value, Tensor) and value.ndim and value.shape[0] != n:
                    raise ValueError(
                        f"{where}: expected {name}[{key!r}] with {n} rows, got {value.shape[0]}."
                    )
        for name in ("sample_ids", "progress"):
            if name in arguments:
                raise TypeError(
                    f"{where}: expected no {name}. Samples first_id … first_id + n - 1 are drawn."
                )
        known = {*Given._fields, *Run._fields, "dtype"} - {"device", "shape", "inpaints"}
        if not known >= arguments.keys():
            raise TypeError(
                f"{where}: expected arguments of sample, got {min(arguments.keys() - known)!r}."
            )
        x = arguments.get("image") if arguments.get("x_T") is None else arguments["x_T"]
        full, device, dtype = state(
            self._engine.network, (n, *shape), x, arguments.pop("dtype", None)
        )
        hooks = {name: arguments.pop(name) for name in Run._fields if name in arguments}
        run = Run(device, dtype, full[1:], arguments.get("mask") is not None, **hooks)
        scale = self._scale(arguments.pop("guidance_scale", None))
        given = Given(
            self._seed(seed), range(first_id, first_id + n), guidance_scale=scale, **arguments
        )
        program = self._engine.program(run)
        batch = self._engine.prepare(program, given, full, np.arange(n))
        return self._engine.in_order(program, run, Source(batch), n, batch_size)

    def serve(
        self,
        requests: Iterable[Request | None],
        shape: Sequence[int],
        *,
        batch_size: int = 64,
        dtype: torch.dtype | None = None,
        classifier: Callable[[Tensor, Tensor], Tensor] | None = None,
        classifier_scale: float = 1.0,
        guidance: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        through_network: bool = False,
    ) -> Iterator[tuple[Request, Tensor]]:
        """Yields (request, its sample [*shape]) as they are done, not in order; each is what
        `sample` gives for it alone.

        requests: pulled one by one, when one of the batch_size lanes is free; a None among them
            says that none waits now, and those in flight go on, a step at a time. shape: one
            sample's.

        Raises ValueError and TypeError for a request that `sample` would refuse, or whose cond does
        not fit the others'.
        """
        if batch_size < 1:
            raise ValueError(f"fastdiff.Sampler.serve: expected batch_size >= 1, got {batch_size}.")
        full, device, dtype = state(self._engine.network, (1, *shape), None, dtype)
        run = Run(
            device,
            dtype,
            full[1:],
            classifier=classifier,
            classifier_scale=classifier_scale,
            guidance=guidance,
            through_network=through_network,
        )
        program = self._engine.program(run)

        def prepare(number: int, r: Request) -> Any:
            cond, uncond = _one(r.cond), _one(r.uncond)
            lone = {"x_T": r.x_T, "image": r.image}
            given = Given(
                r.seed,
                [r.sample_id],
                cond,
                uncond,
                self._scale(r.guidance_scale),
                r.steps,
                r.start,
                r.strength,
                **{name: None if value is None else value[None] for name, value in lone.items()},
            )
            return self._engine.prepare(program, given, full, np.array([number]))

        source = Requests(iter(requests), prepare)
        for tickets, x in self._engine.run(program, run, source, batch_size):
            for ticket, sample in zip(tickets.tolist(), x, strict=True):
                yield source.waiting.pop(ticket), sample.clone()

    def _seed(self, seed: int | Tensor | None) -> int | Tensor:
        if seed is None:
            seed = int(torch.randint(2**63 - 1, ()))
            self.last_seed = seed
        return seed

    def _scale(self, guidance_scale: Any) -> Any:
        return self.guidance_scale if guidance_scale is None else guidance_scale

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Writes a folder with config.json and model.safetensors, from which `from_pretrained`
        makes this sampler.

        Raises TypeError unless the model is one of fastdiff.models, and ValueError for a sampler of
        a ready plan.
        """
        from .pretrained import save

        if self.schedule is None or not self._settings:
            raise ValueError(
                "fastdiff.Sampler: expected a schedule and a solver to save, got a ready plan."
            )
        settings = {**self._settings, "guidance_scale": self.guidance_scale}
        kind = settings["prediction_type"]
        if isinstance(kind, Parametrization):
            settings |= kind._asdict()
        save(path, self.model, self.schedule, settings)

    @classmethod
    def from_pretrained(cls, path: str | PathLike[str], **overrides: Any) -> Sampler:
        """The sampler of a folder, or of a shipped model's name (`fashion-mnist`); overrides
        replace its settings.

        The folder's options of a solver are left out when another solver that lacks them is asked
        for.

        Raises FileNotFoundError and ValueError, each with the file's name, for folders that can't
        be read.
        """
        from .pretrained import load

        model, schedule, settings = load(path)
        return cls(model, schedule, **merged(settings, overrides))

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in self._settings.items() if v is not None)
        return (
            f"Sampler({type(self.model).__name__}, {self.schedule!r},"
            f" {settings or f'plan of {len(self.plan)} rows'})"
        )


def merged(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler's settings, as a folder keeps them, with others in their place.

    Options of a solver are left out when another one that lacks them is asked for, and so is a grid
    when a number of steps is. Raises ValueError for an unknown solver.
    """
    settings = dict(settings)
    if "unit_input" in settings:
        names = Parametrization._fields
        kind = Parametrization(**{name: settings.pop(name) for name in names if name in settings})
        settings["prediction_type"] = kind
    solver = find(overrides.get("solver", settings.get("solver", DEFAULT_SOLVER)))
    others = {option for other in SOLVERS.values() for option in other.options} - set(
        solver.options
    )
    if "steps" in overrides:
        others |= {"timesteps", "sigmas"}
    return {**{k: v for k, v in settings.items() if k not in others}, **overrides}


def _one(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A request's arguments as those of a batch of one."""
    if given is None:
        return None
    return {k: v[None] if isinstance(v, Tensor) else v for k, v in given.items()}
