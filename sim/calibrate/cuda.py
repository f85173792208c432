"""CUDA's edge: a context, a plain allocation and the kernel, by NVIDIA's `cuda-bindings`.

Everything is given back when the process ends, however it ends.
"""

from __future__ import annotations

import ctypes
import os
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hal.nvml.library import LIBRARY_DIRS
from sim.calibrate import kernel
from sim.calibrate.analysis import LEAST_GAP_NS, Stamps
from sim.calibrate.edges import Answer, EdgeError, FreeBytes, Open, Request, Stamp

LIBRARY = "libcuda.so.1"
ROOM = 8192
"""Gaps that a kernel can keep: ten times as many as slices in a second and a half."""
_KIB = 1024


MISSING = "NVIDIA's cuda-bindings are not installed: pip install 'gpuplugin-sim[calibrate]'"


class CudaMissing(EdgeError):
    """CUDA cannot be used here; the text says what is missing, and what to do."""


def has_bindings() -> bool:
    return find_spec("cuda") is not None and find_spec("cuda.bindings") is not None


def has_library() -> bool:
    """Load the driver's CUDA library, also from where the loader does not look; False: none.

    Once it is loaded the bindings find it by its name.
    """
    root = Path(os.environ.get("NVIDIA_DRIVER_ROOT", "/"))
    for name in (LIBRARY, *(str(root / folder / LIBRARY) for folder in LIBRARY_DIRS)):
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


class Cuda:
    """The driver's functions; a call that fails raises `EdgeError` with its name and CUDA's.

    Raises:
        CudaMissing: the bindings or the driver's library are not installed.
    """

    def __init__(self) -> None:
        if not has_bindings():
            raise CudaMissing(MISSING)
        if not has_library():
            raise CudaMissing(
                f"the driver's CUDA library, {LIBRARY}, was not found: install all of the GPU's "
                "driver, or set LD_LIBRARY_PATH to the folder that has it"
            )
        from cuda.bindings import driver

        # The bindings have no types.
        self.names: Any = driver
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: object) -> Any:  # noqa: ANN401 - as the bindings have it
        """What the function returns beside its code: nothing, a value, or several."""
        code, *values = getattr(self.names, name)(*arguments)
        if int(code):
            raise EdgeError(f"{name}: {code.name} ({int(code)})")
        return values[0] if len(values) == 1 else tuple(values)

    def context(self) -> Any:  # noqa: ANN401 - a handle
        """Make the context of the first device this thread's; its device."""
        device = self.call("cuDeviceGet", 0)
        self.call("cuCtxSetCurrent", self.call("cuDevicePrimaryCtxRetain", device))
        return device

    @property
    def version(self) -> str:
        number = self.call("cuDriverGetVersion")
        return f"{number // 1000}.{number % 1000 // 10}"


class CudaEdge:
    """One context on the first device that CUDA shows (`CUDA_VISIBLE_DEVICES` chooses it)."""

    def __init__(self) -> None:
        self._cuda: Cuda | None = None
        self._device: Any = None
        self._function: Any = None

    def answer(self, request: Request) -> Answer:
        match request:
            case Open():
                self._cuda = Cuda()
                self._device = self._cuda.context()
                return Answer()
            case FreeBytes():
                free_bytes, _total = self._opened.call("cuMemGetInfo")
                return Answer(free_bytes=free_bytes)
            case Stamp():
                return Answer(stamps=self._stamp(round(request.span_ms * 1e6), full=request.full))
        raise EdgeError(f"{request.do} is not for CUDA")

    @property
    def _opened(self) -> Cuda:
        if self._cuda is None:
            raise EdgeError("there is no context yet")
        return self._cuda

    def _stamp(self, span_ns: int, *, full: bool) -> Stamps:
        cuda = self._opened
        if self._function is None:
            module = cuda.call("cuModuleLoadData", kernel.ptx().encode() + b"\0")
            self._function = cuda.call("cuModuleGetFunction", module, kernel.NAME.encode())
        blocks, threads, shared_bytes = self._filling() if full else (1, 32, 0)
        size_bytes = kernel.HEADER_BYTES + ROOM * kernel.GAP_BYTES
        memory = cuda.call("cuMemAlloc", size_bytes)
        try:
            cuda.call("cuMemsetD32", memory, 0, size_bytes // 4)
            values = (int(memory), span_ns, LEAST_GAP_NS, ROOM, kernel.MOST_TURNS)
            types = (*(ctypes.c_uint64,) * 3, *(ctypes.c_uint32,) * 2)
            shape = (blocks, 1, 1, threads, 1, 1)
            cuda.call("cuLaunchKernel", self._function, *shape, shared_bytes, 0, (values, types), 0)
            cuda.call("cuCtxSynchronize")
            content = bytearray(size_bytes)
            cuda.call("cuMemcpyDtoH", content, memory, size_bytes)
        finally:
            cuda.call("cuMemFree", memory)
        return stamps_in(bytes(content))

    def _filling(self) -> tuple[int, int, int]:
        """Blocks, their threads and shared memory that fill all SMs."""
        cuda, names = self._opened, self._opened.names.CUdevice_attribute

        def attribute(name: str) -> int:
            wanted = getattr(names, f"CU_DEVICE_ATTRIBUTE_{name}")
            return int(cuda.call("cuDeviceGetAttribute", wanted, self._device))

        def on_an_sm(shared_bytes: int) -> int:
            return int(
                cuda.call(
                    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
                    self._function,
                    kernel.THREADS,
                    shared_bytes,
                )
            )

        blocks = on_an_sm(0)
        each_bytes = attribute("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR") // max(1, blocks)
        shared_bytes = min(
            attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
            each_bytes - attribute("RESERVED_SHARED_MEMORY_PER_BLOCK"),
        )
        shared_bytes = max(0, shared_bytes // _KIB * _KIB)
        most = cuda.names.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        cuda.call("cuFuncSetAttribute", self._function, most, shared_bytes)
        while shared_bytes and on_an_sm(shared_bytes) < blocks:
            shared_bytes -= min(_KIB, shared_bytes)
        return blocks * attribute("MULTIPROCESSOR_COUNT"), kernel.THREADS, shared_bytes


def stamps_in(content: bytes) -> Stamps:
    """What the kernel left in its memory, laid out as in `sim.calibrate.kernel`."""
    begin_ns, end_ns, seen, _ = struct.unpack_from("<4Q", content)
    kept = min(seen, (len(content) - kernel.HEADER_BYTES) // kernel.GAP_BYTES)
    pairs = struct.iter_unpack("<2Q", content[kernel.HEADER_BYTES :][: kept * kernel.GAP_BYTES])
    return Stamps(
        begin_ns=begin_ns,
        end_ns=end_ns,
        seen=seen,
        gaps=tuple((from_ns, to_ns) for from_ns, to_ns in pairs),
    )
