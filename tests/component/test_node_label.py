"""The label that chooses a node's configuration, read from an API server in trouble."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from gpuplugin.core.nodechoice import LABEL, LabelUnreadable
from gpuplugin.daemon.cluster import kubeapi
from gpuplugin.daemon.cluster.kubeapi import NodeLabel
from gpuplugin.daemon.cluster.nodeconfig import LabelWatch
from sim.apiserver import HANG, NODES, ApiServer, Key
from sim.apiserver.store import ApiProblem
from sim.pods.podlist import NodePods, PodsUnreadable
from tests.component.waiting import DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sim.apiserver.store import Change

NODE = "gpu-1"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ApiServer([NODE]) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
        server.store.patch(Key(NODES, NODE), {"metadata": {"labels": {LABEL: "a"}}})
        yield server


def test_the_label_and_its_changes_are_followed(server: ApiServer) -> None:
    labels = NodeLabel(NODE).follow()

    assert next(labels) == "a"
    server.store.patch(Key(NODES, NODE), {"metadata": {"labels": {LABEL: "b"}}})
    assert next(labels) == "b"


def test_a_watch_that_breaks_has_nothing_to_tell(server: ApiServer) -> None:
    """The next one begins with the label, or fails."""
    labels = NodeLabel(NODE).follow()
    assert next(labels) == "a"
    server.break_watches(forget=True)
    assert list(labels) == []

    labels = NodeLabel(NODE).follow()
    assert next(labels) == "a"
    server.stop()
    with pytest.raises(LabelUnreadable, match="cannot be read"):
        next(NodeLabel(NODE).follow())


def test_an_error_that_a_watch_reports_is_told(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_since: int) -> tuple[int, tuple[Change, ...]]:
        raise ApiProblem(500, "etcd is away")

    labels = NodeLabel(NODE).follow()
    assert next(labels) == "a"
    monkeypatch.setattr(server.store, "changes", broken)
    server.store.wake()
    with pytest.raises(LabelUnreadable, match="etcd is away"):
        next(labels)


def test_a_watch_that_fails_in_a_way_of_its_own_is_begun_again_by_the_supervisor() -> None:
    class Source:
        def read(self) -> str | None:
            raise AssertionError("nobody asks")

        def follow(self) -> Iterator[str | None]:
            yield "a"
            raise ZeroDivisionError("nobody thought of this")

    async def main() -> None:
        seen: list[str] = []
        watch = LabelWatch(Source())
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(ZeroDivisionError):
                await watch.run(
                    lambda: seen.append(str(watch.label)), lambda text, _ok: seen.append(text)
                )
        assert seen == ["the node's label: a", "a"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("watch", "failure"),
    [
        (lambda: NodeLabel(NODE).follow(), LabelUnreadable),
        (lambda: NodePods(NODE).follow(), PodsUnreadable),
    ],
)
def test_a_watch_on_a_connection_that_says_nothing_any_more_ends(
    server: ApiServer,
    monkeypatch: pytest.MonkeyPatch,
    watch: Callable[[], Iterator[object]],
    failure: type[Exception],
) -> None:
    """As one that a proxy has dropped without a word; it would miss every change from then on."""
    monkeypatch.setattr(kubeapi, "WATCH_S", 0.1)
    monkeypatch.setattr(kubeapi, "_TIMEOUT_S", 0.1)
    monkeypatch.setattr("sim.pods.podlist._TIMEOUT_S", 0.1)
    server.fail(HANG)
    raised: list[BaseException] = []

    def follow() -> None:
        with pytest.raises(failure) as caught:
            next(watch())
        raised.append(caught.value)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    assert raised, "it waits for ever"
