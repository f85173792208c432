"""Collects the running plugin's report: over its control socket, or else over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import TYPE_CHECKING

from pydantic import BaseModel, TypeAdapter

from gpuplugin.doctor.collect.kubelet import control_sockets, is_hidden
from gpuplugin.doctor.facts import PluginFacts
from gpuplugin.linesocket import ControlError, ask

if TYPE_CHECKING:
    from gpuplugin.doctor.collect.host import HostRoot
    from gpuplugin.doctor.facts import SocketFact

_TIMEOUT_S = 5.0
_MOST_BYTES = 1024 * 1024
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - to replace
_FACTS = TypeAdapter(PluginFacts)


class _Resource(BaseModel):
    devices: int
    healthy: int


class _Report(BaseModel):
    parts: dict[str, dict[str, object]]
    units: list[dict[str, object]] = []
    uid: int | None = None
    config: dict[str, object] | None = None
    config_source: str = ""
    resources: dict[str, _Resource] = {}


def collect_plugin(host: HostRoot, kubelet_root: str, listen_address: str) -> PluginFacts:
    """Ask at the control socket of this kubelet's folder.

    Over HTTP only where that may not be read: what answers there may serve another folder.
    """
    problems: list[str] = []
    sockets = control_sockets(host, kubelet_root)
    for socket in sockets:
        try:
            response = ask(host.at(socket.path), {"report": True}, _TIMEOUT_S)
            return _facts(response, socket.path, socket)
        except (ControlError, ValueError) as error:
            problems.append(str(error).partition("\n")[0])
    if not sockets:
        problems.append(f"no control socket below {kubelet_root}")
        if not is_hidden(host, kubelet_root):
            return PluginFacts(problem=problems[0])
    address, _, port = listen_address.rpartition(":")
    url = f"http://{_LOOPBACK.get(address, address)}:{port}/health"
    control = sockets[0] if sockets else None
    try:
        return _facts(_get(url), url, control)
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error).partition("\n")[0]
        problems.append(f"{url}: {reason}")
    return PluginFacts(problem="; ".join(problems), control=control)


def _facts(response: object, source: str, control: SocketFact | None) -> PluginFacts:
    """Facts of a response.

    Raises:
        pydantic.ValidationError: it is not the plugin's report.
    """
    report = _Report.model_validate(response)
    parts = [{"name": name, **part} for name, part in sorted(report.parts.items())]
    return _FACTS.validate_python(
        {
            "source": source,
            "control": control,
            "uid": report.uid,
            "parts": parts,
            "units": report.units,
            "config": report.config,
            "config_source": report.config_source,
            "devices": {name: (one.devices, one.healthy) for name, one in report.resources.items()},
        }
    )


def _get(url: str) -> object:
    """The JSON of a response, whatever its status.

    Raises:
        OSError, HTTPException: there is no response.
        ValueError: it is not JSON.
    """
    # No proxy: the plugin is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as response:
            body = response.read(_MOST_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            body = error.read(_MOST_BYTES)
    value: object = json.loads(body)
    return value
