"""NVML's return codes, and the failure that answers a call with one of them."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """The return codes that calls answer with; numbers are NVML's."""

    SUCCESS = 0
    UNINITIALIZED = 1
    INVALID_ARGUMENT = 2
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    ALREADY_INITIALIZED = 5
    NOT_FOUND = 6
    INSUFFICIENT_SIZE = 7
    INSUFFICIENT_POWER = 8
    DRIVER_NOT_LOADED = 9
    TIMEOUT = 10
    IRQ_ISSUE = 11
    LIBRARY_NOT_FOUND = 12
    FUNCTION_NOT_FOUND = 13
    CORRUPTED_INFOROM = 14
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    OPERATING_SYSTEM = 17
    LIB_RM_VERSION_MISMATCH = 18
    IN_USE = 19
    MEMORY = 20
    NO_DATA = 21
    VGPU_ECC_NOT_SUPPORTED = 22
    INSUFFICIENT_RESOURCES = 23
    FREQ_NOT_SUPPORTED = 24
    ARGUMENT_VERSION_MISMATCH = 25
    DEPRECATED = 26
    NOT_READY = 27
    GPU_NOT_FOUND = 28
    INVALID_STATE = 29
    RESET_TYPE_NOT_SUPPORTED = 30
    UNKNOWN = 999


TEXTS = {
    Code.SUCCESS: "Success",
    Code.UNINITIALIZED: "NVML is not initialized",
    Code.INVALID_ARGUMENT: "Invalid argument",
    Code.NOT_SUPPORTED: "Not supported",
    Code.NO_PERMISSION: "No permission",
    Code.NOT_FOUND: "Not found",
    Code.INSUFFICIENT_SIZE: "The buffer is too small",
    Code.DRIVER_NOT_LOADED: "The driver is not loaded (no simulated node answers)",
    Code.TIMEOUT: "Timeout",
    Code.FUNCTION_NOT_FOUND: "Function not found",
    Code.GPU_IS_LOST: "The GPU is lost",
    Code.RESET_REQUIRED: "The GPU needs a reset",
    Code.LIB_RM_VERSION_MISMATCH: "Library and node are of different versions",
    Code.INSUFFICIENT_RESOURCES: "Not enough resources",
    Code.ARGUMENT_VERSION_MISMATCH: "The version of a structure is not known",
}
"""What `nvmlErrorString` says; the names of the other codes say enough."""


def text_of(code: Code) -> str:
    """What `nvmlErrorString` says of a code."""
    return TEXTS.get(code) or code.name.replace("_", " ").capitalize()


class NvmlFailure(Exception):
    """A call fails: `code` is what it returns."""

    def __init__(self, code: Code) -> None:
        super().__init__(text_of(code))
        self.code = code


class InsufficientSize(NvmlFailure):
    """An array of the caller is too small; `needed` elements would do."""

    def __init__(self, needed: int) -> None:
        super().__init__(Code.INSUFFICIENT_SIZE)
        self.needed = needed
