"""What a trainable system is.

A system is a `torch.nn.Module` that defines the loss that training minimises and the bound that
evaluation reports. All randomness in it is a pure function of (seed, step, sample id), so a run
that is killed and resumed gives the same bits as a run without interruption.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from .conditions import Condition


class TimedBound(NamedTuple):
    """A bound with a denoising term that is a sum over times.

    Attributes:
        bound: the terms, as `System.bound` returns them.
        denoising: [B, K], the contribution of each of a sample's K times; the sum over K is
            bound["denoising"].
        log_snr: [B, K], ln(alpha²/sigma²) at these times, falling along K.
    """

    bound: dict[str, Tensor]
    denoising: Tensor
    log_snr: Tensor


class System(Protocol):
    """What the trainer, `fastdiff eval` and model folders require of a system.

    A system is also an `nn.Module`.

    Attributes:
        config: keyword arguments, as JSON can hold them, that rebuild it: type(self)(**config).

    A system has `bound`, unless it models labels instead of data. It then has
        guesses(x0, labels, *, seed, sample_ids, times) -> `systems.classifier.Guesses`.

    A system may also have:
        sample(n, *, seed, sample_ids) -> [n, …]: draws n samples.
        log_prob(x0) -> [B]: ln p(x0) in nats, of systems that know it without a bound.
        loss_unit: the unit of its loss: nats (where there is none), bits/dim, MSE.
        pending() -> float64 [b, k], rows that its last `loss` left to record, in the order of the
            batch; they are then forgotten. record(rows) gets those of the whole batch, once a step.
        for_sampler() -> (network, schedule, settings): arguments of `fastdiff.Sampler`.
        for_likelihood(labels=None) -> dict: arguments of `likelihood.nll` other than x and the
            probes; with labels, of the likelihood given them.
        terms(x0, labels, *, seed, sample_ids, times) -> TimedBound: for `fastdiff eval --plot`.
        given: names of what every density of it is conditioned on.
        pending() -> [b, k]: float64 rows that its last call of `loss` left to record, in the order
            of the batch; they are then forgotten.
        record(rows): takes the rows of a whole training step, of all shares in the order of the
            global batch. The trainer calls it once per step on every rank. For systems that learn
            from losses.
    """

    config: dict[str, Any]

    def loss(
        self,
        x0: Tensor,
        labels: Condition,
        *,
        seed: int,
        sample_ids: Tensor,
        step: int,
        part: tuple[int, int] | None = None,
    ) -> Tensor:
        """Returns the loss [B]; training minimises its mean.

        part: (start, total), for a share of a larger batch: this call has the positions start …
            start + B - 1 of `total`. A system that draws by position (stratified or antithetic
            times) draws as for the whole batch, so the shares together give its loss. None for a
            whole batch.
        """
        ...

    def bound(
        self,
        x0: Tensor,
        labels: Condition = None,
        *,
        seed: int,
        sample_ids: Tensor,
        **options: Any,
    ) -> dict[str, Tensor]:
        """Returns terms [B] in nats; in expectation their sum is at least -ln p(x0)."""
        ...
