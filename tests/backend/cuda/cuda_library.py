"""A ctypes binding of the CUDA library for tests, with structs packed by hand.

The library is the emulation for the host or the compiled one. A struct of
csrc/include/fastdiff/ops.h is a list of numbers of 8 bytes each. Nothing here comes from fastdiff's
own binding, so a mistake there cannot hide one in the library.
"""

from __future__ import annotations

import ctypes
import re
import struct
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[3]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
HEADER = (ROOT / "csrc/include/fastdiff/ops.h").read_text(encoding="utf-8")
_COUNTED = re.search(r"enum \{\s*FD_RANDN,[^}]*\}", HEADER)
assert _COUNTED
OPS = tuple(name.lower() for name in re.findall(r"\bFD_(\w+)", _COUNTED[0]))[:-1]
"""The kernels whose launches a library counts: the members of the header's enum but FD_OPS."""
PASSES = {op for op in OPS if f"int fd_{op}(" not in HEADER}
"""The kernels that are a part of an op, for which the library exports no function."""
CHUNK = 1024  # FD_CHUNK of the header: the elements whose terms are summed together
Field = Tensor | int | None
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3, torch.int64: 4}


def load(path: Path) -> ctypes.CDLL:
    """Returns the library with the types of its functions declared."""
    handle = ctypes.CDLL(str(path))
    for op in OPS:
        if hasattr(handle, f"fd_{op}"):
            getattr(handle, f"fd_{op}").argtypes = [ctypes.c_char_p]
    for name in ("fd_schema", "fd_last_error", "fd_cuda_archs", "fd_cuda_unusable"):
        getattr(handle, name).restype = ctypes.c_char_p
    handle.fd_abi_version.restype = ctypes.c_int64
    handle.fd_launches.argtypes, handle.fd_launches.restype = [ctypes.c_int64], ctypes.c_uint64
    return handle


def array(tensor: Tensor | None) -> list[Field]:
    """Returns the fields of an fd_input or fd_output."""
    return [0, 0] if tensor is None else [tensor, _DTYPES[tensor.dtype]]


def view(
    tensor: Tensor | None, sample_stride: int | None = None, element_stride: int = 1
) -> list[Field]:
    """Returns the fields of an fd_view, with strides in elements; by default of a dense array."""
    if tensor is None:
        return [0, 0, 0, 0]
    return [
        *array(tensor),
        elements(tensor) if sample_stride is None else sample_stride,
        element_stride,
    ]


def elements(tensor: Tensor) -> int:
    """Returns the number of elements of a sample."""
    size = 1
    for n in tensor.shape[1:]:
        size *= n
    return size


def draw(
    seed: int = 0,
    seeds: Tensor | None = None,
    ids: Tensor | None = None,
    step: int = 0,
    stream: int = 0,
) -> list[Field]:
    """Returns the fields of an fd_noise."""
    return [seed, seeds, ids, step, stream]


class Library:
    """Calls ops on host memory (the emulation) or on copies on a device, which are copied back.

    A copy is of a tensor's whole storage, so that tensors share memory and are misaligned on the
    device as on the host.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.handle = load(path)
        self.device = device
        self.errors = torch.zeros(1, dtype=torch.int32, device=device)

    def call(self, op: str, like: Tensor, *parts: list[Field] | Field) -> None:
        """Calls an op with the fields of its struct, in their order after `launch`.

        `like` [B, …] gives batch and elements. A tensor stands for its address, None for null.
        Raises AssertionError with the library's message if it refuses.
        """
        copies: dict[int, tuple[Tensor, Tensor]] = {}

        def number(field: Field) -> int:
            if not isinstance(field, Tensor):
                return field or 0
            if field.device.type == self.device:
                return field.data_ptr()
            start = field.untyped_storage().data_ptr()
            if start not in copies:
                whole = torch.empty(0, dtype=torch.uint8).set_(field.untyped_storage())
                copies[start] = whole, whole.to(self.device)
            return copies[start][1].data_ptr() + field.data_ptr() - start

        stream = 0 if self.device == "cpu" else torch.cuda.current_stream().cuda_stream
        # fd_launch: batch, elements, CPU level, CPU threads, stream, error word
        fields: list[Field] = [like.size(0), elements(like), -1, 1, stream, self.errors]
        for part in parts:
            fields += part if isinstance(part, list) else [part]
        numbers = [number(field) for field in fields]
        packed = struct.pack("=" + "".join("q" if n < 0 else "Q" for n in numbers), *numbers)
        status = getattr(self.handle, f"fd_{op}")(packed)
        assert status == 0, self.handle.fd_last_error().decode()
        for host, there in copies.values():
            host.copy_(there)

    def error(self) -> int:
        """Returns the error word and clears it."""
        value = int(self.errors.item())
        self.errors.zero_()
        return value

    def launches(self, op: str) -> int:
        return self.handle.fd_launches(OPS.index(op))


def compute_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def workspace(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a poisoned buffer for the sums of the chunks of every sample, [B, chunks]."""
    return torch.full(
        (like.size(0), -(-elements(like) // CHUNK)), torch.nan, dtype=dtype, device=like.device
    )
