"""The benchmark suite: a wrong result has no time, a delay shows, missing peers are named, every op
and tier has rows.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
from benchmarks import checks, formulas, harness, memory, operations, peers, solvers, tiers  # noqa: E402
from benchmarks.peers import Missing  # noqa: E402
from fastdiff import ops  # noqa: E402

SETTING = harness.Setting(seconds=0.02, rounds=2)
OF = {"kind": "op", "what": "double", "case": {"batch": 1}}
KEYS = {
    "schema",
    "kind",
    "what",
    "case",
    "device",
    "backend",
    "threads",
    "cache",
    "per",
    "us",
    "host_us",
    "rounds",
    "elements",
    "bytes_floor",
    "GB_per_s",
    "copy_GB_per_s",
    "percent_of_copy",
    "instructions",
    "peers",
    "best_peer",
    "compile_s",
    "extra_bytes",
    "checked",
}


class Double:
    """out = 2 x, slowed, and wrong from a given call on."""

    def __init__(self, wrong_from: float = math.inf, sleep: float = 0.0, error: float = 1e-3):
        self.x, self.out = torch.arange(8.0), torch.empty(8)
        self.calls, self.wrong_from, self.sleep, self.error = 0, wrong_from, sleep, error

    def __call__(self) -> torch.Tensor:
        self.calls += 1
        time.sleep(self.sleep)
        torch.mul(self.x, 2.0, out=self.out)
        if self.calls >= self.wrong_from:
            self.out[-1] += self.error
        return self.out

    def check(self, got: torch.Tensor) -> None:
        checks.same_bits(got, 2 * self.x.numpy(), "double")

    def work(self, call: Any = None) -> harness.Workload:
        return harness.Workload(call or self, self.check, "bits", (self.out,))


def eager() -> torch.Tensor:
    return torch.arange(8.0) * 2.0


@pytest.mark.parametrize("wrong_from", [1, 3])
def test_a_wrong_result_is_an_error_and_no_time(wrong_from: int) -> None:
    """It is found at once, and if it becomes wrong during the timing."""
    ours = Double(wrong_from=wrong_from)
    with pytest.raises(AssertionError, match="expected NumPy's bits"):
        harness.measure(SETTING, ours.work(), peers={"torch eager": eager}, **OF)
    assert ours.calls >= wrong_from


def test_an_output_that_is_not_written_is_an_error() -> None:
    """Outputs are filled with NaN, so values of an earlier call are not mistaken for results."""
    ours = Double()
    ours()
    with pytest.raises(AssertionError):
        harness.measure(SETTING, ours.work(lambda: ours.out), peers={}, **OF)


def test_a_peer_that_does_other_work_is_an_error() -> None:
    op = operations.Maker((2, 3, 4, 4)).q_sample()
    operations.same_work(op)

    def without_noise(
        normal: Any, x0: torch.Tensor, t: torch.Tensor, alpha: Any, sigma: Any
    ) -> torch.Tensor:
        return formulas.wide(alpha[t], x0) * x0

    with pytest.raises(AssertionError, match="formula differs"):
        operations.same_work(op._replace(formula=without_noise))


def test_twenty_milliseconds_show() -> None:
    quick = harness.measure(SETTING, Double().work(), peers={"torch eager": eager}, **OF)
    slow = harness.measure(SETTING, Double(sleep=0.02).work(), peers={"torch eager": eager}, **OF)
    assert slow["us"][0] >= 20_000 and slow["us"][1] - quick["us"][1] > 15_000
    assert slow["best_peer"]["median"] < 0.5, "fastdiff is the slower one, and the row says so"


def test_a_missing_peer_is_reported_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "not installed"
    given = {
        "diffusers": Missing(reason),
        "torch.compile": {"default": Missing("no compiler")},
        "torch eager": eager,
    }
    row = harness.measure(SETTING, Double().work(), peers=given, **OF)
    assert row["peers"]["diffusers"] == {"missing": reason}
    assert row["peers"]["torch.compile"] == {"missing": "no compiler"}
    assert row["best_peer"]["name"] == "torch eager"
    assert "diffusers missing: not installed" in harness.line(row)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert peers.diffusers() == Missing("not installed")
    assert "diffusers: not installed" in peers.versions()[1]
    assert isinstance(solvers.scheduler("ddim", "cpu"), Missing)


def test_of_slow_modes_only_the_quickest_takes_turns_and_all_are_reported() -> None:
    slow = {
        mode: peers.Compiled(lambda s=s: time.sleep(s), s)
        for mode, s in (("default", 0.05), ("max-autotune", 0.02))
    }
    row = harness.measure(SETTING, Double().work(), peers={"torch.compile": slow}, **OF)
    found = row["peers"]["torch.compile"]
    assert found["mode"] == "max-autotune" and found["compile_s_of_modes"] == {
        "default": 0.05,
        "max-autotune": 0.02,
    }
    assert found["modes"]["default"] >= 50_000 > found["modes"]["max-autotune"] >= 20_000


def test_the_form_of_a_row() -> None:
    compiled = {
        "default": peers.Compiled(eager, 1.5),
        "max-autotune": peers.Compiled(lambda: time.sleep(0.002), 9.0),
    }
    limit = {"per_element": 2.0, "ceiling_Melem_per_s": 50.0}
    row = harness.measure(
        SETTING,
        Double().work(),
        peers={"torch.compile": compiled, "fastdiff, again": Double()},
        elements=8,
        bytes_floor=64,
        instructions=lambda: limit,
        cold=True,
        divide=4,
        per="sample",
        **OF,
    )
    assert row.keys() == KEYS and json.loads(json.dumps(row)) == row
    assert (row["schema"], row["kind"], row["cache"], row["per"]) == (1, "op", "cold", "sample")
    assert len(row["us"]) == 3 and row["us"] == sorted(row["us"])
    best = row["peers"]["torch.compile"]
    assert (best["mode"], best["compile_s"], set(best["modes"])) == (
        "default",
        1.5,
        {"default", "max-autotune"},
    )
    assert row["best_peer"]["name"] == "torch.compile", "another variant of fastdiff is no peer"
    assert row["percent_of_copy"] == pytest.approx(
        100 * row["GB_per_s"] / row["copy_GB_per_s"], rel=0.2, abs=0.1
    )
    assert row["instructions"].keys() == {*limit, "percent"}
    with pytest.raises(ValueError, match="expected kind in"):
        harness.measure(SETTING, Double().work(), peers={}, **(OF | {"kind": "other"}))


def test_every_op_has_a_row_a_formula_and_an_oracle() -> None:
    from benchmarks import test_ops

    for name in ops.__all__:
        assert callable(getattr(test_ops, f"test_{name}", None)), f"a row of {name}"
        assert callable(getattr(operations.Maker, name, None)), f"inputs and oracle of {name}"
        assert callable(getattr(formulas, name, None)), f"the peers' formula of {name}"


def test_a_cold_cache_is_emptied_before_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    harness.take_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        SETTING,
        before=lambda: order.append("evict"),
    )
    assert order[::2] == ["evict"] * (len(order) // 2)
    assert order[-7::2] == ["a", "b", "b", "a"]
    assert memory.last_level_cache("cpu") >= 32 * 2**20


class SimulatedGpu:
    """A GPU with a queue: a launch takes the host a while, and runs when the queue reaches it."""

    def __init__(self, launch: float, kernel: float):
        self.launch, self.kernel = launch, kernel
        self.now = self.done = 0.0  # the host's clock; when the queue will be empty

    def enqueue(self, seconds: float) -> float:
        self.done = max(self.done, self.now) + seconds
        return self.done

    def synchronize(self) -> None:
        self.now = max(self.now, self.done)

    def call(self) -> None:
        for _ in range(10):
            self.now += self.launch
            self.enqueue(self.kernel)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool):
                assert enable_timing

            def record(self) -> None:
                self.at = gpu.enqueue(0.0)

            def synchronize(self) -> None:
                gpu.now = max(gpu.now, self.at)

            def elapsed_time(self, other: Any) -> float:
                return 1e3 * (other.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: gpu.enqueue(cycles / 2e9))
        monkeypatch.setattr(memory.time, "perf_counter", lambda: gpu.now)


@pytest.mark.parametrize("launch", [1e-6, 1e-4])
def test_a_gpu_is_timed_while_it_is_busy(launch: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten kernels of 5 us take 50 us, however slow the host starts them."""
    gpu = SimulatedGpu(launch=launch, kernel=5e-6)
    gpu.install(monkeypatch)
    clock = memory.stopwatch("cuda")
    clock(gpu.call)  # how long the host needs is found out
    assert clock(gpu.call) == pytest.approx(50e-6)
    assert clock.host == pytest.approx(10 * launch)


def test_a_call_that_waits_for_the_gpu_does_not_lengthen_the_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = SimulatedGpu(launch=1e-6, kernel=5e-6)
    gpu.install(monkeypatch)
    clock = memory.stopwatch("cuda")

    def waits() -> None:
        gpu.call()
        gpu.synchronize()

    for _ in range(20):
        assert clock(waits) == pytest.approx(50e-6)
    assert clock.host < 6e-3


def test_spread_ratio_and_exponent() -> None:
    assert harness.spread([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == (2.0, 3.5, 5.0)
    assert harness.ratio([1.0, 2.0, 4.0], [3.0, 4.0, 4.0]) == {
        "median": 2.0,
        "p20": 1.4,
        "p80": 2.6,
    }
    x = [1.0, 10.0, 100.0, 1000.0]
    exponent, error = harness.fitted(x, [3 * v**1.5 for v in x])
    assert exponent == pytest.approx(1.5) and error == pytest.approx(0, abs=1e-9)
    # compared with NumPy's least squares, on points with scatter
    y = [1.0, 12.0, 90.0, 1100.0]
    logs = torch.tensor([x, y], dtype=torch.float64).log().numpy()
    import numpy as np

    (slope, _), covariance = np.polyfit(*logs, 1, cov=True)
    exponent, error = harness.fitted(x, y)
    assert (exponent, error) == (pytest.approx(slope), pytest.approx(covariance[0, 0] ** 0.5))


def test_peak_memory() -> None:
    x = torch.ones(1000)
    assert memory.extra_bytes(lambda: x.add_(x), "cpu") == 0
    assert 8000 <= memory.extra_bytes(lambda: (x + x) * x, "cpu") < 9000


def test_tiers() -> None:
    marks = {name: tiers.tier(name).mark for name in tiers.TIERS} | {"none": None}
    held = {
        asked: [n for n, m in marks.items() if tiers.chosen(asked, m, "cpu")]
        for asked in tiers.TIERS
    }
    assert held == {
        "quick": ["quick"],
        "default": ["quick", "default"],
        "full": ["quick", "default", "full", "none"],
    }
    large = tiers.tier("default", gpu_only=True).mark
    assert tiers.chosen("full", large, "cuda") and not tiers.chosen("full", large, "cpu")
    with pytest.raises(ValueError, match="expected a tier"):
        tiers.tier("fast")


def run(*arguments: str) -> str:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--device",
        "cpu",
        *arguments,
    ]
    # pytest-benchmark is disabled in a worker of pytest-xdist
    alone = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")
    }
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, env=alone
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_quick_has_a_row_of_each_kind() -> None:
    found = run("benchmarks", "--quick", "--collect-only", "-q")
    tests = {
        "op": "test_q_sample",
        "step": "test_step",
        "loop": "test_loop",
        "pipeline": "test_drop_in",
        "network": "test_network",
        "sampling": "test_sampling",
        "seeds": "test_seeds",
        "batching": "test_batching",
        "training": "test_training",
        "elbo": "test_elbo",
        "job": "test_job",
        "growth": "test_growth",
    }
    assert tests.keys() == set(harness.KINDS) - {"ceiling"}, "only `make gpu-report` has ceilings"
    for name in tests.values():
        assert f"::{name}[" in found, name


def test_a_quick_row_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    text = run("benchmarks/test_steps.py", "--quick", "--benchmark-only", f"--benchmark-json={out}")
    content = json.loads(out.read_text(encoding="utf-8"))
    (entry,) = content["benchmarks"]
    row, about = entry["extra_info"], content["machine_info"]["fastdiff"]
    assert row.keys() == KEYS and row["kind"] == "step" and row["checked"] == "bits equal to NumPy"
    assert (
        about["tier"] == "quick"
        and about["versions"]["torch"] == torch.__version__
        and about["copy_GB_per_s"] > 0
    )
    assert harness.line(row) in text, "a line for each row"
    assert entry["stats"]["rounds"] >= 1
