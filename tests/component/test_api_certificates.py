"""Connections to API servers: whose certificates are taken, and by which proxy they go."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import httpx2
import pytest
from lightkube.resources.core_v1 import Node

from gpuplugin.core.dra.claims import ClaimRef
from gpuplugin.daemon.cluster.kubeapi import (
    KubeApi,
    NodeLabel,
    async_client_of,
    client_of,
    cluster,
    proxy_of,
)
from gpuplugin.daemon.cluster.labelstores import NodeStore
from gpuplugin.daemon.dra.claimapi import ClaimApi, ClaimGone
from gpuplugin.doctor.collect.cluster import collect_cluster
from sim.apiserver import PODS, ApiServer, Key
from sim.fleet.api import FleetApi
from sim.pods.podlist import NodePods
from tests.component.cluster import over_tls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NODE = "gpu-1"
TIMEOUT = httpx2.Timeout(5.0)


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with ApiServer([NODE]) as server:
        spec = {"nodeName": NODE, "containers": []}
        server.store.create(Key(PODS, "pod", "team"), {"spec": spec})
        path = server.kubeconfig(tmp_path_factory.mktemp("cluster"))
        over_tls(server, path)
        yield path


@pytest.fixture(autouse=True)
def strict(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates are checked as Python 3.13 and later do, whichever runs the test."""
    usual = ssl.create_default_context

    def context(**options: str) -> ssl.SSLContext:
        made = usual(**options)  # type: ignore[arg-type]
        made.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
        return made

    monkeypatch.setattr(ssl, "create_default_context", context)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def fleet() -> object:
    async def listed() -> object:
        async with FleetApi(100.0) as api:
            return await api.listed("/api/v1/nodes")

    return asyncio.run(listed())


def no_claim() -> None:
    api = ClaimApi(cluster())
    try:
        with pytest.raises(ClaimGone):
            api.read(ClaimRef("team", "none", "uid"))
    finally:
        api.close()


async def _node_by_an_async_client() -> Node:
    async with async_client_of(cluster(), TIMEOUT) as client:
        return await client.get(Node, NODE)


def _node_by_a_client() -> Node:
    with client_of(cluster(), TIMEOUT) as client:
        return client.get(Node, NODE)


def test_authorities_without_extensions_are_trusted() -> None:
    """By the two clients that everything else has its own from."""
    for node in (_node_by_a_client(), asyncio.run(_node_by_an_async_client())):
        assert node.metadata is not None
        assert node.metadata.name == NODE


@pytest.mark.parametrize(
    "ask",
    [
        lambda: KubeApi(NODE).patch_condition(None),
        lambda: NodeLabel(NODE).read(),
        lambda: NodeStore(NODE).sync({}),
        lambda: next(NodePods(NODE).follow()),
        fleet,
        no_claim,
    ],
)
def test_who_asks_the_api_server_uses_them(ask: Callable[[], object]) -> None:
    """Each raises if its connection fails: nothing is swallowed."""
    ask()


def test_the_doctor_trusts_them_too() -> None:
    assert collect_cluster("gpu.example.com", NODE).problem == ""


def test_other_authorities_are_not_trusted(
    kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ApiServer([NODE]) as server:
        other = server.kubeconfig(tmp_path)
        over_tls(server, other)
        text = other.read_text().replace(str(tmp_path), str(kubeconfig.parent))
        other.write_text(text)
        monkeypatch.setenv("KUBECONFIG", str(other))
        with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            _node_by_a_client()


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"ALL_PROXY": "proxy:3128"}, "http://proxy:3128"),
        ({"HTTP_PROXY": "http://proxy:3128"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "example.com,10.96.0.1"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "10.96.0.2"}, "http://proxy:3128"),
    ],
)
def test_the_proxy_is_that_of_the_environment(
    environment: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_of("https://10.96.0.1:443") == proxy
