"""Made-up trees of Talos nodes: files, links and places as each release's extensions have them.

Sources: siderolabs/extensions, nvidia-gpu/nvidia-container-toolkit and misc/glibc, at v1.10.9,
v1.12.11, v1.13.9 and release-1.14; siderolabs/talos, hack/cri-plugin.part. For 1.15, which is not
released, its documentation and the change "switch to nri for nvidia" of the extensions. No tree is
a copy of a node's.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from pathlib import Path

VERSIONS = {
    "1.10": ("v1.10.9", "535.247.01", "v1.17.8"),
    "1.12": ("v1.12.11", "580.126.20", "v1.18.2"),
    "1.13": ("v1.13.9", "580.178.04", "v1.19.1"),
    "1.14": ("v1.14.0", "580.178.04", "v1.19.1"),
    "1.15": ("v1.15.0", "580.178.04", ""),
}
"""Of each release: its version, that of the driver (branch LTS), and that of NVIDIA's toolkit."""

_OLD, _NEW = "usr/local/glibc/usr/lib", "usr/local/lib"
_WRAPPER = "nvidia-container-runtime-wrapper"
_RUNTIME_PART = """\
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia.options]
    BinaryName = "/usr/local/bin/nvidia-container-runtime"
"""
_CDI_PART = """\
[plugins."io.containerd.cri.v1.runtime"]
  enable_cdi = true
  cdi_spec_dirs = ["/run/cdi"]
"""
_OWN_SPEC = """\
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices: [{name: all, containerEdits: {deviceNodes: [{path: /dev/nvidiactl}]}}]
"""


@dataclass(frozen=True)
class Tree:
    """The root of a node with a `release` of Talos; `libraries` is the folder of the driver's."""

    root: Path
    release: str
    libraries: str

    @property
    def driver(self) -> str:
        return VERSIONS[self.release][1]

    def write(self, path: str, text: str = "x") -> Path:
        here = self.root / path
        here.parent.mkdir(parents=True, exist_ok=True)
        here.write_text(text)
        return here

    def link(self, path: str, target: str) -> None:
        here = self.root / path
        here.parent.mkdir(parents=True, exist_ok=True)
        here.symlink_to(target)

    def extensions(self, *names: str) -> None:
        """Those that the node's image has, for example `nvidia-container-toolkit-lts`."""
        layers = [
            {"image": f"{number:03}.ext.sqsh", "metadata": {"name": name, "version": "1"}}
            for number, name in enumerate(names)
        ]
        self.write("etc/extensions.yaml", yaml.safe_dump({"layers": layers}))


def talos_tree(root: Path, release: str, nvml: Path | None = None) -> Tree:
    """Make the tree of a node with the driver; `nvml` is the library to put where NVML is."""
    version, driver, toolkit = VERSIONS[release]
    minor = int(release.partition(".")[2])
    tree = Tree(root, release, _NEW if minor >= 13 else _OLD)
    tree.write(
        "etc/os-release",
        f'NAME="Talos"\nID=talos\nVERSION_ID={version}\nPRETTY_NAME="Talos ({version})"\n',
    )
    tree.extensions("nvidia-open-gpu-kernel-modules-lts", "nvidia-container-toolkit-lts")
    _add_libraries(tree, driver, nvml)
    tree.write("usr/local/bin/nvidia-smi")
    tree.link("var/run", "/run")
    parts = [_CDI_PART] if minor >= 13 else []
    if toolkit:
        parts.append(_RUNTIME_PART)
        tree.write("etc/cri/conf.d/10-nvidia-container-runtime.part", _RUNTIME_PART)
        (_add_toolkit if minor >= 13 else _add_wrapped_toolkit)(tree)
        if minor >= 13:
            tree.write("run/cdi/nvidia.yaml", _OWN_SPEC)
    if minor >= 13:
        tree.link("usr/local/lib64", "lib/")
        tree.link("usr/bin/nvidia-smi", "/usr/local/bin/nvidia-smi")
    tree.write("etc/cri/conf.d/cri.toml", "version = 3\n" + "".join(parts))
    return tree


def _add_libraries(tree: Tree, driver: str, nvml: Path | None) -> None:
    for name in ("libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler"):
        file = tree.write(f"{tree.libraries}/{name}.so.{driver}")
        tree.link(f"{tree.libraries}/{name}.so.1", file.name)
    # The C library of the extension, which no container may get.
    tree.write(f"{tree.libraries}/libc.so.6")
    if nvml is not None:
        shutil.copy(nvml, tree.root / tree.libraries / f"libnvidia-ml.so.{driver}")


def _add_toolkit(tree: Tree) -> None:
    for program in ("nvidia-container-runtime", "nvidia-ctk", "nvidia-cdi-hook"):
        tree.write(f"usr/local/bin/{program}")
    for program in ("nvidia-ctk", "nvidia-cdi-hook"):
        tree.link(f"usr/bin/{program}", f"/usr/local/bin/{program}")


def _add_wrapped_toolkit(tree: Tree) -> None:
    tree.write(f"usr/local/bin/{_WRAPPER}")
    for program in ("nvidia-container-runtime", "nvidia-ctk", "nvidia-cdi-hook"):
        tree.link(f"usr/local/bin/{program}", _WRAPPER)
        tree.write(f"usr/local/bin/{program}.real")
