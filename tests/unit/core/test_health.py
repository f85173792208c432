"""The health machine of one GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuplugin.config.load import load_settings
from gpuplugin.config.plans import health_policy
from gpuplugin.core.faults import (
    Cause,
    Fault,
    ProbeChecks,
    XidPolicy,
    fault_of_event,
    fault_of_probe,
)
from gpuplugin.core.health import (
    CONTAINED_WINDOW_S,
    Health,
    HealthPolicy,
    HealthState,
    StillFaulty,
    cleared,
    on_event,
    on_probe,
    quiet_period_s,
)
from hal import (
    CallFailure,
    EccError,
    Event,
    FabricState,
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
H, U, R = HealthState.HEALTHY, HealthState.UNHEALTHY, HealthState.RECOVERING

Step: TypeAlias = tuple[float, Event | Probe, HealthState]
"""At a time, what is seen, and the status after it."""

OK = a_probe(epoch="one")
AFTER_RESET = a_probe(epoch="two")
AFTER_SECOND_RESET = a_probe(epoch="three")
DOWN = a_probe(reachable=False, epoch="one")
WANTS_RESET = a_probe(action=RecoveryAction.RESET, epoch="one")
REMAP_FAILED = a_probe(remap_failed=True, epoch="one")
TOO_HOT = replace(OK, thermal_shutdown=True)
LOST = GpuDisappeared(UUID)
DOUBLE_BIT = EccError(UUID, uncorrectable=True)
CANNOT_SAY = replace(OK, recovery_action=RecoveryAction.UNKNOWN)
"""A clean probe of a driver that is too old to name a recovery action."""


def counting(errors: int | None, probe: Probe = CANNOT_SAY) -> Probe:
    return replace(probe, uncorrectable_ecc=errors)


def xid(code: int) -> XidError:
    return XidError(UUID, code)


def fault_in(health: Health) -> Fault:
    assert health.fault is not None
    return health.fault


def see(health: Health, what: Event | Probe, now_s: float) -> Health:
    if isinstance(what, Probe):
        return on_probe(health, what, now_s, POLICY)
    return on_event(health, what, now_s, POLICY)


def after(*seen: tuple[float, Event | Probe]) -> Health:
    health = Health(since_s=0)
    for now_s, what in seen:
        health = see(health, what, now_s)
    return health


SEQUENCES: dict[str, Sequence[Step]] = {
    "nothing wrong": [(0, OK, H), (5, OK, H)],
    "application error": [(0, OK, H), (1, xid(31), H), (2, OK, H)],
    "a corrected ECC error": [(0, OK, H), (1, EccError(UUID, uncorrectable=False), H)],
    "an uncorrectable ECC error of which the driver says that nothing is to be done": [
        (0, OK, H),
        (1, DOUBLE_BIT, U),
        (5, OK, R),
        (35, OK, H),
    ],
    "an uncorrectable ECC error of which the driver says that a reset is due": [
        (0, OK, H),
        (1, DOUBLE_BIT, U),
        (5, WANTS_RESET, U),
        (10, OK, R),
    ],
    "an uncorrectable ECC error of which the driver cannot say anything": [
        (0, CANNOT_SAY, H),
        (1, DOUBLE_BIT, U),
        (5, CANNOT_SAY, U),
        (10, replace(CANNOT_SAY, epoch="two"), R),
    ],
    "an uncorrectable ECC error that the driver then calls contained": [
        (0, OK, H),
        (1, DOUBLE_BIT, U),
        (1.1, xid(94), H),
    ],
    "an uncorrectable ECC error that the driver has called contained": [
        (0, OK, H),
        (1, xid(94), H),
        (1.1, DOUBLE_BIT, H),
        (60, DOUBLE_BIT, U),
    ],
    "an uncorrectable ECC error just within the time of one that was contained": [
        (0, OK, H),
        (1, xid(94), H),
        (1 + CONTAINED_WINDOW_S - 0.001, DOUBLE_BIT, H),
    ],
    "an uncorrectable ECC error when that time is over": [
        (0, OK, H),
        (1, xid(94), H),
        (1 + CONTAINED_WINDOW_S, DOUBLE_BIT, U),
    ],
    "contained, just within the time": [
        (0, OK, H),
        (1, DOUBLE_BIT, U),
        (1 + CONTAINED_WINDOW_S - 0.001, xid(94), H),
    ],
    "contained, when the time is over": [
        (0, OK, H),
        (1, DOUBLE_BIT, U),
        (1 + CONTAINED_WINDOW_S, xid(94), U),
    ],
    "a reset while it was healthy does not end a fault that comes later": [
        (0, CANNOT_SAY, H),
        (1, replace(CANNOT_SAY, epoch="two"), H),
        (2, replace(CANNOT_SAY, epoch="two"), H),
        (3, DOUBLE_BIT, U),
        (4, replace(CANNOT_SAY, epoch="two"), U),
        (5, replace(CANNOT_SAY, epoch="three"), R),
    ],
    "contained, long after an ECC error that was not": [
        (0, OK, H),
        (1, DOUBLE_BIT, U),
        (60, xid(94), U),
    ],
    "contained, while another fault is there": [
        (0, OK, H),
        (1, xid(46), U),
        (1.1, DOUBLE_BIT, U),
        (1.2, xid(94), U),
    ],
    "uncorrectable errors that no event told of": [
        (0, counting(0), H),
        (5, counting(2), U),
        (10, counting(2), U),
        (15, counting(0), R),
    ],
    "uncorrectable errors that no event told of, of which the driver says nothing is to be done": [
        (0, counting(0, OK), H),
        (5, counting(2, OK), H),
    ],
    "uncorrectable errors that were contained": [
        (0, counting(0), H),
        (1, xid(94), H),
        (5, counting(1), H),
        (10, counting(1), H),
        (15, counting(2), U),
    ],
    "a count that cannot be read for once is no reset": [
        (0, counting(3), H),
        (1, xid(46), U),
        (5, counting(None), U),
        (10, counting(3), U),
        (15, counting(0), R),
    ],
    "too hot, until it is not": [(0, OK, H), (5, TOO_HOT, U), (10, OK, R), (40, OK, H)],
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
    "a reset that ended one fault does not end the next, while recovering": [
        (0, OK, H),
        (10, xid(46), U),
        (15, AFTER_RESET, R),
        (20, xid(46), U),
        (25, AFTER_RESET, U),
        (30, AFTER_SECOND_RESET, R),
    ],
    "a reset that ended one fault does not end the next, when healthy again": [
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
    health = Health(since_s=0)
    seen = []
    for now_s, what, _ in steps:
        health = see(health, what, now_s)
        seen.append(health.state)

    assert seen == [status for _, _, status in steps]


@pytest.mark.parametrize("code", sorted({*XID_CATALOGUE, 1, 500}))
def test_every_xid_does_what_the_catalogue_says(code: int) -> None:
    before = after((0, OK))

    health = on_event(before, xid(code), 1, POLICY)

    if lookup_xid(code).action.application_error:
        assert health.state is H
        assert health.fault is None
        return
    assert health.state is U
    fault = fault_in(health)
    assert (fault.cause, fault.xid) == (Cause.XID, code)
    assert f"Xid {code}" in fault.reason
    assert fault.action == lookup_xid(code).action.value
    needs_reset = lookup_xid(code).action in {
        XidAction.RESET_GPU,
        XidAction.REBOOT_NODE,
        XidAction.ECC_WORKFLOW,
        XidAction.RESTART_VM,
    }
    assert health.needs_reset is needs_reset
    assert not Health(since_s=0).needs_reset
    assert on_probe(health, OK, 2, POLICY).state is (U if needs_reset else R)
    assert on_probe(health, AFTER_RESET, 2, POLICY).state is R


@pytest.mark.parametrize(
    ("probe", "cause", "reason", "action"),
    [
        (DOWN, Cause.UNREACHABLE, "does not respond", "reset-or-reboot"),
        (REMAP_FAILED, Cause.ROW_REMAP, "row remapping failed", "contact-support"),
        (WANTS_RESET, Cause.RECOVERY_ACTION, "recovery action", "reset"),
        (
            a_probe(action=RecoveryAction.DRAIN_AND_RESET),
            Cause.RECOVERY_ACTION,
            "recovery action",
            "drain-and-reset",
        ),
        (TOO_HOT, Cause.THERMAL, "shutdown temperature", "check-cooling"),
    ],
)
def test_an_unclean_probe_says_why(probe: Probe, cause: Cause, reason: str, action: str) -> None:
    health = after((0, OK), (1, probe))

    fault = fault_in(health)
    assert reason in fault.reason
    assert (fault.cause, fault.action) == (cause, action)
    assert not health.healthy


def test_the_first_reason_stays_while_faults_follow_each_other() -> None:
    health = after((0, OK), (1, xid(79)), (2, LOST), (3, DOWN), (4, xid(46)))

    assert (fault_in(health).xid, health.since_s, health.faults) == (79, 1, 1)
    assert fault_in(health).reason.startswith("Xid 79")


def test_a_healthy_gpu_has_no_reason() -> None:
    health = after((0, OK), (10, xid(74)), (15, OK), (45, OK))

    assert (health.state, health.fault) == (H, None)
    assert health.since_s == 45


def test_the_quiet_period_doubles_with_each_relapse_up_to_the_cap() -> None:
    health = after((0, OK))
    now_s = 0.0
    waits = []
    for _ in range(5):
        now_s += 1
        health = see(see(health, xid(74), now_s), OK, now_s)
        assert health.state is R
        started_s = now_s
        while health.state is R:
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
    health = Health(since_s=0, faults=faults)

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
    health = Health(since_s=0)
    noted = Hardware()
    for now_s, what in history:
        before, health = health, see(health, what, now_s)
        if isinstance(what, Probe):
            note_probe(noted, what)
            assert noted.last_probe_clean or health.state is U
        else:
            note_event(noted, what, now_s)
            check_event(before, health, what)
        if before.state is not health.state:
            check_transition(before, health, noted, now_s)
        assert health.healthy == (health.state is H)
        assert (health.fault is None) == health.healthy


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
    if isinstance(event, GpuDisappeared | XidError | EccError):
        noted.quiet_since_s = now_s


def check_event(before: Health, health: Health, event: Event) -> None:
    harmless = isinstance(event, GpuAppeared) or (
        isinstance(event, XidError) and event.xid in APPLICATION_XIDS
    )
    if harmless:
        assert health == before
    else:
        assert health.state is U


def check_transition(before: Health, health: Health, noted: Hardware, now_s: float) -> None:
    assert (before.state, health.state) in {(H, U), (U, R), (R, H), (R, U)}
    assert health.since_s == now_s
    if health.state is R:
        assert not noted.reset_missing
    if health.state is H:
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


XID_POLICIES: dict[str, tuple[XidPolicy, set[int]]] = {
    "nothing said: by the catalogue": (XidPolicy(), {46, 74, 79}),
    "one ignored": (XidPolicy(ignored=frozenset({79})), {46, 74}),
    "all ignored": (XidPolicy(all_ignored=True), set()),
    "all ignored but one": (XidPolicy(all_ignored=True, fatal=frozenset({79})), {79}),
    "one made fatal": (XidPolicy(fatal=frozenset({31})), {31, 46, 74, 79}),
    "fatal wins over ignored": (
        XidPolicy(ignored=frozenset({79, 46}), fatal=frozenset({79})),
        {74, 79},
    ),
    "all fatal": (XidPolicy(all_fatal=True), {31, 43, 46, 74, 79}),
    "all fatal wins over one ignored": (
        XidPolicy(all_fatal=True, ignored=frozenset({79})),
        {31, 43, 46, 74, 79},
    ),
}


@pytest.mark.parametrize(("xids", "fatal"), XID_POLICIES.values(), ids=XID_POLICIES.keys())
def test_which_xids_are_fatal(xids: XidPolicy, fatal: set[int]) -> None:
    policy = replace(POLICY, xids=xids)
    seen = {
        code
        for code in (31, 43, 46, 74, 79)
        if not on_event(Health(since_s=0), xid(code), 1, policy).healthy
    }

    assert seen == fatal
    assert policy.xids.none_fatal == (xids.all_ignored and not xids.fatal)


@pytest.mark.parametrize("probe", [WANTS_RESET, REMAP_FAILED, TOO_HOT, DOWN])
def test_without_hardware_checks_only_an_answer_counts(probe: Probe) -> None:
    policy = replace(POLICY, hardware_checks=False)
    health = on_event(Health(since_s=0), DOUBLE_BIT, 1, policy)
    assert health.healthy

    assert on_probe(health, probe, 2, policy).healthy == (probe is not DOWN)
    assert not on_event(health, LOST, 2, policy).healthy


def test_events_are_needless_only_if_none_could_matter() -> None:
    nothing = XidPolicy(all_ignored=True)
    assert POLICY.needs_events
    assert replace(POLICY, xids=nothing).needs_events, "ECC events count all the same"
    assert not replace(POLICY, xids=nothing, hardware_checks=False).needs_events
    one = XidPolicy(all_ignored=True, fatal=frozenset({79}))
    assert replace(POLICY, xids=one, hardware_checks=False).needs_events


def test_a_person_can_clear_what_only_a_reset_would_end() -> None:
    faulty = after((0, OK), (1, xid(46)), (5, OK), (6, xid(46)))
    assert faulty.state is U

    health = cleared(faulty, 10)

    assert (health.state, health.fault, health.faults) == (H, None, 0)
    assert see(health, OK, 11).healthy
    assert see(health, xid(46), 12).state is U


@pytest.mark.parametrize("what", [DOWN, WANTS_RESET, REMAP_FAILED, TOO_HOT, LOST])
def test_what_the_hardware_reports_cannot_be_cleared(what: Event | Probe) -> None:
    faulty = after((0, OK), (1, what))
    with pytest.raises(StillFaulty, match=fault_in(faulty).reason):
        cleared(faulty, 10)
    assert cleared(see(faulty, OK, 11), 12).healthy


@given(histories())
def test_what_was_cleared_is_as_new(history: list[tuple[float, Event | Probe]]) -> None:
    now_s = history[-1][0]
    health = after(*history)
    if health.obstacle is not None:
        return
    fresh = cleared(health, now_s)
    assert quiet_period_s(see(fresh, xid(74), now_s), POLICY) == POLICY.quiet_period_s


@pytest.mark.parametrize(("faults", "doublings"), [(0, 0), (1, 0), (2, 1), (33, 32), (34, 32)])
def test_a_relapse_doubles_the_quiet_period_32_times_at_most(faults: int, doublings: int) -> None:
    """More would be no time that a person waits for, and in the end no number of Python's."""
    policy = HealthPolicy(quiet_period_s=1.0, quiet_period_cap_s=float("inf"))
    assert quiet_period_s(Health(0.0, faults=faults), policy) == 2.0**doublings


@pytest.mark.parametrize(("after_s", "state"), [(-0.001, H), (0.0, U)])
def test_the_window_in_which_an_error_counts_as_contained_ends(
    after_s: float, state: HealthState
) -> None:
    apart_s = CONTAINED_WINDOW_S + after_s
    told_first = see(see(Health(0.0), xid(94), 100.0), DOUBLE_BIT, 100.0 + apart_s)
    assert told_first.state is state
    counted_first = see(see(Health(0.0), DOUBLE_BIT, 100.0), xid(94), 100.0 + apart_s)
    assert counted_first.state is state


def test_a_reset_that_was_seen_while_healthy_is_none_for_a_later_fault() -> None:
    health = see(see(Health(0.0), OK, 1.0), AFTER_RESET, 2.0)
    assert (health.state, health.reset_seen) == (H, False)
    assert see(see(health, xid(95), 3.0), AFTER_RESET, 4.0).state is U


@pytest.mark.parametrize(("faults", "doublings"), [(0, 0), (1, 0), (32, 31), (33, 32), (1000, 32)])
def test_the_quiet_period_doubles_thirty_two_times_at_most(faults: int, doublings: int) -> None:
    policy = HealthPolicy(quiet_period_s=1.0, quiet_period_cap_s=1e300)
    assert quiet_period_s(Health(0.0, faults=faults), policy) == 2.0**doublings


@pytest.mark.parametrize(
    ("checked", "ready", "state"),
    [
        (True, False, U),
        (True, True, H),
        (True, None, H),
        (False, False, H),
    ],
)
def test_a_gpu_that_accepts_no_confidential_work_yet_is_unhealthy(
    checked: bool, ready: bool | None, state: HealthState
) -> None:
    policy = replace(POLICY, confidential_check=checked)
    health = on_probe(Health(0.0), replace(OK, confidential_ready=ready), 1.0, policy)
    assert health.state is state


def test_errors_that_were_counted_without_an_event_are_told_by_their_number() -> None:
    health = after((0, counting(3)), (1, counting(5)))
    assert fault_in(health).reason == "2 more uncorrectable ECC errors"


def test_a_contained_error_of_a_gpu_without_faults_counts_as_none() -> None:
    """The fault that it takes back may have been forgotten meanwhile."""
    health = see(replace(see(Health(0.0), DOUBLE_BIT, 1.0), faults=0), xid(94), 2.0)
    assert (health.state, health.faults) == (H, 0)


REFUSED = CallFailure("nvmlDeviceGetUUID", 4, "no permission", action="check-permissions")
SILENT = CallFailure("nvmlDeviceGetUUID", 15, "the GPU is lost", action="reset-or-reboot")


@pytest.mark.parametrize(
    ("failure", "event_fault", "probe_fault"),
    [
        pytest.param(
            REFUSED,
            (Cause.UNREACHABLE, f"GPU cannot be read: {REFUSED}", "check-permissions"),
            (Cause.UNREACHABLE, f"GPU cannot be read: {REFUSED}", "check-permissions"),
            id="the driver refuses",
        ),
        pytest.param(
            SILENT,
            (Cause.LOST, "GPU lost", "reset-or-reboot"),
            (Cause.UNREACHABLE, f"GPU does not respond: {SILENT}", "reset-or-reboot"),
            id="the GPU is silent",
        ),
        pytest.param(
            None,
            (Cause.LOST, "GPU lost", "reset-or-reboot"),
            (Cause.UNREACHABLE, "GPU does not respond", "reset-or-reboot"),
            id="nothing is known",
        ),
    ],
)
def test_a_gpu_that_the_driver_refuses_is_told_from_one_that_is_silent(
    failure: CallFailure | None,
    event_fault: tuple[Cause, str, str],
    probe_fault: tuple[Cause, str, str],
) -> None:
    gone = fault_of_event(GpuDisappeared(UUID, failure), XidPolicy())
    down = fault_of_probe(replace(DOWN, failure=failure))
    assert gone is not None
    assert down is not None
    assert (gone.cause, gone.reason, gone.action) == event_fault
    assert (down.cause, down.reason, down.action) == probe_fault


def test_all_that_a_probe_shows_counts_unless_it_is_switched_off() -> None:
    fault = fault_of_probe(REMAP_FAILED)
    assert fault is not None
    assert fault.cause is Cause.ROW_REMAP


def test_the_policy_without_a_configuration_is_that_of_the_default_one() -> None:
    assert health_policy(load_settings({}, {}, None).settings) == HealthPolicy()


def test_what_a_probe_shows_counts_unless_it_is_left_out() -> None:
    unready = replace(OK, fabric=FabricState.IN_PROGRESS, confidential_ready=False)
    causes = [
        fault.cause if (fault := fault_of_probe(unready, checks)) else None
        for checks in (
            ProbeChecks(),
            ProbeChecks(fabric=False),
            ProbeChecks(fabric=False, confidential=False),
        )
    ]
    assert causes == [Cause.FABRIC, Cause.CONFIDENTIAL, None]
    assert fault_of_probe(replace(REMAP_FAILED, fabric=FabricState.IN_PROGRESS)) is not None
    assert fault_of_probe(REMAP_FAILED, ProbeChecks(hardware=False)) is None
