"""A small CUDA load without a toolkit: one plain allocation, overwritten again and again.

`python -m tools.hardware.cuda SECONDS MIB` uses the first device that CUDA shows. It prints `ready`
once the memory is there, and a line with what failed otherwise.
"""

from __future__ import annotations

import ctypes
import sys
import time
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import Any, ClassVar

from hal.nvml.library import LIBRARY_DIRS

LIBRARY = "libcuda.so.1"
NO_LIBRARY = 3
"""The exit status where there is none."""

_BATCH = 16
"""So many writes are queued between two waits for the GPU."""


class CudaError(Exception):
    """A function of CUDA failed; the text says which, and CUDA's name for why."""


class Cuda:
    """The few functions of the driver API that are needed; each raises `CudaError`."""

    _FUNCTIONS: ClassVar[dict[str, tuple[Any, ...]]] = {
        "cuInit": (c_uint,),
        "cuDriverGetVersion": (POINTER(c_int),),
        "cuDeviceGet": (POINTER(c_int), c_int),
        "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
        "cuDevicePrimaryCtxRelease_v2": (c_int,),
        "cuCtxSetCurrent": (c_void_p,),
        "cuCtxSynchronize": (),
        "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
        "cuMemsetD32_v2": (c_uint64, c_uint, c_size_t),
        "cuMemFree_v2": (c_uint64,),
    }

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name, types in self._FUNCTIONS.items():
            function = library[name]
            function.argtypes = types
            function.restype = c_int

    def call(self, name: str, *arguments: object) -> None:
        code = self._library[name](*arguments)
        if code:
            raise CudaError(f"{name}: {self._name_of(code)} ({code})")

    def _name_of(self, code: int) -> str:
        text = c_char_p()
        self._library["cuGetErrorName"](c_int(code), byref(text))
        return (text.value or b"unknown error").decode()


def load_library(root: Path = Path("/")) -> ctypes.CDLL | None:
    """The driver's CUDA library; None if there is none."""
    for name in (LIBRARY, *(str(root / folder / LIBRARY) for folder in LIBRARY_DIRS)):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def keep_busy(cuda: Cuda, for_s: float, size_bytes: int) -> int:
    """Overwrite memory of this size for so long; the number of writes."""
    device, context, memory = c_int(), c_void_p(), c_uint64()
    cuda.call("cuInit", 0)
    cuda.call("cuDeviceGet", byref(device), 0)
    cuda.call("cuDevicePrimaryCtxRetain", byref(context), device)
    try:
        cuda.call("cuCtxSetCurrent", context)
        cuda.call("cuMemAlloc_v2", byref(memory), size_bytes)
        print("ready", flush=True)
        writes = 0
        ends_s = time.monotonic() + for_s
        while time.monotonic() < ends_s:
            for _ in range(_BATCH):
                cuda.call("cuMemsetD32_v2", memory, writes & 0xFFFFFFFF, size_bytes // 4)
                writes += 1
            cuda.call("cuCtxSynchronize")
        cuda.call("cuMemFree_v2", memory)
    finally:
        cuda.call("cuDevicePrimaryCtxRelease_v2", device)
    return writes


def main() -> int:
    for_s, size_mib = float(sys.argv[1]), int(sys.argv[2])
    library = load_library()
    if library is None:
        print(f"no {LIBRARY}")
        return NO_LIBRARY
    version = c_int()
    try:
        cuda = Cuda(library)
        cuda.call("cuDriverGetVersion", byref(version))
        writes = keep_busy(cuda, for_s, size_mib << 20)
    except (CudaError, AttributeError) as error:
        print(error)
        return 1
    print(f"CUDA {version.value // 1000}.{version.value % 1000 // 10}, {writes} writes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
