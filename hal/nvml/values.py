"""Reading one GPU: values that may be unknown, calls by name, and whether it responds at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from hal.nvml.api import Clock, Code, EccKind, NvmlError
from hal.nvml.calls import CALLS
from hal.nvml.failures import call_failure
from hal.types import CallFailure

if TYPE_CHECKING:
    from collections.abc import Callable

    from hal.nvml.api import Handle, NvmlApi

_P = ParamSpec("_P")
_T = TypeVar("_T")
_D = TypeVar("_D")

MOST_MEMORY_BYTES: Final = 1 << 48
"""More than any GPU has; drivers fill what they cannot tell with ones."""


class Values:
    """Reads values of one GPU that may be unknown; `failures` are calls that should have worked.

    A value that this GPU, driver or version does not have is unknown without being a failure.
    """

    def __init__(self) -> None:
        self.failures: list[CallFailure] = []

    def read(
        self, default: _D, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T | _D:
        """What the call of `NvmlApi` returns, or `default`; never raises `NvmlError`."""
        return self.bounded(default, lambda _: True, call, *args, **kwargs)

    def bounded(
        self,
        default: _D,
        sane: Callable[[_T], bool],
        call: Callable[_P, _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T | _D:
        """As `read`; a value that is not `sane` is unknown, too."""
        try:
            value = named(call, *args, **kwargs)
        except NvmlError as err:
            if not err.is_unsupported or err.code == Code.NO_PERMISSION:
                self.failures.append(call_failure(err))
            return default
        if sane(value):
            return value
        text = f"returned {value}, which cannot be"
        self.failures.append(CallFailure(_function(call), 0, text, _ODD, "see-dmesg"))
        return default


_ODD: Final = "The driver does not know the value; a newer one may"


def named(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a method of `NvmlApi`; a `NvmlError` names the function."""
    try:
        return call(*args, **kwargs)
    except NvmlError as err:
        raise NvmlError(err.code, err.text, _function(call)) from err


def _function(call: Callable[_P, object]) -> str:
    name = getattr(call, "__name__", "")
    return CALLS[name].function if name in CALLS else name


def check_responds(api: NvmlApi, handle: Handle) -> None:
    """Raise the first `NvmlError` of a GPU of which no call that needs it gives a value.

    Its name and UUID are not asked: of a GPU that fell off the bus the driver still knows those. A
    GPU that supports none of these calls counts as one that responds.
    """
    first: NvmlError | None = None
    for read in (
        lambda: named(api.memory, handle),
        lambda: named(api.utilization_percent, handle),
        lambda: named(api.temperature_c, handle),
        lambda: named(api.clock_mhz, handle, Clock.SM),
        lambda: named(api.power_mw, handle),
        lambda: named(api.volatile_ecc, handle, EccKind.UNCORRECTED),
        lambda: named(api.processes, handle),
    ):
        try:
            read()
        except NvmlError as err:
            if not err.is_unsupported or err.code == Code.NO_PERMISSION:
                first = first or err
        else:
            return
    if first is not None:
        raise first
