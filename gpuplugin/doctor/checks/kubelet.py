"""Checks of the kubelet's folder and sockets, and of the plugins that serve it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gpuplugin.config.loaded import CHANGE_REFUSED
from gpuplugin.doctor.checks.configuration import resources
from gpuplugin.doctor.facts import SocketState
from gpuplugin.doctor.verdict import Verdict, fail, failed, found, skipped, warn, warned, well

if TYPE_CHECKING:
    from gpuplugin.doctor.facts import Facts, FileFact
    from gpuplugin.doctor.verdict import Problem

_WRITE_AND_ENTER = 3
_NVIDIAS_SOCKET = re.compile(r"nvidia-(?P<name>[a-z0-9.-]+?)(?:\.sock)")
_HIDDEN = "the kubelet's folder cannot be read: run the doctor as root"


def kubelet_folder(facts: Facts) -> Verdict:
    """--kubelet-dir is the kubelet's folder (k0s, microk8s, others have their own)."""
    kubelet = facts.kubelet
    do = "Set GPUPLUGIN_KUBELET_DIR={0} (--kubelet-dir), and mount {0} into the plugin's container"
    if _connected(facts):
        return well(f"{kubelet.root}: the kubelet is connected to the plugin there")
    classic = facts.settings.daemon.way_of_registration == "classic"
    if kubelet.configured_root not in ("", kubelet.root) and not (classic or facts.simulated):
        return failed(
            f"the kubelet here uses {kubelet.configured_root}, the plugin {kubelet.root}",
            "the kubelet's --root-dir",
            do.format(kubelet.configured_root),
        )
    if kubelet.folder is None or not kubelet.folder.is_folder:
        other = next(iter(kubelet.elsewhere), "")
        hint = do.format(other) if other else "Start the kubelet, or name its folder: --kubelet-dir"
        seen = f"; there is a kubelet in {other}" if other else ""
        return failed(f"no kubelet folder at {kubelet.root}{seen}", kubelet.root, hint)
    if (
        kubelet.elsewhere
        and kubelet.configured_root != kubelet.root
        and kubelet.socket.state is SocketState.MISSING
        and not kubelet.hidden
    ):
        other = kubelet.elsewhere[0]
        return failed(
            f"no kubelet socket below {kubelet.root}, but there is one below {other}",
            kubelet.root,
            do.format(other),
        )
    return well(f"{kubelet.root} is there")


def _connected(facts: Facts) -> bool:
    """True if the kubelet has a stream open to each resource of the running plugin."""
    parts = [part for part in facts.plugin.parts if part.name.startswith("kubelet:")]
    return bool(parts) and all(part.ok for part in parts)


def kubelet_socket(facts: Facts) -> Verdict:
    """The kubelet answers at device-plugins/kubelet.sock."""
    kubelet = facts.kubelet
    socket = kubelet.socket
    classic = facts.settings.daemon.way_of_registration == "classic"
    if _connected(facts) and not classic and socket.state is not SocketState.ANSWERS:
        return skipped(f"{socket.path} {socket.state.value}, and the watcher needs none")
    start = "Start the kubelet ('systemctl status kubelet'), and see its log"
    match socket.state:
        case SocketState.ANSWERS:
            return well(f"{socket.path} answers")
        case SocketState.MISSING | SocketState.DENIED if kubelet.hidden:
            return skipped(_HIDDEN)
        case SocketState.MISSING if kubelet.device_plugins is None and not classic:
            return skipped(f"{socket.path} is not seen from here, and the watcher needs none")
        case SocketState.DENIED if not classic:
            return skipped(f"user {facts.plugin_uid} may not connect; the watcher has no need to")
        case SocketState.DENIED:
            return failed(
                f"user {facts.plugin_uid} may not connect to {socket.path}",
                socket.path,
                "Run the plugin as root, or use --registration watcher, which needs no access",
            )
        case SocketState.SILENT:
            return failed(
                f"{socket.path} takes connections and does not answer",
                socket.path,
                "The kubelet hangs: see its log, and restart it",
            )
        case SocketState.REFUSED:
            return failed(f"{socket.path} exists, but no process listens on it", socket.path, start)
        case _:
            return failed(f"{socket.path} {socket.state.value}", socket.path, start)


def plugin_folder(facts: Facts) -> Verdict:
    """The plugin's user may write in the folder of its sockets."""
    kubelet, uid = facts.kubelet, facts.plugin_uid
    way = facts.settings.daemon.way_of_registration
    if kubelet.folder is None:
        return skipped("there is no kubelet folder")
    if kubelet.hidden and (kubelet.own_folder is None or way == "classic"):
        return skipped(_HIDDEN)
    if way == "classic":
        return _writable(
            kubelet.device_plugins,
            f"{kubelet.root}/device-plugins",
            uid,
            "Run the plugin as root and mount the folder, or use --registration watcher",
        )
    registry = f"{kubelet.root}/plugins_registry"
    own = f"{registry}/gpuplugin"
    do = (
        "Let an init container hand it over, as in deploy/kustomize: 'chown 0:0 D && chmod 0750 D "
        f"&& chown {uid}:{uid} D' with D={own}"
    )
    if kubelet.own_folder is not None:
        return _writable(kubelet.own_folder, own, uid, do)
    if kubelet.registry is None:
        return failed(
            f"no {registry}",
            registry,
            "The kubelet makes it at its start: start it, or see whether its folder is "
            "another one (check kubelet-folder). In a container, mount it",
        )
    return _writable(kubelet.registry, registry, uid, do)


def _writable(folder: FileFact | None, path: str, uid: int, do: str) -> Verdict:
    if folder is None:
        return failed(f"no {path}", path, do)
    if not folder.is_folder:
        return failed(f"{path} is not a folder", path, f"Remove it. {do}")
    if not folder.permits(uid, _WRITE_AND_ENTER):
        owner = f"it is {folder.uid}:{folder.gid} with mode {folder.mode:04o}"
        return failed(f"user {uid} may not write in {path}: {owner}", path, do)
    return well(f"user {uid} may write in {path}")


def stale_sockets(facts: Facts) -> Verdict:
    """No socket is left of a plugin that no longer runs."""
    if facts.kubelet.hidden and not facts.kubelet.own_sockets:
        return skipped(_HIDDEN)
    dead = [one for one in facts.kubelet.own_sockets if one.state is SocketState.REFUSED]
    problems = [
        warn(
            f"{socket.path} was left by a plugin that no longer runs",
            socket.path,
            "Start the plugin, which removes it, or remove it by hand while no plugin runs: the "
            "kubelet backs off from a dead socket for up to two minutes",
        )
        for socket in dead
    ]
    live = sum(one.live for one in facts.kubelet.own_sockets)
    return found(problems, f"none; {live} in use")


def one_plugin_per_resource(facts: Facts) -> Verdict:
    """No other plugin serves the same resource."""
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


def kubelet_contact(facts: Facts) -> Verdict:
    """The kubelet is connected to each resource; if not, since when."""
    plugin = facts.plugin
    if not plugin.source:
        return skipped("no plugin answers")
    if facts.settings.daemon.way_of_registration == "none":
        return skipped("registration is switched off")
    parts = [part for part in plugin.parts if part.name.startswith("kubelet:")]
    if not parts:
        return failed(
            "the plugin serves no resource, so that no kubelet can know it",
            plugin.source,
            "See the checks plugin-ready and advertised",
        )
    problems: list[Problem] = []
    for part in parts:
        if part.ok:
            continue
        resource = part.name.partition(":")[2]
        last = "never" if part.ok_ago_s is None else f"{part.ok_ago_s:.0f} s ago"
        problems.append(
            fail(
                f"{resource}: no contact to the kubelet, last {last}: {part.text}",
                plugin.source,
                "See the checks kubelet-folder, kubelet-socket and plugin-folder, and the "
                "kubelet's log for the plugin's socket",
            )
        )
    shortest = min((part.for_s for part in parts if part.ok), default=0.0)
    return found(problems, f"the kubelet has listened for {shortest:.0f} s at least")


_LABELS = "feature.node.kubernetes.io/pci-{}_10de.present"


def plugin_runs(facts: Facts) -> Verdict:
    """A plugin runs; if not, which labels its DaemonSet may need."""
    plugin = facts.plugin
    if plugin.source.startswith("http"):
        folder = facts.kubelet.root
        return well(f"one answers at {plugin.source}; it may serve another folder than {folder}")
    if plugin.source:
        return well(f"it answers at {plugin.source}")
    if any(socket.live for socket in facts.kubelet.own_sockets):
        denied = plugin.control is not None and plugin.control.state is SocketState.DENIED
        do = "Run the doctor as root, or as the plugin's user" if denied else "See the plugin's log"
        return warned(
            "a plugin serves the kubelet, but does not report its status", plugin.problem, do
        )
    if facts.kubelet.hidden:
        return skipped("no plugin answers, and the kubelet's folder is hidden: run it as root")
    classes = sorted({gpu.pci_class for gpu in facts.driver.pci or ()})
    if not classes:
        return warned("no plugin runs on this node", plugin.problem, "Start 'gpuplugin run'")
    labels = " or ".join(_LABELS.format(one) for one in classes)
    return failed(
        "the node has GPUs, and no plugin runs on it",
        plugin.problem,
        "If the DaemonSet counts 0 pods or leaves this node out, its affinity wants a "
        "label that the node does not have ('kubectl get node NAME --show-labels'). For "
        f"these GPUs Node Feature Discovery sets {labels}; charts that ask for "
        "pci-10de.present match it nowhere. Change the affinity, or label the node by "
        "hand: 'kubectl label node NAME nvidia.com/gpu.present=true'. Check the node's taints too",
    )


def plugin_ready(facts: Facts) -> Verdict:
    """Every component of the running plugin is ok."""
    plugin = facts.plugin
    if not plugin.source:
        return skipped("no plugin answers")
    failing = [
        part
        for part in plugin.parts
        if not part.ok and part.name != "config" and not part.name.startswith("kubelet:")
    ]
    problems = [
        fail(
            f"{part.name}, for {part.for_s:.0f} s: {part.text}",
            plugin.source,
            "Fix it: the plugin tries again by itself and needs no restart",
        )
        for part in failing
    ]
    return found(problems, "all components of the plugin are ok")


def configuration_in_force(facts: Facts) -> Verdict:
    """The running plugin uses the current configuration."""
    part = facts.plugin.part("config")
    if part is None:
        return skipped("no plugin reports which configuration is in force")
    if part.ok and CHANGE_REFUSED not in part.text:
        return well(part.text)
    return failed(
        f"the plugin refused the changed configuration: {part.text}",
        facts.plugin.source,
        "Correct the file ('gpuplugin config check FILE'); the plugin takes it over by "
        "itself, and goes on with the last good one until then",
    )


def registered(facts: Facts) -> Verdict:
    """The kubelet's checkpoint has devices of each resource that is served."""
    notes, plugin = facts.kubelet.registered, facts.plugin
    if facts.dra:
        return skipped("with DRA the kubelet counts no devices")
    if notes is None:
        return skipped("the kubelet's checkpoint cannot be read")
    served = {
        part.name.partition(":")[2]
        for part in plugin.parts
        if part.name.startswith("kubelet:") and part.ok
    }
    # The checkpoint has healthy devices alone: a restart would lose the fault, and help nothing.
    unhealthy = {name for name, (_, healthy) in plugin.devices.items() if not healthy}
    if served and served <= unhealthy:
        names = ", ".join(sorted(served))
        return skipped(f"no device of {names} is Healthy: see gpu-health and plugin-ready")
    problems = [
        fail(
            f"the kubelet has no device of {resource}, which the plugin serves",
            f"{facts.kubelet.root}/device-plugins/kubelet_internal_checkpoint",
            "If pods fail, restart the plugin's pod: another plugin may have taken the resource "
            "along when it left",
        )
        for resource in sorted(served - unhealthy)
        if not notes.get(resource)
    ]
    known = ", ".join(f"{name}: {count}" for name, count in sorted(notes.items()) if count)
    return found(problems, f"the kubelet knows {known or 'no device'}")
