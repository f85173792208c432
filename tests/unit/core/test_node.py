"""The node's decisions, without a clock: inputs and effects."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core.departures import GONE_S, REPLACED_S, CannotForget
from gpuplugin.core.health import HealthPolicy, HealthState, StillFaulty
from gpuplugin.core.healthboard import UnknownUnit
from gpuplugin.core.holdings import moved, selected_by_index
from gpuplugin.core.injection import InjectionPlan
from gpuplugin.core.inventory import Plan
from gpuplugin.core.node import (
    ConfigurationMisfit,
    EventReceived,
    HealthChanged,
    NodeModel,
    ProblemFound,
    Publish,
    WakeAt,
    WriteSpecs,
)
from gpuplugin.core.nodecondition import Condition, condition_of
from gpuplugin.core.pacing import PAUSE_S
from gpuplugin.core.sharing import GpuFilter, Selection, SharedResource, TimeSlicing
from gpuplugin.core.usage import Holding, PodName, Reading
from gpuplugin.core.watch import judge_probes
from gpuplugin.kubelet.deviceplugin import DevicePlugins
from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from hal import (
    CallFailure,
    ComputeMode,
    GpuState,
    HalHung,
    Link,
    LinkKind,
    RecoveryAction,
    XidError,
)
from tests.unit.builders import PLAIN, a_gpu, a_probe, gpus, sharing, uuid_of_gpu
from tests.unit.core.test_mig_strategies import mig_gpu
from tests.unit.core.test_usage import reading as telemetry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpuplugin.core.node import Effect
    from gpuplugin.core.nodeview import NodePlan
    from hal import Gpu, Probe

RESOURCE = "nvidia.com/gpu"
A, B, C = (uuid_of_gpu(number) for number in range(3))
CDI = replace(PLAIN, injection=InjectionPlan(strategies=frozenset({"cdi-cri"})))
QUIET_S = HealthPolicy().quiet_period_s


@dataclass
class Runner:
    """Runs a model as a driver does, with a clock that is turned by hand."""

    plan: NodePlan = PLAIN
    write_specs: bool = True
    now_s: float = 100.0
    lists: list[tuple[float, dict[str, str]]] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    specs: list[WriteSpecs] = field(default_factory=list)
    timers_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = NodeModel(self.plan)
        self.plugins = DevicePlugins()

    def run(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            self.effects.append(effect)
            match effect:
                case Publish():
                    for name in self.plugins.apply(self.model.view).lists:
                        self.lists.append((self.now_s, self.listed(name)))
                case WakeAt(at_s=at_s):
                    self.timers_s.append(at_s)
                case WriteSpecs():
                    self.specs.append(effect)
                    if self.write_specs:
                        self.run(self.model.specs_written(effect.number, self.now_s))

    def listed(self, name: str = RESOURCE) -> dict[str, str]:
        """The list that a new stream receives."""
        stream = self.plugins.by_resource[name].devices.subscribe(lambda: None)
        devices = pb.ListAndWatchResponse.FromString(stream.take() or b"").devices
        stream.close()
        return {device.ID: device.health for device in devices}

    def after(self, seconds: float) -> None:
        """Time passes; timers that are due fire in order."""
        end_s = self.now_s + seconds
        while self.timers_s and min(self.timers_s) <= end_s:
            due_s = min(self.timers_s)
            self.timers_s.remove(due_s)
            self.now_s = max(self.now_s, due_s)
            self.run(self.model.timer(self.now_s))
        self.now_s = end_s

    def update(self, found: Iterable[Gpu], probes: dict[str, Probe] | None = None) -> None:
        found = tuple(found)
        seen = {gpu.uuid: a_probe() for gpu in found} if probes is None else probes
        self.run(self.model.updated(found, seen, self.now_s))

    def event(self, *events: XidError) -> None:
        self.run(self.model.events_received(events, self.now_s))

    def problems(self) -> list[str]:
        return [effect.kind for effect in self.effects if isinstance(effect, ProblemFound)]

    def errors(self) -> list[str]:
        """Those of the problems that are grave."""
        return [one.kind for one in self.effects if isinstance(one, ProblemFound) and one.error]


def xid(uuid: str, code: int = 79) -> XidError:
    return XidError(uuid, code)


def test_the_first_update_is_listed_at_once() -> None:
    node = Runner(replace(PLAIN, inventory=sharing(2)))
    node.update(gpus(2))
    assert node.lists == [
        (100.0, dict.fromkeys([f"{u}::{n}" for u in (A, B) for n in (0, 1)], "Healthy"))
    ]
    assert node.model.view.healthy_devices() == {RESOURCE: 4}
    assert (node.model.view.index(A), node.model.view.index("GPU-none")) == ("0", "")


def test_nothing_is_refused_before_something_is_configured() -> None:
    assert NodeModel(PLAIN).refusal == ""


def test_an_update_without_news_sends_nothing() -> None:
    node = Runner()
    node.update(gpus(2))
    node.effects.clear()
    node.update(gpus(2))
    assert node.effects == []


def test_a_gpu_that_vanished_stays_listed_as_unhealthy() -> None:
    node = Runner()
    node.update(gpus(2))
    node.update(gpus(1))
    assert node.listed() == {A: "Healthy", B: "Unhealthy"}
    assert [gpu.state for gpu in node.model.view.gpus] == [GpuState.OK, GpuState.LOST]


def test_a_storm_of_events_is_a_few_lists() -> None:
    node = Runner()
    node.update(gpus(8))
    node.after(1.0)
    for index in range(8):
        node.event(xid(uuid_of_gpu(index)))
        node.after(0.001)
    node.after(1.0)
    assert len(node.lists) == 3
    assert set(node.listed().values()) == {"Unhealthy"}
    assert sum(isinstance(effect, EventReceived) for effect in node.effects) == 8


def test_an_application_error_is_reported_and_changes_nothing() -> None:
    node = Runner()
    node.update(gpus(1))
    node.effects.clear()
    node.event(xid(A, 31))
    assert node.effects == [EventReceived(xid(A, 31), fatal=False)]


def test_blindness_makes_all_unhealthy_until_the_next_update() -> None:
    node = Runner()
    node.update(gpus(2))
    node.after(1.0)
    node.run(node.model.blinded("the driver hangs", node.now_s))
    node.after(1.0)
    assert set(node.listed().values()) == {"Unhealthy"}
    assert node.model.view.board.blind == "the driver hangs"
    node.update(gpus(2))
    node.after(1.0)
    assert set(node.listed().values()) == {"Healthy"}
    assert len(node.lists) == 3


class TestMisfit:
    """A configuration that does not suit the GPUs."""

    TOO_MANY = sharing(50_000)

    def test_it_is_refused_and_all_stays_as_it_was(self) -> None:
        node = Runner()
        node.update(gpus(2))
        view = node.model.view
        with pytest.raises(ConfigurationMisfit, match="to at most"):
            node.model.configure(replace(PLAIN, inventory=self.TOO_MANY), node.now_s)
        assert node.model.view is view

    def test_gpus_that_make_it_one_keep_their_list_unhealthy(self) -> None:
        node = Runner(replace(PLAIN, inventory=self.TOO_MANY))
        node.update(gpus(1))
        assert len(node.listed()) == 50_000
        node.update(gpus(2))
        assert set(node.listed().values()) == {"Unhealthy"}
        assert len(node.listed()) == 50_000
        assert "to at most" in node.model.view.misfit
        node.update(gpus(2))
        assert node.problems() == ["configuration-misfit"], "reported once"
        assert node.errors() == ["configuration-misfit"]

    def test_another_configuration_ends_it(self) -> None:
        node = Runner(replace(PLAIN, inventory=self.TOO_MANY))
        node.update(gpus(2))
        assert node.plugins.by_resource == {}
        node.run(node.model.configure(PLAIN, node.now_s))
        assert node.listed() == {A: "Healthy", B: "Healthy"}
        assert node.model.view.misfit == ""


class TestSpecs:
    """With CDI, the container runtime knows devices before the kubelet does."""

    def test_nothing_is_listed_before_the_specs_are_written(self) -> None:
        node = Runner(CDI, write_specs=False)
        node.update(gpus(1))
        assert node.lists == []
        (wanted,) = node.specs
        assert wanted.inventory.device_count == 1
        node.run(node.model.specs_written(wanted.number, node.now_s))
        assert node.listed() == {A: "Healthy"}

    def test_health_is_listed_while_specs_are_written(self) -> None:
        node = Runner(CDI)
        node.update(gpus(1))
        node.write_specs = False
        node.update(gpus(2))
        node.event(xid(A))
        node.after(1.0)
        assert node.listed() == {A: "Unhealthy"}

    def test_a_gpu_that_vanishes_is_listed_unhealthy_while_specs_are_written(self) -> None:
        node = Runner(CDI)
        node.update(gpus(2))
        node.write_specs = False
        node.update(gpus(1))
        node.after(1.0)
        assert node.listed() == {A: "Healthy", B: "Unhealthy"}

    def test_specs_that_cannot_be_written_change_nothing_and_are_tried_again(self) -> None:
        node = Runner(CDI)
        node.update(gpus(1))
        node.write_specs = False
        node.update(gpus(2))
        node.run(node.model.specs_failed(node.specs[-1].number, "no space left"))
        assert node.model.view.specs_problem == "no space left"
        assert node.problems() == ["cdi-unwritten"]
        assert list(node.listed()) == [A]
        node.write_specs = True
        node.update(gpus(2))
        assert list(node.listed()) == [A, B]
        assert node.model.view.specs_problem == ""

    def test_a_configuration_whose_specs_cannot_be_written_is_refused(self) -> None:
        node = Runner()
        node.update(gpus(2))
        node.write_specs = False
        node.run(node.model.configure(replace(CDI, inventory=sharing(2)), node.now_s))
        node.run(node.model.specs_failed(node.specs[-1].number, "read-only"))
        assert (node.model.plan, node.model.refusal) == (PLAIN, "read-only")
        assert len(node.listed()) == 2

    def test_only_the_newest_inventory_comes_into_force(self) -> None:
        node = Runner(CDI, write_specs=False)
        node.update(gpus(1))
        node.update(gpus(2))
        first, second = node.specs
        node.run(node.model.specs_written(first.number, node.now_s))
        assert node.lists == []
        node.run(node.model.specs_written(second.number, node.now_s))
        assert list(node.listed()) == [A, B]

    def test_a_requested_plan_survives_a_change_of_the_gpus(self) -> None:
        node = Runner(CDI)
        node.update(gpus(1))
        node.write_specs = False
        wanted = replace(CDI, inventory=sharing(3))
        node.run(node.model.configure(wanted, node.now_s))
        node.update(gpus(2))
        node.run(node.model.specs_written(node.specs[-1].number, node.now_s))
        assert node.model.plan is wanted
        assert len(node.listed()) == 6

    def test_a_requested_plan_survives_a_driver_that_is_opened_again(self) -> None:
        """Otherwise a good file would be refused, and not be read again until it changes."""
        node = Runner(CDI)
        node.update(gpus(1))
        node.write_specs = False
        wanted = replace(CDI, inventory=sharing(3))
        node.run(node.model.configure(wanted, node.now_s))
        node.model.replan(replace(CDI))
        node.run(node.model.specs_written(node.specs[-1].number, node.now_s))
        assert node.model.plan is wanted
        assert len(node.listed()) == 3

    def test_specs_are_checked_at_each_update(self) -> None:
        node = Runner(CDI)
        node.update(gpus(1))
        node.update(gpus(1))
        assert [effect.inventory for effect in node.specs] == [node.model.view.inventory] * 2
        assert len(node.lists) == 1


def test_a_plan_that_means_something_else_counts_from_the_next_update_on() -> None:
    node = Runner()
    node.update(gpus(1))
    node.model.replan(replace(PLAIN, inventory=sharing(2)))
    assert len(node.listed()) == 1
    node.update(gpus(1))
    assert len(node.listed()) == 2


def test_links_reach_those_who_prefer_devices() -> None:
    node = Runner()
    node.update(gpus(2))
    links = {(A, B): Link(LinkKind.SAME_BOARD, 18), (B, A): Link(LinkKind.SAME_BOARD, 18)}
    node.run(node.model.linked(links, node.now_s))
    assert node.plugins.by_resource[RESOURCE].snapshot.plan.links == links
    assert len(node.lists) == 1


def test_a_fault_that_a_person_clears() -> None:
    node = Runner()
    node.update(gpus(2))
    node.event(xid(A, 95))
    node.after(1)
    assert set(node.listed().values()) == {"Healthy", "Unhealthy"}
    node.run(node.model.clear(A, node.now_s))
    node.after(1)
    assert set(node.listed().values()) == {"Healthy"}
    changes = [effect for effect in node.effects if isinstance(effect, HealthChanged)]
    assert [(one.transition.after, one.by_hand) for one in changes[-2:]] == [
        (HealthState.UNHEALTHY, False),
        (HealthState.HEALTHY, True),
    ]
    with pytest.raises(UnknownUnit):
        node.model.clear("GPU-none", node.now_s)
    node.update(gpus(2), {A: a_probe(remap_failed=True), B: a_probe()})
    with pytest.raises(StillFaulty):
        node.model.clear(A, node.now_s)


def test_a_hung_probe_says_nothing_of_ecc_errors() -> None:
    """Once it counted as 0 errors, and the next real count as new ones: Unhealthy until a reset."""
    node = Runner()
    counted = replace(a_probe(action=RecoveryAction.UNKNOWN), uncorrectable_ecc=3)
    node.update([a_gpu(0), a_gpu(1)], {A: counted, B: counted})
    hung = judge_probes({A: HalHung("it hangs"), B: counted}, node.model.view.board)
    node.update([a_gpu(0), a_gpu(1)], dict(hung.by_uuid))
    assert node.model.view.board.gpus[A].state is HealthState.UNHEALTHY
    for _ in range(3):
        node.after(QUIET_S)
        node.update([a_gpu(0), a_gpu(1)], {A: counted, B: counted})
    assert node.model.view.board.gpus[A].state is HealthState.HEALTHY


def test_the_view_is_one_value() -> None:
    """Readers keep what they have; the model never changes it."""
    node = Runner()
    node.update(gpus(1))
    before = node.model.view
    shown = (before.gpus, before.board, before.healthy_devices(), before.history.changes)
    node.event(xid(A))
    node.update(gpus(2))
    assert (before.gpus, before.board, before.healthy_devices(), before.history.changes) == shown
    assert node.model.view is not before


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), st.sets(st.integers(0, 3)), st.sets(st.integers(0, 3))),
        st.tuples(st.just("xid"), st.integers(0, 3), st.sampled_from([31, 48, 79, 94, 95])),
        st.tuples(st.just("blind"), st.booleans()),
        st.tuples(st.just("plan"), st.sampled_from([1, 2, 3, 70_000]), st.booleans()),
        st.tuples(st.just("after"), st.floats(0, 40)),
        st.tuples(st.just("specs"), st.booleans()),
    ),
    max_size=25,
)


@given(STEPS)
def test_what_is_listed_is_what_the_view_says(steps: list[tuple[object, ...]]) -> None:  # noqa: C901 - one case for each kind of step
    node = Runner()
    listed_before: set[str] = set()
    plan_before = node.model.view.plan
    for step in steps:
        match step:
            case ("update", set(present), set(down)):
                node.update(
                    [a_gpu(index) for index in sorted(present)],
                    {uuid_of_gpu(i): a_probe(reachable=i not in down) for i in present},
                )
            case ("xid", int(index), int(code)):
                node.event(xid(uuid_of_gpu(index), code))
            case ("blind", bool(blind)):
                node.run(node.model.blinded("blind" if blind else "", node.now_s))
            case ("plan", int(replicas), bool(cdi)):
                plan = sharing(replicas) if replicas > 1 else Plan()
                try:
                    node.run(
                        node.model.configure(
                            replace(CDI if cdi else PLAIN, inventory=plan), node.now_s
                        )
                    )
                    listed_before = set()
                except ConfigurationMisfit:
                    assert replicas == 70_000
            case ("after", float(seconds)):
                node.after(seconds)
            case ("specs", bool(works)):
                node.write_specs = works
        node.after(PAUSE_S)
        view = node.model.view
        if view.plan is not plan_before:  # it may come into force later, with its specs
            plan_before, listed_before = view.plan, set()
        for resource in view.inventory.resources:
            assert node.listed(resource.name) == {
                device.id: "Healthy" if view.healthy(*device.unit) else "Unhealthy"
                for device in resource.devices
            }
        ids = {device.id for resource in view.inventory.resources for device in resource.devices}
        assert listed_before <= ids, "a device that may be in use is never dropped"
        listed_before = ids


def a_holding(*device_ids: str, pod: str = "train") -> Holding:
    return Holding(PodName("ml", pod), "main", RESOURCE, device_ids)


def listed_health(node: Runner) -> dict[str, str]:
    return node.lists[-1][1]


def test_a_gpu_that_is_held_whole_is_not_offered_as_shared_until_its_pod_has_ended() -> None:
    node = Runner(replace(PLAIN, inventory=sharing(2)))
    node.run(node.model.held([a_holding(A)], node.now_s))
    node.update(gpus(2))
    assert listed_health(node) == {
        f"{A}::0": "Unhealthy",
        f"{A}::1": "Unhealthy",
        f"{B}::0": "Healthy",
        f"{B}::1": "Healthy",
    }
    assert node.problems() == ["gpu-withheld"]
    assert node.errors() == []
    assert "pod ml/train holds it whole" in node.model.view.withheld[A]

    node.run(node.model.held([], node.now_s))
    node.after(1.0)
    assert set(listed_health(node).values()) == {"Healthy"}
    assert node.problems() == ["gpu-withheld", "gpu-offered"]


def test_a_new_plan_withholds_what_is_held_as_before_it() -> None:
    node = Runner(replace(PLAIN, inventory=sharing(2)))
    node.update(gpus(2))
    node.run(node.model.held([a_holding(f"{A}::1"), a_holding(f"{B}::0")], node.now_s))
    assert node.model.view.withheld == {}
    node.run(node.model.configure(replace(PLAIN, inventory=sharing(4)), node.now_s))
    assert node.model.view.withheld == {}, "another number of replicas is the same form"
    node.run(node.model.configure(PLAIN, node.now_s))
    assert listed_health(node) == {A: "Unhealthy", B: "Unhealthy"}


LONG_S = {"replaced": REPLACED_S, "gone": GONE_S}


@pytest.mark.parametrize("kind", LONG_S)
def test_a_gpu_that_is_gone_for_long_and_held_by_no_pod_leaves_the_list(kind: str) -> None:
    node = Runner()
    both = gpus(2)
    node.update(both)
    successor = replace(both[1], uuid=C)
    found = [both[0], successor] if kind == "replaced" else [both[0]]
    node.update(found)
    first_s = node.now_s
    node.after(LONG_S[kind] + 1)
    node.update(found)
    assert B in listed_health(node), "what pods hold is not known"

    node.run(node.model.held([a_holding(B)], node.now_s))
    node.update(found)
    assert B in listed_health(node), "a pod holds it"

    node.run(node.model.held([a_holding(A)], node.now_s))
    node.update([*found, replace(both[1], state=GpuState.LOST)])
    assert set(listed_health(node)) == {gpu.uuid for gpu in found}
    assert B not in node.model.view.board.gpus
    assert B not in node.model.view.history.unhealthy_s(node.now_s)
    assert node.problems() == ["gpu-forgotten"]
    assert node.now_s > first_s + LONG_S[kind]

    # The backend goes on to list it, until it responds.
    node.update([*found, replace(both[1], state=GpuState.LOST)])
    assert B not in listed_health(node)
    node.update([*found, both[1]])
    assert listed_health(node)[B] == "Healthy"


def test_a_gpu_that_is_gone_for_a_short_time_stays_listed() -> None:
    node = Runner()
    both = gpus(2)
    node.run(node.model.held([], node.now_s))
    node.update(both)
    node.update([both[0], replace(both[1], uuid=C)])
    node.after(REPLACED_S - 1)
    node.update([both[0], replace(both[1], uuid=C)])
    assert B in listed_health(node)


def test_a_gpu_that_responds_or_is_held_is_not_forgotten() -> None:
    node = Runner()
    node.update(gpus(2))
    with pytest.raises(CannotForget, match="responds"):
        node.model.forget(B, node.now_s)
    node.update(gpus(1))
    node.run(node.model.held([a_holding(B)], node.now_s))
    with pytest.raises(CannotForget, match="ml/train"):
        node.model.forget(B, node.now_s)
    with pytest.raises(UnknownUnit):
        node.model.forget("GPU-none", node.now_s)


def test_indices_of_the_configuration_and_what_they_meant() -> None:
    plan = replace(
        sharing(2),
        sharing=TimeSlicing((SharedResource(RESOURCE, 2, Selection(ids=frozenset({"1", B}))),)),
        gpu_filter=GpuFilter(include=("0", "NVIDIA*")),
    )
    before = selected_by_index(plan, gpus(2))
    assert before == {"0": A, "1": B}
    now = {"0": B}
    (text,) = moved(before, now)
    assert "index 0 of the configuration" in text
    assert moved(before, before) == ()
    assert moved({}, now) == ()


def test_a_note_is_told_once_for_as_long_as_it_holds() -> None:
    nowhere = GpuFilter(exclude=("7",))
    node = Runner(replace(PLAIN, inventory=replace(PLAIN.inventory, gpu_filter=nowhere)))
    for found in (gpus(2), gpus(2), gpus(3)):
        node.update(found)
        assert node.problems().count("inventory-note") == 1


def test_what_is_known_before_the_first_look_is_published_too() -> None:
    node = Runner(PLAIN)
    node.run(node.model.blinded("the driver is not loaded", node.now_s))
    node.after(10)
    assert any(isinstance(effect, Publish) for effect in node.effects)


def test_a_compute_mode_that_keeps_pods_out_is_a_warning() -> None:
    node = Runner(PLAIN)
    node.update([replace(gpus(1)[0], compute_mode=ComputeMode.PROHIBITED)])
    assert node.problems() == ["inventory-warning"]
    assert node.errors() == []


def test_what_the_driver_did_not_tell_is_told_once_by_whatever_was_asked() -> None:
    node = Runner()
    ecc, power, clock = (CallFailure(name, 3, "Not Supported") for name in ("a", "b", "c"))
    (gpu,) = gpus(1)
    node.update([replace(gpu, unknown=(ecc,))], {A: replace(a_probe(), unknown=(power, ecc))})
    assert node.model.view.unknown_values(A) == (ecc, power)
    assert node.model.view.unknown_values(B) == ()
    node.model.used(Reading(telemetry={A: replace(telemetry(), unknown=(clock, power))}))
    assert node.model.view.unknown_values(A) == (ecc, power, clock)


def test_a_reading_is_no_reading_once_it_is_stale() -> None:
    node = Runner()
    assert node.model.view.reading_at(0.0) is None
    node.model.used(reading := Reading(at_s=100.0, period_s=10.0))
    assert node.model.view.reading_at(101.0) is reading
    assert node.model.view.reading_at(1000.0) is None


def test_gpus_that_are_left_out_are_not_in_the_nodes_condition() -> None:
    left_out = replace(PLAIN, inventory=Plan(gpu_filter=GpuFilter(exclude=("1",))))
    node = Runner(left_out)
    node.update([a_gpu(0), mig_gpu(1, "1g.10gb")])
    node.event(xid(B))
    view = node.model.view
    (mig,) = view.gpus[1].mig_devices
    assert view.left_out == {B, mig.uuid}
    assert condition_of(view) == Condition(True, "AllGPUsHealthy", "all GPUs are healthy (1)")
    node.run(node.model.configure(PLAIN, node.now_s))
    assert node.model.view.left_out == frozenset()
    assert condition_of(node.model.view).healthy is False


def test_times_of_mig_devices_that_are_gone_are_forgotten() -> None:
    node = Runner(replace(PLAIN, inventory=Plan(mig_strategy="mixed")))
    node.update([mig_gpu(0, "1g.10gb", "1g.10gb")])
    node.event(xid(A))
    node.after(1.0)
    node.update([mig_gpu(0, "1g.10gb")])
    view = node.model.view
    assert {view.index(uuid) for uuid in view.history.unhealthy_s(node.now_s)} == {"0", "0:0"}
