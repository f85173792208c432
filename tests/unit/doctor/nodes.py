"""Facts of a node on which all is well, for tests to spoil."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpuplugin.config.document import parse_document
from gpuplugin.config.load import load_settings
from gpuplugin.doctor.checks import CHECKS
from gpuplugin.doctor.facts import (
    ConfigFacts,
    DriverFacts,
    Facts,
    FileFact,
    GpuFacts,
    HardwareFacts,
    KubeletFacts,
    Library,
    PartFact,
    PciGpu,
    PluginFacts,
    RuntimeConfig,
    RuntimeFacts,
    SocketFact,
    SocketState,
    ToolkitConfig,
)
from hal import ComputeMode
from tests.unit.builders import a_gpu, a_probe

if TYPE_CHECKING:
    from gpuplugin.config.settings import Settings
    from gpuplugin.doctor.verdict import Verdict

ROOT = "/var/lib/kubelet"
PLUGIN_FOLDER = f"{ROOT}/plugins_registry/gpuplugin"
SOCKET = f"{PLUGIN_FOLDER}/gpuplugin-nvidia.com-gpu-0123abcd.sock"


def settings(**environment: str) -> Settings:
    """The default configuration with some variables set."""
    return load_settings({}, environment, None).settings


def settings_of(text: str) -> Settings:
    """Those of a file with this text."""
    return load_settings({}, {}, None, parse_document(text, "file")).settings


def a_node(path: str, numbers: tuple[int, int], mode: int = 0o666) -> FileFact:
    return FileFact(path, mode=mode, device=numbers)


def nodes(count: int) -> dict[str, FileFact]:
    found = [a_node(f"/dev/nvidia{index}", (195, index)) for index in range(count)]
    found += [a_node("/dev/nvidiactl", (195, 255)), a_node("/dev/nvidia-uvm", (511, 0))]
    return {node.path: node for node in found}


def a_folder(path: str, uid: int = 0, mode: int = 0o755) -> FileFact:
    return FileFact(path, uid=uid, gid=uid, mode=mode, is_folder=True)


def well(count: int = 2, **environment: str) -> Facts:
    """A node with `count` GPUs on which every check is content."""
    gpus = [replace(a_gpu(index), compute_mode=ComputeMode.DEFAULT) for index in range(count)]
    return Facts(
        config=ConfigFacts("the file", settings(**environment)),
        driver=DriverFacts(
            libraries=(Library("/usr/lib64/libnvidia-ml.so.1", "580.105.08"),),
            modules=frozenset({"nvidia", "nvidia_uvm", "nvidia_modeset"}),
            module_version="580.105.08",
            pci=tuple(PciGpu(f"0000:0{index}:00.0", "0302", "nvidia") for index in range(count)),
            nodes=MappingProxyType(nodes(count)),
        ),
        hardware=HardwareFacts(
            driver_version="580.105.08",
            gpus=tuple(GpuFacts(gpu, a_probe()) for gpu in gpus),
        ),
        kubelet=KubeletFacts(
            folder=a_folder(ROOT),
            device_plugins=a_folder(f"{ROOT}/device-plugins"),
            registry=a_folder(f"{ROOT}/plugins_registry", mode=0o750),
            own_folder=a_folder(PLUGIN_FOLDER, uid=65534, mode=0o750),
            socket=SocketFact(f"{ROOT}/device-plugins/kubelet.sock", SocketState.ANSWERS),
            own_sockets=(SocketFact(SOCKET, SocketState.ANSWERS),),
            registered=MappingProxyType({"nvidia.com/gpu": 20}),
        ),
        plugin=PluginFacts(
            source=f"{PLUGIN_FOLDER}/.gpuplugin-control.sock",
            uid=65534,
            parts=(
                PartFact("config", True, "the file is in force", 60.0, 0.0),
                PartFact("kubelet:nvidia.com/gpu", True, "the kubelet watches", 60.0, 0.0),
                PartFact("monitor", True, "watching 2 GPUs", 60.0, 0.0),
            ),
        ),
        runtime=RuntimeFacts(
            configs=(
                RuntimeConfig(
                    "containerd",
                    "/etc/containerd/config.toml",
                    handlers=MappingProxyType({"nvidia": "/usr/bin/nvidia-container-runtime"}),
                    default_handler="nvidia",
                    cdi=True,
                ),
            ),
        ),
        plugin_uid=65534,
    )


def verdict(name: str, facts: Facts) -> Verdict:
    """What one check says."""
    return next(check for check in CHECKS if check.name == name).judge(facts)


TOOLKIT = ToolkitConfig("/etc/nvidia-container-runtime/config.toml")
