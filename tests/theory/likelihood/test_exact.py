"""The likelihood of the probability flow: closed forms, probes, many processes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact import SCHEDULES, Gaussian, Mixture
from patience import PATIENCE

from fastdiff import Schedule, reference
from fastdiff.models import MLP
from fastdiff.solvers import make_plan
from fastdiff.theory.likelihood import nll
from fastdiff.theory.score import probability_flow

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MEAN = [0.3, -0.2, 0.5]
COVARIANCE = [[0.5, 0.2, 0.0], [0.2, 0.4, -0.1], [0.0, -0.1, 0.3]]
TIGHT: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ["v", "epsilon", "x0", "score"])
def test_gaussian_data_have_a_closed_form(name: str, kind: str) -> None:
    """The exact divergence in every space and prediction type.

    A wrong sign or direction anywhere would change the result.
    """
    schedule, data = SCHEDULES[name], Gaussian(MEAN, COVARIANCE, kind=kind)
    got = nll(data, X, schedule, divergence="exact", prediction_type=kind, **TIGHT)
    np.testing.assert_allclose(
        got.nats, data.flow_nll(X, schedule), rtol=0, atol=2e-5 if name == "ve" else 3e-6
    )
    assert got.nats.dtype == got.stderr.dtype == torch.float64 and got.nfe.dtype == torch.int64
    assert not got.stderr.any() and len(set(got.nfe.tolist())) > 1
    # the prior is nearly reached, so this is also the density of the data blurred by rho_min
    blurred = np.array(COVARIANCE) + schedule.at(0).rho ** 2 * np.eye(3)
    off = X.numpy() - np.array(MEAN)
    density = (
        0.5 * (off @ np.linalg.inv(blurred) * off).sum(1)
        + 0.5 * np.linalg.slogdet(2 * np.pi * blurred)[1]
    )
    # up to the data's mean relative to the noise's deviation
    np.testing.assert_allclose(got.nats, density, atol=0.05)


@pytest.mark.parametrize("space", ["vp", "sub_vp"])
def test_the_prior_is_what_sampling_starts_from(space: str) -> None:
    """On a schedule that ends far from pure noise the prior's standard deviation matters."""
    schedule = getattr(Schedule, space)(1000, beta_max=2.0)
    data = Gaussian(MEAN, COVARIANCE)
    got = nll(data, X, schedule, divergence="exact", prediction_type="v", **TIGHT)
    np.testing.assert_allclose(got.nats, data.flow_nll(X, schedule), rtol=0, atol=3e-6)
    plan = make_plan(schedule, solver="ddim", steps=10, prediction_type="v")
    assert plan.initial_std == (1.0 if space == "vp" else schedule.sigma[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixtures_have_their_density(dtype: torch.dtype) -> None:
    """The log-density of the blurred mixture, with an error that follows the tolerance."""
    data = Mixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [0.3, 0.5])
    x = torch.cat([X[:, :2], data.means]).to(dtype)
    ends = {"sigma_max": 1e6, "sigma_min": 0.01, "divergence": "exact", "prediction_type": "v"}
    want = -data.log_density(x.double(), 1.0, 0.01)
    for rtol in (1e-4, 1e-6) if dtype == torch.float64 else (1e-4, 1e-5):
        got = nll(
            data, x, Schedule.ve(sigma_min=0.005, sigma_max=2e6), rtol=rtol, atol=rtol, **ends
        )  # type: ignore[arg-type]
        assert float((got.nats - want).abs().max()) < 300 * rtol


def test_probes_have_the_variance_of_theory() -> None:
    """The variance of both kinds of probes on diagonal and full Jacobians.

    On a diagonal Jacobian a Rademacher probe is exact and a Gaussian one is scaled by z·z. On a
    full one both are unbiased.
    """
    schedule, count = SCHEDULES["vp"], 16
    settings: dict[str, Any] = {
        "probes": count,
        "seed": 7,
        "prediction_type": "v",
        "rtol": 1e-6,
        "atol": 1e-6,
    }
    scalar = Gaussian([0.0] * 3, np.eye(3) * 0.4)
    truth = scalar.flow_nll(X, schedule)
    sure = nll(scalar, X, schedule, **settings)
    assert float(sure.stderr.max()) < 1e-12
    np.testing.assert_allclose(sure.nats, truth, atol=3e-5)
    noisy = nll(scalar, X, schedule, divergence="gaussian", **settings)
    # J = j I: each probe gives (z·z/D) ∫ div, so the spread is that of z·z
    z = np.stack(
        [reference.randn((6, 3), seed=7, step=p, stream=5).astype(np.float64) for p in range(count)]
    )
    share = (z**2).sum(2).T / 3
    low, high = schedule.at(0), schedule.at(999)
    change = (
        0.5
        * 3
        * math.log((high.alpha**2 * 0.4 + high.sigma**2) / (low.alpha**2 * 0.4 + low.sigma**2))
    )
    np.testing.assert_allclose(noisy.stderr, abs(change) * share.std(1, ddof=1) / 4, rtol=1e-4)
    np.testing.assert_allclose(noisy.nats, truth - change * (share.mean(1) - 1), atol=1e-4)
    full = Gaussian(MEAN, COVARIANCE)
    truth = full.flow_nll(X, schedule)
    for kind in ("rademacher", "gaussian"):
        got = nll(full, X, schedule, divergence=kind, **settings)
        assert float(got.stderr.min()) > 1e-3
        assert (np.abs(got.nats.numpy() - truth) < 5 * got.stderr.numpy()).all()
    one = nll(full, X, schedule, prediction_type="v", seed=7)
    assert bool(one.stderr.isnan().all())


def test_closed_form_and_sure_probes_on_every_backend(backend: str) -> None:
    """The flow's likelihood of Gaussian data in float64, exact with Rademacher probes."""
    data, schedule = Gaussian([0.2, -0.1], np.diag([0.4, 0.4])), SCHEDULES["vp"]
    x, settings = X[:2, :2], {"prediction_type": "v", "rtol": 1e-6, "atol": 1e-6}
    got = nll(data, x, schedule, probes=2, seed=3, **settings)  # type: ignore[arg-type]
    np.testing.assert_allclose(got.nats, data.flow_nll(x, schedule), atol=3e-5)
    assert float(got.stderr.max()) < 1e-12
    assert (
        float(
            nll(data, x, schedule, probes=2, seed=3, divergence="gaussian", **settings).stderr.min()
        )
        > 1e-3
    )  # type: ignore[arg-type]


def test_a_sample_does_not_depend_on_its_batch() -> None:
    """A sample has the same bits, standard error and evaluations in any batch and order.

    Another seed gives other probes.
    """
    data, schedule = (
        Mixture([0.3, 0.7], [[-1.0, 0.5, 0.2], [0.8, 0.0, 0.1]], [0.3, 0.5]),
        SCHEDULES["flow"],
    )
    settings: dict[str, Any] = {"probes": 3, "seed": 4, "prediction_type": "v"}
    for x in (X, X.float()):
        whole = nll(data, x, schedule, **settings)
        order = [4, 1]
        part = nll(data, x[order], schedule, sample_ids=order, **settings)
        for ours, theirs in zip(part, whole, strict=True):
            assert torch.equal(ours, theirs[order])
    other = nll(data, X, schedule, **settings | {"seed": 5})
    assert not torch.equal(other.nats, nll(data, X, schedule, **settings).nats)
    empty = nll(data, X[:0], schedule, **settings)
    assert empty.nats.shape == empty.stderr.shape == empty.nfe.shape == (0,)


def test_finished_samples_cost_nothing() -> None:
    data = Mixture([0.3, 0.7], [[-1.0] * 3, [0.8] * 3], [0.1, 0.5])
    got = nll(data, X, SCHEDULES["vp"], seed=0, prediction_type="v", rtol=1e-6, atol=1e-6)
    assert (
        sum(data.rows) == int(got.nfe.sum()) and max(got.nfe) > min(got.nfe) and min(data.rows) < 6
    )


def test_a_network_that_depends_on_its_batch_is_called_with_network_batch_rows() -> None:
    def model(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x * (1.0 + 0.01 * len(x))) * (0.5 + t[:, None]) + 0.1 * y[:, None]

    y, x = torch.arange(6.0), X.float()
    settings: dict[str, Any] = {"seed": 2, "network_batch": 4, "prediction_type": "v", "probes": 2}
    whole = nll(model, x, SCHEDULES["vp"], cond={"y": y}, **settings)
    alone = nll(model, x[3:4], SCHEDULES["vp"], cond={"y": y[3:4]}, sample_ids=[3], **settings)
    assert all(torch.equal(a, b[3:4]) for a, b in zip(alone, whole, strict=True))


def test_the_way_to_noise_is_the_way_back() -> None:
    """Encoding followed by decoding returns the data.

    A density integrated in the wrong direction would have the wrong sign of 2 ln p.
    """
    data, schedule = Gaussian(MEAN, COVARIANCE), SCHEDULES["vp"]
    settings: dict[str, Any] = {"prediction_type": "v", "dtype": torch.float64, **TIGHT}
    noise = probability_flow(data, schedule, x0=X, **settings)
    low = schedule.at(0)
    back = probability_flow(data, schedule, x_T=noise, denoise=False, **settings)
    np.testing.assert_allclose(back / low.alpha, X, atol=1e-6)
    near, far = (
        nll(data, x[None], schedule, divergence="exact", prediction_type="v").nats
        for x in (torch.tensor(MEAN).double(), torch.tensor(MEAN).double() + 3.0)
    )
    assert float(near) < 2.0 < 8.0 < float(far), (
        "the mode has more probability than points far from it"
    )


def test_wrong_arguments_are_named() -> None:
    data, schedule = Gaussian(MEAN, COVARIANCE), SCHEDULES["vp"]
    for arguments, error, message in [
        ({"divergence": "trace"}, ValueError, "expected divergence in .* got 'trace'"),
        ({"probes": 0}, ValueError, "expected at least one probe, got 0"),
        ({"x": X.half()}, TypeError, "expected x .* of float32 or float64, got torch.float16"),
        ({"x": X[0]}, TypeError, r"got torch.float64 of shape \[3\]"),
        ({"schedule": "vp"}, TypeError, "expected a fastdiff.Schedule, got str"),
        ({"sigma_min": -1.0}, ValueError, "expected sigma_min > 0"),
        ({"x": X * math.nan}, ValueError, "expected a finite start"),
    ]:
        with pytest.raises(error, match=message):
            nll(
                **{"model": data, "x": X, "schedule": schedule, "prediction_type": "v", **arguments}
            )  # type: ignore[arg-type]
    with pytest.raises(
        ValueError,
        match="expected a network that can be differentiated in x, got an output without",
    ):
        nll(torch.no_grad()(lambda x, t: x * 0.5), X, schedule, prediction_type="v")


def test_a_sharded_model_is_refused() -> None:
    class FullyShardedDataParallel(torch.nn.Module):  # torch's name
        pass

    with pytest.raises(
        ValueError,
        match="nll: expected a model with all its weights on this rank, got a sharded one",
    ):
        nll(FullyShardedDataParallel(), X, SCHEDULES["vp"])


RANK = """
import os, sys, datetime, torch, torch.distributed as dist
sys.path[:0] = PATHS
from fastdiff import Schedule
from fastdiff.theory.likelihood import nll
from fastdiff.models import MLP
from fastdiff.solvers import make_plan

dist.init_process_group("gloo", timeout=datetime.timedelta(minutes=30))
rank = dist.get_rank()
torch.manual_seed(0)
inner = MLP(3, width=16, depth=1, emb=8, time_scale=1000.0)
torch.nn.init.normal_(inner.linear_out.weight)
inner.register_buffer("seen", torch.zeros(1))  # buffers make DDP's forward a collective
model = torch.nn.parallel.DistributedDataParallel(inner)
x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 7)[:, None]
ids = torch.tensor([[0, 1, 2, 3], [4, 5]][rank])
calls = []
inner.register_forward_hook(lambda *_: calls.append(1))
options = dict(prediction_type="v", seed=3, probes=2, network_batch=4)
got = nll(model, x[ids], Schedule.vp(1000), sample_ids=ids, **options)
everyone = [None, None]
dist.all_gather_object(everyone, (ids, got, len(calls)))
if rank == 0:
    torch.save(everyone, sys.argv[1])
dist.destroy_process_group()
"""


@pytest.mark.cpu_only
def test_ranks_with_different_numbers_of_steps_do_not_wait(tmp_path: Path) -> None:
    """Two processes under DDP with different numbers of calls both finish.

    They give the bits of one process.
    """
    root = Path(__file__).resolve().parents[3]
    script = tmp_path / "rank.py"
    script.write_text(RANK.replace("PATHS", repr([str(root), str(root / "kernels")])))
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(20_000 + os.getpid() % 20_000),
    }
    environment |= {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "out.pt")],
            env=environment | {"RANK": str(r)},
        )
        for r in range(2)
    ]
    try:
        assert [process.wait(timeout=PATIENCE) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    (ids0, got0, calls0), (ids1, got1, calls1) = torch.load(tmp_path / "out.pt", weights_only=False)
    assert calls0 != calls1, "the ranks had different work"
    torch.manual_seed(0)
    model = MLP(3, width=16, depth=1, emb=8, time_scale=1000.0)
    torch.nn.init.normal_(model.linear_out.weight)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 7)[:, None]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = nll(
            model, x, Schedule.vp(1000), prediction_type="v", seed=3, probes=2, network_batch=4
        )
    finally:
        torch.set_num_threads(threads)
    for ids, got in ((ids0, got0), (ids1, got1)):
        for ours, theirs in zip(got, alone, strict=True):
            assert torch.equal(ours, theirs[ids])
