"""Admission of pods, driven by hand."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.kubelet.admission import (
    AllocateCall,
    CallFailed,
    PluginCall,
    PreferCall,
    PreStartCall,
    Response,
    admit,
    does_not_fit,
    drive,
    start,
)
from sim.kubelet.devices import Amount, DeviceManager, Listed
from sim.kubelet.pods import Container, Grant, Phase, Pod, PodStatus, simple_pod

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GPU = "nvidia.com/gpu"


def a_manager(
    count: int = 4, *, has_preference: bool = True, wants_pre_start: bool = False
) -> DeviceManager:
    manager = DeviceManager()
    manager.connected(GPU, has_preference=has_preference, wants_pre_start=wants_pre_start)
    manager.listed(GPU, [Listed(f"d{number}", healthy=True) for number in range(count)])
    return manager


def a_pod(*containers: dict[str, int], uid: str = "uid-1") -> Pod:
    return Pod(
        "pod",
        tuple(
            Container(f"c{number}", MappingProxyType(limits))
            for number, limits in enumerate(containers)
        ),
        uid=uid,
    )


@dataclass
class Plugin:
    """Answers the calls of an admission and remembers them."""

    prefer: Callable[[PreferCall], Sequence[str]] = lambda call: call.available[: call.size]
    fail: Callable[[PluginCall], str | None] = lambda _: None
    empty: bool = False
    calls: list[PluginCall] = field(default_factory=list)

    def response(self, call: PluginCall) -> Response:
        self.calls.append(call)
        if (text := self.fail(call)) is not None:
            raise CallFailed(text)
        match call:
            case PreferCall():
                return self.prefer(call)
            case AllocateCall():
                if self.empty:
                    return None
                return Grant(call.container, call.resource, call.device_ids, raw=b"raw")
            case PreStartCall():
                return None

    @property
    def allocated(self) -> list[tuple[str, ...]]:
        return [call.device_ids for call in self.calls if isinstance(call, AllocateCall)]


def run(pod: Pod, manager: DeviceManager, plugin: Plugin, seed: int = 0) -> PodStatus:
    """Drive an admission to its end, as the kubelet does."""
    return drive(admit(pod, manager, random.Random(seed)), plugin.response)


def test_one_preference_and_one_allocate_call_per_container() -> None:
    manager, plugin = a_manager(), Plugin()

    status = run(a_pod({GPU: 1}, {GPU: 2}), manager, plugin)

    assert status.phase is Phase.RUNNING
    assert [type(call) for call in plugin.calls] == [
        PreferCall,
        AllocateCall,
        PreferCall,
        AllocateCall,
    ]
    assert [len(device_ids) for device_ids in plugin.allocated] == [1, 2]
    assert [grant.container for grant in status.grants] == ["c0", "c1"]
    assert len(manager.holdings) == 2


def test_the_preference_is_honoured() -> None:
    plugin = Plugin(prefer=lambda _: ["d3", "d1"])

    run(a_pod({GPU: 2}), a_manager(), plugin)

    assert [set(one) for one in plugin.allocated] == [{"d1", "d3"}]


@pytest.mark.parametrize(
    ("preferred", "must_have"),
    [
        pytest.param([], set(), id="none"),
        pytest.param(["d2"], {"d2"}, id="too few"),
        pytest.param(["d2", "d2"], {"d2"}, id="a repeat"),
        pytest.param(["nonsense", "d2"], {"d2"}, id="unknown ones"),
        pytest.param(["d3", "d2", "d1", "d0"], {"d3", "d2"}, id="too many"),
    ],
)
def test_a_poor_preference_is_filled_up(preferred: list[str], must_have: set[str]) -> None:
    plugin = Plugin(prefer=lambda _: preferred)

    run(a_pod({GPU: 2}), a_manager(), plugin)

    (allocated,) = plugin.allocated
    assert must_have <= set(allocated) <= {"d0", "d1", "d2", "d3"}
    assert len(set(allocated)) == len(allocated) == 2


def test_a_device_in_use_is_not_given_even_if_it_is_preferred() -> None:
    manager = a_manager()
    manager.hold("other", "main", GPU, ["d1"], b"")
    plugin = Plugin(prefer=lambda _: ["d1", "d2"])

    run(a_pod({GPU: 2}), manager, plugin)

    (allocated,) = plugin.allocated
    assert "d1" not in allocated
    assert "d2" in allocated


def test_a_plugin_without_preferences_is_not_asked() -> None:
    plugin = Plugin()

    status = run(a_pod({GPU: 2}), a_manager(has_preference=False), plugin)

    assert status.phase is Phase.RUNNING
    assert [type(call) for call in plugin.calls] == [AllocateCall]


def test_ids_come_in_random_order_that_the_seed_repeats() -> None:
    def order(seed: int) -> tuple[tuple[str, ...], ...]:
        plugin = Plugin()
        run(a_pod({GPU: 15}), a_manager(20), plugin, seed)
        (prefer,) = (call for call in plugin.calls if isinstance(call, PreferCall))
        return prefer.available, *plugin.allocated

    assert order(1) == order(1)
    assert order(1) != order(2)
    available, allocated = order(1)
    assert available != tuple(sorted(available))
    assert allocated != tuple(one for one in available if one in allocated)


def test_the_second_container_does_not_get_the_first_ones_devices() -> None:
    plugin = Plugin(prefer=lambda _: ["d0", "d1", "d2", "d3"])

    run(a_pod({GPU: 2}, {GPU: 2}), a_manager(), plugin)

    first, second = plugin.allocated
    assert set(first) | set(second) == {"d0", "d1", "d2", "d3"}
    asked = [call.available for call in plugin.calls if isinstance(call, PreferCall)]
    assert set(asked[1]) == {"d0", "d1", "d2", "d3"} - set(first)


def test_every_resource_of_a_container_is_asked_for() -> None:
    manager, plugin = a_manager(), Plugin()
    manager.connected("a.com/x", has_preference=False, wants_pre_start=False)
    manager.listed("a.com/x", [Listed("x0", healthy=True)])

    status = run(
        a_pod({GPU: 1, "a.com/x": 1, "b.com/unknown": 3, "c.com/zero": 0}), manager, plugin
    )

    assert {grant.resource for grant in status.grants} == {GPU, "a.com/x"}


def test_a_pod_without_devices_runs_without_any_call() -> None:
    plugin = Plugin()

    assert run(a_pod({}, {GPU: 0}), a_manager(), plugin) == PodStatus(Phase.RUNNING)
    assert plugin.calls == []


def unregistered() -> DeviceManager:
    manager = a_manager()
    manager.disconnected(GPU, 0)
    manager.amounts(300)
    return manager


def all_unhealthy() -> DeviceManager:
    manager = a_manager()
    manager.disconnected(GPU, 0)
    return manager


@pytest.mark.parametrize(
    ("manager", "containers", "reason"),
    [
        pytest.param(
            a_manager(1),
            [{GPU: 2}],
            "requested number of devices unavailable for nvidia.com/gpu. "
            "Requested: 2, Available: 1",
            id="too few",
        ),
        pytest.param(
            a_manager(3),
            [{GPU: 2}, {GPU: 2}],
            "requested number of devices unavailable for nvidia.com/gpu. "
            "Requested: 2, Available: 1",
            id="too few for the second container",
        ),
        pytest.param(
            all_unhealthy(),
            [{GPU: 1}],
            "no healthy devices present; cannot allocate unhealthy devices nvidia.com/gpu",
            id="unhealthy",
        ),
        pytest.param(
            unregistered(),
            [{GPU: 1}],
            "cannot allocate unregistered device nvidia.com/gpu",
            id="unregistered",
        ),
    ],
)
def test_a_refusal_is_told_in_the_kubelets_words_and_holds_nothing(
    manager: DeviceManager, containers: list[dict[str, int]], reason: str
) -> None:
    status = run(a_pod(*containers), manager, Plugin())

    assert status == PodStatus(
        Phase.FAILED,
        "UnexpectedAdmissionError",
        f"Allocate failed due to {reason}, which is unexpected",
    )
    assert manager.holdings == ()


@pytest.mark.parametrize("kind", [PreferCall, AllocateCall])
@pytest.mark.parametrize("container", [0, 1])
def test_a_call_that_fails_fails_the_pod_and_nothing_stays_held(
    kind: type[PluginCall], container: int
) -> None:
    text = "rpc error: code = Unknown desc = broken"
    seen: list[PluginCall] = []

    def fail(call: PluginCall) -> str | None:
        if isinstance(call, kind):
            seen.append(call)
            return text if len(seen) > container else None
        return None

    manager = a_manager()
    manager.hold("other", "main", GPU, ["d0"], b"")

    status = run(a_pod({GPU: 1}, {GPU: 1}), manager, Plugin(fail=fail))

    assert (status.phase, status.reason) == (Phase.FAILED, "UnexpectedAdmissionError")
    assert text in status.message
    assert status.grants == ()
    assert [held.pod_uid for held in manager.holdings] == ["other"]


def test_an_empty_answer_fails_the_pod() -> None:
    manager = a_manager()

    status = run(a_pod({GPU: 1}), manager, Plugin(empty=True))

    assert (status.phase, status.reason) == (Phase.FAILED, "UnexpectedAdmissionError")
    assert manager.holdings == ()


def test_pre_start_is_called_for_each_grant_after_all_of_them() -> None:
    plugin = Plugin()

    run(a_pod({GPU: 1}, {GPU: 2}), a_manager(wants_pre_start=True, has_preference=False), plugin)

    assert [type(call) for call in plugin.calls] == [
        AllocateCall,
        AllocateCall,
        PreStartCall,
        PreStartCall,
    ]
    assert [
        call.device_ids for call in plugin.calls if isinstance(call, PreStartCall)
    ] == plugin.allocated


def test_a_failed_pre_start_leaves_the_pod_pending_with_its_devices_until_it_succeeds() -> None:
    manager = a_manager(wants_pre_start=True)
    text = "rpc error: code = Unknown desc = not yet"
    broken = Plugin(fail=lambda call: text if isinstance(call, PreStartCall) else None)

    waiting = run(a_pod({GPU: 2}), manager, broken)

    assert (waiting.phase, waiting.reason) == (Phase.PENDING, "CreateContainerConfigError")
    assert waiting.message == f"device plugin PreStartContainer rpc failed with err: {text}"
    held = manager.holdings
    assert [set(one.device_ids) for one in held] == [set(waiting.grants[0].device_ids)]
    assert drive(start(waiting.grants, manager), broken.response) == waiting

    plugin = Plugin()
    running = drive(start(waiting.grants, manager), plugin.response)

    assert running == PodStatus(Phase.RUNNING, grants=waiting.grants)
    assert [type(call) for call in plugin.calls] == [PreStartCall]
    assert manager.holdings == held


@settings(max_examples=150)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=6),
    st.lists(st.sampled_from([f"d{number}" for number in range(10)]), max_size=8),
    st.integers(0, 1000),
)
def test_no_device_is_ever_held_twice(wanted: list[int], preferred: list[str], seed: int) -> None:
    manager = a_manager(8)
    plugin = Plugin(prefer=lambda _: preferred)
    statuses = [
        run(a_pod({GPU: count}, {GPU: 1}, uid=f"uid-{number}"), manager, plugin, seed)
        for number, count in enumerate(wanted)
    ]

    held = [one for holding in manager.holdings for one in holding.device_ids]
    assert len(set(held)) == len(held)
    running = [
        count + 1
        for count, status in zip(wanted, statuses, strict=True)
        if status.phase is Phase.RUNNING
    ]
    assert len(held) == sum(running) <= 8


# Scheduling by numbers


@pytest.mark.parametrize(
    ("asked", "allocatable", "requested", "fits"),
    [
        pytest.param(2, 2, 0, True, id="just fits"),
        pytest.param(3, 2, 0, False, id="too many"),
        pytest.param(1, 3, 3, False, id="all given out"),
        pytest.param(1, 2, 2, False, id="an unhealthy one in use counts twice"),
        pytest.param(0, 0, 0, True, id="asks for nothing"),
    ],
)
def test_what_the_scheduler_lets_pass(
    asked: int, allocatable: int, requested: int, fits: bool
) -> None:
    reason = does_not_fit(
        simple_pod("p", {GPU: asked}), {GPU: Amount(9, allocatable)}, {GPU: requested}
    )

    assert reason == ("" if fits else "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")


def test_a_resource_that_the_node_does_not_have_is_insufficient() -> None:
    assert "Insufficient a.com/x" in does_not_fit(simple_pod("p", {"a.com/x": 1}), {}, {})


def test_the_requests_of_a_pod_are_added_up_over_its_containers() -> None:
    pod = a_pod({GPU: 1, "a.com/x": 2}, {GPU: 3})

    assert pod.requests() == {GPU: 4, "a.com/x": 2}
    assert does_not_fit(pod, {GPU: Amount(3, 3), "a.com/x": Amount(2, 2)}, {}) != ""
    assert pod.key == "default/pod"
