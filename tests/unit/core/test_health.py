"""The health machine of one GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuplugin.core.health import (
    GpuHealth,
    HealthPolicy,
    Status,
    on_event,
    on_probe,
    quiet_period_s,
)
from hal import (
    EccError,
    Event,
    GpuAppeared,
    GpuDisappeared,
    Probe,
    RecoveryAction,
    XidAction,
    XidError,
    lookup_xid,
)
from hal.xid import XID_CATALOGUE
from tests.unit.builders import a_probe

if TYPE_CHECKING:
    from collections.abc import Sequence

UUID = "GPU-a"
POLICY = HealthPolicy(quiet_period_s=30, quiet_period_cap_s=120, flap_memory_s=1000)
H, U, R = Status.HEALTHY, Status.UNHEALTHY, Status.RECOVERING

Step: TypeAlias = tuple[float, Event | Probe, Status]
"""At a time, what is seen, and the status after it."""

OK = a_probe(epoch="one")
AFTER_RESET = a_probe(epoch="two")
AFTER_SECOND_RESET = a_probe(epoch="three")
DOWN = a_probe(reachable=False, epoch="one")
WANTS_RESET = a_probe(action=RecoveryAction.RESET, epoch="one")
REMAP_FAILED = a_probe(remap_failed=True, epoch="one")
LOST = GpuDisappeared(UUID)


def xid(code: int) -> XidError:
    return XidError(UUID, code)


def see(health: GpuHealth, what: Event | Probe, now_s: float) -> GpuHealth:
    if isinstance(what, Probe):
        return on_probe(health, what, now_s, POLICY)
    return on_event(health, what, now_s)


def after(*seen: tuple[float, Event | Probe]) -> GpuHealth:
    health = GpuHealth(since_s=0)
    for now_s, what in seen:
        health = see(health, what, now_s)
    return health


SEQUENCES: dict[str, Sequence[Step]] = {
    "nothing wrong": [(0, OK, H), (5, OK, H)],
    "application error": [(0, OK, H), (1, xid(31), H), (2, OK, H)],
    "corrected and uncorrected ECC events": [
        (0, OK, H),
        (1, EccError(UUID, uncorrectable=False), H),
        (2, EccError(UUID, uncorrectable=True), H),
    ],
    "the return of a GPU is no fault and no recovery": [
        (0, OK, H),
        (1, GpuAppeared(UUID), H),
        (2, LOST, U),
        (3, GpuAppeared(UUID), U),
    ],
    "a fault without need of a reset": [
        (0, OK, H),
        (10, xid(74), U),
        (15, OK, R),
        (44.9, OK, R),
        (45, OK, H),
    ],
    "a fault that needs a reset, which is never seen": [
        (0, OK, H),
        (10, xid(46), U),
        (15, OK, U),
        (10_000, OK, U),
    ],
    "a reset that the epoch shows": [
        (0, OK, H),
        (10, xid(46), U),
        (15, OK, U),
        (20, AFTER_RESET, R),
        (50, AFTER_RESET, H),
    ],
    "a reset that shows by the GPU being down": [
        (0, OK, H),
        (10, xid(79), U),
        (11, DOWN, U),
        (20, OK, R),
        (50, OK, H),
    ],
    "a reset that shows by a recovery action that is gone": [
        (0, OK, H),
        (10, xid(95), U),
        (11, WANTS_RESET, U),
        (20, OK, R),
    ],
    "down before the fault is no evidence": [
        (0, OK, H),
        (1, DOWN, U),
        (2, xid(46), U),
        (3, OK, U),
        (4, AFTER_RESET, R),
    ],
    "no epoch is known before the first probe": [
        (1, xid(46), U),
        (2, OK, U),
        (3, DOWN, U),
        (4, OK, R),
    ],
    "a second, milder fault does not lift the need of a reset": [
        (0, OK, H),
        (1, xid(46), U),
        (2, xid(74), U),
        (3, OK, U),
    ],
    "a second, harder fault adds the need of a reset": [
        (0, OK, H),
        (1, xid(74), U),
        (2, xid(46), U),
        (3, OK, U),
        (4, AFTER_RESET, R),
    ],
    "an unclean probe alone": [(0, OK, H), (5, DOWN, U), (10, OK, R), (40, OK, H)],
    "a failed row remap": [(0, OK, H), (5, REMAP_FAILED, U), (10, REMAP_FAILED, U)],
    "an action that the driver cannot tell is none": [
        (0, a_probe(action=RecoveryAction.UNKNOWN), H),
    ],
    "a fault while recovering": [
        (0, OK, H),
        (10, xid(74), U),
        (15, OK, R),
        (20, xid(74), U),
        (25, OK, R),
        (25 + 59.9, OK, R),
        (25 + 60, OK, H),
    ],
    "an unclean probe while recovering": [
        (0, OK, H),
        (10, xid(74), U),
        (15, OK, R),
        (45, DOWN, U),
        (50, OK, R),
    ],
    "an application error while recovering does not prolong the wait": [
        (0, OK, H),
        (10, xid(74), U),
        (15, OK, R),
        (44, xid(31), R),
        (45, OK, H),
    ],
    "lost and back": [(0, OK, H), (1, LOST, U), (2, LOST, U), (3, OK, R), (33, OK, H)],
    "a reset that answered one fault does not answer the next, while recovering": [
        (0, OK, H),
        (10, xid(46), U),
        (15, AFTER_RESET, R),
        (20, xid(46), U),
        (25, AFTER_RESET, U),
        (30, AFTER_SECOND_RESET, R),
    ],
    "a reset that answered one fault does not answer the next, when healthy again": [
        (0, OK, H),
        (10, xid(46), U),
        (15, AFTER_RESET, R),
        (45, AFTER_RESET, H),
        (50, xid(46), U),
        (55, AFTER_RESET, U),
        (60, AFTER_SECOND_RESET, R),
    ],
}


@pytest.mark.parametrize("steps", SEQUENCES.values(), ids=SEQUENCES.keys())
def test_sequence(steps: Sequence[Step]) -> None:
    health = GpuHealth(since_s=0)
    seen = []
    for now_s, what, _ in steps:
        health = see(health, what, now_s)
        seen.append(health.status)

    assert seen == [status for _, _, status in steps]


@pytest.mark.parametrize("code", sorted({*XID_CATALOGUE, 1, 500}))
def test_every_xid_does_what_the_catalogue_says(code: int) -> None:
    before = after((0, OK))

    health = on_event(before, xid(code), 1)

    if lookup_xid(code).action.application_error:
        assert health == before
        return
    assert health.status is U
    assert health.xid == code
    assert f"Xid {code}" in health.reason
    assert health.action == lookup_xid(code).action.value
    needs_reset = lookup_xid(code).action in {
        XidAction.RESET_GPU,
        XidAction.REBOOT_NODE,
        XidAction.ECC_WORKFLOW,
        XidAction.RESTART_VM,
    }
    assert on_probe(health, OK, 2, POLICY).status is (U if needs_reset else R)
    assert on_probe(health, AFTER_RESET, 2, POLICY).status is R


@pytest.mark.parametrize(
    ("probe", "reason", "action"),
    [
        (DOWN, "does not answer", "reset-or-reboot"),
        (REMAP_FAILED, "row remapping failed", "contact-support"),
        (WANTS_RESET, "recovery action", "reset"),
        (a_probe(action=RecoveryAction.DRAIN_AND_RESET), "recovery action", "drain-and-reset"),
    ],
)
def test_an_unclean_probe_says_why(probe: Probe, reason: str, action: str) -> None:
    health = after((0, OK), (1, probe))

    assert reason in health.reason
    assert health.action == action
    assert not health.healthy


def test_the_first_reason_stays_while_faults_follow_each_other() -> None:
    health = after((0, OK), (1, xid(79)), (2, LOST), (3, DOWN), (4, xid(46)))

    assert (health.xid, health.since_s, health.faults) == (79, 1, 1)
    assert health.reason.startswith("Xid 79")


def test_a_healthy_gpu_has_no_reason() -> None:
    health = after((0, OK), (10, xid(74)), (15, OK), (45, OK))

    assert (health.status, health.reason, health.action, health.xid) == (H, "", "", None)
    assert health.since_s == 45


def test_the_quiet_period_doubles_with_each_relapse_up_to_the_cap() -> None:
    health = after((0, OK))
    now_s = 0.0
    waits = []
    for _ in range(5):
        now_s += 1
        health = see(see(health, xid(74), now_s), OK, now_s)
        assert health.status is R
        started_s = now_s
        while health.status is R:
            now_s += 1
            health = see(health, OK, now_s)
        waits.append(now_s - started_s)

    assert waits == [30, 60, 120, 120, 120]


def test_relapses_are_forgotten_after_a_long_time_in_health() -> None:
    relapsed = after((0, OK), (1, xid(74)), (2, OK), (32, OK))
    soon = see(see(relapsed, OK, 1031), xid(74), 1031)
    late = see(see(relapsed, OK, 1032), xid(74), 1032)

    assert quiet_period_s(soon, POLICY) == 60
    assert quiet_period_s(late, POLICY) == 30


@given(st.integers(0, 10_000), st.floats(0.001, 1e6), st.floats(0.001, 1e6))
def test_the_quiet_period_never_passes_the_cap(faults: int, period_s: float, cap_s: float) -> None:
    policy = HealthPolicy(quiet_period_s=period_s, quiet_period_cap_s=cap_s)
    health = GpuHealth(since_s=0, faults=faults)

    assert 0 < quiet_period_s(health, policy) <= cap_s
    more = quiet_period_s(replace(health, faults=faults + 1), policy)
    assert more >= quiet_period_s(health, policy)


@dataclass
class Hardware:
    """What a person with full sight of the hardware would note down, for the invariants."""

    reset_missing: bool = False
    """A fault asked for a reset, and none was seen since."""
    last_probe_clean: bool = True
    last_epoch: str | None = None
    quiet_since_s: float = 0.0


EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.sampled_from([31, 43, 74, 46, 79, 48, 142]).map(xid),
    st.sampled_from([LOST, GpuAppeared(UUID), EccError(UUID, uncorrectable=True)]),
)
RESET_XIDS = frozenset({46, 48, 79})
APPLICATION_XIDS = frozenset({31, 43})


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[float, Event | Probe]]:
    """Events and probes of one GPU, whose epoch changes only by resets."""
    history: list[tuple[float, Event | Probe]] = [(0.0, a_probe(epoch="0"))]
    now_s, resets = 0.0, 0
    for _ in range(draw(st.integers(1, 25))):
        now_s += draw(st.sampled_from([0.0, 1.0, 10.0, 30.0, 60.0, 120.0, 1500.0]))
        kind = draw(st.sampled_from(["event", "probe", "probe", "probe", "unclean", "reset"]))
        if kind == "event":
            history.append((now_s, draw(EVENTS)))
            continue
        resets += kind == "reset"
        unclean = kind == "unclean"
        history.append((now_s, a_probe(reachable=not unclean, epoch=str(resets))))
    return history


@settings(max_examples=300)
@given(histories())
def test_invariants(history: list[tuple[float, Event | Probe]]) -> None:
    health = GpuHealth(since_s=0)
    noted = Hardware()
    for now_s, what in history:
        before, health = health, see(health, what, now_s)
        if isinstance(what, Probe):
            note_probe(noted, what)
            assert noted.last_probe_clean or health.status is U
        else:
            note_event(noted, what, now_s)
            check_event(before, health, what)
        if before.status is not health.status:
            check_transition(before, health, noted, now_s)
        assert health.healthy == (health.status is H)
        assert (health.reason == "") == health.healthy


def note_probe(noted: Hardware, probe: Probe) -> None:
    noted.last_probe_clean = probe.clean
    if not probe.clean or probe.epoch != noted.last_epoch:
        noted.reset_missing = False
    noted.last_epoch = probe.epoch


def note_event(noted: Hardware, event: Event, now_s: float) -> None:
    if isinstance(event, XidError) and event.xid in RESET_XIDS:
        noted.reset_missing = True
    if isinstance(event, GpuDisappeared):
        noted.reset_missing = False  # it was seen down
    if isinstance(event, GpuDisappeared | XidError):
        noted.quiet_since_s = now_s


def check_event(before: GpuHealth, health: GpuHealth, event: Event) -> None:
    harmless = isinstance(event, EccError | GpuAppeared) or (
        isinstance(event, XidError) and event.xid in APPLICATION_XIDS
    )
    if harmless:
        assert health == before
    else:
        assert health.status is U


def check_transition(before: GpuHealth, health: GpuHealth, noted: Hardware, now_s: float) -> None:
    assert (before.status, health.status) in {(H, U), (U, R), (R, H), (R, U)}
    assert health.since_s == now_s
    if health.status is R:
        assert not noted.reset_missing
    if health.status is H:
        assert noted.last_probe_clean
        assert not noted.reset_missing
        assert now_s - before.since_s >= POLICY.quiet_period_s


@given(histories(), EVENTS, st.floats(0, 100))
def test_a_repeated_fault_changes_nothing_more(
    history: list[tuple[float, Event | Probe]], event: Event, later_s: float
) -> None:
    now_s = history[-1][0]
    once = see(after(*history), event, now_s)

    assert see(once, event, now_s + later_s) == once


@given(histories(), st.floats(0, 100))
def test_a_repeated_unclean_probe_changes_nothing_more(
    history: list[tuple[float, Event | Probe]], later_s: float
) -> None:
    now_s = history[-1][0]
    once = see(after(*history), DOWN, now_s)

    assert see(once, DOWN, now_s + later_s) == once
