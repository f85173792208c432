"""ResourceSlices at an API server: published, restored when wiped, honest about features."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from gpuplugin.core.dra.devices import Offer, Taint
from gpuplugin.core.dra.slices import Pool
from gpuplugin.daemon.dra import publisher as publisher_module
from gpuplugin.daemon.dra.publisher import SlicePublisher
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.daemon.status import StatusBoard
from sim.apiserver import NODES, SLICES, ApiServer, Key
from tests.component.cluster import config_of, devices, node, slices, wipe
from tests.component.waiting import becomes_true, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from lightkube.generic_resource import GenericGlobalResource

    from gpuplugin.core.dra.slices import Stored
    from sim.apiserver import Request
    from sim.apiserver.server import Answer

NODE = "node-1"
POOL = Pool("gpu.gpuplugin.dev", NODE)
SICK = (Taint("gpu.gpuplugin.dev/xid", "79", "NoSchedule"),)


def offer(number: int, replicas: int = 10, taints: tuple[Taint, ...] = ()) -> Offer:
    return Offer(
        f"gpu-{number}", (f"GPU-{number}", None), "nvidia.com/gpu", replicas, 80 * 1024**3,
        {"uuid": f"GPU-{number}"}, taints,
    )  # fmt: skip


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer([NODE]) as server:
        yield server


@asynccontextmanager
async def publishing(
    server: ApiServer, folder: Path
) -> AsyncIterator[tuple[SlicePublisher, StatusBoard]]:
    status = StatusBoard()
    lead = folder / "slices.lock"
    publisher = SlicePublisher(POOL, lead, config_of(server), status, Metrics("test", "sim"))
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher, status
        assert not task.done(), "it ended by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def names(server: ApiServer) -> list[str]:
    return [device["name"] for device in devices(server)]


async def listed(server: ApiServer, *expected: str) -> None:
    await becomes_true(lambda: names(server) == list(expected))


def test_devices_are_published_and_changes_follow(server: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        async with publishing(server, tmp_path) as (publisher, status):
            publisher.offer([offer(0), offer(1)])
            await becomes_true(lambda: names(server) == ["gpu-0", "gpu-1"])
            (one,) = slices(server)
            (owner,) = one["metadata"]["ownerReferences"]
            assert (owner["kind"], owner["uid"]) == ("Node", node(server, NODE)["metadata"]["uid"])
            publisher.offer([offer(0), offer(1, taints=SICK)])
            await becomes_true(lambda: "taints" in devices(server)[1])
            publisher.offer([offer(1), offer(0)])
            await becomes_true(lambda: names(server) == ["gpu-1", "gpu-0"])
            assert "taints" not in devices(server)[0]
            await becomes_true(lambda: status.readiness().components["slices"].ok)

    asyncio.run(main())


def test_many_devices_are_in_several_slices(server: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        async with publishing(server, tmp_path) as (publisher, _):
            publisher.offer([offer(number) for number in range(130)])
            await becomes_true(lambda: len(names(server)) == 130)
            assert len(slices(server)) == 3
            publisher.offer([offer(0)])
            await becomes_true(lambda: names(server) == ["gpu-0"])
            assert len(slices(server)) == 1

    asyncio.run(main())


def test_slices_that_the_kubelet_wiped_are_back_at_once(server: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        async with publishing(server, tmp_path) as (publisher, _):
            offers = [offer(number) for number in range(70)]
            publisher.offer(offers)
            await becomes_true(lambda: len(names(server)) == 70)
            for _ in range(3):
                wipe(server)
                await becomes_true(lambda: len(names(server)) == 70)

    asyncio.run(main())


def test_slices_of_a_node_that_was_made_anew_belong_to_the_new_one(
    server: ApiServer, tmp_path: Path
) -> None:
    """Those of the old one would be removed again and again: it owns them, and is gone."""

    def owners() -> list[str]:
        return [one["metadata"]["ownerReferences"][0]["uid"] for one in slices(server)]

    async def main() -> None:
        async with publishing(server, tmp_path) as (publisher, _):
            publisher.offer([offer(0)])
            await becomes_true(owners)
            server.store.delete(Key(NODES, NODE))
            server.store.create(Key(NODES, NODE), {})
            new = node(server, NODE)["metadata"]["uid"]
            await becomes_true(lambda: owners() == [new])

    asyncio.run(main())


def test_somebody_elses_change_is_undone(server: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        async with publishing(server, tmp_path) as (publisher, _):
            publisher.offer([offer(0)])
            await becomes_true(lambda: names(server) == ["gpu-0"])
            (one,) = slices(server)
            stolen = {**one, "spec": {**one["spec"], "devices": []}}
            server.store.replace(Key(SLICES, one["metadata"]["name"]), stolen)
            await becomes_true(lambda: names(server) == ["gpu-0"])

    asyncio.run(main())


@pytest.mark.parametrize("forget", [False, True])
def test_a_watch_that_breaks_is_taken_up_again(
    server: ApiServer, forget: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is nothing to tell: all is published as before."""

    async def main() -> None:
        async with publishing(server, tmp_path) as (publisher, _):
            publisher.offer([offer(0)])
            await becomes_true(lambda: names(server) == ["gpu-0"])
            for number in (1, 2):
                server.break_watches(forget=forget)
                publisher.offer([offer(number)])
                await listed(server, f"gpu-{number}")
                wipe(server)
                await listed(server, f"gpu-{number}")

    asyncio.run(main())
    assert "cannot be published" not in caplog.text


def test_without_the_right_to_watch_it_asks_less_and_less_often(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though what is published is found to be right each time."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def pause(pause_s: float) -> None:
        pauses.append(pause_s)
        await sleep(0)

    async def main() -> None:
        async with publishing(server, tmp_path) as (publisher, _):
            publisher.offer([offer(0)])
            await listed(server, "gpu-0")
            monkeypatch.setattr(asyncio, "sleep", pause)
            server.denied.add(("watch", "resourceslices"))
            server.break_watches()
            while len(pauses) < 4:
                await sleep(0.01)

    asyncio.run(main())
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]


@pytest.mark.parametrize("code", [409, 429, 500, 503, 403])
def test_failures_are_tried_again_and_told(server: ApiServer, code: int, tmp_path: Path) -> None:
    async def main() -> None:
        async with publishing(server, tmp_path) as (publisher, status):
            publisher.offer([offer(0)])
            await becomes_true(lambda: names(server) == ["gpu-0"])
            server.fail(code, 3)
            publisher.offer([offer(1)])
            await becomes_true(lambda: names(server) == ["gpu-1"])
            assert server.failures_left == 0
            await becomes_true(lambda: status.readiness().components["slices"].ok)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("code", "content_type", "body"),
    [(503, "", b""), (502, "text/html", b"<html>"), (200, "text/html", b"<html>")],
)
def test_what_no_api_server_responds_with_is_a_failure_like_others(
    server: ApiServer, tmp_path: Path, code: int, content_type: str, body: bytes
) -> None:
    async def main() -> None:
        async with publishing(server, tmp_path) as (publisher, status):
            publisher.offer([offer(0)])
            server.fail(code, 2, headers={"Content-Type": content_type}, body=body)
            await becomes_true(lambda: names(server) == ["gpu-0"])
            assert server.failures_left == 0
            await becomes_true(lambda: status.readiness().components["slices"].ok)

    asyncio.run(main())


def test_a_server_that_is_away_is_waited_for(server: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        with ApiServer([NODE]) as gone:
            config = config_of(gone)
        status = StatusBoard()
        lead = tmp_path / "slices.lock"
        publisher = SlicePublisher(POOL, lead, config, status, Metrics("test", "sim"))
        task = asyncio.create_task(publisher.run())
        publisher.offer([offer(0)])
        await becomes_true(lambda: "not published" in status.readiness().components["slices"].text)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())


def test_without_the_gate_for_shares_a_gpu_is_not_offered_whole_instead(
    server: ApiServer, tmp_path: Path
) -> None:
    async def main() -> None:
        server.store.off.add("DRAConsumableCapacity")
        async with publishing(server, tmp_path) as (publisher, status):
            publisher.offer([offer(0), offer(1, replicas=1)])
            await becomes_true(lambda: names(server) == ["gpu-1"])
            await becomes_true(
                lambda: (
                    "feature gate DRAConsumableCapacity"
                    in status.readiness().components["slices"].text
                )
            )
            assert not status.readiness().components["slices"].ok

    asyncio.run(main())


def test_without_the_gate_for_taints_a_sick_gpu_leaves_the_slice(
    server: ApiServer, tmp_path: Path
) -> None:
    async def main() -> None:
        server.store.off.add("DRADeviceTaints")
        async with publishing(server, tmp_path) as (publisher, _):
            publisher.offer([offer(0), offer(1)])
            await becomes_true(lambda: names(server) == ["gpu-0", "gpu-1"])
            publisher.offer([offer(0, taints=SICK), offer(1)])
            await becomes_true(lambda: names(server) == ["gpu-1"])
            publisher.offer([offer(0), offer(1)])
            await becomes_true(lambda: names(server) == ["gpu-0", "gpu-1"])

    asyncio.run(main())


def test_a_new_plugin_finds_what_the_old_one_left(server: ApiServer, tmp_path: Path) -> None:
    async def main() -> None:
        for offers in ([offer(0), offer(1)], [offer(1)]):
            async with publishing(server, tmp_path) as (publisher, _):
                publisher.offer(offers)
                await listed(server, *(one.name for one in offers))
        assert len(slices(server)) == 1

    asyncio.run(main())


def test_of_two_instances_one_publishes_and_the_other_takes_over(
    server: ApiServer, tmp_path: Path
) -> None:
    """Each wants another order: both would write for ever."""

    async def overlap() -> None:
        async with AsyncExitStack() as later:
            async with publishing(server, tmp_path) as (first, _):
                first.offer([offer(0), offer(1)])
                await listed(server, "gpu-0", "gpu-1")
                second, status = await later.enter_async_context(publishing(server, tmp_path))
                second.offer([offer(1), offer(0)])
                await becomes_true(
                    lambda: "another instance" in status.readiness().components["slices"].text
                )
                first.offer([offer(0), offer(1), offer(2)])
                await listed(server, "gpu-0", "gpu-1", "gpu-2")
                (one,) = slices(server)
                assert int(one["metadata"]["generation"]) == 2, "one write for each offer"
                wipe(server)
                await listed(server, "gpu-0", "gpu-1", "gpu-2")
            await listed(server, "gpu-1", "gpu-0")

    asyncio.run(overlap())


def test_a_slice_that_is_deleted_before_its_creator_hears_of_it_is_made_again(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch tells that it came and went while the response is still on its way."""
    seen: list[str] = []
    convert, answer = publisher_module._stored, server.answer

    def noting(one: GenericGlobalResource) -> Stored:
        seen.append("")
        return convert(one)

    def late(request: Request) -> Answer:
        response = answer(request)
        creates = request.right[:2] == ("create", "resourceslices")
        if creates and "dryRun" not in request.query and not wiped:
            wiped.append(True)
            before = len(seen)
            wipe(server)
            eventually(lambda: len(seen) >= before + 2)
        return response

    wiped: list[bool] = []
    monkeypatch.setattr(publisher_module, "_stored", noting)
    monkeypatch.setattr(server, "answer", late)

    async def main() -> None:
        async with publishing(server, tmp_path) as (publisher, _):
            publisher.offer([offer(0)])
            await becomes_true(lambda: wiped)
            await listed(server, "gpu-0")

    asyncio.run(main())
