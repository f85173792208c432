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


class _Story:
    def __init__(self, stage: Stage, view: View, facts: Facts, pace: float) -> None:
        self._stage = stage
        self._view = view
        self._facts = facts
        self._pace = pace

    def register(self) -> None:
        self._view.chapter(
            "1. A node comes up",
            "Eight simulated H100, each shared by ten. The kubelet finds the plugin's socket.",
        )
        try:
            self._stage.kubelet.wait_until(
                lambda node: node.allocatable(RESOURCE) == DEVICES, PATIENCE_S
            )
        except TimeoutError as error:
            raise StageError(f"{error}; the plugin says: {self._stage.plugin_words()}") from error
        self._note(True, f"{DEVICES} devices of {RESOURCE} are allocatable")
        self._pause(4)

    def run_pods(self) -> None:
        self._view.chapter(
            "2. Ten pods, one replica each",
            "For each pod the kubelet asks which replica to take, then allocates it.",
        )
        for number in range(1, 11):
            self._stage.kubelet.run_pod(simple_pod(f"worker-{number}", {RESOURCE: 1}))
            self._pause(0.25)
        self._check("ten pods run", lambda node: _running(node) == 10)
        gpus = {uuid for uuid, _ in _held(self._stage.kubelet.view())}
        self._note(len(gpus) == 8, f"they are spread over {len(gpus)} GPUs")
        self._pause(3)

    def refuse_two(self) -> None:
        self._view.chapter(
            "3. One pod asks for two",
            "Two replicas of a GPU are no more than one: the configuration refuses such a pod.",
        )
        status = self._stage.kubelet.run_pod(simple_pod("greedy", {RESOURCE: 2}))
        refused = status.phase is Phase.FAILED and REFUSAL in status.message
        self._note(refused, f"pod greedy is {status.phase.value}: {status.reason}")
        self._note(refused, f"the reason given: {REFUSAL}")
        self._pause(5)

    def application_error(self) -> None:
        self._view.chapter(
            f"4. Xid 31 on GPU {FAULTY_GPU}: an application's page fault",
            "A process went wrong, the GPU did not: counted, nothing else.",
        )
        before = self._updates()
        self._stage.inject(FAULTY_GPU, {"kind": "xid", "xid": 31})
        self._eventually(
            "the Xid is counted in /metrics",
            lambda: self._stage.metric("gpuplugin_xid_events_total", xid="31") == 1,
        )
        self._note(self._updates() == before, "no device changed")
        self._pause(3)

    def lose_gpu(self) -> None:
        self._view.chapter(
            f"5. Xid 79 on GPU {FAULTY_GPU}: it has fallen off the bus",
            "All ten replicas are reported Unhealthy, in one list. The other seven GPUs go on.",
        )
        moment_s = time.monotonic()
        self._stage.inject(FAULTY_GPU, {"kind": "xid", "xid": 79})
        self._check(
            f"{DEVICES - REPLICAS} devices are left",
            lambda node: node.allocatable(RESOURCE) == DEVICES - REPLICAS,
        )
        lists = self._facts.lists_since(moment_s)
        took_ms = (lists[0] - moment_s) * 1e3 if lists else float("nan")
        self._note(len(lists) == 1, f"one list update, {took_ms:.0f} ms after the fault")
        status = self._stage.kubelet.run_pod(simple_pod("newcomer", {RESOURCE: 1}))
        self._note(status.phase is Phase.RUNNING, "a new pod still runs, on a healthy GPU")
        self._view.height()
        self._pause(5)

    def recover_gpu(self) -> None:
        self._view.chapter(
            f"6. GPU {FAULTY_GPU} is reset",
            "It answers again. After a quiet period without faults (3 s here) it is used again.",
        )
        self._stage.inject(FAULTY_GPU, {"kind": "recover"})
        self._check("all devices are back", lambda node: node.allocatable(RESOURCE) == DEVICES)
        self._pause(3)

    def restart_kubelet(self) -> None:
        self._view.chapter(
            "7. The kubelet restarts",
            "It finds the plugin again by itself. Pods keep running, and keep their devices.",
        )
        held = _held(self._stage.kubelet.view())
        self._stage.kubelet.restart()
        self._check(
            "all devices are back, the plugin was not restarted",
            lambda node: node.allocatable(RESOURCE) == DEVICES,
        )
        self._note(_held(self._stage.kubelet.view()) == held, "every pod has its device still")
        self._pause(4)

    def stop(self) -> None:
        self._view.chapter("8. The plugin is stopped", "SIGTERM: it drains and removes its socket.")
        status = self._stage.stop_plugin()
        self._note(status == 0, f"exit status {status}")
        self._check("no device is allocatable", lambda node: node.allocatable(RESOURCE) == 0)
        leftovers = list((self._stage.dir / "plugins_registry").rglob("*.sock"))
        self._note(not leftovers, "no socket is left behind")
        self._pause(2)

    def _check(self, text: str, condition: Callable[[NodeView], bool]) -> None:
        try:
            self._stage.kubelet.wait_until(condition, PATIENCE_S)
        except TimeoutError as error:
            self._note(False, f"{text} ({error})")
        else:
            self._note(True, text)

    def _eventually(self, text: str, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not (passed := condition()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        self._note(passed, text)

    def _note(self, passed: bool, text: str) -> None:
        self._facts.check(passed, text)
        self._view.outcome(passed, text)

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds / self._pace)

    def _updates(self) -> int:
        return self._stage.kubelet.view().list_updates.get(RESOURCE, 0)


def _running(node: NodeView) -> int:
    return sum(view.status.phase is Phase.RUNNING for view in node.pods.values())


def _held(node: NodeView) -> list[tuple[str, str]]:
    return sorted(
        (uuid_of(device_id), device_id)
        for view in node.pods.values()
        for grant in view.status.grants
        for device_id in grant.device_ids
    )
