"""What the random runs found, each as the shortest story that shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.oracle import VM_XID, Trouble, Verdict
from tests.chaos.run import Run
from tests.chaos.world import BACKENDS, library_of, threads
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=BACKENDS)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """A node that is well; at the end all of it is mended and checked, unless the test failed.

    The plugin waits for events already: before it does, a driver that hangs may keep one for good.
    """
    run = Run("watcher", library_of(request.param))
    failed = True
    try:
        run.let_rounds_pass(2)
        yield run
        failed = request.session.testsfailed > 0
    finally:
        run.end(failed=failed)


def blind(run: Run) -> bool:
    return run.world.plugin.metric("gpuplugin_monitor_blind") == 1


def test_an_xid_during_a_hang_of_the_driver_is_not_lost(run: Run) -> None:
    """The call that took it from the driver had been given up, and its answer with it."""
    run.break_driver(Trouble.HANG)
    eventually(lambda: blind(run))
    run.inject(0, f"xid-{VM_XID}")
    run.world.hardware.driver_hang(0.01)  # it ends by itself: nothing was reset
    run.oracle.trouble = None
    run.check()
    run.let_rounds_pass(4)
    run.check()
    assert run.oracle.verdict(run.world.hardware.uuids[0]) is Verdict.SICK


def test_a_reset_after_a_fault_counts_though_nobody_could_watch_either(run: Run) -> None:
    """The fault's event was dealt with after the probe that showed the reset."""
    run.break_driver(Trouble.HANG)
    eventually(lambda: blind(run))
    run.inject(0, f"xid-{VM_XID}")
    run.mend(0)
    run.world.hardware.driver_hang(0.01)
    run.oracle.trouble = None
    run.check()
    assert run.oracle.verdict(run.world.hardware.uuids[0]) is Verdict.WELL


def test_a_gpu_that_hung_leaves_no_thread_behind(run: Run) -> None:
    run.let_rounds_pass(1)
    before = threads()
    for _ in range(3):
        run.inject(0, "hang")
        run.check()
        run.mend(0)
        run.check()
    eventually(lambda: threads().count("hal-query") <= before.count("hal-query"))


def test_a_plugin_that_stops_while_a_gpu_hangs_leaves_no_thread_behind(run: Run) -> None:
    run.inject(0, "hang")
    run.check()
    run.plugin_restarts([])
    run.check()
    run.mend(0)
    run.check()
    eventually(lambda: threads().count("hal-query") == 1)
