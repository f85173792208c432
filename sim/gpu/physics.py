"""Power, temperature and clocks of a simulated GPU, as one state: each follows from the others.

Load makes power, power makes heat, heat slows the clocks down, and slow clocks take less power. The
GPU's temperature lags behind its power (first order); everything is exact between two changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hal import ThrottleReason

if TYPE_CHECKING:
    from sim.gpu.profiles import Profile

AMBIENT_C = 25.0
"""Assumed: air at the inlet of a server."""

IDLE_TEMPERATURE_C = 33.0
"""GPU temperature of an idle A100 in the capture behind its profile."""

FULL_LOAD_TEMPERATURE_C = 73.0
"""Assumed: at the power limit, in an airflow as it should be."""

THERMAL_TIME_CONSTANT_S = 30.0
"""Assumed: first-order lag of the die behind the power it draws."""

IDLE_POWER_SHARE = 0.1
"""Assumed where the profile has no measured idle power: share of the power limit."""

SLOWDOWN_C = 87.0
SHUTDOWN_C = 95.0
"""Assumed where the profile does not say: as an H100 SXM does."""

_ROUNDING_C = 1e-6
"""So near to a threshold, reckoned by exponential and logarithm, counts as reached."""

STEP_PPM = 50_000
LOWEST_PPM = 300_000
"""Assumed: clocks go down in steps of 5 %, to 30 % at least, while it is too hot."""


@dataclass(slots=True)
class Physics:
    """State at `at_s`; `cooling` is 1 for an airflow as it should be, less for a blocked one."""

    profile: Profile
    cooling: float = 1.0
    clock_ppm: int = 1_000_000
    """What the temperature allows; see `speed_ppm`."""
    limit_w: float | None = None
    """The power limit where it was set to another one than the board's default."""
    at_s: float = 0.0
    energy_j: float = 0.0
    """What the board drew up to `at_s`; 0 where its power is not known."""
    _temperature_c: float = IDLE_TEMPERATURE_C

    @property
    def temperature_c(self) -> float:
        return round(self._temperature_c, 1)

    @property
    def slowdown_c(self) -> float:
        thermal = self.profile.thermal_c
        at = thermal.slowdown_c if thermal else None
        return SLOWDOWN_C if at is None else at

    @property
    def shutdown_c(self) -> float:
        thermal = self.profile.thermal_c
        at = thermal.shutdown_c if thermal else None
        return SHUTDOWN_C if at is None else at

    @property
    def throttled(self) -> bool:
        """True while the clocks are reduced because of the temperature."""
        return self.clock_ppm < 1_000_000

    @property
    def speed_ppm(self) -> int:
        """The clocks: what both temperature and power limit allow.

        Approximated: a power limit lowers them as if the GPU were fully loaded, so that the board
        then draws just the limit.
        """
        return min(self.clock_ppm, self._limited_ppm)

    def throttle_reasons(self, *, busy: bool) -> ThrottleReason:
        if self.throttled and self.clock_ppm <= self._limited_ppm:
            return ThrottleReason.THERMAL_SOFTWARE
        if busy and self._limited_ppm < 1_000_000:
            return ThrottleReason.POWER_CAP
        return ThrottleReason.NONE if busy else ThrottleReason.IDLE

    def power_w(self, load: float) -> float | None:
        """What the board draws under a load (0 to 1) at the present clocks; None if not known."""
        limit_w = self.profile.power_w.default_limit
        if limit_w is None:
            return None
        idle_w = self._idle_w(limit_w)
        return round(idle_w + self._power_share(load) * (limit_w - idle_w), 1)

    def settle(self, load: float, now_s: float) -> None:
        """Bring the temperature to `now_s` under the load (0 to 1) since the last time."""
        target_c = self._target_c(load)
        decay = math.exp(-(now_s - self.at_s) / THERMAL_TIME_CONSTANT_S)
        self._temperature_c = target_c + (self._temperature_c - target_c) * decay
        self.energy_j += (self.power_w(load) or 0.0) * (now_s - self.at_s)
        self.at_s = now_s

    @property
    def can_overheat(self) -> bool:
        rise_c = (FULL_LOAD_TEMPERATURE_C - AMBIENT_C) / self.cooling
        return AMBIENT_C + rise_c >= min(self.slowdown_c, self.shutdown_c)

    @property
    def too_hot(self) -> bool:
        return self._temperature_c >= self.shutdown_c - _ROUNDING_C

    def too_hot_in_s(self, load: float) -> float:
        """Seconds until it is too hot if load and clocks stay as they are; infinity if never."""
        if self.too_hot:
            return 0.0
        target_c = self._target_c(load)
        if target_c <= self.shutdown_c:
            return math.inf
        to_go = (target_c - self._temperature_c) / (target_c - self.shutdown_c)
        return THERMAL_TIME_CONSTANT_S * math.log(to_go)

    def govern(self) -> None:
        """Move the clocks one step, if the temperature requires it."""
        if self._temperature_c >= self.slowdown_c:
            self.clock_ppm = max(LOWEST_PPM, self.clock_ppm - STEP_PPM)
        elif self.throttled and self._temperature_c < self.slowdown_c - 3:
            self.clock_ppm = min(1_000_000, self.clock_ppm + STEP_PPM)

    def _target_c(self, load: float) -> float:
        """Where the temperature goes under a load at the present clocks."""
        span_c = FULL_LOAD_TEMPERATURE_C - IDLE_TEMPERATURE_C
        rise_c = IDLE_TEMPERATURE_C - AMBIENT_C + span_c * self._power_share(load)
        return AMBIENT_C + rise_c / self.cooling

    def _power_share(self, load: float) -> float:
        """Dynamic power as a share of that at full load and clocks: it goes with their square."""
        return load * (self.speed_ppm / 1_000_000) ** 2

    def _idle_w(self, default_w: float) -> float:
        return self.profile.power_w.idle or default_w * IDLE_POWER_SHARE

    @property
    def _limited_ppm(self) -> int:
        """The clocks at which full load draws the power limit that was set."""
        default_w = self.profile.power_w.default_limit
        if self.limit_w is None or default_w is None or self.limit_w >= default_w:
            return 1_000_000
        idle_w = self._idle_w(default_w)
        share = max(0.0, self.limit_w - idle_w) / (default_w - idle_w)
        return max(LOWEST_PPM, round(1_000_000 * math.sqrt(share)))
