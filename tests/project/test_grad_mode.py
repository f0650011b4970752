"""Global states are restored whatever interrupts a call, such as a signal handler that raises."""

from __future__ import annotations

import ast
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdiff
from fastdiff import Sampler, Schedule, grad_mode
from fastdiff.sampling.requests import Request

PACKAGE = Path(fastdiff.__file__).parent
MODES = {"no_grad", "enable_grad", "set_grad_enabled", "inference_mode"}
# generators, whose callers compute each value by a function that is restored
OWN = ("grad_mode.py", "call")
GENERATORS = {("sampling/loop.py", "run"), ("sampling/recorded.py", "recorded_steps")}
# what sets a global state and returns what it was, by the name of the function or attribute
SETTERS = {"set_num_threads", "set_sync_debug_mode", "signal", "benchmark", "deterministic"}
# a worker process's own signals, which end with it
OF_A_WORKER = {("data/loading.py", "_without_signals")}
FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def changes_mode(node: ast.expr) -> bool:
    """Whether an expression is torch.no_grad(), torch.set_grad_enabled(…) and so on."""
    function = node.func if isinstance(node, ast.Call) else node
    return (
        isinstance(function, ast.Attribute)
        and function.attr in MODES
        and ast.unparse(function.value) == "torch"
    )


def own(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions and classes inside it."""
    waiting = list(ast.iter_child_nodes(node))
    while waiting:
        one = waiting.pop()
        if not isinstance(one, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            yield one
            waiting += ast.iter_child_nodes(one)


@pytest.mark.parametrize("file", FILES)
def test_every_function_that_changes_the_mode_is_restored(file: str) -> None:
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef) or (file, node.name) in {*GENERATORS, OWN}:
            continue
        blocks = [
            item.context_expr for w in own(node) if isinstance(w, ast.With) for item in w.items
        ]
        if any(map(changes_mode, [*node.decorator_list, *blocks])):
            names = [ast.unparse(d) for d in node.decorator_list]
            at = names.index("restored") if "restored" in names else len(names)
            assert at < len(names), f"{file}, {node.name}: expected @restored, got {names}"
            assert not any(map(changes_mode, node.decorator_list[:at])), f"{file}, {node.name}"


@pytest.mark.parametrize("file", FILES)
def test_global_states_are_set_within_a_try(file: str) -> None:
    """Setting one before `try` leaves it set where a signal comes in between."""
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    guarded = [n for t in ast.walk(tree) if isinstance(t, ast.Try) for n in ast.walk(t)]
    guarded += [
        n
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef) and (file, f.name) in OF_A_WORKER
        for n in ast.walk(f)
    ]
    for node in ast.walk(tree):
        targets = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            targets = [node.func]
        elif isinstance(node, ast.Assign):
            targets = [t for t in ast.walk(node) if isinstance(t, ast.Attribute)]
            targets = [t for t in targets if isinstance(t.ctx, ast.Store)]
        for target in targets:
            if target.attr in SETTERS and ast.unparse(target.value) != "self":
                assert node in guarded, f"{file}:{node.lineno}: expected it within a try"


# -- calls that are interrupted --------------------------------------------------------------------

SCHEDULE = Schedule.linear(1000)


class Alarm(Exception):
    pass


def network(x: Tensor, t: Tensor) -> Tensor:
    return x * 0.5


def sample() -> None:
    Sampler(network, SCHEDULE, solver="dpm++2m", steps=3).sample((2, 3), seed=0)


def decode() -> None:
    Sampler(network, SCHEDULE, steps=2, decode=lambda x: x * 2).decode(torch.zeros(2, 3))


def guided() -> None:
    Sampler(network, SCHEDULE, steps=2).sample(
        (2, 3),
        seed=0,
        guidance=lambda x0, x, t: x0 - 0.1 * torch.autograd.grad(x0.sum(), x)[0],
        through_network=True,
        classifier=lambda x, t: -x.square().sum(1),
    )


def differentiable() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    sampler = Sampler(network, SCHEDULE, solver="ddim", steps=3)
    sampler.sample(x_T=x, differentiable=True, checkpoint=1).sum().backward()


def stream() -> None:
    list(Sampler(network, SCHEDULE, steps=2).stream(3, (3,), batch_size=2, seed=0))


def serve() -> None:
    list(Sampler(network, SCHEDULE, steps=2).serve([Request(0, 0), Request(1, 0)], (3,)))


def adaptive() -> None:
    from fastdiff.sampling.adaptive.samplers import dpm_fast

    dpm_fast(network, SCHEDULE, (2, 3), calls=3, seed=0)


def dropin() -> None:
    scheduler = fastdiff.DDIMScheduler()
    scheduler.set_timesteps(3)
    x = torch.ones(2, 3)
    for t in scheduler.timesteps:
        x = scheduler.step(x * 0.5, t, x).prev_sample


def k_diffusion() -> None:
    from fastdiff.integrations import k_diffusion as k

    sigmas = torch.tensor([2.0, 1.0, 0.0])
    k.sample_euler(lambda x, sigma, **_: x * 0.5, torch.ones(2, 3), sigmas, disable=True)


CALLS: list[Callable[[], None]] = [
    sample,
    decode,
    guided,
    differentiable,
    stream,
    serve,
    adaptive,
    dropin,
    k_diffusion,
]
TORCH = ("autograd/grad_mode.py", "utils/_contextlib.py")


@pytest.mark.parametrize(
    ("call", "mode"),
    [
        (call, mode)
        for call in CALLS
        for mode in (True, False)
        if mode or call is not differentiable
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_an_interrupt_at_every_change_of_the_mode(call: Callable[[], None], mode: bool) -> None:
    """A handler that raises at every line of torch's code that switches gradients off and on.

    It is not run in grad_mode.py, where Python looks for signals only after the mode is set again.
    """
    events, at = 0, -1

    def local(frame: Any, event: str, argument: Any) -> Any:
        nonlocal events
        events += 1
        if events == at:
            raise Alarm
        return local

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.endswith(TORCH):
            return None
        return local(frame, event, argument)

    before = torch.is_grad_enabled()
    try:
        torch._C._set_grad_enabled(mode)
        with torch.set_grad_enabled(True):
            call()  # what is made once is made here
        sys.settrace(trace)
        call()
        sys.settrace(None)
        total, interrupted = events, 0
        assert (total > 0) == (call is not dropin), "a drop-in's step changes no mode"
        for at in range(1, total + 1):
            events = 0
            try:
                sys.settrace(trace)
                call()
            except Alarm:
                interrupted += 1
            finally:
                sys.settrace(None)
            assert torch.is_grad_enabled() == mode, at
            assert not torch.is_inference_mode_enabled()
        assert interrupted or call is dropin
    finally:
        sys.settrace(None)
        torch._C._set_grad_enabled(before)


def test_real_alarms() -> None:
    def ring(number: int, frame: Any) -> None:
        raise Alarm

    before, count, end = signal.getsignal(signal.SIGALRM), 0, time.monotonic() + 3.0
    sampler = Sampler(network, SCHEDULE, solver="dpm++2m", steps=4)
    try:
        signal.signal(signal.SIGALRM, ring)
        while time.monotonic() < end:
            for delay in range(40, 2400, 37):
                try:
                    signal.setitimer(signal.ITIMER_REAL, delay * 1e-6)
                    sampler.sample((2, 3), seed=0)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Alarm:
                    count += 1
                assert torch.is_grad_enabled()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert count > 20


def test_restored_functions_keep_their_results_and_names() -> None:
    @grad_mode.restored
    def off(x: int) -> int:
        """Its words."""
        torch._C._set_grad_enabled(False)
        return x + 1

    assert off(1) == 2 and torch.is_grad_enabled()
    assert off.__name__ == "off" and off.__doc__ == "Its words."

    def values() -> Iterator[int]:
        for i in range(3):
            torch._C._set_grad_enabled(False)
            yield i

    for i, value in enumerate(grad_mode.each_restored(values())):
        assert value == i and torch.is_grad_enabled()
