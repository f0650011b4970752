"""Rollouts: samples with their transitions and log-probabilities, for reinforcement learning.

A row that draws noise is a Gaussian policy: x_s ~ N(mean(x_t, out, slots), std² I), and `rollout`
keeps x_t, x_s and log N(x_s; mean, std²) of such rows (Black et al. 2023, section 4.3: the
denoising steps as actions of a Markov decision process). `Rollout.score` computes the
log-probabilities again from the stored states with gradients to the network, by the same row of the
same table: with equal network outputs it returns the same bits, so pi/pi_old is exactly 1.

States are float32 (or float64) whatever the network's dtype is, and the noise of a row is a
function of (seed, id, row), so it need not be stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from .. import ops
from ..grad_mode import restored
from ..rng import STREAM_SOLVER
from ..solvers import Plan
from ..whole import whole
from .buffers import NONE, calls_of_rows
from .conditions import Conditions
from .device_plan import DevicePlan
from .network import Model, Network
from .network_inputs import BOTH, NetworkInputs
from .options import RunOptions
from .requests import Batch
from .upload import upload

_WHERE = "fastdiff.Rollout"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Rollout:
    """B samples, and the transitions x_t -> x_s of R rows of their plans.

    `rollout[index]` has some of the samples; index is a slice, or numbers.

    Attributes:
        samples: [B, …] the states after the last row, which `Sampler.decode` takes.
        rows: the recorded rows of the plan, ascending.
        states: [S, B, …] the states before and after recorded rows, float32 (or float64).
        log_prob: [R, B] log N(x_s; mean, std² I) in nats; 0 where a sample's row draws no noise.
        draws: bool [R, B] on the host, whether the sample's row draws noise.
        slots: [R, S, B, …] what multistep solvers remember before each row; None without.
        outputs: of each row the network's output, [B, …] or, for both guidance halves, [2B, …];
            None unless asked for.
        ids, start_ids, seeds: int64 [B]. ids name the noise of rows, start_ids that of x_T.
        plans: the plans that the samples follow. plan_of: [B] which of them each follows.
        guidance_scale: [B], of the host where it knows it.
        conditions: the network's arguments.
        window: (offset, size) where the samples are parts of larger ones; log_prob is the part's.
    """

    samples: Tensor
    rows: tuple[int, ...]
    states: Tensor
    log_prob: Tensor
    draws: NDArray[np.bool_]
    slots: Tensor | None
    outputs: tuple[Tensor, ...] | None
    ids: Tensor
    start_ids: Tensor
    seeds: Tensor
    plans: tuple[Plan, ...]
    plan_of: NDArray[np.int64]
    guidance_scale: NDArray[np.float64] | Tensor
    guided: bool
    conditions: Conditions
    network: Network | None
    network_batch: int | None
    whole_times: bool
    window: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        shape = list(self.samples.shape)
        return f"Rollout({shape} samples, rows {list(self.rows)}, {len(self.plans)} plans)"

    @property
    def plan(self) -> Plan:
        """The plan of all samples. Raises ValueError where they follow several."""
        if len(self.plans) != 1:
            raise ValueError(
                f"{_WHERE}: expected one plan for all samples, got {len(self.plans)}. Use plans and"
                " plan_of."
            )
        return self.plans[0]

    @property
    def at(self) -> tuple[int, ...]:
        """[R] where in `states` x_t of each row is; x_s follows it."""
        return places(self.rows)[0]

    @property
    def x_t(self) -> Tensor:
        """[R, B, …] the states before the recorded rows."""
        return self._states(0)

    @property
    def x_s(self) -> Tensor:
        """[R, B, …] the states after the recorded rows."""
        return self._states(1)

    def _states(self, offset: int) -> Tensor:
        at = [k + offset for k in self.at]
        if at and at == list(range(at[0], at[0] + len(at))):
            return self.states[at[0] : at[0] + len(at)]
        return self.states[at]

    def noise(self, k: int) -> Tensor:
        """The noise z [B, …] that recorded row k drew, computed again from (seed, id, row).

        It means nothing for samples whose row draws none.
        """
        steps = np.array([p.column("noise_index")[self.rows[k]] for p in self.plans], np.int64)
        z = torch.empty_like(self.samples)
        for step in sorted(set(steps[self.plan_of].tolist())):
            index = upload(np.flatnonzero(steps[self.plan_of] == step), z.device)
            z[index] = ops.randn(
                (len(index), *z.shape[1:]),
                seed=self.seeds[index],
                sample_ids=self.ids[index],
                stream=STREAM_SOLVER,
                window=self.window,
                step=step,
                dtype=z.dtype,
            )
        return z

    # -- parts -------------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Rollout:
        if isinstance(index, int):
            index = [index]
        if isinstance(index, slice):
            index = range(len(self))[index]
        host = np.asarray(index.cpu() if isinstance(index, Tensor) else index)
        host = np.flatnonzero(host) if host.dtype == np.bool_ else host.astype(np.int64)
        if host.ndim != 1 or (len(host) and not -len(self) <= host.min() <= host.max() < len(self)):
            raise IndexError(f"{_WHERE}: expected numbers of {len(self)} samples, got {index}.")
        host = host % max(len(self), 1)
        there = upload(host, self.samples.device)
        halves = () if self.outputs is None else self.outputs
        gamma = self.guidance_scale
        c = self.conditions
        return dataclasses.replace(
            self,
            samples=self.samples[there],
            states=self.states[:, there],
            log_prob=self.log_prob[:, there],
            draws=self.draws[:, host],
            slots=None if self.slots is None else self.slots[:, :, there],
            outputs=None
            if self.outputs is None
            else tuple(
                out.view(-1, len(self), *out.shape[1:])[:, there].flatten(0, 1) for out in halves
            ),
            ids=self.ids[there],
            start_ids=self.start_ids[there],
            seeds=self.seeds[there],
            plan_of=self.plan_of[host],
            guidance_scale=gamma[there] if isinstance(gamma, Tensor) else gamma[host],
            conditions=Conditions(
                {k: v[there] for k, v in c.cond.items()},
                {k: v[there] for k, v in c.uncond.items()},
                c.shared,
            ),
        )

    def minibatches(self, size: int, *, seed: int = 0, epoch: int = 0) -> Iterator[Rollout]:
        """Yields rollouts of `size` samples each, the last one of what is left, in an order that is
        a function of (seed, epoch) and the number of samples alone.
        """
        count = whole(size)
        if count is None or count < 1:
            raise ValueError(f"{_WHERE}: expected size >= 1, got {size!r}.")
        order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(len(self))
        for begin in range(0, len(self), count):
            yield self[order[begin : begin + count]]

    # -- scores ------------------------------------------------------------------------------------

    @restored
    def score(
        self,
        model: Model | None = None,
        *,
        rows: Sequence[int] | None = None,
        micro_batch: int | None = None,
        checkpoint: bool = False,
        reduce: str = "sum",
    ) -> Tensor:
        """Returns log N(x_s; mean, std² I) [rows, B] in nats under a network, with gradients where
        torch's grad mode is on; 0 where a sample's row draws no noise.

        Each row makes the network calls of the rollout, with both guidance halves in one batch.
        The result has the bits of `log_prob` where the outputs have: for the same weights with the
        same number of samples in a call, or with the sampler's network_batch for any number.

        Args:
            model: called as the sampler's is; None for the sampler's own.
            rows: of the plan, among the recorded ones; None for all.
            micro_batch: samples per network call; None for all. More calls need less memory only
                with `checkpoint`, or where the caller goes backward row by row.
            checkpoint: whether the backward pass computes each network call again instead of
                storing what it needs.
            reduce: `sum` over a sample's elements, or their `mean`.

        Raises ValueError for rows that were not recorded.
        """
        wanted = self.rows if rows is None else tuple(int(row) for row in rows)
        missing = sorted(set(wanted) - set(self.rows))
        if missing:
            raise ValueError(
                f"{_WHERE}: expected rows among the recorded {list(self.rows)}, got {missing}."
            )
        size = len(self) if micro_batch is None else whole(micro_batch)
        if size is None or size < 1:
            raise ValueError(f"{_WHERE}: expected micro_batch >= 1, got {micro_batch!r}.")
        network = self._network(model)
        parts = [
            self[begin : begin + size]._scores(network, wanted, checkpoint, reduce)
            for begin in range(0, len(self), size)
        ]
        if not parts:
            return self.log_prob[[self.rows.index(row) for row in wanted]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _network(self, model: Model | None) -> Network:
        own = self.network
        if own is None:
            if model is None:
                raise ValueError(f"{_WHERE}: expected a model to score, got none. Pass model=.")
            return Network(model, where=_WHERE)
        if model is None or model is own.model:
            network = own
        else:
            network = Network(
                model,
                dtype=own.dtype,
                channels_last=own.channels_last,
                guide=None if own.guide is None else own.guide.model,
                where=_WHERE,
            )
        if network.copied and torch.is_grad_enabled():
            raise ValueError(
                f"{_WHERE}: expected a network in its own dtype and memory format, got a copy whose"
                " weights would get the gradients. Pass the network as it should run."
            )
        return network

    def _scores(
        self, network: Network, rows: Sequence[int], checkpoint: bool, reduce: str
    ) -> Tensor:
        n, x = len(self), self.samples
        plan = DevicePlan(x.device, whole_times=self.whole_times)
        first = np.array([plan.add(p) for p in self.plans])[self.plan_of]
        options = RunOptions(
            device=x.device,
            dtype=x.dtype,
            shape=tuple(x.shape[1:]),
            network_batch=self.network_batch,
            differentiable=True,
        )
        inputs = NetworkInputs(
            plan, network, options, n, self.conditions, halves=2 if self.guided else 1
        )
        gamma = self.guidance_scale
        batch = Batch(
            rows=first,
            seeds=self.seeds,
            ids=self.ids,
            start_ids=self.start_ids,
            gamma=gamma,
            guided=self.guided,
            conditions=self.conditions,
            tickets=np.arange(n),
            std=np.ones(n),
        )
        lanes = np.arange(n)
        inputs.put(lanes, upload(lanes, x.device), x, batch)
        known = None if isinstance(gamma, Tensor) else gamma
        strengths = gamma if isinstance(gamma, Tensor) else upload(gamma, x.device)
        strengths = strengths.to(x.dtype)
        result = []
        for row in rows:
            (calls,) = calls_of_rows(plan, (first + row)[None], known, guided=self.guided)
            one = self._row_score(inputs, plan, first + row, calls, strengths, row, reduce)
            x_t = self.states[self.at[self.rows.index(row)]]
            if checkpoint and torch.is_grad_enabled():
                result.append(recomputed(one, x_t, use_reentrant=False))
            else:
                result.append(one(x_t))
        return torch.stack(result) if result else self.log_prob[:0]

    def _row_score(
        self,
        inputs: NetworkInputs,
        plan: DevicePlan,
        at: NDArray[np.int64],
        calls: str,
        gamma: Tensor,
        row: int,
        reduce: str,
    ) -> Callable[[Tensor], Tensor]:
        k = self.rows.index(row)
        index = upload(at, self.samples.device)
        drawn = np.flatnonzero(self.draws[k])

        def score(x_t: Tensor) -> Tensor:
            out = None if calls == NONE else inputs.output_of(calls, index, x_t)
            guidance = gamma if calls == BOTH else None
            slots = None if self.slots is None else self.slots[k]
            x_s = self.states[self.at[k] + 1]
            if len(drawn) == len(self):
                return ops.step_log_prob(
                    x_t,
                    out,
                    x_s,
                    plan.table,
                    index,
                    slots=slots,
                    guidance=guidance,
                    used=plan.used,
                    reduce=reduce,
                )
            result = x_t.new_zeros(len(self))
            if not len(drawn):
                return result
            part = upload(drawn, x_t.device)
            if out is not None:
                out = out.view(-1, len(self), *out.shape[1:])[:, part].flatten(0, 1)
            scored = ops.step_log_prob(
                x_t[part],
                out,
                x_s[part],
                plan.table,
                index[part],
                slots=None if slots is None else slots[:, part],
                guidance=None if guidance is None else guidance[part],
                used=plan.used,
                reduce=reduce,
            )
            return result.index_put((part,), scored)

        return score


def places(rows: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Returns (where in `Rollout.states` x_t of each recorded row is, the number of states).

    The state after a row is that before the next one, and is there once where both are recorded.
    """
    at: list[int] = []
    count = 0
    for i, row in enumerate(rows):
        follows = i > 0 and rows[i - 1] + 1 == row
        at.append(count - 1 if follows else count)
        count = at[-1] + 2
    return tuple(at), count
