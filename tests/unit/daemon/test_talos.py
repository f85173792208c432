"""CDI specs on each release of Talos: the host's files, and a hook program that works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gpuplugin.config.load import load_settings
from gpuplugin.config.plans import injection_plan, inventory_plan
from gpuplugin.core.inventory import build_inventory
from gpuplugin.daemon.serving.cdi import cdi_writer
from tests.talos import VERSIONS, talos_tree
from tests.unit.builders import a_gpu

if TYPE_CHECKING:
    from pathlib import Path

HOOKS = {
    "1.10": "/usr/local/bin/nvidia-cdi-hook.real",
    "1.12": "/usr/local/bin/nvidia-cdi-hook.real",
    "1.13": "/usr/local/bin/nvidia-cdi-hook",
    "1.14": "/usr/local/bin/nvidia-cdi-hook",
    "1.15": None,
}


def edits(root: Path, **environment: str) -> dict[str, Any]:
    """What the spec does for every container."""
    settings = load_settings(
        {},
        {"DEVICE_LIST_STRATEGY": "cdi-cri", "DRIVER_ROOT_CTR_PATH": str(root), **environment},
        None,
    ).settings
    plan = injection_plan(settings, {"/dev/nvidiactl"})
    inventory = build_inventory([a_gpu(0)], inventory_plan(settings))
    spec: Any = cdi_writer(settings, plan).specs(inventory)["k8s.device-plugin.nvidia.com-gpu.json"]
    found: dict[str, Any] = spec["containerEdits"]
    return found


@pytest.mark.parametrize("configured", ["", "/usr/local/bin/nvidia-cdi-hook"])
@pytest.mark.parametrize("release", VERSIONS)
def test_the_hook_program_is_one_that_works(tmp_path: Path, release: str, configured: str) -> None:
    """Up to 1.12 the program of that name ends with "unknown command"; 1.15 has none."""
    tree = talos_tree(tmp_path, release)
    environment = {"NVIDIA_CDI_HOOK_PATH": configured} if configured else {}
    hooks = edits(tmp_path, **environment).get("hooks", [])

    wanted = HOOKS[release]
    assert [one["path"] for one in hooks] == ([wanted] if wanted else [])
    for hook in hooks:
        program = hook["path"].rpartition("/")[2]
        assert hook["args"] == [program, "update-ldcache", f"--folder=/{tree.libraries}"]


@pytest.mark.parametrize("release", VERSIONS)
def test_the_driver_is_mounted_as_the_host_has_it(tmp_path: Path, release: str) -> None:
    tree = talos_tree(tmp_path, release)
    mounts = {one["containerPath"]: one["hostPath"] for one in edits(tmp_path)["mounts"]}

    file = f"/{tree.libraries}/libcuda.so.{tree.driver}"
    assert (mounts[file], mounts[f"/{tree.libraries}/libcuda.so.1"]) == (file, file)
    assert mounts["/usr/local/bin/nvidia-smi"] == "/usr/local/bin/nvidia-smi"
    assert not any("libc.so" in path for path in mounts)


def test_a_hook_can_be_switched_off(tmp_path: Path) -> None:
    talos_tree(tmp_path, "1.14")
    assert "hooks" not in edits(tmp_path, CDI_DISABLE_HOOKS="update-ldcache")
