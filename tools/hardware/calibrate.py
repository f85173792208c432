"""The step that measures how the GPU shares its time: `gpuplugin calibrate`, without levels."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sim.calibrate.analysis import CannotTell
from sim.calibrate.children import ChildFailed
from sim.calibrate.comparison import compared
from sim.calibrate.cuda import LIBRARY, has_library
from sim.calibrate.edges import EdgeError
from sim.calibrate.measure import Plan, calibration_of, measure
from tools.hardware.step import Context, Failed, Found, Skipped

if TYPE_CHECKING:
    from tools.hardware.report import Data

LIMIT_S = 60.0


def calibrate(_context: Context) -> Found:
    """What was seen is in the report as well, so that more can be concluded from it later."""
    if not has_library():
        raise Skipped(f"there is no {LIBRARY}")
    try:
        evidence = measure(Plan(time.monotonic() + LIMIT_S))
    except (EdgeError, ChildFailed) as error:
        raise Failed(str(error)) from error
    data: Data = {"evidence": evidence.model_dump(mode="json")}
    try:
        calibration = calibration_of(evidence)
    except CannotTell as error:
        raise Failed(str(error), data) from error
    rows = compared(calibration)
    data |= {
        "calibration": calibration.model_dump(mode="json", exclude_none=True),
        "compared": [row.as_data() for row in rows],
    }
    slices, switches = calibration.slice_us.default, calibration.switch_us
    return Found(
        f"slices of {slices.median:.0f} us, switches of {switches.low.median:.0f} to "
        f"{switches.full.median:.0f} us, {calibration.context_mib:.0f} MiB for a context",
        data,
    )
