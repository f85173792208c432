"""What calls of NVML return in place of the truth: which calls, which codes and values, how long.

`GROUPS` is the one list of the groups by which calls are named; the kinds of fault are in
`sim.gpu.faults`. Nothing here calls NVML.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Final, TypeAlias

from hal.nvml.api import Code
from sim.gpu.scheduler import until_s

Value: TypeAlias = int | Mapping[str, int] | bytes
"""A number, members of a structure, or the bytes of a text."""

GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "identity": (
        "nvmlDeviceGetHandleByIndex",
        "nvmlDeviceGetHandleByUUID",
        "nvmlDeviceGetHandleBySerial",
        "nvmlDeviceGetHandleByPciBusId",
        "nvmlDeviceGetUUID",
    ),
    "description": (
        "nvmlDeviceGetName",
        "nvmlDeviceGetPciInfo",
        "nvmlDeviceGetMinorNumber",
        "nvmlDeviceGetCudaComputeCapability",
        "nvmlDeviceGetComputeMode",
    ),
    "memory": ("nvmlDeviceGetMemoryInfo",),
    "processes": (
        "nvmlDeviceGetComputeRunningProcesses",
        "nvmlDeviceGetGraphicsRunningProcesses",
        "nvmlDeviceGetMPSComputeRunningProcesses",
        "nvmlDeviceGetProcessUtilization",
    ),
    "sensors": (
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetEnforcedPowerLimit",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
    ),
    "health": (
        "nvmlDeviceGetRemappedRows",
        "nvmlDeviceGetTotalEccErrors",
        "nvmlDeviceGetTemperatureThreshold",
        "nvmlDeviceGetMarginTemperature",
        "nvmlDeviceGetGpuFabricInfo",
        "nvmlDeviceGetGpuFabricInfoV",
        "nvmlDeviceGetFieldValues",
    ),
    "mig": (
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetMaxMigDeviceCount",
        "nvmlDeviceGetMigDeviceHandleByIndex",
        "nvmlDeviceGetAttributes",
        "nvmlDeviceGetGpuInstanceId",
        "nvmlDeviceGetComputeInstanceId",
    ),
    "links": (
        "nvmlDeviceGetTopologyCommonAncestor",
        "nvmlDeviceGetNvLinkState",
        "nvmlDeviceGetNvLinkRemotePciInfo",
    ),
    "registration": ("nvmlDeviceGetSupportedEventTypes", "nvmlDeviceRegisterEvents"),
    "events": ("nvmlEventSetCreate", "nvmlEventSetWait"),
    "system": (
        "nvmlInit",
        "nvmlDeviceGetCount",
        "nvmlSystemGetDriverVersion",
        "nvmlSystemGetProcessName",
        "nvmlSystemGetConfComputeState",
        "nvmlSystemGetConfComputeGpusReadyState",
    ),
}
"""Functions by group; without a version all versions are meant. The last two are about no GPU."""

NODE_GROUPS: Final = ("events", "system")

_FIELD: Final = re.compile(r"field:\d+")
_VERSION: Final = re.compile(r"_v\d+$")
_LOCAL: Final = ("nvmlShutdown", "nvmlErrorString")
"""What the library answers by itself, without the node."""


def checked_call(name: str) -> str:
    """A group, a function that the simulated library answers, or `field:N`; raises ValueError."""
    if name in GROUPS or _FIELD.fullmatch(name):
        return name
    if any(_plain(name) in functions for functions in GROUPS.values()):
        return name
    # Imported late: it costs tens of milliseconds, and most faults do not need it.
    import pynvml

    if not hasattr(pynvml, name) and not hasattr(pynvml, _plain(name)):
        raise ValueError(
            f"{name!r} is neither a group ({', '.join(GROUPS)}), nor a function of NVML, "
            "nor field:N"
        )
    if name in _LOCAL or name in not_simulated():
        raise ValueError(f"the simulated library does not ask the node about {name}")
    return name


def not_simulated() -> tuple[str, ...]:
    """Functions of NVML that return `NOT_SUPPORTED` for every call."""
    file = resources.files("sim").joinpath("nvml", "not-simulated.txt")
    return tuple(file.read_text("utf-8").split())


def checked_code(code: int | str) -> str:
    """A code by its name (`not-supported`, `NOT_SUPPORTED`) or number; raises ValueError."""
    text = str(code).upper().replace("-", "_").removeprefix("NVML_ERROR_")
    try:
        return Code(int(text)).name if text.isdecimal() else Code[text].name
    except (KeyError, ValueError):
        names = ", ".join(f"{one.name} ({one.value})" for one in Code)
        raise ValueError(f"{code!r} is no return code of NVML: {names}") from None


def checked_value(value: int | Mapping[str, int] | str) -> int | Mapping[str, int] | str:
    """A number, members of a structure, or `hex:` and the bytes of a text; raises ValueError."""
    if isinstance(value, str):
        _bytes(value)
    return value


def _bytes(text: str) -> bytes:
    if not text.startswith("hex:"):
        raise ValueError("a text is given as 'hex:' and its bytes, as in 'hex:f8 8a 41'")
    return bytes.fromhex(text.removeprefix("hex:"))


def value_of(value: int | Mapping[str, int] | str) -> Value:
    return _bytes(value) if isinstance(value, str) else value


def _plain(function: str) -> str:
    return _VERSION.sub("", function)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call gives: a code that is not success, or else a value in place of the true one."""

    code: Code
    value: Value | None = None


@dataclass(slots=True)
class _Rule:
    calls: frozenset[str]
    answer: Answer
    mig: int | None
    every: int
    until_s: float
    made: Counter[str] = field(default_factory=Counter)

    def is_about(self, call: str, mig: int | None, now_s: float) -> bool:
        named = call in self.calls or _plain(call) in self.calls
        return named and self.mig == mig and now_s < self.until_s


class Returned:
    """What calls about a GPU, or about none, return in place of the truth."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []

    def __bool__(self) -> bool:
        return bool(self._rules)

    def add(
        self,
        calls: tuple[str, ...],
        answer: Answer,
        now_s: float,
        *,
        for_s: float | None = None,
        every: int = 1,
        mig: int | None = None,
    ) -> None:
        """From now on; success without a value ends what was said of these calls before."""
        names = frozenset(name for call in calls for name in GROUPS.get(call, (call,)))
        for rule in self._rules:
            if rule.mig == mig:
                rule.calls -= names
        self._rules = [rule for rule in self._rules if rule.calls]
        if answer.code is not Code.SUCCESS or answer.value is not None:
            rule = _Rule(names, answer, mig, every, until_s(now_s, for_s))
            self._rules.insert(0, rule)

    def clear(self) -> None:
        self._rules.clear()

    def expire(self, now_s: float) -> None:
        self._rules = [rule for rule in self._rules if now_s < rule.until_s]

    def to(self, call: str, now_s: float, mig: int | None = None) -> Answer | None:
        """What this call gives, which counts as made; None for the truth. The newest rule wins."""
        for rule in self._rules:
            if rule.is_about(call, mig, now_s):
                rule.made[call] += 1
                return rule.answer if rule.made[call] % rule.every == 0 else None
        return None

    def always(self, call: str, now_s: float) -> Answer | None:
        """As `to` for a call that is not made, without the rules for some of the calls only."""
        for rule in self._rules:
            if rule.is_about(call, None, now_s):
                return rule.answer if rule.every == 1 else None
        return None

    @property
    def ends_s(self) -> float:
        """When the next rule ends; infinity if none does."""
        return min((rule.until_s for rule in self._rules), default=math.inf)
