"""What tests ask of a simulated API server: its nodes, events and slices."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from lightkube import KubeConfig

from sim.apiserver import EVENTS, NODES, SLICES, TOKEN, Key, Selection

if TYPE_CHECKING:
    from pathlib import Path

    from lightkube import SingleConfig

    from sim.apiserver import ApiServer, Request


def config_of(server: ApiServer) -> SingleConfig:
    """A client's configuration that leads to the server."""
    content = {
        "current-context": "here",
        "clusters": [{"name": "one", "cluster": {"server": server.url}}],
        "users": [{"name": "me", "user": {"token": TOKEN}}],
        "contexts": [{"name": "here", "context": {"cluster": "one", "user": "me"}}],
    }
    config = KubeConfig.from_dict(content).get()
    assert config is not None
    return config


def body_of(request: Request) -> dict[str, Any]:
    """The body of a request, which is an object."""
    assert request.body is not None
    return request.body


def node(server: ApiServer, name: str) -> dict[str, Any]:
    return server.store.get(Key(NODES, name))


def condition(server: ApiServer, name: str) -> dict[str, Any] | None:
    """The condition GPUHealthy of a node."""
    conditions = node(server, name)["status"]["conditions"]
    return next((one for one in conditions if one["type"] == "GPUHealthy"), None)


def events(server: ApiServer) -> list[dict[str, Any]]:
    """Events in the order in which they were first sent."""
    names = [
        body_of(request)["metadata"]["name"]
        for request in server.requests
        if request.right[:2] == ("create", "events")
    ]
    found: list[dict[str, Any]] = server.store.select(Selection(EVENTS))[1]
    return sorted(found, key=lambda one: names.index(one["metadata"]["name"]))


def slices(server: ApiServer) -> list[dict[str, Any]]:
    return server.store.select(Selection(SLICES))[1]


def devices(server: ApiServer) -> list[dict[str, Any]]:
    """Devices of the newest generation, in the order of a scheduler, if it is complete."""
    specs = [one["spec"] for one in slices(server)]
    newest = max((spec["pool"]["generation"] for spec in specs), default=0)
    chosen = [spec for spec in specs if spec["pool"]["generation"] == newest]
    if not chosen or len(chosen) != chosen[0]["pool"]["resourceSliceCount"]:
        return []
    return [device for spec in chosen for device in spec["devices"]]


def wipe(server: ApiServer) -> None:
    """Delete all slices, as a kubelet does with those of its node when it starts."""
    server.store.delete_all(Selection(SLICES))


def over_tls(server: ApiServer, kubeconfig: Path) -> None:
    """Let the server speak TLS, by an authority that the kubeconfig names.

    Its certificates are as poor as those of EKS, GKE and MicroK8s: no key usage, no key ids.
    """
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = kubeconfig.parent
    (folder / "req.cnf").write_text("[req]\ndistinguished_name = dn\nx509_extensions = ca\n[dn]\n"
                                    "[ca]\nbasicConstraints = critical,CA:TRUE\n")  # fmt: skip
    (folder / "server.ext").write_text("subjectAltName = IP:127.0.0.1\n")
    make = (openssl, "req", "-newkey", "rsa:2048", "-nodes", "-config", "req.cnf")
    for words in (
        (*make, "-x509", "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt"),
        (*make, "-subj", "/CN=server", "-keyout", "server.key", "-out", "server.csr"),
        (
            *(openssl, "x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-days", "2", "-extfile", "server.ext", "-out", "server.crt"),
        ),
    ):
        subprocess.run(words, check=True, capture_output=True, cwd=folder)
    content = yaml.safe_load(kubeconfig.read_text())
    url = server.url.replace("http:", "https:")
    authority = str(folder / "ca.crt")
    content["clusters"][0]["cluster"] = {"server": url, "certificate-authority": authority}
    kubeconfig.write_text(yaml.safe_dump(content))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    server.speak_tls(context)
