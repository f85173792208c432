"""Checks of the configuration: can it be used, what would it advertise, would the list fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.config.plans import inventory_plan
from gpuplugin.core.inventory import InventoryError, plan_devices
from gpuplugin.doctor.verdict import Verdict, fail, found, skipped, warn
from gpuplugin.kubelet.snapshot import ListTooLarge, check_list_size

if TYPE_CHECKING:
    from gpuplugin.core.inventory import Planned
    from gpuplugin.doctor.facts import Facts


def configuration(facts: Facts) -> Verdict:
    """The configuration can be read and is valid."""
    config = facts.config
    problems = [
        fail(
            problem,
            config.source,
            "Correct it; 'gpuplugin config check FILE' looks at a file by itself",
        )
        for problem in config.problems
    ]
    problems += [
        warn(warning, config.source, "Correct or remove it: it has no effect")
        for warning in config.warnings
    ]
    problems += [
        warn(
            f"{path} is there, but the configuration is {config.source}",
            path,
            f"If it is meant for the plugin, say so: CONFIG_FILE={path} (--config-file); a "
            "ConfigMap that is only mounted has no effect",
        )
        for path in config.unread
    ]
    return found(problems, f"{config.source} is valid")


def advertised(facts: Facts) -> Verdict:
    """What would be advertised; if nothing, why."""
    where = facts.config.source
    if facts.hardware.failure is not None or not facts.gpus:
        return skipped("no GPU is listed: see driver-answers")
    try:
        planned = _planned(facts)
    except InventoryError as error:
        return found([fail(f"nothing is advertised: {error}", where, "Change one of the two")], "")
    if not planned.resources:
        notes = "; ".join(planned.notes) or "no GPU is left"
        return found(
            [
                fail(
                    f"nothing is advertised: {notes}",
                    where,
                    "Look at gpus.include and gpus.exclude, at the MIG strategy and the GPUs' "
                    "MIG mode ('nvidia-smi -L')",
                )
            ],
            "",
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
    """Every device list fits into a message that the kubelet takes."""
    try:
        planned = _planned(facts)
    except InventoryError:
        return skipped("nothing is advertised")
    if not planned.resources:
        return skipped("nothing is advertised")
    problems = []
    for name, devices in planned.resources.items():
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


def _planned(facts: Facts) -> Planned:
    """Which devices are advertised.

    Raises:
        InventoryError: the GPUs cannot be advertised so.
    """
    return plan_devices(facts.gpus, inventory_plan(facts.settings))


def shared(facts: Facts) -> frozenset[str]:
    """UUIDs of the GPUs that are shared by replicas (of their MIG devices, too)."""
    try:
        planned = _planned(facts)
    except InventoryError:
        return frozenset()
    return frozenset(
        device.gpu_uuid
        for devices in planned.resources.values()
        for device, replicas in devices
        if replicas > 1
    )


def resources(facts: Facts) -> frozenset[str]:
    """Names of the resources that would be advertised."""
    try:
        return frozenset(_planned(facts).resources)
    except InventoryError:
        return frozenset()
