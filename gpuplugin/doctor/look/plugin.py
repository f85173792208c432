"""Asks the running plugin how it is: over its control socket, or else over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from gpuplugin.doctor.facts import PartFact, PluginFacts, UnitFact
from gpuplugin.doctor.look.kubelet import control_sockets
from gpuplugin.linesocket import ControlError, ask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.doctor.facts import SocketFact
    from gpuplugin.doctor.look.hostroot import HostRoot

_TIMEOUT_S = 5.0
_MOST_BYTES = 1024 * 1024
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - to replace


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Part(_Answer):
    ok: bool
    text: str
    for_s: float
    ok_ago_s: float | None = None


class _Unit(_Answer):
    uuid: str
    index: str
    state: str
    for_s: float
    reason: str
    action: str


class _Report(_Answer):
    """What both ways have: over HTTP there are no units and no user."""

    parts: dict[str, _Part]
    units: list[_Unit] = []
    uid: int | None = None

    def facts(self, source: str, control: SocketFact | None) -> PluginFacts:
        return PluginFacts(
            source=source,
            control=control,
            uid=self.uid,
            parts=tuple(
                PartFact(name, part.ok, part.text, part.for_s, part.ok_ago_s)
                for name, part in sorted(self.parts.items())
            ),
            units=tuple(
                UnitFact(one.uuid, one.index, one.state, one.reason, one.action, one.for_s)
                for one in self.units
            ),
        )


def look_at_plugin(host: HostRoot, kubelet_root: str, listen_address: str) -> PluginFacts:
    """The running plugin's own report; where nobody answers, why."""
    problems: list[str] = []
    sockets = control_sockets(host, kubelet_root)
    for socket in sockets:
        try:
            answer = ask(host.at(socket.path), {"report": True}, _TIMEOUT_S)
            return _Report.model_validate(answer).facts(socket.path, socket)
        except (ControlError, ValidationError) as error:
            problems.append(str(error).partition("\n")[0])
    if not sockets:
        problems.append(f"no control socket below {kubelet_root}")
    url = f"http://{_reachable(listen_address)}/health"
    control = sockets[0] if sockets else None
    try:
        return _Report.model_validate(_get(url)).facts(url, control)
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error).partition("\n")[0]
        problems.append(f"{url}: {reason}")
    return PluginFacts(problem="; ".join(problems), control=control)


def _reachable(listen_address: str) -> str:
    host, _, port = listen_address.rpartition(":")
    return f"{_EVERY_ADDRESS.get(host, host)}:{port}"


def _get(url: str) -> Mapping[str, object]:
    """The JSON of an answer, whatever its status.

    Raises:
        OSError, HTTPException: nobody answers.
        ValueError: it is no JSON object.
    """
    # No proxy: the plugin is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            body = answer.read(_MOST_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            body = error.read(_MOST_BYTES)
    value: object = json.loads(body)
    if not isinstance(value, dict):
        raise ValueError("the answer is no JSON object")  # noqa: TRY004 - of what was read
    return value
