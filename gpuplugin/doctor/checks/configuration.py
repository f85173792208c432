"""Checks of the configuration: by itself, and together with the GPUs and their driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.config.plans import inventory_plan
from gpuplugin.core.gpulabels import NOT_WRITTEN
from gpuplugin.core.inventory import InventoryError, plan_devices
from gpuplugin.core.listsize import ListTooLarge, check_list_size
from gpuplugin.core.timeslices import NOT_SET
from gpuplugin.doctor.verdict import Verdict, fail, failed, found, skipped, warn, warned, well
from hal import ComputeMode, GpuState, RecoveryAction

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.core.inventory import Device
    from gpuplugin.doctor.facts import Facts
    from gpuplugin.doctor.verdict import Problem
    from hal import Gpu

_MIG_DRIVER, _IMEX_DRIVER = 450, 535
TIME_SLICES = "time-slices"
GPU_LABELS = "gpu-labels"
"""The component of the running plugin that sets them."""
_MPS_PROGRAMS = ("nvidia-cuda-mps-server", "nvidia-cuda-mps-control")


def configuration(facts: Facts) -> Verdict:
    """The configuration is valid, and every key and mounted file has an effect."""
    config = facts.config
    problems = [
        fail(problem, config.source, "Correct it; 'gpuplugin config check FILE' checks a file")
        for problem in config.problems
    ]
    problems += [
        warn(warning, config.source, "Correct or remove it: it has no effect")
        for warning in config.warnings
    ]
    problems += [
        warn(
            f"{path} exists, but the configuration is {config.source}",
            path,
            f"If it is meant for the plugin, set CONFIG_FILE={path} (--config-file); a "
            "ConfigMap that is only mounted has no effect",
        )
        for path in config.unread
    ]
    return found(problems, f"{config.source} is valid")


def advertised(facts: Facts) -> Verdict:
    """Which resources and devices are advertised; if none, why."""
    where = facts.config.source
    if facts.hardware.failure is not None or not facts.gpus:
        return skipped("no GPU is listed: see driver-answers")
    try:
        planned = plan_devices(facts.gpus, inventory_plan(facts.settings))
    except InventoryError as error:
        return failed(f"nothing is advertised: {error}", where, "Change one of the two")
    if not planned.resources:
        notes = "; ".join(planned.notes) or "no GPU is left"
        return failed(
            f"nothing is advertised: {notes}",
            where,
            "Check gpus.include and gpus.exclude, the MIG strategy and the GPUs' "
            "MIG mode ('nvidia-smi -L')",
        )
    problems = [
        warn(note, where, "Change it if it is not meant so: 'gpuplugin devices' shows the effect")
        for note in planned.notes
    ]
    amounts = ", ".join(
        f"{name}: {sum(replicas for _, replicas in devices)}"
        for name, devices in planned.resources.items()
    )
    return found(problems, amounts)


def list_size(facts: Facts) -> Verdict:
    """Every device list fits into 4 MiB."""
    planned = resources(facts)
    if not planned:
        return skipped("nothing is advertised")
    problems = []
    for name, devices in planned.items():
        try:
            check_list_size(name, devices)
        except ListTooLarge as error:
            problems.append(
                fail(
                    str(error),
                    facts.config.source,
                    f"Set replicas to {error.largest_replica_count} or less; the kubelet drops a "
                    "plugin with a longer list, and all its devices",
                )
            )
    return found(problems, "device lists fit into 4 MiB")


def resources(facts: Facts) -> Mapping[str, tuple[tuple[Device, int], ...]]:
    """Devices with their replicas by resource; none if the GPUs cannot be advertised so."""
    try:
        return plan_devices(facts.gpus, inventory_plan(facts.settings)).resources
    except InventoryError:
        return {}


def shared(facts: Facts) -> frozenset[str]:
    """UUIDs of the GPUs that are shared by replicas (of their MIG devices, too)."""
    return frozenset(
        device.gpu_uuid
        for devices in resources(facts).values()
        for device, replicas in devices
        if replicas > 1
    )


def taking_part(facts: Facts) -> list[Gpu]:
    """The GPUs that the configuration includes: nobody is given the others."""
    chosen = inventory_plan(facts.settings).gpu_filter
    return [gpu for gpu in facts.gpus if chosen.admits(gpu)]


def mig_strategy(facts: Facts) -> Verdict:
    """The strategy suits the GPUs' MIG modes."""
    gpus = [gpu for gpu in taking_part(facts) if gpu.state is GpuState.OK]
    if not gpus:
        return skipped("no GPU is listed")
    strategy, where = facts.settings.flags.mig_strategy, facts.config.source
    enabled = [gpu for gpu in gpus if gpu.mig_enabled]
    problems: list[Problem] = []
    if strategy == "none":
        problems += [
            fail(
                f"GPU {gpu.index} is in MIG mode and advertised as a whole: no process can use it",
                where,
                "Set MIG_STRATEGY=single or mixed, or turn MIG off ('nvidia-smi -mig 0 -i "
                f"{gpu.index}')",
            )
            for gpu in enabled
        ]
    elif not enabled:
        problems.append(
            warn(
                f"MIG strategy {strategy}, and no GPU is in MIG mode",
                where,
                "Turn MIG on ('nvidia-smi -mig 1', then create instances), or set it to none",
            )
        )
    elif strategy == "single" and len(enabled) < len(gpus):
        problems.append(
            fail(
                "MIG strategy single, and only some GPUs are in MIG mode: nothing is advertised",
                where,
                "Use the strategy mixed, or put all GPUs into the same mode",
            )
        )
    if strategy != "none":
        problems += [
            warn(
                f"GPU {gpu.index} is in MIG mode without a MIG device",
                f"GPU {gpu.index} ({gpu.uuid})",
                "Create instances ('nvidia-smi mig -cgi PROFILE -C'); the plugin finds them itself",
            )
            for gpu in enabled
            if not gpu.mig_devices
        ]
    return found(problems, f"strategy {strategy}, {len(enabled)} of {len(gpus)} in MIG mode")


def compute_mode(facts: Facts) -> Verdict:
    """No GPU is in compute mode prohibited, no shared one in exclusive-process."""
    known = [gpu for gpu in taking_part(facts) if gpu.compute_mode is not None]
    if not known:
        return skipped("the driver reports no compute mode")
    sharing = shared(facts)
    problems: list[Problem] = []
    for gpu in known:
        where = f"GPU {gpu.index} ({gpu.uuid})"
        do = f"'nvidia-smi -c DEFAULT -i {gpu.index}'"
        if gpu.compute_mode is ComputeMode.PROHIBITED:
            problems.append(
                fail(f"GPU {gpu.index} is in compute mode prohibited: no pod can use it", where, do)
            )
        elif gpu.compute_mode is ComputeMode.EXCLUSIVE_PROCESS and gpu.uuid in sharing:
            problems.append(
                fail(
                    f"GPU {gpu.index} is shared and in compute mode exclusive-process: one pod "
                    "gets it, the others fail in CUDA",
                    where,
                    f"{do}, or do not share it. (An MPS daemon sets this mode, and puts it back "
                    "when it ends.)",
                )
            )
    return found(problems, "open to several processes")


def time_slicing_with_mps(facts: Facts) -> Verdict:
    """No MPS daemon runs where GPUs share time."""
    sharing = shared(facts)
    programs = set(facts.driver.mps_processes)
    programs |= {
        name.rpartition("/")[2]
        for one in facts.hardware.gpus
        for name in one.processes
        if name.rpartition("/")[2] in _MPS_PROGRAMS and one.gpu.uuid in sharing
    }
    if not sharing:
        return skipped("no GPU is shared")
    problems = [
        warn(
            f"GPUs share time, and {program} runs: what goes through it shares by MPS, with "
            "one fault domain",
            "processes",
            "Use one of the two: stop the MPS daemon ('echo quit | nvidia-cuda-mps-control'), or "
            "do not share these GPUs here",
        )
        for program in sorted(programs)
    ]
    return found(problems, "no MPS daemon")


def driver_age(facts: Facts) -> Verdict:
    """The driver is new enough for the enabled features."""
    version = facts.hardware.driver_version
    major_text = version.partition(".")[0]
    if not major_text.isdecimal():
        return skipped("the driver's version is not known")
    major = int(major_text)
    wanted = [
        (_MIG_DRIVER, "MIG", facts.settings.flags.mig_strategy != "none"),
        (_IMEX_DRIVER, "IMEX channels", bool(facts.settings.imex.channel_ids)),
    ]
    problems = [
        fail(
            f"driver {version} is too old for {feature}, which needs {least} or newer",
            facts.config.source,
            "Update the driver, or switch the feature off",
        )
        for least, feature, on in wanted
        if on and major < least
    ]
    answers = {one.probe.recovery_action for one in facts.hardware.gpus if one.probe}
    silent = answers == {RecoveryAction.UNKNOWN}
    note = "; it reports no recovery action, so faults are judged by Xid alone" if silent else ""
    return found(problems, f"driver {version}{note}")


def sharing_promises(facts: Facts) -> Verdict:
    """Requests for several replicas are refused, and the policy does not need them."""
    plugin = facts.settings.flags.plugin
    section = facts.settings.sharing.time_slicing
    if section is None or not shared(facts):
        return skipped("no GPU is shared")
    problems: list[Problem] = []
    if not section.fail_requests_greater_than_one:
        problems.append(
            warn(
                "a container may request several replicas and get no larger share of a GPU",
                facts.config.source,
                "Set sharing.timeSlicing.failRequestsGreaterThanOne: true",
            )
        )
    if (
        section.fail_requests_greater_than_one
        and "spread" in plugin.shared_devices_allocation_policy
    ):
        problems.append(
            warn(
                "policy spread is for requests of several replicas, which are refused",
                facts.config.source,
                "Set failRequestsGreaterThanOne: false, or another allocation policy",
            )
        )
    return found(problems, "requests for more than one replica are refused")


def time_slices(facts: Facts) -> Verdict:
    """Time slices have the length that the configuration, or a claim, wants for them."""
    section = facts.settings.sharing.time_slicing
    part = facts.plugin.part(TIME_SLICES)
    if part is None:
        if section is None or section.interval is None:
            return skipped("no length is configured")
        return skipped(f"{section.interval} is configured; no running plugin tells what is set")
    if NOT_SET not in part.text:
        return well(part.text)
    return warned(
        f"time slices have not the length that is wanted: {part.text}",
        facts.plugin.source,
        "The driver's nvidia-smi sets it, with CAP_SYS_ADMIN, on GPUs from Turing to Blackwell "
        "without MIG: add the component set-time-slices (setTimeSlices.enabled of the chart), or "
        "remove sharing.timeSlicing.interval",
    )


def node_labels(facts: Facts) -> Verdict:
    """The running plugin has written the node's labels, if it is to."""
    part = facts.plugin.part(GPU_LABELS)
    if part is None:
        return skipped("no running plugin writes labels")
    if NOT_WRITTEN not in part.text:
        return well(part.text)
    return warned(
        part.text,
        facts.plugin.source,
        "Grant what is missing: component node-labels or node-labels-nfd (nodeLabels of the "
        "chart), docs/node-labels.md",
    )
