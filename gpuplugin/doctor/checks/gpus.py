"""Checks of the GPUs themselves: which are unhealthy, and what to do about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.core.faults import RESET_OR_REBOOT
from gpuplugin.doctor.checks.configuration import taking_part
from gpuplugin.doctor.verdict import Verdict, fail, failed, found, skipped, warn, well
from hal import GpuState, RecoveryAction, XidAction

if TYPE_CHECKING:
    from gpuplugin.doctor.facts import Facts, GpuFacts, UnitFact
    from gpuplugin.doctor.verdict import Problem

_RESET = (
    "Drain the GPU's pods, then 'nvidia-smi --gpu-reset -i {}' (with NVLink: all GPUs of the "
    "node), or reboot"
)
_REBOOT = "Drain the node and reboot it; if it comes again, see the GPU's seat, power and cooling"
_SUPPORT = "Keep 'nvidia-bug-report.sh', drain the GPU, and ask the vendor; it may need replacing"

CURES: dict[str, str] = {
    "reset": _RESET,
    "reboot": _REBOOT,
    "drain-p2p": "Let no new pod use peer-to-peer (NVLink), and reset when the running ones ended",
    "drain-and-reset": _RESET,
    "other": _SUPPORT,
    "reset-or-reboot": _RESET,
    "check-permissions": "Check the rights of /dev/nvidia* and the devices that the plugin's "
    "container may use ('systemctl daemon-reload' can take them away)",
    "set-gpu-ready-state": "Attest the GPUs, then 'nvidia-smi conf-compute -srs 1'",
    "check-power": "Attach the GPU's power cables",
    "check-cooling": "Stop its load now, and see the fans and the airflow",
    "check-interrupts": "See 'dmesg' for irq, and the firmware's settings for MSI",
    "check-host-memory": "See 'dmesg' for the OOM killer: the node has too little memory left",
    "check-fabric-manager": "Start the fabric manager, and see its log ('journalctl -u "
    "nvidia-fabricmanager')",
    XidAction.RESET_GPU.value: _RESET,
    XidAction.ECC_WORKFLOW.value: _RESET,
    XidAction.NVLINK_WORKFLOW.value: "Check both ends of the link ('nvidia-smi nvlink -e') and "
    "the fabric manager's log; reset all GPUs of the node",
    XidAction.REBOOT_NODE.value: _REBOOT,
    XidAction.RESTART_VM.value: "Restart the virtual machine",
    XidAction.CHECK_MECHANICALS.value: "See the GPU's seat, power cables and cooling",
    XidAction.UPDATE_SOFTWARE.value: "Update the driver and the GPU's firmware",
    XidAction.CHECK_UVM.value: _RESET,
    XidAction.CONTACT_SUPPORT.value: _SUPPORT,
}


def gpu_health(facts: Facts) -> Verdict:
    """No GPU is lost, too hot, or needs a recovery action (Xid, row remap, ECC)."""
    chosen = taking_part(facts)
    gpus = [one for one in facts.hardware.gpus if one.gpu in chosen]
    left_out = [one.gpu for one in facts.hardware.gpus if one.gpu not in chosen]
    problems = [problem for one in gpus for problem in _by_driver(one)]
    known = {one.gpu.uuid for one in gpus if _by_driver(one)}
    known |= {gpu.uuid for gpu in left_out}
    known |= {mig.uuid for gpu in left_out for mig in gpu.mig_devices}
    problems += [
        _by_plugin(unit, facts.plugin.source)
        for unit in facts.plugin.units
        if unit.state != "Healthy" and unit.uuid not in known
    ]
    if not gpus and not facts.plugin.units:
        return skipped("no GPU is listed")
    count = len(gpus)
    return found(problems, f"all {count} are well" if count != 1 else "it is well")


def gpu_values(facts: Facts) -> Verdict:
    """Every value of a GPU that its driver should know can be read."""
    if not facts.hardware.gpus:
        return skipped("no GPU is listed")
    problems = [
        warn(
            f"a value of GPU {one.gpu.index} is unknown: {failure}",
            f"GPU {one.gpu.index} ({one.gpu.uuid})",
            failure.remedy or "See 'dmesg | grep -i nvrm'",
        )
        for one in facts.hardware.gpus
        for failure in dict.fromkeys(
            (*one.gpu.unknown, *(one.probe.unknown if one.probe else ()), *one.unknown)
        )
    ]
    return found(problems, "all are known")


_FABRIC_MANAGER = (
    "Start the fabric manager and see its log ('journalctl -u nvidia-fabricmanager'); its version "
    "must be the driver's. In shared NVSwitch mode, where the host runs it, set "
    "health.fabricCheck: false"
)


def nvlink_fabric(facts: Facts) -> Verdict:
    """Each GPU in an NVLink fabric has completed its registration there."""
    known = [
        (one.gpu, one.probe)
        for one in facts.hardware.gpus
        if one.probe is not None and one.probe.fabric is not None
    ]
    if not known:
        return skipped("no GPU is in an NVLink fabric")
    tell = fail if facts.settings.health.fabric_check else warn
    problems = [
        tell(
            f"GPU {gpu.index} is not ready in the NVLink fabric ({probe.fabric_failure or state}): "
            "CUDA fails there with error 802",
            f"GPU {gpu.index} ({gpu.uuid})",
            _FABRIC_MANAGER,
        )
        for gpu, probe in known
        if not probe.in_fabric and (state := probe.fabric.value if probe.fabric else "")
    ]
    return found(problems, f"completed on {len(known)} GPUs")


def confidential_computing(facts: Facts) -> Verdict:
    """In confidential computing the GPUs accept work."""
    states = {
        one.probe.confidential_ready
        for one in facts.hardware.gpus
        if one.probe is not None and one.probe.confidential_ready is not None
    }
    if not states:
        return skipped("it is not in force")
    if states == {True}:
        return well("the GPUs accept work")
    return failed(
        "confidential computing is in force, and the GPUs accept no work yet",
        "NVML",
        "Attest the GPUs, then 'nvidia-smi conf-compute -srs 1'",
    )


def _by_driver(one: GpuFacts) -> list[Problem]:
    gpu, probe = one.gpu, one.probe
    where = f"GPU {gpu.index} ({gpu.uuid})"
    reset = _RESET.format(gpu.uuid)
    if gpu.state is GpuState.LOST or (probe is not None and not probe.reachable):
        failure = gpu.failure or (probe.failure if probe is not None else None)
        told = f" ({failure})" if failure is not None else ""
        if failure is not None and failure.action != RESET_OR_REBOOT:
            return [fail(f"GPU {gpu.index} cannot be read{told}", where, failure.remedy)]
        return [
            fail(
                f"GPU {gpu.index} is lost: it does not answer{told}",
                where,
                f"See 'dmesg | grep -i xid' (79: it fell off the bus). {_REBOOT}",
            )
        ]
    if probe is None:
        return [
            fail(
                f"GPU {gpu.index} cannot be read: {one.problem}",
                where,
                "See 'dmesg | grep -i nvrm'; a GPU that hangs often needs a reboot",
            )
        ]
    problems = []
    action = probe.recovery_action
    if action not in (RecoveryAction.NONE, RecoveryAction.UNKNOWN):
        cure = CURES.get(action.value, _SUPPORT).format(gpu.uuid)
        problems.append(
            fail(f"the driver requests an action for GPU {gpu.index}: {action.value}", where, cure)
        )
    if probe.row_remap_failed:
        problems.append(
            fail(
                f"GPU {gpu.index} could not remap a bad row of its memory",
                where,
                "Its memory is worn out: drain the GPU and have it replaced",
            )
        )
    if probe.row_remap_pending:
        problems.append(
            warn(f"GPU {gpu.index} has a bad row to remap, at its next reset", where, reset)
        )
    if probe.thermal_shutdown:
        problems.append(
            fail(
                f"GPU {gpu.index} is at its shutdown temperature",
                where,
                CURES["check-cooling"],
            )
        )
    if probe.uncorrectable_ecc and not problems:
        problems.append(
            warn(
                f"GPU {gpu.index} had {probe.uncorrectable_ecc} uncorrectable memory errors",
                where,
                f"Watch whether they grow ('nvidia-smi -q -d ECC'). {reset}",
            )
        )
    return problems


def _by_plugin(unit: UnitFact, source: str) -> Problem:
    what = f"GPU {unit.index} is {unit.state} for {unit.for_s:.0f} s: {unit.reason or 'no reason'}"
    if unit.state == "Recovering":
        return warn(what, source, "Wait: it is used again when its quiet period is over")
    # A MIG device cannot be reset, only its GPU.
    gpu = unit.index.partition(":")[0] if ":" in unit.index else unit.uuid
    cure = CURES.get(unit.action, "See 'dmesg | grep -i xid'").format(gpu)
    return fail(
        what, source, f"{cure}. If it is fixed already: 'gpuplugin health clear {unit.index}'"
    )
