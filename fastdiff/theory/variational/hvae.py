"""The hierarchical variational autoencoder, with levels drawn from the top down.

    p(x, z_1:L) = p(x|z_1:L) p(z_L) Π_l p(z_l|z_>l),    q(z_1:L|x) = q(z_L|x) Π_l q(z_l|z_>l, x)
    -ELBO(x|z_>l) = KL(q(z_l|z_>l, x) ‖ p(z_l|z_>l)) + E_q(z_l|z_>l, x) [-ELBO(x|z_>=l)]
    -ELBO(x|z_1:L) = -ln p(x|z_1:L)

(Sønderby et al. 2016; Child 2021.) -ELBO(x) of all levels is at least -ln p(x): the same bound as
Luo 2022, eq. 28, with levels that depend on all levels above them. Every KL has its closed form
(`ops.gaussian_kl`). Every draw is reparameterised, with noise that the backward pass regenerates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import ops
from ...grad_mode import restored
from ...rng import STREAM_INITIAL, STREAM_REPARAMETERIZE, STREAM_SOLVER
from ..information import Gaussian
from .bounds import check_shape, iwae, warmup
from .levels import Block, Level, grow, shrink
from .observation import Normal, Observation


class Draw(NamedTuple):
    """One draw of all levels: p(x|z) and, from bottom to top, each level's q, p and z."""

    x: Normal
    q: list[Gaussian]
    p: list[Gaussian]
    z: list[Tensor]


class HVAE(nn.Module):
    """A hierarchical latent-variable model of x [B, *shape] with its encoder.

    Args:
        shape: of a sample, [C, S, S] or [D].
        latents: (channels, size) of z_1 … z_L, bottom to top. Every size divides the size below it,
            the first one S. The latents of vectors have size 1.
        widths: the number of features at each level.
        likelihood: p(x|z), `discretized` (8-bit levels in [-1, 1]) or `gaussian` (a density), with
            a standard deviation for each element.
        initial_std: the approximate initial standard deviation; with a small one the first
            gradients reach the latents.
        min_log_std: the floor of its logarithm.
        kl_warmup: the training steps over which the weight of the KLs rises from 0 to 1, so that no
            level collapses to its prior early.

    Attributes:
        config: the arguments, as JSON can hold them.

    Raises:
        ValueError: for sizes that do not divide, and names or numbers outside these.
    """

    loss_unit = "nats"

    def __init__(
        self,
        shape: Sequence[int] = (1, 28, 28),
        latents: Sequence[Sequence[int]] = ((4, 14), (8, 7), (32, 1)),
        *,
        widths: Sequence[int] = (32, 64, 128),
        likelihood: str = "discretized",
        initial_std: float = 1.0,
        min_log_std: float = -7.0,
        kl_warmup: int = 500,
    ):
        super().__init__()
        self.shape = tuple(int(n) for n in shape)
        levels = [(int(c), int(s)) for c, s in latents]
        # a vector is treated as an image with one position
        self.grid = self.shape if len(self.shape) == 3 else (*self.shape, 1, 1)
        self._check(levels, widths, kl_warmup)
        self.config: dict[str, Any] = {
            "shape": list(self.shape),
            "latents": [list(v) for v in levels],
            "widths": [int(w) for w in widths],
            "likelihood": likelihood,
            "initial_std": initial_std,
            "min_log_std": min_log_std,
            "kl_warmup": kl_warmup,
        }
        self.kl_warmup = kl_warmup
        self.observation = Observation(
            self.shape,
            likelihood,
            "diagonal",
            None,
            initial_std,
            min_log_std,
            where="fastdiff.theory.variational.HVAE",
        )
        sizes, channels = [self.grid[1], *(s for _, s in levels)], [self.grid[0], *map(int, widths)]
        self.down = nn.ModuleList(
            nn.Sequential(
                shrink(channels[i], channels[i + 1], sizes[i], sizes[i + 1]),
                Block(channels[i + 1], sizes[i + 1]),
            )
            for i in range(len(levels))
        )
        self.levels = nn.ModuleList(
            Level(c, s, int(w), top=i == len(levels) - 1)
            for i, ((c, s), w) in enumerate(zip(levels, widths, strict=True))
        )
        # up[i] maps the state of level i to the level below; up[0] to the two numbers per element
        # of x
        outputs = self.observation.per_element * self.grid[0]
        self.up = nn.ModuleList(
            grow(channels[i + 1], outputs if i == 0 else channels[i], sizes[i + 1], sizes[i])
            for i in range(len(levels))
        )
        self.start = nn.Parameter(torch.zeros(1, int(widths[-1]), sizes[-1], sizes[-1]))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form

    def _check(self, levels: list[tuple[int, int]], widths: Sequence[int], kl_warmup: int) -> None:
        where = "fastdiff.theory.variational.HVAE"
        if len(self.shape) not in (1, 3) or min(self.shape) < 1 or self.grid[1] != self.grid[2]:
            raise ValueError(
                f"{where}: expected shape [C, S, S] or [D], got {list(self.shape)}. Pad the images."
            )
        if (
            not levels
            or len(widths) != len(levels)
            or min(min(v) for v in levels) < 1
            or min(widths) < 1
        ):
            raise ValueError(
                f"{where}: expected a width >= 1 for each of the latents (channels, size), got"
                f" {list(widths)} and {levels}."
            )
        for below, (_, size) in zip([self.grid[1], *(s for _, s in levels)], levels, strict=False):
            if below % size:
                raise ValueError(
                    f"{where}: expected sizes that divide the one below, got {size} above {below}."
                )
        if kl_warmup < 0:
            raise ValueError(f"{where}: expected kl_warmup >= 0, got {kl_warmup}.")

    # the model

    def features(self, x0: Tensor) -> list[Tensor]:
        """Returns the encoder's features of x at every level, bottom to top."""
        check_shape("HVAE", x0, self.shape)
        h, features = x0.reshape(-1, *self.grid), []
        for down in self.down:
            h = down(h)
            features.append(h)
        return features

    def decode(self, state: Tensor) -> Normal:
        """Returns p(x|z_1:L) for the state below z_1."""
        values = self.up[0](F.silu(state)).reshape(
            len(state), self.observation.per_element, *self.shape
        )
        p = self.observation(values, None)
        assert isinstance(p, Normal)
        return p

    def descend(
        self, features: list[Tensor], *, seed: int, sample_ids: Tensor | None = None, step: int = 0
    ) -> Draw:
        """Draws z_L … z_1 from q, each level given the levels above it.

        The noise of level l is that of step step·L + l - 1 of stream 3.
        """
        counter: dict[str, Any] = {
            "seed": seed,
            "sample_ids": sample_ids,
            "stream": STREAM_REPARAMETERIZE,
        }
        state = self.start.expand(len(features[0]), -1, -1, -1)
        drawn: list[tuple[Gaussian, Gaussian, Tensor]] = []
        for i in reversed(range(len(self.levels))):
            level: Any = self.levels[i]
            p = level.p(state)
            q = level.q(state, features[i], p)
            z = ops.reparameterize(*q, step=step * len(self.levels) + i, **counter)
            state = level(state, z)
            drawn.insert(0, (q, p, z))
            if i:
                state = self.up[i](F.silu(state))
        q_all, p_all, z_all = (list(values) for values in zip(*drawn, strict=True))
        return Draw(self.decode(state), q_all, p_all, z_all)

    # training and evaluation

    def loss(
        self,
        x0: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int,
        sample_ids: Tensor | None = None,
        step: int = 0,
        part: tuple[int, int] | None = None,
    ) -> Tensor:
        """Returns -ELBO [B] in nats by one draw, the KLs weighted by min(1, (step + 1)/kl_warmup).

        Args:
            x0: [B, *shape].
            labels, part: not used.
            seed, sample_ids, step: of the noise contract.
        """
        weight = warmup(step, self.kl_warmup)
        drawn = self.descend(self.features(x0), seed=seed, sample_ids=sample_ids, step=step)
        kls = torch.stack([ops.gaussian_kl(*q, *p) for q, p in zip(drawn.q, drawn.p, strict=True)])
        return weight * kls.sum(0) - self.observation.log_prob(x0, drawn.x)

    def bound(
        self,
        x0: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int,
        sample_ids: Tensor | None = None,
        step: int = 0,
        samples: int = 1,
        importance: bool = False,
    ) -> dict[str, Tensor]:
        """Returns the terms of the bound, [B] each in nats.

        In expectation their sum is at least -ln p(x).

        Args:
            x0: [B, *shape].
            labels: not used.
            seed, sample_ids, step: of the noise contract.
            samples: K, the draws of all levels over which the terms are averaged.
            importance: whether to add the term of that name.

        Returns:
            reconstruction: -ln p(x|z).
            kl_1 … kl_L: the KL of every level, bottom to top. The terms so far sum to -ELBO.
            importance: ELBO - IWAE_K of the same K draws; with it all terms sum to -IWAE_K (Burda
                et al. 2016, eq. 8).

        Raises ValueError for fewer than one sample and data of another shape.
        """
        if samples < 1:
            raise ValueError(
                f"fastdiff.theory.variational.HVAE.bound: expected samples >= 1, got {samples}."
            )
        features, log_w = self.features(x0), []
        sums: dict[str, Tensor] = {}
        for k in range(samples):
            drawn = self.descend(
                features, seed=seed, sample_ids=sample_ids, step=step * samples + k
            )
            log_likelihood = self.observation.log_prob(x0, drawn.x)
            terms = {"reconstruction": -log_likelihood}
            for i, (q, p, z) in enumerate(zip(drawn.q, drawn.p, drawn.z, strict=True)):
                terms[f"kl_{i + 1}"] = ops.gaussian_kl(*q, *p)
                if importance:
                    log_likelihood = log_likelihood + p.log_prob(z) - q.log_prob(z)
            log_w.append(log_likelihood)
            sums = {name: value / samples + sums.get(name, 0.0) for name, value in terms.items()}
        if importance:
            sums["importance"] = -iwae(torch.stack(log_w, 1)) - torch.stack(
                list(sums.values())
            ).sum(0)
        return sums

    # drawing

    @restored
    @torch.no_grad()
    def sample(
        self, n: int, *, seed: int, sample_ids: Tensor | None = None, mean: bool = False
    ) -> Tensor:
        """Returns n samples [n, *shape].

        z_L … z_1 are drawn from their priors (stream 0), then x ~ p(x|z) (stream 1). With
        mean=True, x is the mean of p(x|z).
        """
        counter: dict[str, Any] = {"seed": seed, "sample_ids": sample_ids}
        state = self.start.expand(n, -1, -1, -1)
        for i in reversed(range(len(self.levels))):
            level: Any = self.levels[i]
            z = ops.reparameterize(*level.p(state), step=i, stream=STREAM_INITIAL, **counter)
            state = level(state, z)
            if i:
                state = self.up[i](F.silu(state))
        p = self.decode(state)
        if mean:
            return p.mean
        eps = ops.randn(
            p.mean.shape, dtype=p.mean.dtype, device=p.mean.device, stream=STREAM_SOLVER, **counter
        )
        return self.observation.sample(p, eps)
