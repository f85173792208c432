"""The sockets of a DRA driver, as the kubelet's plugin watcher finds and uses them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import tempfile
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gpuplugin.daemon.dra.endpoint import COMPONENT, DraEndpoint
from gpuplugin.daemon.files import FileWatch
from gpuplugin.daemon.serving.sockets import KubeletDirs
from gpuplugin.daemon.status import StatusBoard
from gpuplugin.kubelet.draplugin import DraPlugin
from gpuplugin.kubelet.proto import dra_pb2 as pb
from gpuplugin.kubelet.proto import pluginregistration_pb2 as registration
from gpuplugin.rpc.client import Connection, Method
from gpuplugin.rpc.fast import FastEngine
from tests.component.waiting import DEADLINE_S, becomes_true
from tests.conformance.engines.conftest import ENGINES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from gpuplugin.core.dra.claims import ClaimRef, HeldDevice
    from gpuplugin.rpc.services import Engine, Server, Service

DRIVER = "gpu.gpuplugin.dev"
GET_INFO = Method.of("/pluginregistration.Registration/GetInfo")
NOTIFY = Method.of("/pluginregistration.Registration/NotifyRegistrationStatus")
PREPARE = Method.of("/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources")


class NoWork:
    """Claims without devices."""

    def prepare(self, ref: ClaimRef, deadline_s: float) -> tuple[HeldDevice, ...]:
        assert ref.uid
        assert deadline_s > 0
        return ()

    def unprepare(self, ref: ClaimRef) -> None:
        assert ref.uid


@pytest.fixture
def kubelet_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="gp"))
    yield folder
    shutil.rmtree(folder)


class Removing:
    """The first socket that is to be found is gone before its server is said to have started."""

    def __init__(self) -> None:
        self.removed: list[Path] = []

    def serve(self, socket_path: Path, services: Sequence[Service]) -> Server:
        server = FastEngine().serve(socket_path, services)
        if not self.removed and socket_path.name.endswith("-reg.sock"):
            socket_path.unlink()
            self.removed.append(socket_path)
        return server


class Slow:
    """Servers take as long to stop as a test wants."""

    def __init__(self) -> None:
        self.stopping, self.going_on = threading.Event(), threading.Event()

    def serve(self, socket_path: Path, services: Sequence[Service]) -> Server:
        return SlowServer(FastEngine().serve(socket_path, services), self)


@dataclass
class SlowServer:
    server: Server
    engine: Slow

    def stop(self, grace_s: float) -> None:
        self.engine.stopping.set()
        assert self.engine.going_on.wait(DEADLINE_S)
        self.server.stop(grace_s)


@asynccontextmanager
async def serving(folder: Path, engine: Engine | str = "fast") -> AsyncIterator[StatusBoard]:
    served = ENGINES[engine]() if isinstance(engine, str) else engine
    status, files = StatusBoard(), FileWatch()
    endpoint = DraEndpoint(DRIVER, DraPlugin(NoWork()), KubeletDirs(folder), served, status, files)
    task = asyncio.create_task(endpoint.run())
    try:
        yield status
        assert not task.done(), "it ended by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        files.close()


def found(folder: Path) -> list[Path]:
    """What a watcher finds."""
    return sorted((folder / "plugins_registry").rglob("*.sock"))


async def registered(path: Path, *, error: str = "") -> registration.PluginInfo:
    """Register as the kubelet does, and return what the plugin said of itself."""

    def register() -> registration.PluginInfo:
        with Connection(path, DEADLINE_S) as kubelet:
            info = registration.PluginInfo.FromString(kubelet.call(GET_INFO, b""))
            outcome = registration.RegistrationStatus(plugin_registered=not error, error=error)
            kubelet.call(NOTIFY, outcome.SerializeToString())
            return info

    return await asyncio.to_thread(register)


def prepared(endpoint: str) -> set[str]:
    request = pb.NodePrepareResourcesRequest(claims=[pb.Claim(namespace="n", name="c", uid="u")])
    with Connection(Path(endpoint), DEADLINE_S) as kubelet:
        response = kubelet.call(PREPARE, request.SerializeToString())
    return set(pb.NodePrepareResourcesResponse.FromString(response).claims)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_kubelet_finds_registers_and_calls_it(kubelet_dir: Path, engine: str) -> None:
    async def main() -> None:
        async with serving(kubelet_dir, engine) as status:
            await becomes_true(lambda: found(kubelet_dir))
            info = await registered(found(kubelet_dir)[0])
            assert (info.type, info.name) == ("DRAPlugin", DRIVER)
            assert list(info.supported_versions) == [
                "v1.DRAPlugin",
                "v1beta1.DRAPlugin",
                "v1.DRAResourceHealth",
                "v1alpha1.DRAResourceHealth",
            ]
            assert await asyncio.to_thread(prepared, info.endpoint) == {"u"}
            await becomes_true(lambda: status.readiness().components[COMPONENT].ok)

    asyncio.run(main())
    assert list(kubelet_dir.rglob("*.sock")) == []


def test_two_instances_have_sockets_of_their_own(kubelet_dir: Path) -> None:
    async def main() -> None:
        async with serving(kubelet_dir):
            await becomes_true(lambda: len(found(kubelet_dir)) == 1)
            (old,) = found(kubelet_dir)
            async with serving(kubelet_dir):
                await becomes_true(lambda: len(found(kubelet_dir)) == 2)
                infos = [await registered(path) for path in found(kubelet_dir)]
                assert len({info.endpoint for info in infos}) == 2
                for info in infos:
                    assert await asyncio.to_thread(prepared, info.endpoint) == {"u"}
            assert found(kubelet_dir) == [old]

    asyncio.run(main())


def test_a_socket_that_was_removed_comes_back_under_another_name(kubelet_dir: Path) -> None:
    async def main() -> None:
        async with serving(kubelet_dir):
            await becomes_true(lambda: found(kubelet_dir))
            (first,) = found(kubelet_dir)
            first.unlink()
            await becomes_true(lambda: found(kubelet_dir) and first not in found(kubelet_dir))
            assert (await registered(found(kubelet_dir)[0])).name == DRIVER

    asyncio.run(main())


def test_a_socket_that_is_removed_before_it_was_looked_at_comes_back(kubelet_dir: Path) -> None:
    async def main() -> None:
        engine = Removing()
        async with serving(kubelet_dir, engine):
            await becomes_true(lambda: engine.removed)
            await becomes_true(lambda: found(kubelet_dir))
            assert found(kubelet_dir) != engine.removed
            assert (await registered(found(kubelet_dir)[0])).name == DRIVER

    asyncio.run(main())


def test_an_end_while_its_sockets_are_renewed_leaves_none_of_them(kubelet_dir: Path) -> None:
    async def main() -> None:
        engine = Slow()
        async with serving(kubelet_dir, engine):
            await becomes_true(lambda: found(kubelet_dir))
            found(kubelet_dir)[0].unlink()
            await becomes_true(engine.stopping.is_set)
            asyncio.get_running_loop().call_later(0.05, engine.going_on.set)

    asyncio.run(main())
    assert list(kubelet_dir.rglob("*.sock")) == []


def test_a_refused_registration_is_told_and_tried_again(kubelet_dir: Path) -> None:
    async def main() -> None:
        async with serving(kubelet_dir) as status:
            await becomes_true(lambda: found(kubelet_dir))
            (first,) = found(kubelet_dir)
            await registered(first, error="too old")
            await becomes_true(lambda: "too old" in status.readiness().components[COMPONENT].text)
            await becomes_true(lambda: found(kubelet_dir) and first not in found(kubelet_dir))
            await registered(found(kubelet_dir)[0])
            await becomes_true(lambda: status.readiness().components[COMPONENT].ok)

    asyncio.run(main())


def test_a_kubelet_that_refuses_every_time_is_given_more_and_more_time(
    kubelet_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: set[Path] = set()

    def new() -> set[Path]:
        return set(found(kubelet_dir)) - seen

    async def registering(*errors: str) -> None:
        for error in errors:
            await becomes_true(new)
            (path,) = new()
            seen.add(path)
            await registered(path, error=error)
            if not error:
                path.unlink()

    async def main() -> None:
        async with serving(kubelet_dir):
            await registering("too old", "too old", "", "too old")
            await becomes_true(lambda: len(pauses()) == 4)

    def pauses() -> list[str]:
        return re.findall(r"renewing the sockets of \S+ in (\S+) s", caplog.text)

    asyncio.run(main())
    assert pauses() == ["0.1", "0.2", "0.1", "0.2"]


def test_sockets_of_a_plugin_that_was_killed_are_removed(kubelet_dir: Path) -> None:
    dirs = KubeletDirs(kubelet_dir)
    dead = (dirs.plugin_watcher / f"{DRIVER}-0-reg.sock", dirs.dra_driver(DRIVER) / "dra-0.sock")
    for path in dead:
        path.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    other = dirs.plugin_watcher / "other-reg.sock"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(other))

    async def main() -> None:
        async with serving(kubelet_dir):
            await becomes_true(lambda: not any(map(os.path.exists, dead)))
            await becomes_true(lambda: len(found(kubelet_dir)) == 2)
            assert other in found(kubelet_dir)

    asyncio.run(main())
