"""The demo with DRA: a node with an API server, and what becomes of shares, faults and restarts."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from typing import TYPE_CHECKING, Self

from gpuplugin.config.values import DEFAULT_DRIVER_NAME
from sim.apiserver import SLICES, ApiServer, Selection
from sim.cli.demo.stage import RESOURCE, Share, Stage, StageError
from sim.cli.demo.story import DEVICES, FAULTY_GPU, PATIENCE_S, REPLICAS, Teller
from sim.kubelet import Kubelet, Phase, simple_pod
from sim.scheduler.claims import create_class

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sim.cli.demo.stage import Facts
    from sim.cli.demo.story import View
    from sim.kubelet import NodeView

NODE = "demo"
BACK_S = 2.0
"""How long slices may be gone after the kubelet has deleted them."""


class ClaimStage(Stage):
    """The node with `--allocation dra`."""

    def __init__(self, facts: Facts) -> None:
        self.server = ApiServer([NODE])
        create_class(self.server.store, DEFAULT_DRIVER_NAME, RESOURCE)
        super().__init__(facts)

    def __enter__(self) -> Self:
        self.server.__enter__()
        self.server.kubeconfig(self.dir)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.server.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def available(self, node: NodeView) -> tuple[int, int]:
        healthy = sum(one.shares for one in node.offered if not one.taints)
        return healthy, sum(one.shares for one in node.offered)

    def shares(self, node: NodeView) -> Mapping[str, list[Share]]:
        holders: dict[str, list[int | None]] = {}
        for position, view in enumerate(node.pods.values()):
            for device in view.status.devices:
                holders.setdefault(device.uuid, []).append(position)
        found = {}
        for one in node.offered:
            mine = holders.get(one.uuid, [])
            free = [None] * (one.shares - len(mine))
            found[one.uuid] = [Share(holder, not one.taints) for holder in (*mine, *free)]
        return found

    def slices(self) -> int:
        return len(self.server.store.select(Selection(SLICES))[1])

    def slices_back_s(self, timeout_s: float) -> float | None:
        """Wait until slices are deleted and there again; how long there were none, in seconds."""
        store = self.server.store
        version, ends_s, gone_s = store.version, time.monotonic() + timeout_s, 0.0
        while (now_s := time.monotonic()) < ends_s:
            if not self.slices():
                gone_s = gone_s or now_s
            elif gone_s:
                return now_s - gone_s
            version = store.wait(version, 0.01)
        return None

    def _kubelet(self, facts: Facts) -> Kubelet:
        return Kubelet(self.dir, listener=facts.record, store=self.server.store, node=NODE)

    def _options(self) -> Sequence[str]:
        return (
            *("--allocation", "dra", "--node-name", NODE),
            *("--cdi-root", str(self.dir / "cdi")),
        )

    def _environment(self) -> dict[str, str]:
        return {"KUBECONFIG": str(self.dir / "kubeconfig"), "NO_PROXY": "127.0.0.1"}


def tell_of_claims(stage: ClaimStage, view: View, facts: Facts, pace: float) -> None:
    """Play all chapters; raises `StageError` if the driver does not register."""
    story = _Story(stage, view, facts, pace)
    for chapter in (
        story.publish,
        story.run_pods,
        story.one_too_many,
        story.application_error,
        story.lose_gpu,
        story.recover_gpu,
        story.restart_kubelet,
        story.stop,
    ):
        chapter()


class _Story(Teller):
    def __init__(self, stage: ClaimStage, view: View, facts: Facts, pace: float) -> None:
        super().__init__(stage, view, facts, pace)
        self._node = stage

    def publish(self) -> None:
        self.view.chapter(
            "1. A node comes up",
            "Eight simulated H100, each shared by ten: eight devices of a ResourceSlice.",
        )
        kubelet = self.stage.kubelet
        try:
            kubelet.wait_until(
                lambda node: node.drivers and self.stage.available(node) == (DEVICES, DEVICES),
                PATIENCE_S,
            )
        except TimeoutError as error:
            raise StageError(f"{error}; the plugin says: {self.stage.plugin_words()}") from error
        self.note(True, f"8 devices with {DEVICES} shares are published, the driver is registered")
        self.pause(4)

    def run_pods(self) -> None:
        self.view.chapter(
            "2. Eighty unmodified pods",
            f"Each asks for {RESOURCE}: 1. The scheduler makes a claim for it, the kubelet has the "
            "driver prepare it.",
        )
        for number in range(1, DEVICES + 1):
            self.stage.kubelet.create_pod(simple_pod(f"worker-{number}", {RESOURCE: 1}))
            self.pause(0.05)
        self.check("eighty pods run", lambda node: _running(node) == DEVICES)
        counts = set(_by_gpu(self.stage.kubelet.view()).values())
        self.note(counts == {REPLICAS}, "ten on each GPU")
        self.pause(3)

    def one_too_many(self) -> None:
        self.view.chapter("3. One pod more", "All shares are out: it has to wait.")
        status = self.stage.kubelet.run_pod(simple_pod("waiting", {RESOURCE: 1}))
        self.note(status.phase is Phase.PENDING, f"pod waiting is Pending: {status.reason}")
        self.pause(4)

    def application_error(self) -> None:
        self.view.chapter(
            f"4. Xid 31 on GPU {FAULTY_GPU}: an application's page fault",
            "A process went wrong, the GPU did not: counted, nothing else.",
        )
        self.stage.inject(FAULTY_GPU, {"kind": "xid", "xid": 31})
        self.eventually(
            "the Xid is counted in /metrics",
            lambda: self.stage.metric("gpuplugin_xid_events_total", xid="31") == 1,
        )
        node = self.stage.kubelet.view()
        self.note(not any(one.taints for one in node.offered), "no device has a taint")
        self.pause(3)

    def lose_gpu(self) -> None:
        self.view.chapter(
            f"5. Xid 79 on GPU {FAULTY_GPU}: it has fallen off the bus",
            "Its device gets a taint: no new pods. Those that run are left alone.",
        )
        self.stage.inject(FAULTY_GPU, {"kind": "xid", "xid": 79})
        self.check(
            "one device has a taint",
            lambda node: self.stage.available(node) == (DEVICES - REPLICAS, DEVICES),
        )
        self.note(_running(self.stage.kubelet.view()) == DEVICES, "all eighty pods still run")
        self._delete(self._worker_on(faulty=True))
        self.note(
            _phase(self.stage.kubelet.view(), "waiting") is Phase.PENDING,
            "a share of the faulted GPU is free: nobody gets it",
        )
        self._delete(self._worker_on(faulty=False))
        self.check(
            "a share of another GPU is free: the waiting pod runs",
            lambda node: _phase(node, "waiting") is Phase.RUNNING,
        )
        self.view.height()
        self.pause(5)

    def recover_gpu(self) -> None:
        self.view.chapter(
            f"6. GPU {FAULTY_GPU} is reset",
            "It answers again. After a quiet period without faults (3 s here) the taint goes.",
        )
        self.stage.inject(FAULTY_GPU, {"kind": "recover"})
        self.check(
            "no device has a taint", lambda node: self.stage.available(node) == (DEVICES, DEVICES)
        )
        status = self.stage.kubelet.run_pod(simple_pod("newcomer", {RESOURCE: 1}))
        self.note(status.phase is Phase.RUNNING, "a new pod gets the share that was free")
        self.pause(3)

    def restart_kubelet(self) -> None:
        self.view.chapter(
            "7. The kubelet restarts",
            "It deletes the ResourceSlices of its node. The driver puts them back.",
        )
        before = _by_gpu(self.stage.kubelet.view())
        self.stage.kubelet.restart()
        gone_s = self._node.slices_back_s(PATIENCE_S)
        self.note(
            gone_s is not None and gone_s < BACK_S,
            f"there were no slices for {(gone_s or 0) * 1e3:.0f} ms",
        )
        self.check("the driver is registered again", lambda node: bool(node.drivers))
        self.note(_by_gpu(self.stage.kubelet.view()) == before, "every pod has its share still")
        self.pause(4)

    def stop(self) -> None:
        self.view.chapter(
            "8. The plugin is stopped",
            "SIGTERM: it removes its sockets. Slices stay for its successor, pods keep running.",
        )
        status = self.stage.stop_plugin()
        self.note(status == 0, f"exit status {status}")
        self.check("no driver is registered", lambda node: not node.drivers)
        self.note(self._node.slices() > 0, "the slices are still there")
        leftovers = list(self.stage.dir.glob("plugin*/**/*.sock"))
        self.note(not leftovers, "no socket is left behind")
        self.pause(2)

    def _worker_on(self, *, faulty: bool) -> str:
        """A pod on the faulted GPU, or on another one."""
        indices = self.stage.gpu_indices
        return next(
            view.pod.name
            for view in self.stage.kubelet.view().pods.values()
            for uuid in view.status.uuids
            if (indices.get(uuid) == FAULTY_GPU) is faulty
        )

    def _delete(self, name: str) -> None:
        self.stage.kubelet.delete_pod(name)
        self.check(f"pod {name} ends", lambda node: _phase(node, name) is None)


def _running(node: NodeView) -> int:
    return sum(view.status.phase is Phase.RUNNING for view in node.pods.values())


def _phase(node: NodeView, name: str) -> Phase | None:
    view = node.pods.get(f"default/{name}")
    return view.status.phase if view is not None else None


def _by_gpu(node: NodeView) -> Counter[str]:
    return Counter(uuid for view in node.pods.values() for uuid in view.status.uuids)
