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
from torch.nn.attention import SDPBackend, sdpa_kernel

from ... import ops, rng
from ...grad_mode import restored
from ...prediction import normalize, to_x0_coefficients
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
        teacher: the name of the diffusion model that `teach` is called with for training; None
            trains with the cross-entropy alone.
        match: the weight of the loss of the gradient, with a teacher.
        matched: the share of the examples that have this loss, which takes ten times as long as
            the cross-entropy; it is divided by the share, so that its mean is the same.

    The gradient moves the predicted x0 by (sigma²/alpha) ∇ln p(y|x_t). The exact gradient is
    (alpha/sigma²)(E[x0|x_t, y] - E[x0|x_t]): it falls with alpha. A network that reads x_t has
    gradients of any size at alpha near 0, and sigma²/alpha multiplies them. One that reads the
    scaled input, which is E[x0|x_t] under the prior N(0, I), has the factor alpha by construction.

    Cross-entropy leaves the gradient free wherever the label is certain, so it is many times too
    small at low noise and points elsewhere. With a teacher, the loss has a further term:

        match · |(sigma²/alpha) ∇ln p(y|x_t) - d|²/(sigma² D),   d = x̂0(x_t, t, y) - x̂0(x_t, t)

    for a random label y, or, where the teacher knows no labels, d = x0 - x̂0(x_t, t) for the label
    of x0 (Chao et al. 2022, denoising likelihood score matching): both have the same minimum. In
    a space where alpha² + sigma² is not 1, it is a factor of the term.
    """

    loss_unit = "nats"

    def __init__(
        self,
        network: nn.Module | dict[str, Any],
        schedule: Schedule | dict[str, Any],
        scaled: bool = False,
        teacher: str | None = None,
        match: float = 50.0,
        matched: float = 0.25,
    ):
        taught: dict[str, Any] = {}
        if teacher is not None:
            taught = {"teacher": teacher, "match": match, "matched": matched}
        # folders of versions without the options have no such keys
        super().__init__(network, schedule, **({"scaled": True} if scaled else {}), **taught)
        fits = isinstance(teacher, str) and scaled and match > 0 and 0 < matched <= 1
        if teacher is not None and not fits:
            raise ValueError(
                f"{_WHERE}: expected teacher as a name, with scaled=True, match > 0 and matched in"
                f" (0, 1], got {teacher!r}, {scaled!r}, {match!r} and {matched!r}."
            )
        self.scaled, self.teacher = bool(scaled), teacher
        self.match, self.matched = match, matched
        self._guide: tuple[Any, str] | None = None  # in a tuple, it is no part of this module

    def teach(self, network: Any, schedule: Schedule, prediction_type: str) -> None:
        """Sets the teacher for `loss`: a network (x_t, t[, y]) of the schedule of this classifier.

        A network whose attribute `null_label` is above 0 has the labels below it, and it.

        Raises ValueError for another schedule, or other classes.
        """
        if schedule.to_config() != self.schedule.to_config():
            raise ValueError(
                f"{_WHERE}: expected a teacher of the classifier's schedule"
                f" {self.schedule.to_config()}, got {schedule.to_config()}."
            )
        known, own = getattr(network, "null_label", 0), self._classes()
        if known and own is not None and known != own:
            raise ValueError(
                f"{_WHERE}: expected a teacher of {own} classes, or of none, got {known}."
            )
        self._guide = (network, normalize(prediction_type))

    def _classes(self) -> int | None:
        config = getattr(self.network, "config", {})
        return config.get("num_classes") or config.get("out")

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

    @restored
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
        """Returns -ln p(y|x_t) [B] at uniform times, and with a teacher the loss of the gradient.

        x0: [B, …]; labels: int64 [B], or a dict with them as `y`; part: not used, since times
        follow from the sample ids.
        """
        counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids, "step": step}
        labels = labels_of(labels, _WHERE)
        t = self.draw_times(**counter)
        x_t = ops.q_sample(x0, t, self.alpha, self.sigma, **counter)
        loss = F.cross_entropy(self.logits(x_t, self.times[t]), labels, reduction="none")
        if self.teacher is None:
            return loss
        chosen = (rng.uniform(word=3, **counter) < self.matched).nonzero()[:, 0]
        counter |= {"sample_ids": sample_ids[chosen]}
        error = self._error(x0[chosen], x_t[chosen], t[chosen], labels[chosen], counter)
        return loss.index_add(0, chosen, error.to(loss.dtype), alpha=self.match / self.matched)

    @restored
    def _error(
        self, x0: Tensor, x_t: Tensor, t: Tensor, labels: Tensor, counter: dict[str, Any]
    ) -> Tensor:
        """Returns |(sigma²/alpha) ∇ln p(y|x_t) - d|²/(sigma² D) [B], for labels y of `_wanted`."""
        wanted, d = self._wanted(x0, x_t, t, labels, counter)
        x_t = x_t.detach().requires_grad_()
        # of attention, only this kernel has a second derivative
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            of_wanted = self.log_prob(x_t, self.times[t], wanted).sum()
            (gradient,) = torch.autograd.grad(of_wanted, x_t, create_graph=True)
        alpha, sigma = self._coefficients(t, x_t)
        error = gradient * (sigma / alpha) - d / sigma
        return (error.square() * (alpha.square() + sigma.square())).flatten(1).mean(1)

    @restored
    @torch.no_grad()
    def _wanted(
        self, x0: Tensor, x_t: Tensor, t: Tensor, labels: Tensor, counter: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Returns (labels [B], d [B, …]): what the gradient for these labels should move x0 by."""
        if self._guide is None:
            raise ValueError(
                f"{_WHERE}: expected the teacher {self.teacher!r} for the loss, got none. Call"
                " teach(network, schedule, prediction_type)."
            )
        network, kind = self._guide
        times, null = self.times[t], getattr(network, "null_label", 0)
        of_x, of_output = to_x0_coefficients(kind, *self._coefficients(t, x_t))
        if not null:
            return labels, x0 - (of_x * x_t + of_output * network(x_t, times))
        wanted = rng.randint(null, word=2, **counter)
        without = network(x_t, times, torch.full_like(labels, null))
        return wanted, of_output * (network(x_t, times, wanted) - without)

    def _coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (alpha, sigma) at timesteps t, [B, 1, …] in the dtype of `like`."""
        shape = (-1, *[1] * (like.ndim - 1))
        return self.alpha[t].to(like).view(shape), self.sigma[t].to(like).view(shape)

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
