"""CDI specs as files, and what of a configuration depends on this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gpuplugin.config.load import load_settings
from gpuplugin.config.options import OPTIONS
from gpuplugin.config.plans import injection_plan
from gpuplugin.core.cdi import CdiHost
from gpuplugin.core.injection import InjectionPlan, inject
from gpuplugin.core.inventory import Inventory, Plan, build_inventory
from gpuplugin.core.node import ConfigurationMisfit
from gpuplugin.daemon.plans import existing_nodes, node_plan, remove_unwanted_specs
from gpuplugin.daemon.serving.cdi import CdiWriter, cdi_writer, present_features, remove_specs
from hal.driverfiles import DriverFiles
from tests.unit.builders import gpus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuplugin.config.settings import Settings

VENDOR = "k8s.device-plugin.nvidia.com"
GPU_FILE = f"{VENDOR}-gpu.json"
IMEX_FILE = f"{VENDOR}-imex-channel.json"
CDI = InjectionPlan(strategies=frozenset({"cdi-cri"}))
WITH_IMEX = InjectionPlan(strategies=frozenset({"cdi-cri"}), imex_channels=(0,))
HOST = CdiHost("/", DriverFiles())
BY_FLAG = {flag: option for option in OPTIONS for flag in option.flags}


def node(count: int) -> Inventory:
    return build_inventory(gpus(count), Plan())


def settings(**flags: str) -> Settings:
    given = {f"--{name.replace('_', '-')}": text for name, text in flags.items()}
    return load_settings({BY_FLAG[flag]: text for flag, text in given.items()}, {}, None).settings


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "var" / "cdi"


@pytest.fixture
def writer(folder: Path) -> CdiWriter:
    return CdiWriter(folder, HOST, CDI)


def test_the_folder_is_made_and_the_spec_is_in_it(writer: CdiWriter, folder: Path) -> None:
    writer.write(node(2))

    assert names(folder) == {GPU_FILE}
    assert json.loads((folder / GPU_FILE).read_text()) == writer.specs(node(2))[GPU_FILE]


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_everybody_may_read_a_spec_whatever_the_umask(writer: CdiWriter, folder: Path) -> None:
    writer.write(node(1))

    assert (folder / GPU_FILE).stat().st_mode & 0o777 == 0o644


def test_a_spec_is_whole_at_every_moment(
    writer: CdiWriter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.write(node(1))
    before = (folder / GPU_FILE).read_text()
    seen: list[str] = []
    replace = os.replace

    def look(source: str, target: Path) -> None:
        assert (folder / GPU_FILE).read_text() == before
        assert json.loads(Path(source).read_text()) == writer.specs(node(2))[GPU_FILE]
        (temporary,) = names(folder) - {GPU_FILE}
        seen.append(temporary)
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    writer.write(node(2))

    (temporary,) = seen
    assert temporary.startswith(".")
    assert not temporary.endswith((".json", ".yaml"))
    assert names(folder) == {GPU_FILE}
    assert len(json.loads((folder / GPU_FILE).read_text())["devices"]) == 2


def test_a_write_that_fails_leaves_nothing_behind(
    writer: CdiWriter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.write(node(1))
    before = (folder / GPU_FILE).read_text()

    def full(_descriptor: int, _mode: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(OSError, match="No space"):
        writer.write(node(2))

    assert (folder / GPU_FILE).read_text() == before
    assert names(folder) == {GPU_FILE}


def test_a_spec_that_is_right_is_left_alone(writer: CdiWriter, folder: Path) -> None:
    writer.write(node(2))
    path = folder / GPU_FILE
    os.utime(path, ns=(1, 1))
    before = path.stat()
    writer.write(node(2))
    after = path.stat()

    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, 1)
    writer.write(node(3))
    assert path.stat().st_mtime_ns != 1


@pytest.mark.parametrize("spoilt", [b"", b"{", b"\xff\x00"])
def test_a_spec_that_somebody_spoilt_is_mended(
    writer: CdiWriter, folder: Path, spoilt: bytes
) -> None:
    writer.write(node(1))
    (folder / GPU_FILE).write_bytes(spoilt)
    writer.write(node(1))

    assert len(json.loads((folder / GPU_FILE).read_text())["devices"]) == 1


def test_a_spec_that_somebody_removed_is_written_again(writer: CdiWriter, folder: Path) -> None:
    writer.write(node(1))
    (folder / GPU_FILE).unlink()
    writer.write(node(1))

    assert names(folder) == {GPU_FILE}


def test_own_specs_that_are_not_wanted_any_more_go_and_others_stay(folder: Path) -> None:
    foreign = {
        "nvidia.yaml", "nvidia.com-gpu.json", f"{VENDOR}-gpu.yaml", f"x-{VENDOR}-gpu.json",
        "k8s.device-plugin.example.com-gpu.json",
    }  # fmt: skip
    CdiWriter(folder, HOST, WITH_IMEX).write(node(1))
    for name in foreign:
        (folder / name).write_text(name)
    assert names(folder) == {GPU_FILE, IMEX_FILE} | foreign
    CdiWriter(folder, HOST, CDI).write(node(1))

    assert names(folder) == {GPU_FILE} | foreign
    assert remove_specs(folder) == (folder / GPU_FILE,)
    assert names(folder) == foreign
    assert {(folder / name).read_text() for name in foreign} == foreign


def test_removing_where_there_is_nothing(tmp_path: Path) -> None:
    assert remove_specs(tmp_path) == ()
    assert remove_specs(tmp_path / "none") == ()


@pytest.mark.parametrize("below", ["", "cdi"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, below: str) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")

    with pytest.raises(OSError, match=str(blocked)):
        CdiWriter(blocked / below, HOST, CDI).write(node(1))
    assert blocked.read_text() == ""


# What this machine has


def driver(root: Path) -> Path:
    library = root / "usr/lib64/libcuda.so.580.1"
    library.parent.mkdir(parents=True)
    library.write_text("")
    return root


def common_edits(made: CdiWriter) -> dict[str, object]:
    edits = made.specs(node(1))[GPU_FILE]["containerEdits"]
    assert isinstance(edits, dict)
    return edits


def test_driver_files_are_found_where_they_are_mounted_and_named_as_on_the_host(
    tmp_path: Path,
) -> None:
    made = cdi_writer(
        settings(driver_root="/host/driver", driver_root_ctr_path=str(driver(tmp_path))), CDI
    )

    assert common_edits(made)["mounts"] == [
        {
            "hostPath": "/host/driver/usr/lib64/libcuda.so.580.1",
            "containerPath": "/usr/lib64/libcuda.so.580.1",
            "options": ["ro", "nosuid", "nodev", "bind"],
        }
    ]


def test_without_a_mounted_root_the_driver_root_is_looked_at(tmp_path: Path) -> None:
    made = cdi_writer(
        settings(driver_root=str(driver(tmp_path)), driver_root_ctr_path=str(tmp_path / "missing")),
        CDI,
    )

    assert "mounts" in common_edits(made)


def test_a_simulated_node_mounts_no_driver_files(tmp_path: Path) -> None:
    made = cdi_writer(settings(backend="sim", driver_root=str(driver(tmp_path))), CDI)

    assert "mounts" not in common_edits(made)


@pytest.mark.parametrize(
    ("disabled", "there"), [("", True), ("other", True), ("all", False), ("update-ldcache", False)]
)
def test_the_hook_is_there_unless_it_is_switched_off(
    tmp_path: Path, disabled: str, there: bool
) -> None:
    hook = driver(tmp_path) / "usr/bin/nvidia-cdi-hook"
    hook.parent.mkdir()
    hook.write_text("")
    made = cdi_writer(
        settings(
            driver_root_ctr_path=str(tmp_path),
            nvidia_cdi_hook_path="/usr/bin/nvidia-cdi-hook",
            cdi_disable_hooks=disabled,
        ),
        CDI,
    )

    assert ("hooks" in common_edits(made)) == there


def test_a_hook_that_is_not_on_the_host_is_left_out(tmp_path: Path) -> None:
    made = cdi_writer(
        settings(driver_root_ctr_path=str(driver(tmp_path)), nvidia_cdi_hook_path="/none/hook"),
        CDI,
    )

    assert "hooks" not in common_edits(made)


def test_nodes_of_a_feature_are_those_of_the_machine(tmp_path: Path) -> None:
    for name in ("dev/infiniband/uverbs1", "dev/infiniband/uverbs0", "dev/infiniband/rdma_cm"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    plan = InjectionPlan(strategies=CDI.strategies, features=("mofed",))
    made = cdi_writer(settings(driver_root_ctr_path=str(tmp_path)), plan)
    spec = json.dumps(made.specs(node(1))[f"{VENDOR}-mofed.json"])

    positions = [spec.index(f"/dev/infiniband/{one}") for one in ("uverbs0", "uverbs1", "rdma_cm")]
    assert positions == sorted(positions)


def test_a_feature_without_nodes_is_not_named_to_a_container(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia-fs0").write_text("")
    wanted = settings(
        driver_root_ctr_path=str(tmp_path),
        device_list_strategy="cdi-cri",
        gds_enabled="true",
        mofed_enabled="true",
    )
    present = present_features(wanted) - {"mofed"}  # whatever the machine of this test has
    plan = injection_plan(wanted, (), features_present=present)
    (resource,) = node(1).resources
    given = inject(resource.name, resource.devices, plan)

    assert "gds" in present
    kinds = {name.partition("=")[0].rpartition("/")[2] for name in given.cdi_devices}
    assert kinds == {"gpu", "gds"}
    assert dict(given.envs) == {"NVIDIA_GDS": "enabled", "NVIDIA_MOFED": "enabled"}
    assert injection_plan(wanted, ()).absent_features == frozenset()


CONTROL = {
    "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset",
}  # fmt: skip
CHANNEL = "/dev/nvidia-caps-imex-channels/channel0"


def test_a_simulated_node_has_every_node() -> None:
    assert existing_nodes(settings(backend="sim")) == CONTROL
    wanted = settings(backend="sim", imex_channel_ids="0")
    assert existing_nodes(wanted) == {*CONTROL, CHANNEL}
    assert node_plan(wanted).injection.imex_channels == (0,)


def test_only_nodes_that_are_there_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, missing = tmp_path / "there", tmp_path / "missing"
    there.write_text("")
    for module in ("gpuplugin.daemon.plans", "gpuplugin.config.plans"):
        monkeypatch.setattr(f"{module}.CONTROL_NODES", (str(there), str(missing)))

    assert existing_nodes(settings()) == {str(there)}
    assert node_plan(settings()).injection.control_nodes == (str(there),)


class TestImex:
    """A channel that is asked for."""

    @pytest.fixture(autouse=True)
    def channel(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        path = tmp_path / "channel0"
        for module in ("gpuplugin.daemon.plans", "gpuplugin.config.plans"):
            monkeypatch.setattr(f"{module}.imex_channel_node", lambda _channel: str(path))
        return path

    def test_there(self, channel: Path) -> None:
        channel.write_text("")
        plans = node_plan(settings(imex_channel_ids="0", imex_required="true"))
        assert plans.injection.imex_channels == (0,)

    def test_missing_and_required(self) -> None:
        with pytest.raises(ConfigurationMisfit, match="IMEX channel 0 has no device node"):
            node_plan(settings(imex_channel_ids="0", imex_required="true"))

    def test_missing_and_not_required(self, caplog: pytest.LogCaptureFixture) -> None:
        plans = node_plan(settings(imex_channel_ids="0"))
        assert plans.injection.imex_channels == ()
        assert "it is left out" in caplog.text

    def test_required_but_not_asked_for(self) -> None:
        plans = node_plan(settings(imex_required="true"))
        assert plans.injection.imex_channels == ()


def test_the_plan_writes_specs_with_cdi_and_they_are_removed_without(tmp_path: Path) -> None:
    flags = {"backend": "sim", "cdi_root": str(tmp_path)}
    specs = node_plan(settings(device_list_strategy="cdi-cri", **flags)).specs
    assert specs is not None
    specs.write(node(1))
    assert names(tmp_path) == {GPU_FILE}

    without = settings(device_list_strategy="envvar", **flags)
    assert node_plan(without).specs is None
    remove_unwanted_specs(without)
    assert names(tmp_path) == set()


def test_specs_that_did_not_change_are_not_read(
    writer: CdiWriter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.write(node(2))
    reads: list[Path] = []

    def read(path: Path) -> bytes:
        reads.append(path)
        return b""

    monkeypatch.setattr(Path, "read_bytes", read)
    writer.write(node(2))
    assert reads == []
    (folder / GPU_FILE).write_text("{")
    writer.write(node(2))
    assert reads == [folder / GPU_FILE]
