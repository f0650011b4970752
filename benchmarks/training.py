"""Compares the fused ops of a training step with eager formulas, forward and backward.

    python -m benchmarks.training --out benchmarks/results/training-….json

The arms are the ops as a VAE and a VDM call them on a batch, without the networks, and the torch
formulas with `torch.randn` that users write in their place. Both get the same output gradients. A
ratio is eager time over fused time: at 1 or above the ops are not slower. Before anything is timed,
the eager formula with the op's noise must have the op's values and gradients.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.checks import relative_difference
from fastdiff import Schedule, ops, rng
from fastdiff.jobs import machine
from fastdiff.theory.variational.gamma import point

LATENT, IMAGE = 32, (1, 28, 28)
SEED: dict[str, Any] = {"seed": 7}
Noise = Callable[[Tensor, int], Tensor]


class Piece(NamedTuple):
    """A part of a training step.

    Attributes:
        leaves: the tensors that get gradients.
        fused: computes the results from the leaves by fastdiff's ops.
        eager: the same by torch's formulas; it draws with its argument `noise(like, stream)`.
    """

    leaves: tuple[Tensor, ...]
    fused: Callable[..., tuple[Tensor, ...]]
    eager: Callable[..., tuple[Tensor, ...]]


def fresh(like: Tensor, stream: int) -> Tensor:
    return torch.randn_like(like)


def contract(like: Tensor, stream: int) -> Tensor:
    """Returns the op's own noise, for comparing values only."""
    return ops.randn(like.shape, dtype=like.dtype, device=like.device, stream=stream, **SEED)


def wide(values: Tensor) -> Tensor:
    return values.to(torch.float32).view(-1, 1, 1, 1)


def discretised(x0: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Returns -log of the Gaussian's mass on an 8-bit level, clamped at 1e-12 as usual."""
    inverse, centre = torch.exp(-log_scale), x0 - mean
    upper = torch.special.ndtr(inverse * (centre + 1 / 255))
    lower = torch.special.ndtr(inverse * (centre - 1 / 255))
    mass = torch.where(x0 < -0.999, upper, torch.where(x0 > 0.999, 1 - lower, upper - lower))
    return -torch.log(mass.clamp(min=1e-12)).flatten(1).sum(1)


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mean**2 + torch.exp(logvar) - 1 - logvar).flatten(1).sum(1)


def pieces(batch: int, device: str = "cpu") -> dict[str, Piece]:
    """Returns the ops of a step, one by one and together."""
    g = torch.Generator().manual_seed(0)

    def leaf(
        *shape: int, scale: float = 1.0, shift: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        return (scale * torch.randn(*shape, generator=g) + shift).to(device, dtype).requires_grad_()

    x0 = (torch.randint(0, 256, (batch, *IMAGE), generator=g) / 127.5 - 1).to(device)
    mean, logvar = leaf(batch, LATENT), leaf(batch, LATENT, scale=0.3, shift=-2.0)
    decoded = (x0 + 0.1 * torch.randn(x0.shape, generator=g).to(device)).requires_grad_()
    one_scale, scales = (
        torch.tensor(-2.0, device=device, requires_grad=True),
        leaf(batch, *IMAGE, scale=0.2, shift=-2.0),
    )
    gamma = torch.linspace(-9, 4, batch, dtype=torch.float64, device=device).requires_grad_()
    low = torch.tensor(-9.0, dtype=torch.float64, device=device, requires_grad=True)
    predicted, t = leaf(batch, *IMAGE), torch.arange(batch, device=device) * 7 % 1000
    schedule = Schedule.linear(1000)
    alphas, sigmas = (torch.tensor(v, device=device) for v in (schedule.alpha, schedule.sigma))
    ones = torch.ones(batch, dtype=torch.float64, device=device)

    def reparameterized(m: Tensor, v: Tensor, noise: Noise) -> Tensor:
        return m + torch.exp(0.5 * v) * noise(m, rng.STREAM_REPARAMETERIZE)

    def vdm_fused(gamma: Tensor, low: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        alpha, sigma = point(gamma)
        z = ops.q_sample(x0, None, alpha, sigma, **SEED)
        eps = wide(sigma) * z + wide(alpha) * out  # v -> eps, in either arm
        first = ops.q_sample(
            x0, None, ones, torch.exp(0.5 * low) * ones, stream=rng.STREAM_REPARAMETERIZE, **SEED
        )
        end, spread = point(gamma[-1])
        return (
            ops.noise_mse(eps, **SEED),
            ops.discretized_gaussian_nll(x0, first, (0.5 * low).to(first.dtype)),
            ops.gaussian_kl(end.to(x0.dtype) * x0, (2 * spread.log()).to(x0.dtype)),
        )

    def vdm_eager(gamma: Tensor, low: Tensor, out: Tensor, noise: Noise) -> tuple[Tensor, ...]:
        alpha, sigma = point(gamma)
        drawn = noise(x0, rng.STREAM_FORWARD)
        z = wide(alpha) * x0 + wide(sigma) * drawn
        eps = wide(sigma) * z + wide(alpha) * out
        first = x0 + torch.exp(0.5 * low).to(x0.dtype) * noise(x0, rng.STREAM_REPARAMETERIZE)
        end, spread = point(gamma[-1])
        logvar = (2 * spread.log()).to(x0.dtype)
        return (
            ((eps - drawn) ** 2).flatten(1).mean(1),
            discretised(x0, first, (0.5 * low).to(x0.dtype)),
            kl(end.to(x0.dtype) * x0, logvar.expand_as(x0)),
        )

    def simple_eager(out: Tensor, noise: Noise) -> tuple[Tensor, ...]:
        drawn = noise(x0, rng.STREAM_FORWARD)
        z = wide(alphas[t]) * x0 + wide(sigmas[t]) * drawn
        return z, ((out - drawn) ** 2).flatten(1).mean(1)

    def vae_fused(m: Tensor, v: Tensor, x: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        return (
            ops.reparameterize(m, v, **SEED),
            ops.gaussian_kl(m, v),
            ops.discretized_gaussian_nll(x0, x, s),
        )

    def vae_eager(m: Tensor, v: Tensor, x: Tensor, s: Tensor, noise: Noise) -> tuple[Tensor, ...]:
        return reparameterized(m, v, noise), kl(m, v), discretised(x0, x, s)

    return {
        "reparameterize": Piece(
            (mean, logvar),
            lambda m, v: (ops.reparameterize(m, v, **SEED),),
            lambda m, v, noise: (reparameterized(m, v, noise),),
        ),
        "gaussian_kl": Piece(
            (mean, logvar), lambda m, v: (ops.gaussian_kl(m, v),), lambda m, v, noise: (kl(m, v),)
        ),
        "discretized_gaussian_nll, one scale": Piece(
            (decoded, one_scale),
            lambda x, s: (ops.discretized_gaussian_nll(x0, x, s),),
            lambda x, s, noise: (discretised(x0, x, s),),
        ),
        "discretized_gaussian_nll, scales": Piece(
            (decoded, scales),
            lambda x, s: (ops.discretized_gaussian_nll(x0, x, s),),
            lambda x, s, noise: (discretised(x0, x, s),),
        ),
        "q_sample and noise_mse": Piece(
            (predicted,),
            lambda out: (ops.q_sample(x0, t, alphas, sigmas, **SEED), ops.noise_mse(out, **SEED)),
            simple_eager,
        ),
        "VAE step": Piece((mean, logvar, decoded, one_scale), vae_fused, vae_eager),
        "VDM step": Piece((gamma, low, predicted), vdm_fused, vdm_eager),
    }


def run(
    piece: Piece, results: Callable[..., tuple[Tensor, ...]], **more: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns (results, gradients of all leaves) for output gradients of ones."""
    values = [v for v in results(*piece.leaves, **more)]
    wanted = [v for v in values if v.requires_grad]
    return values, list(
        torch.autograd.grad(wanted, piece.leaves, [torch.ones_like(v) for v in wanted])
    )


def check(piece: Piece, ours: Any = None) -> None:
    """Raises AssertionError unless the eager formulas with the ops' noise have the ops' values and
    gradients.

    Values agree to 1e-5 of their norm. Gradients agree to 1e-3, because the eager difference of two
    Φ cancels.
    """
    ours = run(piece, piece.fused) if ours is None else ours
    theirs = run(piece, piece.eager, noise=contract)
    for part, limit in ((0, 1e-5), (1, 1e-3)):
        for mine, other in zip(ours[part], theirs[part], strict=True):
            error = relative_difference(mine.detach(), other.detach())
            assert error < limit, f"{error:.1e}"


def measure(batch: int, threads: int, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    torch.set_num_threads(threads)
    for name, piece in pieces(batch).items():
        check(piece)
        arms = {
            "fused": lambda piece=piece: run(piece, piece.fused),
            "eager": lambda piece=piece: run(piece, piece.eager, noise=fresh),
        }
        # the processor time of a single thread, which other processes do not change
        clock = time.thread_time if threads == 1 else time.perf_counter
        times = harness.interleave(arms, seconds=seconds, clock=clock)
        middle = {arm: round(1e6 * harness.spread(values)[1], 1) for arm, values in times.items()}
        best = {arm: min(values) for arm, values in times.items()}
        found[name] = {
            "eager_over_fused": harness.ratio(times["fused"], times["eager"]),
            "of_the_best": round(best["eager"] / best["fused"], 3),
            "us": middle,
            "rounds": len(times["fused"]) // 2,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each pair of arms")
    parser.add_argument("--out", help="JSON file")
    args = parser.parse_args()
    found: dict[str, Any] = {
        "machine": machine.describe(torch.device("cpu")),
        "python": platform.python_version(),
    }
    found["image"], found["latent"] = list(IMAGE), LATENT
    for threads in args.threads:
        for batch in args.batches:
            row = found[f"batch {batch}, threads {threads}"] = measure(batch, threads, args.seconds)
            for name, value in row.items():
                r = value["eager_over_fused"]
                print(
                    f"{batch:4} {threads} {name:38} {r['median']:6.2f} [{r['p20']:.2f},"
                    f" {r['p80']:.2f}]  best {value['of_the_best']:.2f}  {value['us']}",
                    flush=True,
                )
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
