"""Checks of the running plugin: is there one, is it ready, which configuration is in force."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.doctor.facts import SocketState
from gpuplugin.doctor.verdict import Verdict, fail, found, skipped, warn, well

if TYPE_CHECKING:
    from gpuplugin.doctor.facts import Facts

_LABELS = "feature.node.kubernetes.io/pci-{}_10de.present"


def plugin_runs(facts: Facts) -> Verdict:
    """A plugin runs on this node and answers."""
    plugin = facts.plugin
    if plugin.source:
        return well(f"it answers at {plugin.source}")
    if any(socket.live for socket in facts.kubelet.own_sockets):
        denied = plugin.control is not None and plugin.control.state is SocketState.DENIED
        do = "Run the doctor as root, or as the plugin's user" if denied else "See the plugin's log"
        return found(
            [warn("a plugin serves the kubelet, but cannot be asked", plugin.problem, do)], ""
        )
    if facts.kubelet.hidden:
        return skipped("no plugin answers, and the kubelet's folder is hidden: run it as root")
    classes = sorted({gpu.pci_class for gpu in facts.driver.pci or ()})
    if not classes:
        return found(
            [warn("no plugin runs on this node", plugin.problem, "Start 'gpuplugin run'")], ""
        )
    labels = " or ".join(_LABELS.format(one) for one in classes)
    return found(
        [
            fail(
                "the node has GPUs, and no plugin runs on it",
                plugin.problem,
                "If the DaemonSet counts 0 pods or leaves this node out, its affinity wants a "
                "label that the node does not have ('kubectl get node NAME --show-labels'). For "
                f"these GPUs Node Feature Discovery sets {labels}; charts that ask for "
                "pci-10de.present match it nowhere. Change the affinity, or label the node by "
                "hand: 'kubectl label node NAME nvidia.com/gpu.present=true'. Look at taints too",
            )
        ],
        "",
    )


def plugin_ready(facts: Facts) -> Verdict:
    """Every part of the running plugin works."""
    plugin = facts.plugin
    if not plugin.source:
        return skipped("no plugin answers")
    ill = [
        part
        for part in plugin.parts
        if not part.ok and part.name != "config" and not part.name.startswith("kubelet:")
    ]
    problems = [
        fail(
            f"{part.name}, for {part.for_s:.0f} s: {part.text}",
            plugin.source,
            "Mend it: the plugin tries again by itself and needs no restart",
        )
        for part in ill
    ]
    return found(problems, "all parts of the plugin work")


def configuration_in_force(facts: Facts) -> Verdict:
    """The running plugin has taken over the configuration."""
    part = facts.plugin.part("config")
    if part is None:
        return skipped("no plugin tells which configuration is in force")
    if part.ok:
        return well(part.text)
    return found(
        [
            fail(
                f"the plugin refused the changed configuration: {part.text}",
                facts.plugin.source,
                "Correct the file ('gpuplugin config check FILE'); the plugin takes it over by "
                "itself, and goes on with the last good one until then",
            )
        ],
        "",
    )


def registered(facts: Facts) -> Verdict:
    """What the kubelet's own notes say is registered, beside what is advertised."""
    notes, plugin = facts.kubelet.registered, facts.plugin
    if notes is None:
        return skipped("the kubelet's checkpoint cannot be read")
    served = {
        part.name.partition(":")[2]
        for part in plugin.parts
        if part.name.startswith("kubelet:") and part.ok
    }
    problems = [
        fail(
            f"the kubelet has no device of {resource}, which the plugin serves",
            f"{facts.kubelet.root}/device-plugins/kubelet_internal_checkpoint",
            "If pods fail, restart the plugin's pod: another plugin may have taken the resource "
            "along when it left",
        )
        for resource in sorted(served)
        if not notes.get(resource)
    ]
    known = ", ".join(f"{name}: {count}" for name, count in sorted(notes.items()) if count)
    return found(problems, f"the kubelet knows {known or 'no device'}")
