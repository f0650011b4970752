"""Repeated launches of Triton kernels on a stub of the CUDA driver.

tests/backend/test_triton.py starts this file. A kernel that was compiled before, and a bound step,
must hand Triton's launcher exactly what `kernel[grid](...)` hands it: the compiled variant, the
grid, the stream, and every argument.

This file is over 400 lines because its tests share the stub and what it records.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import triton
from fastdiff_kernels import launch
from fastdiff_kernels.launch import common
from triton.runtime.jit import JITFunction

import fastdiff
from benchmarks.gpu import stub_driver
from fastdiff import ops
from fastdiff.ops.step import StepArguments, workspace_rows
from fastdiff.table import COLUMNS, columns

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
BATCH, SHAPE = 2, (2, 4, 4)
DDIM = columns("network", "input_scale", "x0_x", "x0_out", "clip_mode", "next", "x.x", "x.x0")
DDPM = DDIM | columns("noise_index", "x.z")
LEARNED = DDPM | columns("noise_mode", "logvar_lo", "logvar_hi")
SLOTS = DDIM | columns("x.s1", "s1.x0")
PREPASSES = DDPM | columns("guidance_rescale", "clip_ratio")
KINDS = DDPM | columns("guidance_kind", "guidance_x", "guidance_momentum")


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stub_driver.StubDriver]:
    try:
        with stub_driver.installed(tmp_path_factory.mktemp("stub"), recording=True) as driver:
            yield driver
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def nothing_known(stub: stub_driver.StubDriver) -> None:
    """Forgets what earlier tests launched."""
    common._kernels.clear()
    stub.launches.clear()


@contextmanager
def tritons_way() -> Iterator[list[str]]:
    """Lists the kernels that are launched by `kernel[grid](...)`."""
    names: list[str] = []
    run = JITFunction.run

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        names.append(self.fn.__name__)
        return run(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", counted)
        yield names


def launched(stub: stub_driver.StubDriver, work: Callable[[], Any]) -> list[stub_driver.Launch]:
    """Returns the launches of `work`."""
    stub.launches.clear()
    work()
    return stub.launches[:]


def directly(*calls: launch.Call) -> None:
    """Launches by `kernel[grid](...)`."""
    for call in calls:
        call.kernel()[call.grid](**call.arguments, **call.options)


def tensor(*shape: int, dtype: torch.dtype = F32, offset: int = 0) -> torch.Tensor:
    """Returns zeros whose address is `offset` elements after a multiple of 64 bytes."""
    count = 1
    for extent in shape:
        count *= extent
    memory = torch.zeros(count + 64, dtype=dtype)
    size = memory.element_size()
    first = -memory.data_ptr() % 64 // size + offset
    return memory[first : first + count].view(shape)


def step(
    used: int,
    *,
    dtype: torch.dtype = F32,
    output: torch.dtype = F32,
    guided: bool = False,
    slots: int = 0,
    width: int = 1,
    shape: tuple[int, ...] = SHAPE,
    **others: Any,
) -> StepArguments:
    """Returns checked arguments of a step in which every operand is a tensor of its own."""
    compute, (channels, *rest), halves = F64 if dtype == F64 else F32, shape, 1 + guided
    rows = workspace_rows(torch.Size(shape).numel(), compute)
    given: dict[str, Any] = {
        "slots": tensor(slots, BATCH, *shape, dtype=compute) if slots else None,
        "slots_out": tensor(slots, BATCH, *shape, dtype=compute) if slots else None,
        "guidance": tensor(BATCH, dtype=compute) if guided else None,
        "seed": 5,
        "out": tensor(BATCH, *shape, dtype=dtype),
        "input_out": tensor(halves * BATCH, *shape, dtype=output),
        "row_out": tensor(BATCH, dtype=torch.int64),
        "workspace": tensor(rows, BATCH, dtype=compute),
        "used": used,
    }
    return StepArguments(
        tensor(BATCH, *shape, dtype=dtype),
        tensor(halves * BATCH, width * channels, *rest, dtype=output),
        tensor(10, len(COLUMNS), dtype=F64),
        tensor(BATCH, dtype=torch.int64),
        **given | others,
    ).check()


STEPS: dict[str, StepArguments] = {
    "ddim": step(DDIM),
    "ddpm": step(DDPM),
    "ddpm bf16": step(DDPM, dtype=BF16, output=BF16),
    "guided": step(DDPM, output=BF16, guided=True),
    "slots": step(SLOTS, slots=2),
    "width 2": step(LEARNED, width=2),
    "seeds and ids": step(
        DDPM,
        seed=tensor(BATCH, dtype=torch.int64),
        sample_ids=tensor(BATCH, dtype=torch.int64),
        mode="fast",
    ),
    "prepasses": step(PREPASSES, guided=True),
    "prepasses in parts": step(PREPASSES, guided=True, shape=(1, 33_000)),
    "kinds": step(KINDS, guided=True, slots=4),
    "kinds in parts": step(KINDS, guided=True, slots=4, shape=(1, 33_000)),
}
LAUNCHED = {
    "prepasses": 3,
    "prepasses in parts": 8,
    "kinds": 2,
    "kinds in parts": 3,
}  # kernels of a step, if not 1


def aligned_or_not(value: torch.Tensor, k: int) -> torch.Tensor:
    """Returns other memory like `value`, which is not aligned to 16 bytes where k is odd."""
    return tensor(*value.shape, dtype=value.dtype, offset=k % 2)


@pytest.mark.parametrize("name", STEPS)
def test_a_second_launch_equals_tritons(name: str, stub: stub_driver.StubDriver) -> None:
    arguments = STEPS[name]
    with tritons_way() as by_triton:
        first = launched(stub, lambda: launch.reverse_step(arguments))
        count = len(by_triton)
        second = launched(stub, lambda: launch.reverse_step(arguments))
        assert len(by_triton) == count == len({each.function for each in first})
    assert (
        first == second == launched(stub, lambda: directly(*launch.reverse_step_calls(arguments)))
    )
    assert len(first) == LAUNCHED.get(name, 1)


MOVING = ("model_output", "row", "x_t", "out", "row_out")
MORE = {
    "ddim": ("table", "input_out"),
    "ddpm": ("seed",),
    "ddpm bf16": (),
    "guided": ("guidance", "seed"),
    "slots": ("slots", "slots_out"),
    "width 2": ("seed", "input_out"),
    "seeds and ids": ("seed", "sample_ids"),
    "prepasses": ("guidance", "seed"),
    "prepasses in parts": ("guidance", "seed"),
    "kinds": ("guidance", "slots", "slots_out"),
    "kinds in parts": ("guidance", "seed"),
}


def moved(arguments: StepArguments, names: tuple[str, ...], k: int, turn: int) -> dict[str, Any]:
    """Returns other values of the named arguments.

    `k` decides which are not aligned, `turn` on the seed and on whether slots are in one memory.
    """
    values: dict[str, Any] = {}
    for i, name in enumerate(names):
        value = getattr(arguments, name)
        if isinstance(value, int):
            values[name] = (1, 16, 2**32 - 1, 2**64 - 1, 2**31)[turn % 5]
        else:
            values[name] = aligned_or_not(value, k >> i)
    if turn % 2 and "slots" in names:
        values["slots"] = values["slots_out"]
    return values


@pytest.mark.parametrize("name", STEPS)
def test_a_bound_step_equals_tritons(name: str, stub: stub_driver.StubDriver) -> None:
    """Addresses move, aligned or not, seeds move, and slots become the same memory or other."""
    arguments, names = STEPS[name], MOVING + MORE[name]
    bound = launch.BINDERS["reverse_step"](arguments, names, False)[0]
    for turn, k in enumerate((0, 0, 1, 0, 1, 2, 0, 0, 2)):
        values = moved(arguments, names, k, turn)
        stub.stream = 7 + k
        now = arguments._replace(**values)
        expected = launched(stub, lambda now=now: directly(*launch.reverse_step_calls(now)))
        with tritons_way() as by_triton:
            got = launched(stub, lambda values=values: bound(tuple(values.values())))
        assert got == expected, turn
        if turn > 4 and k < 2:
            assert by_triton == []
    before = common.launches.copy()
    bound(tuple(values.values()))
    assert (common.launches - before).total() == len(expected)


def test_both_ways_exchange_the_rows(stub: stub_driver.StubDriver) -> None:
    arguments = STEPS["guided"]
    there, back = launch.BINDERS["reverse_step"](arguments, ("model_output",), True)
    exchanged = arguments._replace(row=arguments.row_out, row_out=arguments.row)
    for k in (0, 1, 0, 1):
        values = (aligned_or_not(arguments.model_output, k),)
        for bound, way in ((there, arguments), (back, exchanged)):
            now = way._replace(model_output=values[0])
            expected = launched(stub, lambda now=now: directly(launch.reverse_step_call(now)))
            assert launched(stub, lambda b=bound, v=values: b(v)) == expected


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_bound_call_computes_nothing_again(name: str, stub: stub_driver.StubDriver) -> None:
    """After its first call a bound step neither builds arguments nor asks Triton for a kernel."""
    arguments = STEPS[name]
    bound = launch.BINDERS["reverse_step"](arguments, ("model_output",), False)[0]
    values = (arguments.model_output,)
    bound(values)

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("a bound call takes the way of a call that is not bound")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastdiff_kernels.launch.bound.reverse_step_calls", refused)
        patch.setattr(common.Kernel, "launch", refused)
        patch.setattr(JITFunction, "run", refused)
        assert len(launched(stub, lambda: bound(values))) == LAUNCHED[name]


def test_the_ops_bind_through_triton(stub: stub_driver.StubDriver) -> None:
    """`bind` takes the binder of the backend in use, and calls the op's kernels with it."""
    arguments = STEPS["ddpm"]
    bound = arguments.bind("model_output")
    with fastdiff.use("triton"):
        bound(arguments.model_output)
        with tritons_way() as by_triton:
            got = launched(stub, lambda: bound(arguments.model_output))
        assert by_triton == []
    assert got == launched(stub, lambda: directly(launch.reverse_step_call(arguments)))


def test_moving_tensors_are_not_kept(stub: stub_driver.StubDriver) -> None:
    arguments = STEPS["ddpm"]
    bound = launch.BINDERS["reverse_step"](arguments, ("model_output",), True)
    output = tensor(BATCH, *SHAPE)
    seen = weakref.ref(output)
    for way in bound:
        way((output,))
        way((output,))
    del output
    gc.collect()
    assert seen() is None


def sums(
    batch: int = 33,
    size: int = 5,
    weight: bool = True,
    mean: bool = False,
    offset: int = 0,
    dtype: torch.dtype = F32,
) -> launch.Call:
    """Returns a call of the smallest kernel: it compiles fast."""
    return launch.sum_chunks_call(
        tensor(batch, dtype=dtype),
        tensor(batch * 5, dtype=dtype, offset=offset),
        size,
        tensor(batch, dtype=dtype) if weight else None,
        mean,
    )


def norm(batch: int = 2, channels: int = 8, last: bool = False, add: int = 0) -> list[launch.Call]:
    """Returns the calls of group_norm_silu with other strides."""
    x = tensor(batch, channels, 16)
    x = x.view(batch, 16, channels).transpose(1, 2) if last else x
    row = tensor(batch, channels + add)[:, :channels]
    return [launch.group_norm_moments_call(tensor(2, batch, 1, channels), x, row)]


def test_changes_reach_the_variant_that_triton_chooses(stub: stub_driver.StubDriver) -> None:
    """Whatever was launched before, a launch has the variant that Triton specialises for it."""
    calls = [
        sums(),
        sums(offset=1),  # an address that is not a multiple of 16
        sums(offset=4),
        sums(size=1),  # integers that are 1, or multiples of 16, are specialised
        sums(size=16),
        sums(size=32),
        sums(size=6),
        sums(batch=1),
        sums(batch=16),
        sums(weight=False),
        sums(mean=True),
        sums(dtype=F64),
        sums()._replace(
            options=launch.sum_chunks_call(tensor(1), tensor(1), 1).options | {"num_warps": 2}
        ),
        *norm(),
        *norm(last=True),
        *norm(add=1),
        *norm(batch=1),
    ]
    seed = launch.randn_call(tensor(2, 4), 5, None, None, 0, 0, False)
    calls += [seed, seed._replace(arguments=seed.arguments | {"step": 2**40})]
    like = torch.empty(1000)  # only to say that the batch is not empty
    functions = set()
    for _ in range(2):
        for device in (0, 1):
            stub.device = device
            for call in calls:
                expected = launched(stub, lambda call=call: directly(call))
                assert launched(stub, lambda call=call: launch.run(call, like)) == expected
                functions.add(expected[0].function)
    stub.device = 0
    with tritons_way() as by_triton:
        for call in calls:
            launch.run(call, like)
    assert by_triton == []
    assert len(functions) > 20  # they are different variants, and each device has its own


def test_what_is_not_a_tensor_or_an_integer_takes_tritons_way(
    stub: stub_driver.StubDriver,
) -> None:
    class Other(torch.Tensor):
        pass

    call = sums()
    other = call._replace(
        arguments=call.arguments | {"workspace": call.arguments["workspace"].as_subclass(Other)}
    )
    with tritons_way() as by_triton:
        for _ in range(3):
            assert launch.run(other, torch.empty(1)) is None
    assert len(by_triton) == 3


def test_the_kept_variants_are_bounded(stub: stub_driver.StubDriver) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastdiff_kernels.launch.compiled.MOST_VARIANTS", 4)
        for size in range(2, 12):
            launch.run(sums(size=size), torch.empty(1))
    assert len(common._kernels["sum_chunks"]._variants) <= 4


def test_profilers_see_every_launch(stub: stub_driver.StubDriver) -> None:
    """Hooks and debug settings of Triton apply to launches that would take the short way."""
    arguments, runtime = STEPS["ddim"], triton.knobs.runtime
    bound = launch.BINDERS["reverse_step"](arguments, (), False)[0]
    work: list[Callable[[], Any]] = [lambda: launch.reverse_step(arguments), lambda: bound(())]
    for run in work:
        run()
        run()
    names: list[str] = []

    def hook(metadata: Any) -> None:
        names.append(metadata.get()["name"])

    for chain in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        chain.add(hook)
        try:
            for run in work:
                run()
        finally:
            chain.remove(hook)
    assert names == ["reverse_step_kernel"] * 4
    with tritons_way() as by_triton, pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "debug", True)
        for run in work:
            run()
        assert len(by_triton) == 2
        patch.undo()
        for run in work:
            run()
        assert len(by_triton) == 2


def test_another_device_becomes_the_current_one(stub: stub_driver.StubDriver) -> None:
    """A launch enters torch's context only for a device that is not the current one."""
    entered: list[int] = []

    class Context:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            entered.append(self.index)

        def __exit__(self, *_: Any) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "current_device", lambda: 1)
        patch.setattr(torch.cuda, "device", Context)
        for index in (-1, 1, 2):
            with common.on_device(index):
                pass
    assert entered == [2]


def test_an_empty_batch_launches_nothing(stub: stub_driver.StubDriver) -> None:
    empty = torch.empty(0, *SHAPE)
    arguments = StepArguments(
        empty, empty, tensor(10, len(COLUMNS), dtype=F64), tensor(0, dtype=torch.int64), out=empty,
        used=DDIM,
    )  # fmt: skip
    bound = launch.BINDERS["reverse_step"](arguments, ("model_output",), False)[0]
    assert launched(stub, lambda: bound((empty,))) == []


def test_op_calls_are_short_from_the_second_on(stub: stub_driver.StubDriver) -> None:
    """Public ops take the short way too."""
    x = tensor(BATCH, *SHAPE)
    calls: list[Callable[[], Any]] = [
        lambda: ops.randn((BATCH, *SHAPE), seed=3),
        lambda: ops.gaussian_kl(x, x, x, x),
        lambda: ops.group_norm_silu(x, 2),
    ]
    with fastdiff.use("triton"):
        for work in calls:
            work()
            with tritons_way() as by_triton:
                assert launched(stub, work)
            assert by_triton == []
