"""A small CUDA load without a toolkit: one plain allocation, overwritten again and again.

`python -m tools.hardware.cuda SECONDS MIB` uses the first device that CUDA shows. It prints `ready`
once the memory is there, and a line with what failed otherwise.
"""

from __future__ import annotations

import sys
import time

from sim.calibrate.cuda import Cuda, CudaMissing
from sim.calibrate.edges import EdgeError

MISSING = 3
"""The exit status where there is no CUDA."""

_BATCH = 16
"""So many writes are queued between two waits for the GPU."""


def keep_busy(cuda: Cuda, for_s: float, size_bytes: int) -> int:
    """Overwrite memory of this size for so long; the number of writes."""
    device = cuda.context()
    try:
        memory = cuda.call("cuMemAlloc", size_bytes)
        print("ready", flush=True)
        writes = 0
        ends_s = time.monotonic() + for_s
        while time.monotonic() < ends_s:
            for _ in range(_BATCH):
                cuda.call("cuMemsetD32", memory, writes & 0xFFFFFFFF, size_bytes // 4)
                writes += 1
            cuda.call("cuCtxSynchronize")
        cuda.call("cuMemFree", memory)
    finally:
        cuda.call("cuDevicePrimaryCtxRelease", device)
    return writes


def main() -> int:
    for_s, size_mib = float(sys.argv[1]), int(sys.argv[2])
    try:
        cuda = Cuda()
        writes = keep_busy(cuda, for_s, size_mib << 20)
    except CudaMissing as error:
        print(error)
        return MISSING
    except EdgeError as error:
        print(error)
        return 1
    print(f"CUDA {cuda.version}, {writes} writes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
