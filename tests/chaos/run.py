"""One run: faults are injected into the world and its model, which are compared after each."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.oracle import GpuModel, Oracle, Trouble, Verdict
from tests.chaos.world import GPUS, World
from tests.component.running import RESOURCE
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.kubelet import NodeView

REPLICAS = 4
STEPS_IN_TROUBLE = 3
"""A driver that nobody mended for so long is mended: nothing much happens while it is broken."""
MOST_REPLACEMENTS = 2
HICCUP_S = 0.6
OVERHEATED_FOR_S = 0.1


class Run:
    """A node with all that belongs to it, from its start until `end`.

    The plugin has the simulated backend, or the one for NVML over this library.
    """

    def __init__(self, registration: str, library: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gp"))
        self.world = World(self.folder, registration, REPLICAS, library)
        hardware = self.world.hardware
        self.oracle = Oracle(
            {uuid: GpuModel() for uuid in hardware.uuids},
            REPLICAS,
            # Whoever lists GPUs by NVML asks each of them: one that hangs holds up the list.
        )
        self._trouble_steps = 0
        self._mark = 0
        self.world.start()
        self.check()

    # Happenings

    def let_rounds_pass(self, rounds: int) -> None:
        """Nothing happens until GPUs that can be probed were probed some more times."""
        if self.oracle.blind or not self.oracle.plugin_up:
            return
        present = [self.oracle.gpus[uuid] for uuid in self.world.hardware.uuids]
        answering = [index for index, gpu in enumerate(present) if not gpu.hung]
        self.world.wait_for_probes(answering, rounds)
        for index in answering:
            present[index].reset_unseen = False

    def inject(self, index: int, kind: str) -> None:
        """Inject a fault into one GPU; what does not apply to it as it is is left out."""
        hardware, oracle = self.world.hardware, self.oracle
        uuid = hardware.uuids[index]
        if oracle.gpus[uuid].unplugged and kind != "replace":
            return
        kind, _, detail = kind.partition("-")
        match kind:
            case "xid":
                oracle.xid(uuid, int(detail))
                hardware.xid(index, int(detail))
            case "ecc":
                uncorrectable = detail == "uncorrectable"
                oracle.ecc(uuid, uncorrectable=uncorrectable)
                hardware.ecc(index, uncorrectable=uncorrectable)
            case "hiccup" if not oracle.gpus[uuid].hung:
                oracle.hiccup(uuid)
                self.world.hiccup(index, HICCUP_S)
                self.let_rounds_pass(0)
            case "replace" if len(oracle.gpus) < GPUS + MOST_REPLACEMENTS:
                oracle.replace(uuid, hardware.replace(index))
            case _:
                self._inject_simply(index, uuid, kind)

    def _inject_simply(self, index: int, uuid: str, kind: str) -> None:
        """What needs no detail."""
        hardware, oracle = self.world.hardware, self.oracle
        match kind:
            case "lost":
                oracle.lose(uuid)
                hardware.lose(index)
            case "hang":
                oracle.hang(uuid)
                hardware.hang(index)
            case "thermal":
                oracle.overheat(uuid)
                hardware.thermal_shutdown(index, OVERHEATED_FOR_S)
            case "row":
                oracle.fail_remap(uuid)
                hardware.row_remap(index, failed=True)
            case "unplug":
                oracle.unplug(uuid)
                hardware.unplug(index)

    def all_report(self, code: int) -> None:
        """The same Xid on every GPU."""
        for index in range(GPUS):
            self.inject(index, f"xid-{code}")

    def storm(self, reports: Sequence[tuple[int, int]]) -> None:
        """Many Xids at once."""
        with self.world.hardware.node.update():  # held still: they come together
            for index, code in reports:
                self.inject(index, f"xid-{code}")

    def mend(self, index: int) -> None:
        """A reset, or a GPU put back."""
        uuid = self.world.hardware.uuids[index]
        unplugged = self.oracle.gpus[uuid].unplugged
        self.oracle.recover(uuid)
        self._permit()
        if unplugged:
            self.world.hardware.plug(index)
        else:
            self.world.hardware.recover(index)

    def mend_all(self) -> None:
        """Every GPU; one that was put back is reset as well."""
        for index in range(GPUS):
            self.mend(index)
            self.mend(index)

    def break_driver(self, trouble: Trouble) -> None:
        """The driver fails in one way; it fails in one way at a time."""
        if self.oracle.trouble is not None:
            return
        self.oracle.break_driver(trouble)
        self._permit()
        self._trouble_steps = 0
        hardware = self.world.hardware
        match trouble:
            case Trouble.DOWN:
                hardware.driver_down()
            case Trouble.HANG:
                hardware.driver_hang()
            case Trouble.DEAF:
                hardware.break_watching()
        self.world.wait_for_blindness()

    def mend_driver(self) -> None:
        """Whatever is wrong with the driver is over."""
        trouble = self.oracle.trouble
        self.oracle.mend_driver()
        self._permit()
        match trouble:
            case Trouble.DOWN | Trouble.HANG:
                self.world.hardware.driver_up()
            case Trouble.DEAF:
                self.world.hardware.mend_watching()

    def kubelet_restarts(self) -> None:
        """A quick restart."""
        self.world.restart_kubelet()

    def kubelet_is_away(self, inside: Sequence[tuple[int, str]]) -> None:
        """The kubelet stays away for a while, in which things happen."""
        self.oracle.kubelet_up = False
        self.world.stop_kubelet()
        for index, kind in inside:
            self.inject(index, kind)
        self._permit()
        self.world.kubelet.start()
        self.oracle.kubelet_up = True

    def plugin_restarts(self, inside: Sequence[tuple[int, str]]) -> None:
        """The plugin ends, things happen, and another one starts."""
        self.world.stop_plugin()
        self.world.kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 0, DEADLINE_S)
        self.oracle.plugin_stopped()
        for index, kind in inside:
            self.inject(index, kind)
        self.oracle.plugin_up = True
        self._permit()
        self.world.start_plugin()

    def reload(self, replicas: int) -> None:
        """Another number of replicas."""
        self.oracle.replicas = replicas
        self.world.write_replicas(replicas)
        self.world.plugin.reload()

    def clear(self) -> None:
        """A person clears all faults; in vain where the hardware shows one.

        A person is slow: what the hardware shows was seen by a probe since.
        """
        self.let_rounds_pass(0)
        self.oracle.clear()
        self._permit()
        self.world.clear_health()

    # Checks

    def before_step(self) -> None:
        """A driver is not left broken for ever."""
        if self.oracle.trouble is not None:
            self._trouble_steps += 1
            if self._trouble_steps > STEPS_IN_TROUBLE:
                self.mend_driver()
                self.check()
        self._mark = self.world.kubelet.lists

    def check(self) -> None:
        """Wait until the kubelet knows what it must; then see that calls for good GPUs work."""
        kubelet = self.world.kubelet
        try:
            kubelet.wait_until(self._as_it_must_be, DEADLINE_S)
        except TimeoutError as error:
            raise AssertionError(f"{error}; {self._difference(kubelet.view())}") from None
        self.oracle.settled()
        if not self.oracle.blind:
            self.world.wait_for_deliveries()
        if any(gpu.reset_unseen for gpu in self.oracle.gpus.values()):
            self.let_rounds_pass(0)
        kubelet.forbidden = self.oracle.uuids(Verdict.SICK)
        assert not kubelet.violations, kubelet.violations
        well = [f"{uuid}::0" for uuid in self.oracle.uuids(Verdict.WELL)]
        if well:
            self.world.call_for(well)
        assert self.world.plugin.failure is None

    def run_pod(self) -> None:
        """A pod for which there is room runs, on a GPU that is not sick."""
        if not self.world.has_room(self.world.kubelet.view()):
            return

        def ran() -> str | None:
            if not self.world.has_room(self.world.kubelet.view()):
                return None
            return self.world.run_pod()

        gpu = eventually(ran)
        assert self.oracle.verdict(gpu) is not Verdict.SICK

    def delete_pod(self, number: int) -> None:
        """A pod ends."""
        if self.world.pods:
            self.world.delete_pod(number)

    def end(self, *, failed: bool) -> None:
        """Mend everything, see that all is as at the start, and stop."""
        try:
            if not failed:
                self._all_is_well_again()
        finally:
            self.world.stop()
            shutil.rmtree(self.folder, ignore_errors=True)
        if not failed:
            assert self.world.renewals <= 2 * self.world.disturbances

    def _all_is_well_again(self) -> None:
        self.before_step()
        self.mend_driver()
        self.mend_all()
        self.check()
        present = set(self.world.hardware.uuids)
        assert self.oracle.uuids(Verdict.WELL) == present
        plugin = self.world.plugin
        eventually(lambda: plugin.ready)
        assert plugin.get("/health").status == 200
        assert plugin.metric("gpuplugin_monitor_blind") == 0
        for name in list(self.world.pods):
            self.world.kubelet.delete_pod(name)
            self.world.pods.remove(name)
        self.run_pod()

    def _permit(self) -> None:
        """What the last fault ended may be Healthy from now on."""
        kubelet = self.world.kubelet
        kubelet.forbidden &= self.oracle.uuids(Verdict.SICK)

    def _as_it_must_be(self, node: NodeView) -> bool:
        return not self._difference(node)

    def _difference(self, node: NodeView) -> str:
        """What is not as it must be, in words; "" if nothing."""
        oracle = self.oracle
        devices = node.devices.get(RESOURCE, {})
        expected = {f"{uuid}::{n}" for uuid in oracle.gpus for n in range(oracle.replicas)}
        if oracle.plugin_up and not oracle.blind and set(devices) != expected:
            return f"{len(devices)} devices are listed and not {len(expected)}"
        if len(devices) < oracle.known * oracle.replicas:
            return f"{len(devices)} devices are left of {oracle.known * oracle.replicas}"
        unseen = oracle.passing - self.world.kubelet.sick_since(self._mark)
        if unseen:
            return f"{sorted(unseen)} were never Unhealthy"
        for uuid in oracle.gpus:
            health = {ok for one, ok in devices.items() if one.startswith(uuid)}
            verdict = oracle.verdict(uuid)
            if health - {verdict is Verdict.WELL} and verdict is not Verdict.EITHER:
                return f"{uuid} is not all {verdict.value}: {oracle.gpus[uuid]}"
            if len(health) > 1:
                return f"replicas of {uuid} differ"
        return ""
