"""The control socket of a running kubelet stand-in, from the side of who asks."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpuplugin.linesocket import ask

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DECISION_TIMEOUT_S = 30.0
_DIGITS = re.compile(r"[0-9]{1,19}")
_MOST = 2**63 - 1
"""The largest amount that Kubernetes can write down."""


class ManifestError(Exception):
    """The text is not a pod; it says why."""


def kubelet_control_socket(kubelet_dir: Path) -> Path:
    return kubelet_dir / "sim-kubelet.sock"


def ask_kubelet(
    kubelet_dir: Path, respond_within_s: float = DECISION_TIMEOUT_S, **request: object
) -> Mapping[str, object]:
    """Send a request to the stand-in of a folder; raises `ControlError` if it fails."""
    return ask(kubelet_control_socket(kubelet_dir), request, respond_within_s)


def parse_limits(texts: list[str]) -> Mapping[str, int]:
    """Counts by resource from texts `RESOURCE=N`; raises `ManifestError`."""
    limits: dict[str, int] = {}
    for text in texts:
        resource, _, amount = text.rpartition("=")
        count = whole(amount)
        if not resource or count is None:
            raise ManifestError(f"a limit is RESOURCE=N, found {text!r}")
        limits[resource] = count
    return MappingProxyType(limits)


def whole(amount: object) -> int | None:
    """The count that `2` or `"2"` stands for; None for anything else."""
    if isinstance(amount, str) and _DIGITS.fullmatch(amount):
        amount = int(amount)
    if isinstance(amount, int) and not isinstance(amount, bool) and 0 <= amount <= _MOST:
        return amount
    return None
