"""Errors that a backend raises. Each names the cause and names the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class HalError(Exception):
    """Any failure of the hardware layer: `cause` is what failed, `remedy` what to do."""

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(f"{cause}. {remedy}" if remedy else cause)
        self.cause = cause
        self.remedy = remedy


class DriverNotFound(HalError):
    """The driver's library is on none of the paths that were searched (`searched`)."""

    def __init__(self, library: str, searched: Sequence[str], remedy: str) -> None:
        self.library = library
        self.searched = tuple(searched)
        super().__init__(f"{library} was not found; searched: {', '.join(searched)}", remedy)


class DriverUnavailable(HalError):
    """The library is there, but the driver behind it does not respond (not loaded, reloading)."""


class DriverReplaced(DriverUnavailable):
    """The driver was updated; this process keeps the older library, only a new one can go on."""


class GpuLost(HalError):
    """The GPU no longer responds: it fell off the bus or needs a reset."""

    def __init__(self, uuid: str, cause: str = "it does not respond") -> None:
        self.uuid = uuid
        super().__init__(
            f"GPU {uuid} is lost: {cause}", "Reset the GPU or reboot the node, then check dmesg"
        )


class UnknownGpu(HalError):
    """No GPU of this UUID was ever seen by the backend."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        super().__init__(f"no GPU has the UUID {uuid}", "List the GPUs with 'gpuplugin devices'")


class NotSupported(HalError):
    """This driver or this GPU does not support the call; the rest of the backend works."""


class HalHung(HalError):
    """A call to the hardware did not return within its deadline."""
