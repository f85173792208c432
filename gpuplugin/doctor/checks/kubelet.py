"""Checks of the kubelet's side: its folder, its socket, the plugin's folder, old sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.doctor.facts import SocketState
from gpuplugin.doctor.verdict import Verdict, fail, found, skipped, warn, well

if TYPE_CHECKING:
    from gpuplugin.doctor.facts import Facts, FileFact
    from gpuplugin.doctor.verdict import Problem

_WRITE_AND_ENTER = 3
_HIDDEN = "the kubelet's folder may not be looked into: run the doctor as root"


def kubelet_folder(facts: Facts) -> Verdict:
    """The folder is the one that the kubelet uses."""
    kubelet = facts.kubelet
    do = "Set GPUPLUGIN_KUBELET_DIR={0} (--kubelet-dir), and mount {0} into the plugin's container"
    if kubelet.told_root and kubelet.told_root != kubelet.root:
        return found(
            [
                fail(
                    f"the kubelet here uses {kubelet.told_root}, the plugin {kubelet.root}",
                    "the kubelet's --root-dir",
                    do.format(kubelet.told_root),
                )
            ],
            "",
        )
    if kubelet.folder is None or not kubelet.folder.is_folder:
        other = next(iter(kubelet.elsewhere), "")
        hint = do.format(other) if other else "Start the kubelet, or name its folder: --kubelet-dir"
        seen = f"; there is a kubelet in {other}" if other else ""
        return found(
            [fail(f"no kubelet folder at {kubelet.root}{seen}", kubelet.root, hint)],
            "",
        )
    if kubelet.elsewhere and kubelet.socket.state is SocketState.MISSING and not kubelet.hidden:
        other = kubelet.elsewhere[0]
        return found(
            [
                fail(
                    f"no kubelet socket below {kubelet.root}, but there is one below {other}",
                    kubelet.root,
                    do.format(other),
                )
            ],
            "",
        )
    return well(f"{kubelet.root} is there")


def kubelet_socket(facts: Facts) -> Verdict:
    """The kubelet's registration socket answers."""
    kubelet = facts.kubelet
    socket = kubelet.socket
    classic = facts.settings.daemon.way_of_registration == "classic"
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
            problem = fail(
                f"user {facts.plugin_uid} may not connect to {socket.path}",
                socket.path,
                "Run the plugin as root, or use --registration watcher, which needs no access",
            )
        case SocketState.SILENT:
            problem = fail(
                f"{socket.path} takes connections and does not answer",
                socket.path,
                "The kubelet hangs: see its log, and restart it",
            )
        case SocketState.REFUSED:
            problem = fail(f"{socket.path} is there, but nobody listens", socket.path, start)
        case _:
            problem = fail(f"{socket.path} {socket.state.value}", socket.path, start)
    return found([problem], "")


def plugin_folder(facts: Facts) -> Verdict:
    """The plugin may make its socket where the kubelet looks for it."""
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
        return found(
            [
                fail(
                    f"no {registry}",
                    registry,
                    "The kubelet makes it at its start: start it, or see whether its folder is "
                    "another one (check kubelet-folder). In a container, mount it",
                )
            ],
            "",
        )
    return _writable(kubelet.registry, registry, uid, do)


def _writable(folder: FileFact | None, path: str, uid: int, do: str) -> Verdict:
    if folder is None:
        return found([fail(f"no {path}", path, do)], "")
    if not folder.is_folder:
        return found([fail(f"{path} is no folder", path, f"Remove it. {do}")], "")
    if not folder.permits(uid, _WRITE_AND_ENTER):
        owner = f"it is {folder.uid}:{folder.gid} with mode {folder.mode:04o}"
        return found([fail(f"user {uid} may not write in {path}: {owner}", path, do)], "")
    return well(f"user {uid} may write in {path}")


def stale_sockets(facts: Facts) -> Verdict:
    """No sockets are left of a plugin that is gone."""
    if facts.kubelet.hidden and not facts.kubelet.own_sockets:
        return skipped(_HIDDEN)
    dead = [one for one in facts.kubelet.own_sockets if one.state is SocketState.REFUSED]
    problems = [
        warn(
            f"{socket.path} is left of a plugin that is gone",
            socket.path,
            "Start the plugin, which removes it, or remove it by hand while no plugin runs: the "
            "kubelet backs off from a dead socket for up to two minutes",
        )
        for socket in dead
    ]
    live = sum(one.live for one in facts.kubelet.own_sockets)
    return found(problems, f"none; {live} in use")


def kubelet_contact(facts: Facts) -> Verdict:
    """When the kubelet last listened to the running plugin."""
    plugin = facts.plugin
    if not plugin.source:
        return skipped("no plugin answers")
    if facts.settings.daemon.way_of_registration == "none":
        return skipped("registration is switched off")
    parts = [part for part in plugin.parts if part.name.startswith("kubelet:")]
    if not parts:
        return found(
            [
                fail(
                    "the plugin serves no resource, so that no kubelet can know it",
                    plugin.source,
                    "See the checks plugin-ready and advertised",
                )
            ],
            "",
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
