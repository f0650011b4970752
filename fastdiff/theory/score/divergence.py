"""Traces of Jacobians: exact, or estimated with probes.

tr J = Σ_i e_i^T J e_i takes one vector-Jacobian product per dimension. With E[z z^T] = I it is also
tr J = E[z^T J z], which is estimated by an average over random vectors z, the probes (Hutchinson
1989; Song et al. 2021, eq. 40). With S = (J + J^T)/2, the estimate from one Rademacher probe
(z_i = ±1) has the variance 2 Σ_{i≠j} S_ij², which is 0 where J is diagonal; from one Gaussian probe
it is 2 Σ_ij S_ij².

A Gaussian probe is a draw of stream 5 of the noise contract, with the probe's number as the step. A
Rademacher probe is the sign of that draw.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ... import ops, rng
from ...backend.eager.sums import sum_samples
from ...grad_mode import restored

PROBES = ("rademacher", "gaussian")


def probe(
    kind: str,
    shape: tuple[int, ...],
    number: int,
    *,
    seed: int | Tensor,
    sample_ids: Tensor | None,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    """Returns probe `number` of every sample, [B, …]. Raises ValueError for an unknown kind."""
    if kind not in PROBES:
        raise ValueError(f"fastdiff.theory.score: expected probes in {list(PROBES)}, got {kind!r}.")
    z = ops.randn(
        shape,
        seed=seed,
        sample_ids=sample_ids,
        step=number,
        stream=rng.STREAM_PROBES,
        dtype=dtype,
        device=device,
    )
    return z if kind == "gaussian" else torch.copysign(torch.ones_like(z), z)


@restored
def quadratic_forms(
    f: Callable[[Tensor], Tensor], x: Tensor, probes: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns (f(x), z^T J z [B, P] float64) for P probes z [B, …], by one backward pass per probe.

    J is the Jacobian of f at x. f is called once and must treat samples independently. The result
    has no gradient.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value = f(leaf)
        forms = []
        for i, z in enumerate(probes):
            (back,) = torch.autograd.grad(value, leaf, z, retain_graph=i + 1 < len(probes))
            forms.append(sum_samples(back.double() * z))
    return value.detach(), (
        torch.stack(forms, dim=1) if forms else x.new_zeros(len(x), 0, dtype=torch.float64)
    )


@restored
def exact_trace(
    f: Callable[[Tensor], Tensor], x: Tensor, *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns (f(x), tr J [B] float64), by one backward pass per dimension of x.

    With create_graph the result has a gradient.
    """
    with torch.enable_grad():
        leaf = x if create_graph and x.requires_grad else x.detach().requires_grad_()
        value = f(leaf)
        flat = value.flatten(1)
        trace = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for i in range(flat.shape[1]):
            last = i + 1 == flat.shape[1] and not create_graph
            (back,) = torch.autograd.grad(
                flat[:, i].sum(), leaf, retain_graph=not last, create_graph=create_graph
            )
            trace = trace + back.flatten(1)[:, i].double()
    return (value, trace) if create_graph else (value.detach(), trace)
