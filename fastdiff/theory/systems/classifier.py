"""A noise-aware classifier: minimises E -ln p(y | x_t, t) over t, x0 and eps.

(Dhariwal & Nichol 2021, section 4.) Its gradient guides samples towards a class:
∇ln p(x_t|y) = ∇ln p(x_t) + γ ∇ln p(y|x_t) (Luo 2022, eq. 165 and 166). A classifier of clean images
does not serve for this, since x_t is mostly noise at most steps of a sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import ops
from ...grad_mode import restored
from ...schedule import Schedule
from ..conditions import Condition, labels_of
from .noising import Noised

_WHERE = "fastdiff.theory.systems.NoisyClassifier"


class Guesses(NamedTuple):
    """What a classifier predicts at K noise levels for each sample.

    Attributes:
        cross_entropy: [B, K], -ln p(y|x_t) in nats.
        correct: bool [B, K], whether y was the most probable label.
        log_snr: [B, K], the log-SNRs, falling along K.
    """

    cross_entropy: Tensor
    correct: Tensor
    log_snr: Tensor


class NoisyClassifier(Noised):
    """A network (x_t, t) -> logits with the schedule of the noise that it is trained on.

    Args:
        network: a `Classifier`, an `MLP` with one output per class, any module (x_t, t) -> logits
            [B, classes], or its description.
        schedule: the `Schedule` of the model that will be guided, or its config.
        scaled: the network reads alpha x_t/(alpha² + sigma²) instead of x_t.

    The gradient moves the predicted x0 by (sigma²/alpha) ∇ln p(y|x_t). The exact gradient is
    (alpha/sigma²)(E[x0|x_t, y] - E[x0|x_t]): it falls with alpha. A network that reads x_t has
    gradients of any size at alpha near 0, and sigma²/alpha multiplies them. One that reads the
    scaled input, which is E[x0|x_t] under the prior N(0, I), has the factor alpha by construction.
    """

    def __init__(
        self,
        network: nn.Module | dict[str, Any],
        schedule: Schedule | dict[str, Any],
        scaled: bool = False,
    ):
        # folders of versions without the option have no such key
        super().__init__(network, schedule, **({"scaled": True} if scaled else {}))
        self.scaled = bool(scaled)

    def logits(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Returns the logits [B, classes]. t: [B], as the sampler passes it to a network."""
        if self.scaled:
            gain = self._gain(t).to(x_t.dtype)
            x_t = x_t * gain.view(-1, *[1] * (x_t.ndim - 1))
        return self.network(x_t, t)

    def _gain(self, t: Tensor) -> Tensor:
        """Returns alpha/(alpha² + sigma²) [B] in float64, between timesteps by interpolation."""
        table = self.alpha / (self.alpha.square() + self.sigma.square())
        if not t.is_floating_point():
            return table[t]
        times = self.times.to(torch.float64)
        t = t.to(torch.float64)
        upper = torch.searchsorted(times, t).clamp(1, len(times) - 1)
        low, high = times[upper - 1], times[upper]
        share = ((t - low) / (high - low)).clamp(0, 1)
        return torch.lerp(table[upper - 1], table[upper], share)

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
        """Returns -ln p(y|x_t) [B] at uniform times.

        x0: [B, …]; labels: int64 [B], or a dict with them as `y`; part: not used, since times
        follow from the sample ids.
        """
        counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "step": step}
        labels = labels_of(labels, _WHERE)
        t = self.draw_times(**counter)
        x_t = ops.q_sample(x0, t, self.alpha, self.sigma, **counter)
        return F.cross_entropy(self.logits(x_t, self.times[t]), labels, reduction="none")

    def log_prob(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Returns ln p(y|x_t) [B]. t: [B], as the sampler passes it to a network."""
        logits = self.logits(x_t, t)
        return F.log_softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]

    def log_prob_of(self, labels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns the function (x_t, t) -> ln p(y|x_t) for `Sampler.sample(classifier=…)`.

        labels: int64 [B], one for each sample of the call.
        """
        return lambda x_t, t: self.log_prob(x_t.to(next(self.parameters()).dtype), t, labels)

    @restored
    @torch.no_grad()
    def guesses(
        self, x0: Tensor, labels: Condition, *, seed: int, sample_ids: Tensor, times: int = 64
    ) -> Guesses:
        """Returns the predictions at timesteps that are spread evenly over the noise.

        times: how many per sample; at most T - 1 are taken.
        """
        labels = labels_of(labels, _WHERE)
        chosen, _ = self.spread_times(times, seed, sample_ids)
        entropies, correct = [], []
        for j, t in enumerate(chosen.unbind(1)):
            x_t = ops.q_sample(
                x0, t, self.alpha, self.sigma, seed=seed, sample_ids=sample_ids, step=j
            )
            logits = self.logits(x_t, self.times[t])
            entropies.append(F.cross_entropy(logits, labels, reduction="none"))
            correct.append(logits.argmax(1) == labels)
        return Guesses(torch.stack(entropies, 1), torch.stack(correct, 1), self.log_snr_at(chosen))
