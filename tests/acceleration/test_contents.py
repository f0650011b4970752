"""The digest of a weight's contents: its formula, and what changes it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff.acceleration import contents
from fastdiff.backend import library

pytestmark = pytest.mark.cpu_only
LANES = 16
MOST = 2**64


def native_or_skip() -> None:
    if contents._functions() is None:
        pytest.skip(f"the C++ library is off or old: {library.reason()}")


def digest(weight: Tensor) -> bytes:
    return contents.Contents([weight]).digests[0]


def mixed(n: int) -> int:
    """splitmix64's output for the state n."""
    z = n * 0x9E3779B97F4A7C15 % MOST
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % MOST
    z = (z ^ z >> 27) * 0x94D049BB133111EB % MOST
    return z ^ z >> 31


def oracle(data: bytes) -> bytes:
    """The formula in csrc/include/fastdiff/contents.h, in Python's integers."""
    words = np.frombuffer(data + bytes(-len(data) % (8 * LANES)), np.uint64).tolist()
    products, sums = [0] * LANES, [0] * LANES
    for n, word in enumerate(words):
        block, j = divmod(n, LANES)
        key = (mixed(j + 1) + block * (mixed(LANES + j + 1) | 1)) % MOST
        low = (word % 2**32 + key % 2**32) % 2**32
        high = ((word >> 32) + (key >> 32)) % 2**32
        products[j], sums[j] = (products[j] + low * high) % MOST, (sums[j] + word) % MOST
    return np.array(products + sums, np.uint64).tobytes()


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def level(request: pytest.FixtureRequest) -> object:
    native_or_skip()
    if request.param not in library.levels():
        pytest.skip(f"this processor or build lacks {request.param}")
    library.set_level(request.param)
    yield request.param
    library.set_level(None)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 127, 128, 129, 1000, 5003])
def test_the_digest_is_its_formula(size: int, level: str) -> None:
    values = torch.randint(256, (size,), generator=torch.Generator().manual_seed(size))
    values = values.to(torch.uint8)
    assert digest(values) == oracle(values.numpy().tobytes())


def test_threads_and_levels_change_nothing(level: str) -> None:
    weight = torch.randn(1000, 1003, generator=torch.Generator().manual_seed(0))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found.append(digest(weight))
        library.set_level("baseline")
        found.append(digest(weight))
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1


def test_each_of_several_weights_counts() -> None:
    native_or_skip()
    weights = [torch.randn(n) for n in (3, 40, 1000)]
    known = contents.Contents(weights)
    assert known.digests == [digest(w) for w in weights]
    for weight in weights:
        assert known.unchanged(weights)
        weight[-1] += 1
        assert not known.unchanged(weights)
        weight[-1] -= 1
        known = contents.Contents(weights)


def _swapped_blocks(w: Tensor) -> None:
    flat = w.view(-1)
    first = flat[:32].clone()
    flat[:32], flat[320:352] = flat[320:352].clone(), first


def _flipped_bit(w: Tensor) -> None:
    w.view(-1)[777:778].view(torch.int32).bitwise_xor_(1)


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "a bit": _flipped_bit,
    "all signs": lambda w: w.neg_(),
    "every second sign": lambda w: w.view(-1)[1::2].neg_(),
    "two signs of a lane": lambda w: w.view(-1)[1:34:32].neg_(),
    "one row's signs": lambda w: w[3].neg_(),
    "channels rolled": lambda w: w.copy_(w.roll(2, 1)),
    "channels flipped": lambda w: w.copy_(w.flip(1)),
    "rows rolled": lambda w: w.copy_(w.roll(1, 0)),
    "rows sorted": lambda w: w.copy_(w.flatten(1).sort(1).values.view_as(w)),
    "pixels flipped": lambda w: w.copy_(w.flip(-1)),
    "blocks of a digest's lanes": _swapped_blocks,
    "a zero's sign": lambda w: w.view(-1)[5].mul_(-1),
    "scaled by two": lambda w: w.mul_(2),
    "places in a lane": lambda w: w.view(-1)[:64:32].copy_(w.view(-1)[:64:32].flip(0)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(
    change: str, native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native:
        native_or_skip()
    else:
        monkeypatch.setattr(contents, "_functions", lambda: None)
    if change == "a bit" and dtype.itemsize != 4:
        pytest.skip("the bit of a float32")
    weight = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight.view(-1)[5] = 0.0
    known = contents.Contents([weight])
    assert known.unchanged([weight])
    CHANGES[change](weight)
    assert not known.unchanged([weight])


@pytest.mark.parametrize("native", [True, False])
def test_memory_formats_and_gaps(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if native:
        native_or_skip()
    else:
        monkeypatch.setattr(contents, "_functions", lambda: None)
    whole = torch.randn(8, 6, 3, 3)
    for weight in (
        whole.to(memory_format=torch.channels_last),
        whole.transpose(0, 1),
        whole[:, ::2],
        whole[2:4],
        whole[:1, :1, 0, 0].expand(4, 5),
        torch.randn(()),
        torch.randn(0, 3),
    ):
        known = contents.Contents([weight])
        assert known.unchanged([weight])
        if weight.numel():
            weight[(0,) * weight.ndim] += 1
            assert not known.unchanged([weight])
