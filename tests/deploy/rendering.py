"""What kustomize and helm make of the shipped files, as objects."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml

from tests.deploy.binaries import program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Object: TypeAlias = dict[str, Any]

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUSTOMIZE = DEPLOY / "kustomize"
COMPONENTS = KUSTOMIZE / "components"
OVERLAYS = KUSTOMIZE / "overlays"
CHART = DEPLOY / "helm" / "gpuplugin"
NAMESPACE = "gpu-device-plugin"
PLUGIN = "nvidia-device-plugin"


OWN_OVERLAY = OVERLAYS / "mine"
"""The one that docs/deploy.md tells its reader to write; git ignores it, and so do tests."""


def names(folder: Path) -> list[str]:
    """Kustomizations that are shipped in a folder."""
    paths = folder.glob("*/kustomization.yaml")
    return sorted(path.parent.name for path in paths if path.parent != OWN_OVERLAY)


_shared: list[Path] = []
"""The folder of `shared_in`, while there is one."""


@contextmanager
def shared_in(folder: Path) -> Iterator[None]:
    """Let processes that have this folder in common build each thing once."""
    folder.mkdir(exist_ok=True)
    _shared.append(folder)
    yield
    _shared.remove(folder)


def _once(make: Callable[[], str], *asked: str) -> str:
    """What `make` returns for `asked`, made by the first process that wants it."""
    (folder,) = _shared
    name = hashlib.sha256("\0".join(asked).encode()).hexdigest()
    with (folder / name).open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        if not text:
            text = make()
            file.write(text)
    return text


@cache
def _build(folder: str) -> str:
    return _once(lambda: _output([program("kubectl"), "kustomize", folder]), "build", folder)


def built(folder: Path) -> list[Object]:
    """Objects of a kustomization. No flag: whoever runs `kubectl apply -k` gives none either."""
    return objects(_build(str(folder)))


def _build_with(components: tuple[str, ...]) -> str:
    return _overlaid(
        yaml.safe_dump(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": ["../../base"],
                "components": [f"../../components/{name}" for name in components],
            }
        )
    )


def overlaid(kustomization: str) -> list[Object]:
    """Objects of an overlay of somebody's own, beside the shipped ones."""
    return objects(_overlaid(kustomization))


@cache
def _overlaid(kustomization: str) -> str:
    def build() -> str:
        own = tempfile.mkdtemp(dir=_once(_copied, "copy"))
        (Path(own) / "kustomization.yaml").write_text(kustomization)
        return _output([program("kubectl"), "kustomize", own])

    return _once(build, "overlay", kustomization)


def _copied() -> str:
    """The folder of overlays in a copy: kustomize takes relative paths, and resolves links."""
    (shared,) = _shared
    folder = Path(tempfile.mkdtemp(dir=shared))
    for part in ("kustomize", "prometheus", "grafana"):
        shutil.copytree(DEPLOY / part, folder / part)
    return str(folder / "kustomize" / "overlays")


def built_with(*components: str) -> list[Object]:
    """Objects of the base with components, in their order."""
    return objects(_build_with(components))


def chart(
    values: str = "", *, release: str = PLUGIN, namespace: str = NAMESPACE, arguments: str = ""
) -> list[Object]:
    """Objects that the chart installs; `values` is YAML, `arguments` are further words."""
    every = objects(_rendered(values, release, namespace, arguments))
    return [one for one in every if not _is_hook(one)]


def chart_tests(values: str = "") -> list[Object]:
    """Pods that `helm test` starts."""
    return [one for one in objects(_rendered(values, PLUGIN, NAMESPACE, "")) if _is_hook(one)]


def _is_hook(one: Object) -> bool:
    return "helm.sh/hook" in one["metadata"].get("annotations", {})


@cache
def _rendered(values: str, release: str, namespace: str, arguments: str) -> str:
    words = ["template", release, str(CHART), "--namespace", namespace, "--values", "-"]
    command = [program("helm"), *words, *arguments.split()]
    return _once(lambda: _output(command, values), *command, values)


def lint(values: str) -> None:
    """Check the chart with values as strictly as helm can.

    Raises:
        AssertionError: there is something to say about it.
    """
    words = ["lint", "--strict", "--quiet", "--namespace", NAMESPACE, "--values", "-"]
    _output([program("helm"), *words, str(CHART)], values)


class Refused(Exception):
    """The program ended with an error; the text is what it said."""


def _output(command: Sequence[str], text: str = "") -> str:
    done = subprocess.run(
        command,
        env=os.environ | {"GOGC": "off"},  # they end before they need what they would collect
        input=text,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    if done.returncode:
        raise Refused(done.stdout + done.stderr)
    return done.stdout


def objects(text: str) -> list[Object]:
    """The documents of a stream that are not empty.

    Raises:
        AssertionError: a key is written twice, which some programs refuse and others do not.
    """
    return [one for one in yaml.load_all(text, _Strict) if one]


class _Strict(yaml.CSafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(set(keys)) == len(keys), f"twice in {keys}, {node.start_mark}"
        return super().construct_mapping(node, deep)


def of_kind(found: Iterable[Object], kind: str) -> list[Object]:
    """All objects of a kind."""
    return [one for one in found if one["kind"] == kind]


def the(found: Iterable[Object], kind: str) -> Object:
    """The only object of a kind."""
    (one,) = of_kind(found, kind)
    return one


def pod_of(found: Iterable[Object]) -> Object:
    """Spec of the plugin's pods."""
    spec: Object = the(found, "DaemonSet")["spec"]["template"]["spec"]
    return spec


def plugin_of(found: Iterable[Object]) -> Object:
    """The container that runs the plugin."""
    (container,) = pod_of(found)["containers"]
    one: Object = container
    return one


def variables(container: Object) -> dict[str, Any]:
    """Variables by name; those that come from elsewhere with where they come from."""
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}
