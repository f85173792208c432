"""The demo's story: eight chapters, each with something that happens and what must come of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from gpuplugin.core.sharing import uuid_of
from sim.cli.demo.stage import RESOURCE, Stage, StageError
from sim.kubelet import Phase, simple_pod

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.cli.demo.stage import Facts
    from sim.kubelet import NodeView

DEVICES = 80
REPLICAS = 10
FAULTY_GPU = 3
REFUSAL = "maximum request size for shared resources is 1; found 2"
PATIENCE_S = 15.0


class View:
    """Shows chapters and the outcome of checks; `height` is the moment for a picture."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None: ...

    def chapter(self, title: str, text: str) -> None: ...

    def outcome(self, passed: bool, text: str) -> None: ...

    def height(self) -> None: ...


class Teller:
    """What all stories are told with."""

    def __init__(self, stage: Stage, view: View, facts: Facts, pace: float) -> None:
        self.stage = stage
        self.view = view
        self.facts = facts
        self.pace = pace

    def check(self, text: str, condition: Callable[[NodeView], bool]) -> None:
        try:
            self.stage.kubelet.wait_until(condition, PATIENCE_S)
        except TimeoutError as error:
            self.note(False, f"{text} ({error})")
        else:
            self.note(True, text)

    def eventually(self, text: str, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not (passed := condition()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        self.note(passed, text)

    def note(self, passed: bool, text: str) -> None:
        self.facts.check(passed, text)
        self.view.outcome(passed, text)

    def pause(self, seconds: float) -> None:
        time.sleep(seconds / self.pace)


def tell(stage: Stage, view: View, facts: Facts, pace: float) -> None:
    """Play all chapters; raises `StageError` if the plugin does not register."""
    story = _Story(stage, view, facts, pace)
    for chapter in (
        story.register,
        story.run_pods,
        story.refuse_two,
        story.application_error,
        story.lose_gpu,
        story.recover_gpu,
        story.restart_kubelet,
        story.stop,
    ):
        chapter()


class _Story(Teller):
    def register(self) -> None:
        self.view.chapter(
            "1. A node comes up",
            "Eight simulated H100, each shared by ten. The kubelet finds the plugin's socket.",
        )
        try:
            self.stage.kubelet.wait_until(
                lambda node: node.allocatable(RESOURCE) == DEVICES, PATIENCE_S
            )
        except TimeoutError as error:
            raise StageError(f"{error}; the plugin says: {self.stage.plugin_words()}") from error
        self.note(True, f"{DEVICES} devices of {RESOURCE} are allocatable")
        self.pause(4)

    def run_pods(self) -> None:
        self.view.chapter(
            "2. Ten pods, one replica each",
            "For each pod the kubelet asks which replica to take, then allocates it.",
        )
        for number in range(1, 11):
            self.stage.kubelet.run_pod(simple_pod(f"worker-{number}", {RESOURCE: 1}))
            self.pause(0.25)
        self.check("ten pods run", lambda node: _running(node) == 10)
        gpus = {uuid for uuid, _ in _held(self.stage.kubelet.view())}
        self.note(len(gpus) == 8, f"they are spread over {len(gpus)} GPUs")
        self.pause(3)

    def refuse_two(self) -> None:
        self.view.chapter(
            "3. One pod asks for two",
            "Two replicas of a GPU are no more than one: the configuration refuses such a pod.",
        )
        status = self.stage.kubelet.run_pod(simple_pod("greedy", {RESOURCE: 2}))
        refused = status.phase is Phase.FAILED and REFUSAL in status.message
        self.note(refused, f"pod greedy is {status.phase.value}: {status.reason}")
        self.note(refused, f"the reason given: {REFUSAL}")
        self.pause(5)

    def application_error(self) -> None:
        self.view.chapter(
            f"4. Xid 31 on GPU {FAULTY_GPU}: an application's page fault",
            "A process went wrong, the GPU did not: counted, nothing else.",
        )
        before = self._updates()
        self.stage.inject(FAULTY_GPU, {"kind": "xid", "xid": 31})
        self.eventually(
            "the Xid is counted in /metrics",
            lambda: self.stage.metric("gpuplugin_xid_events_total", xid="31") == 1,
        )
        self.note(self._updates() == before, "no device changed")
        self.pause(3)

    def lose_gpu(self) -> None:
        self.view.chapter(
            f"5. Xid 79 on GPU {FAULTY_GPU}: it has fallen off the bus",
            "All ten replicas are reported Unhealthy, in one list. The other seven GPUs go on.",
        )
        moment_s = time.monotonic()
        self.stage.inject(FAULTY_GPU, {"kind": "xid", "xid": 79})
        self.check(
            f"{DEVICES - REPLICAS} devices are left",
            lambda node: node.allocatable(RESOURCE) == DEVICES - REPLICAS,
        )
        lists = self.facts.lists_since(moment_s)
        took_ms = (lists[0] - moment_s) * 1e3 if lists else float("nan")
        self.note(len(lists) == 1, f"one list update, {took_ms:.0f} ms after the fault")
        status = self.stage.kubelet.run_pod(simple_pod("newcomer", {RESOURCE: 1}))
        self.note(status.phase is Phase.RUNNING, "a new pod still runs, on a healthy GPU")
        self.view.height()
        self.pause(5)

    def recover_gpu(self) -> None:
        self.view.chapter(
            f"6. GPU {FAULTY_GPU} is reset",
            "It answers again. After a quiet period without faults (3 s here) it is used again.",
        )
        self.stage.inject(FAULTY_GPU, {"kind": "recover"})
        self.check("all devices are back", lambda node: node.allocatable(RESOURCE) == DEVICES)
        self.pause(3)

    def restart_kubelet(self) -> None:
        self.view.chapter(
            "7. The kubelet restarts",
            "It finds the plugin again by itself. Pods keep running, and keep their devices.",
        )
        held = _held(self.stage.kubelet.view())
        self.stage.kubelet.restart()
        self.check(
            "all devices are back, the plugin was not restarted",
            lambda node: node.allocatable(RESOURCE) == DEVICES,
        )
        self.note(_held(self.stage.kubelet.view()) == held, "every pod has its device still")
        self.pause(4)

    def stop(self) -> None:
        self.view.chapter("8. The plugin is stopped", "SIGTERM: it drains and removes its socket.")
        status = self.stage.stop_plugin()
        self.note(status == 0, f"exit status {status}")
        self.check("no device is allocatable", lambda node: node.allocatable(RESOURCE) == 0)
        leftovers = list((self.stage.dir / "plugins_registry").rglob("*.sock"))
        self.note(not leftovers, "no socket is left behind")
        self.pause(2)

    def _updates(self) -> int:
        return self.stage.kubelet.view().list_updates.get(RESOURCE, 0)


def _running(node: NodeView) -> int:
    return sum(view.status.phase is Phase.RUNNING for view in node.pods.values())


def _held(node: NodeView) -> list[tuple[str, str]]:
    return sorted(
        (uuid_of(device_id), device_id)
        for view in node.pods.values()
        for grant in view.status.grants
        for device_id in grant.device_ids
    )
