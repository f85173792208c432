"""Random faults on a node whose plugin has the NVML backend; see `machine`."""

from __future__ import annotations

import pytest

from tests.chaos.machine import Chaos, Ledger, check_ledger, run_chaos

pytestmark = pytest.mark.slow

SEEDS = range(10)
LEAST_STEPS = 500


class NvmlChaos(Chaos):
    """Ten runs with seeds of their own."""

    backend = "nvml"
    ledger = Ledger()


@pytest.mark.parametrize("number", SEEDS)
def test_a_node_in_chaos(number: int) -> None:
    run_chaos(NvmlChaos, number, "test_chaos_nvml.py::test_a_node_in_chaos")


def test_all_runs_together() -> None:
    check_ledger(NvmlChaos.ledger, len(SEEDS), LEAST_STEPS)
