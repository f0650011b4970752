"""Winograd's convolution against float64, at the CPU levels that this processor runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from tolerances import WINOGRAD

from fastdiff.acceleration import winograd
from fastdiff.backend import library as native

pytestmark = [
    pytest.mark.cpu_only,
    pytest.mark.skipif(not winograd.available(), reason="no native library with vectors"),
]
SHAPES = [
    (1, 16, 16, 4, 4),
    (2, 24, 20, 7, 9),
    (3, 33, 17, 3, 5),
    (1, 19, 40, 13, 8),
    (9, 16, 64, 8, 8),
]


def oracle(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The definition in float64.

    out[b, k, i, j] = sum over c, m, n of x[b, c, i + m - 1, j + n - 1] w[k, c, m, n].
    """
    windows = sliding_window_view(
        np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3)
    )
    return np.einsum("bcijmn,kcmn->bkij", windows, w.astype(np.float64))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_transform_is_winograds() -> None:
    """In one dimension A' [(G g) * (B' d)] is the convolution.

    B' and A' are those of csrc/cpu/winograd.cpp.
    """
    a, b = winograd.A, winograd.B
    b_t = np.zeros((6, 6))
    b_t[0, [0, 2, 4]] = b_t[5, [1, 3, 5]] = 1.0, -2.5, 1.0
    for row, (p, q) in enumerate(((a, b), (-a, b), (b, a), (-b, a)), 1):
        b_t[row, 1:5] = -p * q * q, -q * q, p, 1.0
    a_t = np.array([[p**k for p in (0.0, a, -a, b, -b)] + [float(k == 3)] for k in range(4)])
    g, d = np.array([0.3, -1.2, 0.7]), np.array([1.0, 2.0, -1.0, 0.5, 3.0, -2.0])
    y = a_t @ ((winograd.weight_matrix().numpy() @ g) * (b_t @ d))
    np.testing.assert_allclose(y, sliding_window_view(d, 3) @ g, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("level", range(len(native.levels()) if winograd.available() else 0))
def test_against_float64(shape: tuple[int, ...], level: int) -> None:
    batch, channels, out_channels, height, width = shape
    x, w = drawn(batch, channels, height, width), drawn(out_channels, channels, 3, 3, seed=1)
    bias, add, residual = (
        drawn(out_channels),
        drawn(batch, out_channels, seed=2),
        drawn(batch, out_channels, height, width),
    )
    image = x.contiguous(memory_format=torch.channels_last)
    rest = residual.contiguous(memory_format=torch.channels_last)
    y = winograd._launch(image, winograd.pack(w), out_channels, bias, add, rest, 0.5, level)
    plain = oracle(x.numpy(), w.numpy())
    expected = (
        plain + bias.numpy()[:, None, None] + add.numpy()[:, :, None, None] + residual.numpy()
    ) * 0.5
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert np.abs(y.numpy() - expected).max() < WINOGRAD * plain.std()


def test_error_at_real_width() -> None:
    """The error is within a factor 16 of the direct convolution's.

    The factor depends on how oneDNN sums: it is 4 with its AVX2 kernels and 8.5 with its AVX-512
    kernels, which make the direct convolution more exact.
    """
    x, w = drawn(1, 256, 16, 16), drawn(64, 256, 3, 3, seed=1)
    expected = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
    direct = (torch.nn.functional.conv2d(x, w, padding=1) - expected).abs().max()
    ours = (winograd.conv3x3(x, winograd.pack(w), 64) - expected).abs().max()
    assert ours < 16 * direct and ours < WINOGRAD * expected.std()


def test_bits_depend_neither_on_the_batch_nor_on_threads_nor_on_blocks() -> None:
    x, packed = drawn(70, 32, 9, 10), winograd.pack(drawn(48, 32, 3, 3))
    x = x.contiguous(memory_format=torch.channels_last)
    whole = winograd.conv3x3(x, packed, 48)
    assert torch.equal(winograd.conv3x3(x[41:42], packed, 48)[0], whole[41])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(winograd.conv3x3(x, packed, 48), whole)
    finally:
        torch.set_num_threads(threads)


def test_slices_and_empty_batches() -> None:
    wide, packed = (
        drawn(2, 48, 8, 8).contiguous(memory_format=torch.channels_last),
        winograd.pack(drawn(16, 16, 3, 3)),
    )
    part = wide[:, 16:32]
    assert torch.equal(
        winograd.conv3x3(part, packed, 16), winograd.conv3x3(part.clone(), packed, 16)
    )
    nchw = part.contiguous()
    assert torch.equal(winograd.conv3x3(nchw, packed, 16), winograd.conv3x3(part, packed, 16))
    assert winograd.conv3x3(wide[:0, :16], packed, 16).shape == (0, 16, 8, 8)


def test_where_it_serves() -> None:
    image = torch.empty(1, 64, 8, 8)
    assert winograd.serves(64, 64, image) and winograd.serves(64, 64, torch.empty(1, 64, 4, 4))
    assert not winograd.serves(64, 64, torch.empty(1, 64, 2, 2)), "one square for four pixels"
    assert not winograd.serves(3, 64, image), "three channels of sixteen"
    assert not winograd.serves(64, 8, image) and not winograd.serves(64, 64, image.double())


def test_a_forced_level_is_heeded() -> None:
    """At the baseline torch's faster convolution is used; otherwise the forced level."""
    x = drawn(1, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    packed = winograd.pack(drawn(16, 16, 3, 3))
    try:
        native.set_level("baseline")
        assert not winograd.available() and not winograd.serves(64, 64, torch.empty(1, 64, 8, 8))
        slow = winograd.conv3x3(x, packed, 16)
    finally:
        native.set_level(None)
    assert winograd.available()
    assert torch.equal(slow, winograd._launch(x, packed, 16, None, None, None, 1.0, level=0))


def test_a_bad_level_is_refused() -> None:
    x, packed = (
        drawn(1, 16, 4, 4).contiguous(memory_format=torch.channels_last),
        winograd.pack(drawn(16, 16, 3, 3)),
    )
    with pytest.raises(
        ValueError, match=r"^fastdiff.accelerate: expected a CPU level in \[0, \d\], got 7\.$"
    ):
        winograd._launch(x, packed, 16, None, None, None, 1.0, 7)


def test_compiles_and_fakes() -> None:
    x, packed = drawn(2, 16, 8, 8), winograd.pack(drawn(16, 16, 3, 3))
    arguments = (x.contiguous(memory_format=torch.channels_last), packed, 16, None, None, None, 1.0)
    torch.library.opcheck(
        torch.ops.fastdiff_acceleration.conv3x3.default, arguments, test_utils="test_faketensor"
    )
    torch.library.opcheck(
        torch.ops.fastdiff_acceleration.conv3x3.default, arguments, test_utils="test_schema"
    )
