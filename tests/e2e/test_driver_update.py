"""The driver is updated under the plugin: a process keeps the library that it has loaded."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import Node, Plugin
from tests.e2e.served import ServedNode

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDERS = {"driver root": "usr/lib64", "loader": "elsewhere"}
NEWER_DRIVER = (
    *("--returns", "nvmlInit,nvmlDeviceGetCount,nvmlEventSetWait"),
    *("--code", "LIB_RM_VERSION_MISMATCH"),
)


@pytest.fixture(params=["driver root", pytest.param("loader", marks=pytest.mark.slow)])
def updated(node: Node, request: pytest.FixtureRequest) -> Iterator[tuple[Plugin, Path]]:
    """A plugin that cannot connect any more, since the driver is a newer one; and its library."""
    with ExitStack() as stack:
        served = stack.enter_context(ServedNode(node.dir))
        stack.enter_context(node.start_kubelet())
        original = Path(served.env["LD_LIBRARY_PATH"].partition(":")[0]) / "libnvidia-ml.so.1"
        root = node.dir / "driver"
        library = root / FOLDERS[request.param] / original.name
        library.parent.mkdir(parents=True)
        shutil.copy(original, library)
        env = {**served.env, "LD_LIBRARY_PATH": str(library.parent)}
        plugin = stack.enter_context(
            Plugin("--backend", "nvml", *node.at, "--driver-root", str(root),
                   "--health-blind-after", "2s", env=env)
        )  # fmt: skip
        node.wait_allocatable(80)
        node.inject(*NEWER_DRIVER)
        plugin.says("event=driver-unavailable")
        yield plugin, library


def test_it_ends_once_its_library_was_replaced(updated: tuple[Plugin, Path]) -> None:
    plugin, library = updated
    assert plugin.running, "a restart would not help yet"
    assert "mismatch" in plugin.get("/ready")[1]
    fresh = library.with_suffix(".new")
    shutil.copy(library, fresh)
    fresh.replace(library)
    assert plugin.exit_status() == 1
    assert f"{library} was replaced since it was loaded" in plugin.output
    assert "Restart this program" in plugin.output
