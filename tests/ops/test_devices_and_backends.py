"""The device and backend of an op: defaults, backward passes, preparation for CUDA graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdiff
from fastdiff import ops
from fastdiff.backend import choice, library


def test_noise_of_a_number_is_on_the_default_device() -> None:
    assert ops.randn((2, 3), seed=0).device.type == "cpu"
    with torch.device("meta"):
        assert ops.randn((2, 3), seed=0).device.type == "meta"


@pytest.mark.parametrize("name", ["triton", "cuda", "cpu", "torch"])
def test_the_default_device_is_one_that_the_backend_runs_on(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_on_host", lambda _: False)
    device = choice.default_device(name)
    assert device == (None if name in ("cpu", "torch") else torch.device("cuda"))
    with torch.device("meta"):
        device = choice.default_device(name)
    assert device == (None if name == "torch" else torch.device("cpu" if name == "cpu" else "cuda"))


def _losses() -> dict[str, tuple[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]]]:
    """Ops with a backward kernel: the C function of that kernel, and (input, loss) of a call."""

    def leaf(*shape: int) -> torch.Tensor:
        return torch.linspace(-1, 1, int(torch.tensor(shape).prod())).view(shape).requires_grad_()

    def kl() -> tuple[torch.Tensor, torch.Tensor]:
        x = leaf(2, 8)
        return x, ops.gaussian_kl(x, x.detach())

    def nll() -> tuple[torch.Tensor, torch.Tensor]:
        x = leaf(2, 8)
        return x, ops.discretized_gaussian_nll(x.detach(), x, x.detach() - 3)

    def mse() -> tuple[torch.Tensor, torch.Tensor]:
        x = leaf(2, 8)
        return x, ops.noise_mse(x, seed=1)

    def latent() -> tuple[torch.Tensor, torch.Tensor]:
        x = leaf(2, 8)
        return x, ops.reparameterize(x, x.detach(), seed=1)

    return {
        "gaussian_kl": ("gaussian_kl", kl),
        "discretized_gaussian_nll": ("discretized_gaussian_nll", nll),
        "noise_mse": ("noise_mse", mse),
        "reparameterize": ("reparameterize", latent),
    }


@pytest.mark.skipif(not library.available(), reason="the CPU library is not built")
@pytest.mark.parametrize("op", _losses())
@pytest.mark.parametrize("forward", ["torch", None])
def test_a_backward_pass_runs_on_the_backend_of_its_forward_pass(
    op: str, forward: str | None
) -> None:
    """Also in another thread, as autograd's thread of a GPU is."""
    counted, make = _losses()[op]
    with fastdiff.use(forward):
        x, result = make()
    before = library.launches(counted)
    with fastdiff.use(None if forward else "torch"):
        thread = threading.Thread(target=lambda: result.sum().backward())
        thread.start()
        thread.join()
    assert x.grad is not None
    assert library.launches(counted) - before == (0 if forward else 1)


def test_tracing_an_op_for_a_gpu_prepares_the_gpu_outside_the_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A compiled op may first run in a CUDA graph's memory: what outlives it is made before."""
    prepared = []

    def prepare(device: torch.device) -> None:
        prepared.append((device.type, type(torch.zeros(1)) is torch.Tensor))

    monkeypatch.setattr(choice, "prepare", prepare)
    with FakeTensorMode():
        x = torch.empty(2, 8, device="cuda")
        torch.ops.fastdiff.gaussian_kl(x, x, None, None)
    assert prepared == [("cuda", True)]


@pytest.mark.parametrize("module", ["fastdiff.backend.cuda", "fastdiff_kernels.launch.common"])
def test_an_error_word_is_not_made_within_a_capture(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = pytest.importorskip(module, exc_type=ImportError)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(words, "_errors", {})
    with pytest.raises(RuntimeError, match="expected a launch on cuda:0 before the first one in"):
        words.error_word(torch.device("cuda", 0))


def test_use_acts_as_a_statement_in_a_block_and_on_a_function() -> None:
    from fastdiff.backend.choice import chosen

    before = chosen()
    try:
        fastdiff.use("torch")
        assert chosen() == "torch"
        with fastdiff.use(None):
            assert chosen() is None
        assert chosen() == "torch"

        @fastdiff.use(None)
        def inside() -> str | None:
            return chosen()

        assert chosen() == "torch" and inside() is None and chosen() == "torch"
        with pytest.raises(ValueError, match="expected a backend in .*, got 'gpu'"):
            fastdiff.use("gpu")
        assert chosen() == "torch"
        with pytest.raises(ZeroDivisionError), fastdiff.use(None):
            1 / 0  # noqa: B018
        assert chosen() == "torch"
    finally:
        fastdiff.use(before)
    assert chosen() == before
