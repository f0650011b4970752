"""The sampler: a network, a plan and the loop that runs them.

x_T ~ N(0, s² I) from stream 0 of the noise contract, with s the plan's initial_std; then, for each
row of the plan, one network call and one fused `reverse_step` (fastdiff.sampling). Between calls
nothing is read from the device and, after the first step, nothing is allocated here.

This file is long because it documents every public argument; the work is in fastdiff.sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any, Unpack

import torch
from torch import Tensor

from .grad_mode import restored
from .prediction import Parametrization
from .sampling.arguments import SampleArguments, several
from .sampling.engine import Engine
from .sampling.guidance import strength
from .sampling.model_call import Model
from .sampling.options import HOOKS, Callback
from .sampling.requests import Request
from .sampling.rollout import Rollout
from .sampling.settings import PlanSettings, SamplerSettings, merged
from .sampling.state import State, advance, fork
from .sampling.stored import stored_rollout
from .schedule import Schedule
from .solvers import Plan


class Sampler:
    """Draws samples of a diffusion model.

    Args:
        model: any callable (x, t, **cond); x [B, …] in its floating dtype, t [B] on x's device:
            int64 timesteps, float32 times of a continuous schedule, or the float32 value of the
            model's own `network_time(point)`. Returns a tensor like x, an object with `.sample`, or
            a tuple that begins with a tensor; twice the channels for learned variance.
        schedule: the noise schedule that it was trained with; not needed with a ready plan.
        plan: a ready table of steps. With it, settings that a plan is made from (solver, steps,
            prediction_type, clip_range and so on) are refused.
        solver, steps, timestep_spacing: `dpm++2m`, 25 and `trailing` by default, see
            `fastdiff.solvers`. Names of other programs (`fastdiff.solvers.aliases`) stand for
            fastdiff's. The solver's options are further arguments.
        eta: for solvers that have it: None for their default, and 0 is accepted by all.
        prediction_type: epsilon (the default), x0, v, score or flow, or a
            `fastdiff.prediction.Parametrization`.
        guidance_scale: gamma in u + gamma (c - u): 0 is unconditional, 1 conditional without
            guidance, and below 0 leads away from the condition (Ho & Salimans 2022, eq. 6, with
            gamma = 1 + w; Luo 2022, eq. 168); a sequence has one per row of the plan.
        clip_range: x0 is clipped to [-clip_range, clip_range]; None for no clip.
        dynamic_threshold: ratio of dynamic thresholding (Saharia et al. 2022, section 2.3): x0 is
            clipped to [-s, s] and divided by s, the ratio-quantile of |x0| in the sample, which is
            clipped to [1, clip_range].
        guidance_rescale: phi, the share of the guided output that is rescaled to the deviation of
            the conditional one (Lin et al. 2024, eq. 15 and 16).
        guidance_interval: (low, high) noise levels sigma/alpha between which guidance acts
            (Kynkäänniemi et al. 2024); outside, the unconditional call is not made, unless
            guidance_scale is a tensor.
        guidance_type: `cfg`, or `cfg++` (Chung et al. 2024) for solvers of one call a step: x0 is
            that of the guided output, with guidance_scale in (0, 1) as a rule, and the noise of the
            next state is that of the unconditional output. A guidance_scale of 1 is off.
            `cfg_zero_star` (Fan et al. 2025): u is multiplied by <c, u>/|u|² of the sample, and the
            first `zero_init_steps` network calls (1) are not made: their output is 0, whatever the
            strength. `apg`, adaptive projected guidance (Sadat et al. 2024), is c + (gamma - 1) D
            with D the difference c - u after these changes: `apg_momentum` (0) times the last
            difference is added, its norm is bounded by `apg_norm` (no bound), and of its part along
            the prediction `apg_eta` (0) is kept. In `apg_space` "x0" these are differences of x0,
            as in the paper, in "output" those of the network's output.
        sde_rows: (i, j): only rows i … j - 1 of the plan draw noise, and the others are those that
            the solver has with its noise off (MixGRPO, Li et al. 2025); None for noise in all.
        guide: another network, whose output is the unconditional half u: autoguidance by a weaker
            version of the model (Karras et al. 2024), called as the model is, at the same times. It
            gets cond where no uncond is passed. None for the model itself.
        timesteps: descending timesteps to visit, instead of `steps` and `timestep_spacing`.
        network_batch: the number of rows of every network call: more rows make several calls, and
            the last one is padded. A sample's bits then do not depend on its batch, for any
            network.
        on_oom: `raise` stops where memory runs out and names the largest batch that fits; `split`
            makes network calls smaller and warns once.
        graph: whether steps run as CUDA graphs; `auto` where that is possible, True raises where it
            is not. Graphs and their buffers stay for later calls of the same shapes, as long as the
            network has the same modules, hooks, weights and numbers.
        compile: torch.compile for the network; a dict has its arguments.
        network_dtype, channels_last: dtype and memory format of the network, for a copy of it; the
            state stays float32.
        decode: a function latents [B, …] -> data, or an autoencoder of diffusers (the scaling,
            shift and statistics of its latents are undone before it): samples are decoded. None
            for no decoder.

    Attributes:
        plan: the table of steps. settings: what it was made from.
        network_settings: the network's dtype and memory format.
        last_seed: the seed of the latest call without seed=.
        model, schedule, guidance_scale, guide: as passed. decoder: `decode` as passed.

    Raises:
        ValueError: for names, options or numbers outside these.
    """

    def __init__(
        self,
        model: Model,
        schedule: Schedule | None = None,
        *,
        plan: Plan | None = None,
        guidance_scale: float | Sequence[float] = 1.0,
        guide: Model | None = None,
        network_batch: int | None = None,
        on_oom: str = "raise",
        graph: bool | str = "auto",
        compile: bool | Mapping[str, Any] = False,
        network_dtype: torch.dtype | None = None,
        channels_last: bool = False,
        decode: Any = None,
        **settings: Unpack[PlanSettings],
    ):
        self.model, self.schedule, self.decoder, self.guide = model, schedule, decode, guide
        self._engine = Engine(
            model,
            schedule,
            plan=plan,
            network_batch=network_batch,
            on_oom=on_oom,
            graph=graph,
            compile=compile,
            network_dtype=network_dtype,
            channels_last=channels_last,
            guide=guide,
            **settings,
        )
        strength(guidance_scale)
        self.guidance_scale = (
            float(guidance_scale) if not isinstance(guidance_scale, Sequence) else guidance_scale
        )
        self._decode = _decode_function(decode)
        self.last_seed: int | None = None

    @classmethod
    def from_diffusers(
        cls,
        pipe: Any,
        *,
        steps: int | None = None,
        guider: Any = None,
        decode: Any = None,
        **settings: Any,
    ) -> Sampler:
        """The sampler of a diffusers pipeline: its network and the plan of its scheduler, on
        latents.

        Prompts are not encoded: pass the network's arguments to `sample`, as
        cond={"encoder_hidden_states": …} and uncond. x_T is the state of the scheduler: the
        pipeline's latents times init_noise_sigma.

        Args:
            pipe: a pipeline with `scheduler` and `unet` or `transformer`; neither is changed.
            steps: num_inference_steps, default 25 without timesteps and sigmas.
            guider: diffusers' ClassifierFreeGuidance, instead of guidance_scale, guidance_rescale
                and a range of steps; None for those.
            decode: see `Sampler`: the pipeline's VAE for pictures, None for latents.
            settings: solver and grid for another solver than the scheduler's, with the solver's
                options, as `fastdiff.Scheduler.like` takes them; further arguments of the
                scheduler's set_timesteps (timesteps, sigmas, mu, …) and of its step (eta, s_churn,
                …), and of `Sampler` (guidance_scale, network_batch, graph, …). Others are refused:
                what the scheduler's configuration says, such as prediction_type, is changed there.

        Raises:
            TypeError: for objects without those parts, for other guiders, and without solver= for
                schedulers without a drop-in (`fastdiff.from_scheduler`).
            ValueError: for settings outside these, and where the scheduler makes no plan.
        """
        from .integrations.diffusers.pipeline import network_and_plan

        model, plan, settings = network_and_plan(pipe, steps=steps, guider=guider, **settings)
        return cls(model, plan=plan, decode=decode, **settings)

    @property
    def plan(self) -> Plan:
        """The table of steps."""
        return self._engine.plans.own

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that the plan was made from, with all defaults; empty with a ready plan."""
        return dict(self._engine.settings)

    @property
    def network_settings(self) -> dict[str, Any]:
        """The network's dtype and memory format, `network_dtype` and `channels_last`, as passed."""
        network = self._engine.network
        return {"network_dtype": network.dtype, "channels_last": network.channels_last}

    @restored
    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The data of latents [B, …], or the latents themselves without a decoder."""
        return latents if self._decode is None else self._decode(latents)

    @restored
    def sample(
        self,
        shape: Sequence[int] | None = None,
        *,
        seed: int | Tensor | Sequence[int] | None = None,
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
        differentiable: bool = False,
        checkpoint: bool | int = False,
        last_k: int | None = None,
        start_ids: Tensor | Sequence[int] | None = None,
        sde_rows: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
        window: tuple[int, int] | None = None,
    ) -> Tensor:
        """Samples [B, …] in the data's range; sample i of seed s is the same alone and in any
        batch.

        By default gradients are off. With `differentiable` autograd records the N rows
        x_s = reverse_step(x, network(x, t), slots), for training through the sampler: gradients
        flow from the samples to the network's weights, x_T, image, known, mask, tensors in cond and
        uncond, and a guidance_scale [B]. The samples have the same bits as without. Memory is N
        network calls' activations; with `checkpoint` it is one call's (or k calls') and N/k states,
        and the backward pass computes each network call a second time.

        Args:
            shape: [B, …]; not needed with x_T or image.
            seed: of the run, an int in [0, 2**64); None draws one from torch's CPU generator and
                stores it in `last_seed`. With a list or int64 [B] every sample has its own run, and
                by default it is that run's first: sample i is the only one of
                sample((1, …), seed=seed[i]).
            sample_ids: int64 [B], the samples of the run to draw; default 0 … B-1, and 0 for all
                with a seed per sample.
            cond, uncond: keyword arguments of the model; tensors in them are indexed by sample.
                uncond is needed unless guidance_scale is 1 or the sampler has a guide; it may be a
                condition that the samples should avoid.
            guidance_scale: overrides the sampler's; a tensor [B] gives every sample its own (both
                halves computed), a list one per row of the plan (rows of strength 1 and 0 make one
                call).
            steps: overrides the sampler's, for all or for each sample.
            x_T: the state to begin with, at row `start` of the plan, instead of noise.
            start: the row to begin at, for all or for each sample, with x_T or image.
            image: clean data to begin from, noised to the level of row `start`. It needs strength,
                or start > 0: row 0 is noise.
            strength: the share of the rows that is executed, with image and instead of start; 1 for
                all.
            mask, known: inpainting by replacement (Lugmayr et al. 2022, eq. 8): where mask is 0, x
                is set to known, noised to its level, after every step. They broadcast to the shape.
            classifier: (x_t, t) -> log p(y|x_t) [B], or its gradient by x_t.
            classifier_scale: the classifier's strength s, score + s grad log p (Dhariwal & Nichol
                2021, eq. 14; Luo 2022, eq. 166).
            guidance: (x0, x_t, t) -> the x0 to use instead of the (clipped) prediction x0, for
                posterior sampling for instance; called at every step. eps follows from its result.
            through_network: whether x0 has a gradient by x_t, through the network, in guidance
                (Chung et al. 2023, DPS).
            callback: called after each step with (row, t, x, x0); the tensors are buffers, so clone
                what you keep. The run goes on with what it writes into x. Where samples are at
                different rows it gets (step, t [B], x, x0).
            progress: whether a progress bar is shown.
            dtype: of the state, float32 (default) or float64.
            differentiable: whether gradients are recorded, where torch's grad mode is on. Steps
                then run without CUDA graphs. All samples need the same number of rows.
            checkpoint: whether the backward pass computes the network calls again instead of
                storing what they need (Chen et al. 2016); a number k is the rows of a segment that
                are computed at a time, True one. The gradients have the same bits.
            last_k: how many rows at the end are differentiated, None for all (DRaFT-K, Clark et al.
                2024): earlier rows and x_T count as constants.
            start_ids: int64 [B], the ids that name the noise of x_T (or of the noised image),
                default sample_ids: samples of one start_id begin alike.
            sde_rows: overrides the sampler's, for all or for each sample.
            window: (offset, size) where the samples are the elements offset … offset + size - 1 of
                larger ones, as on a rank of a parallel network that has a part of each: they get
                the noise that whole samples have there. offset is a multiple of 4. Rows that need
                whole samples (guidance_rescale, dynamic_threshold) are refused.

        Raises:
            ValueError, TypeError: for arguments outside these, where the model returns another
                shape, and for derivatives that would be wrong (through_network, and a copy of the
                network that would get the gradients).
            torch.OutOfMemoryError: with the largest batch that fits, see `on_oom`.
        """
        arguments = SampleArguments(
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
            start_ids,
            sde_rows,
        )
        x = self._engine.sample(
            arguments,
            shape,
            dtype=dtype,
            progress=progress,
            callback=callback,
            classifier=classifier,
            classifier_scale=classifier_scale,
            guidance=guidance,
            through_network=through_network,
            differentiable=differentiable,
            checkpoint=checkpoint,
            last_k=last_k,
            window=window,
        )
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            return x if self._decode is None else self._decode(x)

    @restored
    @torch.no_grad()
    def rollout(
        self,
        shape: Sequence[int] | None = None,
        *,
        seed: int | Tensor | Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
        outputs: bool = False,
        dtype: torch.dtype | None = None,
        window: tuple[int, int] | None = None,
        **arguments: Any,
    ) -> Rollout:
        """Samples [B, …] with their transitions and log-probabilities, for reinforcement learning.

        The samples have the bits of `sample` with the same arguments. A row that draws noise is a
        Gaussian policy over its next state (Black et al. 2023, section 4.3; Liu et al. 2025,
        eq. 12), whose log-probability `reverse_step` writes while it samples.

        Args:
            shape, seed, dtype, window: see `sample`. The log-probabilities of the windows of a
                sample add up to the sample's.
            rows: of the plan, which are recorded; None for all that draw noise.
            outputs: whether the network's outputs are kept too.
            arguments: sample_ids, start_ids, cond, uncond, guidance_scale, steps, start, x_T,
                image, strength and sde_rows of `sample`. Give the samples of a group one start_id
                and different sample_ids for a shared x_T and different noise, or the other way
                round. All samples need one start and one number of rows.

        Raises:
            ValueError, TypeError: as `sample`, for a plan whose rows draw no noise without rows=,
                and for rows outside the plan.
        """
        self._refuse_hooks("rollout", arguments, {"mask", "known"})
        arguments["guidance_scale"] = self._scale(arguments.get("guidance_scale"))
        per_sample = SampleArguments(self._seed(seed), **arguments)
        return self._engine.rollout(
            per_sample, shape, rows=rows, outputs=outputs, dtype=dtype, window=window
        )

    @restored
    @torch.no_grad()
    def stored_rollout(
        self,
        samples: Tensor,
        *,
        rows: Sequence[int],
        states: Sequence[Tensor],
        log_prob: Tensor,
        slots: Tensor | None = None,
        seed: int | Tensor | Sequence[int],
        **arguments: Any,
    ) -> Rollout:
        """Returns the rollout that `rollout` gave with the same arguments, from what was stored of
        it.

        Args:
            samples: [B, …] its samples, whose device and dtype the rollout has.
            rows, log_prob, slots: its attributes of these names.
            states: its states, or all but the first where row 0 is recorded: that is x_T, which is
                computed again from the seed and the ids.
            seed, arguments: of the call of `rollout`.

        Raises:
            ValueError, TypeError: for tensors of other shapes or dtypes than those of such a
                rollout, and as `rollout` does.
        """
        self._refuse_hooks("stored_rollout", arguments, {"mask", "known"})
        arguments["guidance_scale"] = self._scale(arguments.get("guidance_scale"))
        return stored_rollout(
            self._engine,
            SampleArguments(seed, **arguments),
            samples.shape,
            rows=rows,
            states=states,
            log_prob=log_prob,
            samples=samples,
            slots=slots,
        )

    @restored
    @torch.no_grad()
    def start(
        self,
        shape: Sequence[int] | None = None,
        *,
        seed: int | Tensor | Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        window: tuple[int, int] | None = None,
        log_prob: bool = False,
        **arguments: Any,
    ) -> State:
        """Returns samples before their first step, which `advance` moves on and `fork` branches.

        Args:
            shape, seed, dtype: see `sample`.
            log_prob: whether every row writes the log-probabilities of its step, `State.log_prob`.
            arguments: those of `sample`, without hooks and derivatives.
        """
        self._refuse_hooks("start", arguments, set())
        arguments["guidance_scale"] = self._scale(arguments.get("guidance_scale"))
        return self._engine.start(
            SampleArguments(self._seed(seed), **arguments),
            shape,
            dtype=dtype,
            window=window,
            log_prob=log_prob,
        )

    def advance(self, state: State, steps: int = 1) -> None:
        """Executes this number of rows for every sample of a state, fewer where the plans end.

        After all rows `state.x` has the bits of `sample`.
        """
        advance(state, steps)

    def fork(
        self, state: State, parents: Sequence[int] | Tensor, new_ids: Sequence[int] | Tensor
    ) -> State:
        """Returns a state with the samples `parents` of a state, any number of times each: what
        resampling and tree searches need. State, slots and rows are gathered on the device.

        Args:
            parents: [n] numbers of samples in the state, which stays as it is.
            new_ids: [n] their ids from here on. A branch with its parent's id draws the noise that
                its parent draws.
        """
        return fork(state, parents, new_ids)

    def _refuse_hooks(self, name: str, arguments: Mapping[str, Any], others: set[str]) -> None:
        known = set(SampleArguments._fields) - {"seed"} - others
        if not known >= arguments.keys():
            raise TypeError(
                f"fastdiff.Sampler.{name}: expected arguments among {sorted(known)}, got"
                f" {min(arguments.keys() - known)!r}."
            )

    def stream(
        self,
        n: int,
        shape: Sequence[int],
        *,
        batch_size: int = 64,
        first_id: int = 0,
        seed: int | Tensor | Sequence[int] | None = None,
        **arguments: Any,
    ) -> Iterator[Tensor]:
        """Yields samples first_id … first_id + n - 1 of a run in batches [<= batch_size, *shape],
        in order.

        shape is one sample's. The arguments are those of `sample`, with n entries where they are
        per sample. At most batch_size samples are in flight; as soon as one is done, the next takes
        its lane. The samples equal those of one `sample` call.
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
        _check_shape(where, shape)
        known = {*SampleArguments._fields, *HOOKS, "dtype"}
        if not known >= arguments.keys():
            raise TypeError(
                f"{where}: expected arguments of sample, got {min(arguments.keys() - known)!r}."
            )
        if several(seed) and first_id:
            raise ValueError(
                f"{where}: expected first_id=0 with a seed per sample, got {first_id}. Every sample"
                " is then the first of its run."
            )
        hooks = {name: arguments.pop(name) for name in (*HOOKS, "dtype") if name in arguments}
        scale = self._scale(arguments.pop("guidance_scale", None))
        ids = None if several(seed) else range(first_id, first_id + n)
        per_sample = SampleArguments(self._seed(seed), ids, guidance_scale=scale, **arguments)
        batches = self._engine.stream(per_sample, (n, *shape), batch_size, **hooks)
        return batches if self._decode is None else map(self.decode, batches)

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
        """Yields (request, its sample [*shape]) as they are done, not in order.

        Each sample is the one that `sample` returns for its request alone.

        Args:
            requests: pulled one by one, when one of the batch_size lanes is empty. A None among
                them means that none waits now: the samples in flight take one step before the next
                request is pulled.
            shape: one sample's.
            other arguments: see `sample`.

        Raises:
            ValueError, TypeError: for a request that `sample` would refuse, or with other arguments
                in cond than the other requests.
        """
        _check_shape("fastdiff.Sampler.serve", shape)
        if batch_size < 1:
            raise ValueError(f"fastdiff.Sampler.serve: expected batch_size >= 1, got {batch_size}.")
        served = self._engine.serve(
            requests,
            self._arguments_of,
            shape,
            batch_size,
            dtype=dtype,
            classifier=classifier,
            classifier_scale=classifier_scale,
            guidance=guidance,
            through_network=through_network,
        )
        for request, sample in served:
            yield request, self.decode(sample[None])[0]

    def _arguments_of(self, request: Request) -> SampleArguments:
        r = request
        return SampleArguments(
            r.seed,
            [r.sample_id],
            _batched(r.cond),
            _batched(r.uncond),
            self._scale(r.guidance_scale),
            r.steps,
            r.start,
            r.strength,
            x_T=None if r.x_T is None else r.x_T[None],
            image=None if r.image is None else r.image[None],
        )

    def _seed(self, seed: int | Tensor | Sequence[int] | None) -> int | Tensor | Sequence[int]:
        if seed is None:
            seed = int(torch.randint(2**63 - 1, ()))
            self.last_seed = seed
        return seed

    def _scale(self, guidance_scale: Any) -> Any:
        return self.guidance_scale if guidance_scale is None else guidance_scale

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Writes a folder with config.json and model.safetensors, from which `from_pretrained`
        makes this sampler; a decoder is not saved.

        Raises TypeError for a model that is neither one of fastdiff.models nor has a factory
        (`models.made_by`), and ValueError for a sampler of a ready plan or with a guide.
        """
        from .pretrained import save

        if self.guide is not None:
            raise ValueError(
                "fastdiff.Sampler: expected one network to save, got a guide too. Save each network"
                " in a folder of its own."
            )
        if self.schedule is None or not self.settings:
            raise ValueError(
                "fastdiff.Sampler: expected a schedule and a solver to save, got a ready plan."
            )
        settings = {**self.settings, "guidance_scale": self.guidance_scale}
        kind = settings["prediction_type"]
        if isinstance(kind, Parametrization):
            settings |= kind._asdict()
        save(path, self.model, self.schedule, settings)

    @classmethod
    def from_pretrained(
        cls, path: str | PathLike[str], *, trust: bool = False, **overrides: Unpack[SamplerSettings]
    ) -> Sampler:
        """The sampler of a folder, of a shipped model's name (`fashion-mnist`), or of a repository
        of the Hugging Face Hub that holds such a folder (`org/name`, `org/name@revision`).

        `overrides` replace its settings. Solver options of the folder that another solver does not
        have are left out if that solver is asked for. `trust` says whether the code that a folder
        names as its network may run.

        Raises FileNotFoundError and ValueError, each with the file's name, for folders that can't
        be read, and ValueError for code without trust.
        """
        from .pretrained import hub, load
        from .pretrained.checks import one_sentence

        path = hub.fetch(str(path)) if hub.is_repository(str(path)) else path
        model, schedule, settings = load(path, trust=trust)
        with one_sentence(f"fastdiff.Sampler: expected settings of a sampler for {path}"):
            return cls(model, schedule, **merged(settings, overrides))

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in self.settings.items() if v is not None)
        return (
            f"Sampler({type(self.model).__name__}, {self.schedule!r},"
            f" {settings or f'plan of {len(self.plan)} rows'})"
        )


def _check_shape(where: str, shape: Any) -> None:
    """Refuses a sample's shape that is no sequence; its sizes are checked with those of the run."""
    if not isinstance(shape, Iterable):
        raise ValueError(f"{where}: expected shape […], one sample's, got {shape!r}.")


def _batched(arguments: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A request's arguments as those of a batch of one."""
    if arguments is None:
        return None
    return {k: v[None] if isinstance(v, Tensor) else v for k, v in arguments.items()}


def _decode_function(decode: Any) -> Callable[[Tensor], Tensor] | None:
    """What takes latents to data: the function that was passed, or that of an autoencoder of
    diffusers.

    Raises TypeError for anything else.
    """
    if hasattr(decode, "decode") and hasattr(decode, "config"):
        from .integrations.diffusers.pipeline import pictures

        return partial(pictures, decode)
    if decode is None or callable(decode):
        return decode
    raise TypeError(
        "fastdiff.Sampler: expected decode as a function of latents or an autoencoder of diffusers,"
        f" got {type(decode).__name__}."
    )
