"""Checks of settings that are sound by themselves and do harm together."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gpuplugin.doctor.checks.configuration import resources, shared
from gpuplugin.doctor.verdict import Verdict, fail, found, skipped, warn
from hal import ComputeMode, GpuState, RecoveryAction

if TYPE_CHECKING:
    from gpuplugin.doctor.facts import Facts
    from gpuplugin.doctor.verdict import Problem

_NVIDIAS_SOCKET = re.compile(r"nvidia-(?P<name>[a-z0-9.-]+?)(?:\.sock)")
_MIG_DRIVER, _IMEX_DRIVER = 450, 535
_MPS_PROGRAMS = ("nvidia-cuda-mps-server", "nvidia-cuda-mps-control")


def mig_strategy(facts: Facts) -> Verdict:
    """The MIG strategy suits the MIG modes of the GPUs."""
    gpus = [gpu for gpu in facts.gpus if gpu.state is GpuState.OK]
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
    """No GPU is closed to the processes that are to share it."""
    known = [gpu for gpu in facts.gpus if gpu.compute_mode is not None]
    if not known:
        return skipped("the driver tells no compute mode")
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
    """Nobody runs MPS on GPUs that share time."""
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


def one_plugin_per_resource(facts: Facts) -> Verdict:
    """No other plugin serves a resource that this one serves."""
    names = resources(facts)
    problems: list[Problem] = []
    for socket in facts.kubelet.others:
        name = socket.path.rpartition("/")[2]
        match = _NVIDIAS_SOCKET.fullmatch(name)
        if match is None or not socket.live:
            continue
        resource = f"nvidia.com/{match['name']}"
        if resource in names or not names:
            problems.append(
                fail(
                    f"another plugin serves {resource}: the kubelet listens to one only, and drops "
                    "the resource when the other leaves",
                    socket.path,
                    "Remove NVIDIA's device plugin (its DaemonSet, or devicePlugin.enabled=false "
                    "in the GPU operator), or give one of the two another resource name",
                )
            )
    live = [one.path for one in facts.kubelet.own_sockets if one.live]
    counts: dict[str, int] = {}
    for path in live:
        stem = path.rpartition("/")[2].rpartition("-")[0]
        counts[stem] = counts.get(stem, 0) + 1
    problems += [
        warn(
            f"{count} sockets {stem}-* are in use: two of this plugin serve one resource",
            facts.kubelet.root,
            "Right while a pod is being replaced. Else remove one DaemonSet, and keep maxSurge: 0",
        )
        for stem, count in sorted(counts.items())
        if count > 1
    ]
    return found(problems, "no other plugin serves these resources")


def driver_age(facts: Facts) -> Verdict:
    """The driver is new enough for what is switched on."""
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
    note = "; it tells no recovery action, so faults are judged by Xid alone" if silent else ""
    return found(problems, f"driver {version}{note}")


def sharing_promises(facts: Facts) -> Verdict:
    """Nothing is promised that time slices do not keep."""
    plugin = facts.settings.flags.plugin
    section = facts.settings.sharing.time_slicing
    if section is None or not shared(facts):
        return skipped("no GPU is shared")
    problems: list[Problem] = []
    if not section.fail_requests_greater_than_one:
        problems.append(
            warn(
                "a container may ask for several replicas and get no more of a GPU for it",
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
