"""Deadlines and pauses as short as the simulated node allows; nothing of the logic is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gpuplugin.core.pacing import Backoff

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHORTER = {
    "sim.kubelet.registration.POLL_S": 0.05,
    "sim.kubelet.registration.FIRST_RETRY_S": 0.1,
    "sim.kubelet.plugins.DIAL_TIMEOUT_S": 1.0,
    "gpuplugin.daemon.serving.endpoint.POLL_S": 0.02,
    "gpuplugin.daemon.serving.endpoint.STREAM_GRACE_S": 0.4,
    "gpuplugin.daemon.control.POLL_S": 0.05,
    "gpuplugin.core.watch.OPEN_DEADLINE_S": 0.5,
    "gpuplugin.core.watch.CALL_DEADLINE_S": 0.5,
    "gpuplugin.core.watch.LEAST_HANG_S": 0.5,
    "hal.nvml.watch.WAIT_S": 0.05,
    "hal.nvml.backend._CLOSE_TIMEOUT_S": 0.3,
    "gpuplugin.core.watch.CLOSE_DEADLINE_S": 0.5,
}


@pytest.fixture(autouse=True, scope="module")
def short_deadlines() -> Iterator[None]:
    """A hung call is given up after half a second, and what failed is soon tried again."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _SHORTER.items():
            patch.setattr(name, value)
        for module in ("core.watch", "daemon.serving.endpoint"):
            patch.setattr(
                f"gpuplugin.{module}.Backoff",
                lambda first_s, cap_s: Backoff(first_s / 20, min(cap_s / 10, 0.1)),
            )
        yield
