"""How warm a simulated GPU is: a first-order lag behind its load."""

from __future__ import annotations

import math
from dataclasses import dataclass

IDLE_TEMPERATURE_C = 33.0
"""GPU temperature of an idle A100 in the capture behind its profile."""

FULL_LOAD_RISE_C = 40.0
THERMAL_TIME_CONSTANT_S = 30.0
"""Assumed: first-order lag of the die behind the power it draws."""


@dataclass(slots=True)
class Heat:
    """The rise above the temperature of an idle GPU, at a moment of model time."""

    _rise_c: float = 0.0
    _at_s: float = 0.0

    def settle(self, load: float, now_s: float) -> None:
        """Bring it to `now_s` under the load (0 to 1) since the last change."""
        target_c = FULL_LOAD_RISE_C * load
        decay = math.exp(-(now_s - self._at_s) / THERMAL_TIME_CONSTANT_S)
        self._rise_c = target_c + (self._rise_c - target_c) * decay
        self._at_s = now_s

    @property
    def temperature_c(self) -> float:
        """At the moment that it was last brought to."""
        return round(IDLE_TEMPERATURE_C + self._rise_c, 1)
