"""A CUDA device that does nothing, to look at launches of Triton kernels without a GPU.

Kernels are compiled for an H200 as on one, and each launch passes through Triton's own launcher in
C, down to the calls of the CUDA driver. Those go to a small library that this file compiles; it
launches nothing. Tensors are on the CPU, and their values never change.

It can't be used where there is a GPU, or in a process of Triton's interpreter.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia

from fastdiff.backend import choice

TARGET = GPUTarget("cuda", 90, 32)
COMPILER = os.environ.get("CC", "cc")
SOURCE = r"""
#include <stdint.h>
static uintptr_t functions = 0;
int cuCtxGetCurrent(void** context) { *context = (void*)1; return 0; }
int cuCtxSetCurrent(void* context) { return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = (void*)1; return 0; }
int cuDriverGetVersion(int* version) { *version = 12080; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) { *value = 232448; return 0; }
int cuModuleLoadData(void** module, const void* image) { *module = (void*)1; return 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = (void*)++functions;
  return 0;
}
int cuFuncGetAttribute(int* value, int attribute, void* function) {
  *value = attribute == 0 ? 1024 : 0;  // 0: the most threads of a block
  return 0;
}
int cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
int cuFuncSetCacheConfig(void* function, int config) { return 0; }
int cuGetErrorString(int error, const char** text) { *text = "stub"; return 0; }
int cuCtxGetLimit(uint64_t* value, int limit) { *value = 0; return 0; }
int cuCtxSetLimit(int limit, uint64_t value) { return 0; }
int cuPointerGetAttribute(uint64_t* value, int attribute, uint64_t pointer) {
  *value = pointer;
  return 0;
}
int cuLaunchKernelEx(const void* config, void* function, void** parameters, void** extra) {
  return 0;
}
int cuOccupancyMaxActiveClusters(int* count, void* function, const void* config) { return 0; }
int cuTensorMapEncodeTiled(void) { return 0; }
int cuTensorMapEncodeIm2col(void) { return 0; }
"""


class Launch(NamedTuple):
    """What Triton's launcher got: tensors as their addresses."""

    function: int  # one for each compiled variant and device
    grid: tuple[int, int, int]
    stream: int
    metadata: tuple[Any, ...]
    arguments: tuple[Any, ...]


class StubDriver(nvidia.CudaDriver):
    """Triton's driver for CUDA above this file's library; `launches` records each launch."""

    def __init__(self, recording: bool) -> None:
        super().__init__()
        self.device, self.stream = 0, 7
        self.launches: list[Launch] = []
        if recording:
            self.launcher_cls = self._recorder
        self.get_current_device = lambda: self.device
        self.get_current_stream = lambda device: self.stream

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def _recorder(self, source: Any, metadata: Any) -> Callable[..., None]:
        start = nvidia.CudaLauncher(source, metadata)

        def launch(x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
            packed, _, _, _, *arguments = rest
            addresses = (a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
            self.launches.append(Launch(function, (x, y, z), stream, packed, tuple(addresses)))
            start(x, y, z, stream, function, *rest)

        return launch


@contextmanager
def installed(folder: Path, *, recording: bool = False) -> Iterator[StubDriver]:
    """Makes Triton compile for the stub and launch on it, and lets ops choose it for CPU tensors.

    The stub's library is compiled into `folder`. Raises RuntimeError where it can't be used: with
    a GPU, in Triton's interpreter, or without a C compiler.
    """
    if torch.cuda.is_available() or triton.knobs.runtime.interpret:
        raise RuntimeError("the stub of the CUDA driver: expected neither a GPU nor an interpreter")
    if not shutil.which(COMPILER):
        raise RuntimeError(f"the stub of the CUDA driver: expected a C compiler, got no {COMPILER}")
    _load_library(folder)
    driver = StubDriver(recording)
    triton.runtime.driver.set_active(driver)
    # as in Triton's interpreter the backend `triton` takes CPU tensors
    with mock.patch.object(choice, "_interpreting", lambda: True):
        _forget_choices()
        yield driver
    _forget_choices()


def _forget_choices() -> None:
    choice._state.cache_clear()
    choice._resolve.cache_clear()


def _load_library(folder: Path) -> None:
    """Compiles the stub's library and loads it under the name of the CUDA driver's."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libcuda.so.1"
    source = folder / "libcuda.c"
    source.write_text(SOURCE, encoding="utf-8")
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source],
        check=True,
        capture_output=True,
    )
    # a library of that soname that is loaded already is what dlopen finds
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
