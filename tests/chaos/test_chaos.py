"""Random faults on a node whose plugin has the simulated backend; see `machine`."""

from __future__ import annotations

import pytest

from tests.chaos.machine import Chaos, Ledger, check_ledger, run_chaos

pytestmark = pytest.mark.slow

SEEDS = range(20)
LEAST_STEPS = 1000


class SimChaos(Chaos):
    """Twenty runs with seeds of their own."""

    backend = "sim"
    ledger = Ledger()


@pytest.mark.parametrize("number", SEEDS)
def test_a_node_in_chaos(number: int) -> None:
    run_chaos(SimChaos, number, "test_chaos.py::test_a_node_in_chaos")


def test_all_runs_together() -> None:
    check_ledger(SimChaos.ledger, len(SEEDS), LEAST_STEPS)
