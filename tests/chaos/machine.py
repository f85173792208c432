"""Random faults on a whole node: which there are, and a run of them from one seed.

A run that fails says how it is repeated; with GPUPLUGIN_CHAOS_SHRINK=1 a shorter one that fails is
looked for, which takes long.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.chaos import oracle as model
from tests.chaos.oracle import Trouble
from tests.chaos.run import Run
from tests.chaos.world import library_of, open_files, resident_mib, threads
from tests.component.conftest import BOTH_WAYS
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STEPS = 52
TOLERATED_THREADS = 2
TOLERATED_FILES = 6
TOLERATED_MIB = 40.0
LEAK_DEADLINE_S = 5.0
SHRINK = os.environ.get("GPUPLUGIN_CHAOS_SHRINK") == "1"

RUNNING = precondition(lambda machine: machine._run is not None)
GPU = st.integers(0, 2)
XIDS = st.sampled_from(model.XIDS)
FAULTS = st.one_of(
    st.sampled_from(
        (
            *("lost", "hang", "hiccup", "thermal-shutdown", "row-remap-failed", "unplug"),
            *("replace", "ecc-corrected", "ecc-uncorrectable"),
        )
    ),
    XIDS.map("xid-{}".format),
)
INSIDE = st.lists(st.tuples(GPU, FAULTS), max_size=2)

SETTINGS = settings(
    max_examples=2,
    stateful_step_count=STEPS,
    deadline=None,
    database=None,
    print_blob=True,
    phases=[Phase.generate, Phase.shrink] if SHRINK else [Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Ledger:
    """What all runs of this process came to."""

    def __init__(self) -> None:
        self.steps = 0
        self.runs = 0
        self.resident_mib: list[float] = []


class Chaos(RuleBasedStateMachine):
    """One run: hypothesis draws the rules and their arguments.

    Subclasses say which backend the plugin has, and where it is written down what was done.
    """

    backend: ClassVar[str]
    ledger: ClassVar[Ledger]

    def __init__(self) -> None:
        super().__init__()
        self._failed = False
        self._run: Run | None = None

    # Hypothesis tries the simplest example first, which is the same for every seed: not run.
    @initialize(number=st.integers(0, 10**6), way=st.sampled_from(BOTH_WAYS))
    def begin(self, number: int, way: str) -> None:
        if number:
            with self._noticing():
                self._run = Run(way, library_of(self.backend))

    def teardown(self) -> None:
        if self._run is not None:
            self._run.end(failed=self._failed)
            self.ledger.runs += 1

    @rule(rounds=st.integers(0, 2))
    def time_passes(self, rounds: int) -> None:
        if self._run is not None:
            with self._step() as run:
                run.let_rounds_pass(rounds)

    @RUNNING
    @rule(gpu=GPU, kind=FAULTS)
    def a_gpu_suffers(self, gpu: int, kind: str) -> None:
        with self._step() as run:
            run.inject(gpu, kind)

    @RUNNING
    @rule(gpu=GPU, kind=FAULTS)
    def a_gpu_suffers_too(self, gpu: int, kind: str) -> None:
        with self._step() as run:
            run.inject(gpu, kind)

    @RUNNING
    @rule(code=XIDS)
    def all_gpus_report(self, code: int) -> None:
        with self._step() as run:
            run.all_report(code)

    @RUNNING
    @rule(reports=st.lists(st.tuples(GPU, XIDS), min_size=1, max_size=4))
    def a_storm(self, reports: list[tuple[int, int]]) -> None:
        with self._step() as run:
            run.storm(reports * 25)

    @RUNNING
    @rule(gpu=GPU)
    def a_gpu_is_mended(self, gpu: int) -> None:
        with self._step() as run:
            run.mend(gpu)

    @RUNNING
    @rule()
    def all_gpus_are_mended(self) -> None:
        with self._step() as run:
            run.mend_all()

    @RUNNING
    @rule(trouble=st.sampled_from(Trouble))
    def the_driver_breaks(self, trouble: Trouble) -> None:
        with self._step() as run:
            run.break_driver(trouble)

    @RUNNING
    @rule()
    def the_driver_is_mended(self) -> None:
        with self._step() as run:
            run.mend_driver()

    @RUNNING
    @rule(away=st.sampled_from((False, False, True)), inside=INSIDE)
    def the_kubelet_restarts(self, away: bool, inside: list[tuple[int, str]]) -> None:
        with self._step() as run:
            if away:
                run.kubelet_is_away(inside)
            else:
                run.kubelet_restarts()

    @RUNNING
    @rule(inside=INSIDE)
    def the_plugin_restarts(self, inside: list[tuple[int, str]]) -> None:
        with self._step() as run:
            run.plugin_restarts(inside)

    @RUNNING
    @rule(folder=st.booleans())
    def the_socket_is_deleted(self, folder: bool) -> None:
        with self._step() as run:
            if folder:
                run.world.delete_folder()
            else:
                run.world.delete_socket()

    @RUNNING
    @rule(replicas=st.sampled_from((4, 10, 2)))
    def the_configuration_changes(self, replicas: int) -> None:
        with self._step() as run:
            run.reload(replicas)

    @RUNNING
    @rule(count=st.integers(1, 3))
    def pods_come(self, count: int) -> None:
        with self._step() as run:
            for _ in range(count):
                run.run_pod()

    @RUNNING
    @rule(number=st.integers(0, 9))
    def a_pod_ends(self, number: int) -> None:
        with self._step() as run:
            run.delete_pod(number)

    @RUNNING
    @rule()
    def a_person_clears_all_faults(self) -> None:
        with self._step() as run:
            run.clear()

    @contextmanager
    def _step(self) -> Iterator[Run]:
        """What happens, and what must hold after it."""
        assert self._run is not None
        with self._noticing():
            self._run.before_step()
            yield self._run
            self._run.check()
        self.ledger.steps += 1

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """After a failure nothing more is asked of the node."""
        try:
            yield
        except Exception:
            self._failed = True
            raise


def run_chaos(machine: type[Chaos], number: int, test: str) -> None:
    """A run from this seed; `test` is how the test that does it is called, for its repetition."""
    before_threads, before_files = threads(), open_files()
    try:
        run_state_machine_as_test(seed(number)(machine), settings=SETTINGS)
    except BaseException as error:
        error.add_note(f"repeat it with: pytest 'tests/chaos/{test}[{number}]'")
        raise
    falls_to(len(before_threads) + TOLERATED_THREADS, lambda: len(threads()))
    falls_to(before_files + TOLERATED_FILES, open_files)
    machine.ledger.resident_mib.append(resident_mib())


def falls_to(most: int, count: Callable[[], int]) -> None:
    """What a run made must end with it: some of it a moment later."""
    try:
        eventually(lambda: count() <= most, LEAK_DEADLINE_S)
    except AssertionError:
        pytest.fail(f"{count()} are left and not {most} at most; threads: {threads()}")


def check_ledger(ledger: Ledger, runs: int, least_steps: int) -> None:
    """They were long enough to mean something, and nothing piled up from run to run."""
    if ledger.runs < runs:
        pytest.skip("only some of the seeds were run")
    assert ledger.steps >= least_steps
    assert ledger.resident_mib[-1] <= ledger.resident_mib[1] + TOLERATED_MIB
