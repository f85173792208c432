"""The backend of real hardware: NVIDIA's GPUs by way of their driver's library, NVML.

Only `NvmlBackend` is for use from outside. Importing this package loads neither the driver's
library nor its Python binding; `NvmlBackend.open` does.
"""

from hal.nvml.backend import NvmlBackend

__all__ = ["NvmlBackend"]
