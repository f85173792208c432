"""The check of Talos Linux: whether extensions, configuration and release fit together.

For users: docs/talos.md. Where the facts come from: tests/talos.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuplugin.doctor.checks.runtime import BY_RUNTIME, CDI, nvidia_handlers
from gpuplugin.doctor.verdict import Verdict, fail, skipped, warn

if TYPE_CHECKING:
    from gpuplugin.doctor.facts import Facts, TalosFacts
    from gpuplugin.doctor.verdict import Problem


@dataclass(frozen=True, slots=True)
class Release:
    """What the extension nvidia-container-toolkit has in a release.

    `libraries` is the folder of the driver's libraries; `runtime` NVIDIA's container runtime,
    `own_spec` a CDI spec that Talos writes; `legacy` the runtime that filters devices by BPF and
    has a linker cache of its own.
    """

    libraries: str
    runtime: bool = True
    own_spec: bool = False
    legacy: bool = False


_LEGACY = Release("/usr/local/glibc/usr/lib", legacy=True)
_WITH_CDI = Release("/usr/local/lib", own_spec=True)
RELEASES = {
    (1, 10): _LEGACY,
    (1, 11): _LEGACY,
    (1, 12): _LEGACY,
    (1, 13): _WITH_CDI,
    (1, 14): _WITH_CDI,
    (1, 15): Release("/usr/local/lib", runtime=False),
}
_WAYS = {
    True: "RuntimeClass nvidia (overlay talos), or the plugin's CDI specs (overlay talos-cdi)",
    False: "the plugin's CDI specs (overlay talos-cdi)",
}
_TOOLKIT = "nvidia-container-toolkit-"
_MODULES = ("nvidia-open-gpu-kernel-modules-", "nonfree-kmod-nvidia-")
_EXTENSIONS = "/etc/extensions.yaml"
_INSTALL = (
    "Upgrade the node with an image of the Image Factory that has both extensions, of one branch: "
    "deploy/talos/schematic.yaml, docs/talos.md"
)


def talos(facts: Facts) -> Verdict:
    """On Talos Linux: extensions, configuration and release fit together; which ways there are."""
    node = facts.talos
    if node is None:
        return skipped("this is not Talos Linux, or its /etc is not seen from here (--root)")
    nearest = max(min(RELEASES), min(max(RELEASES), node.release))
    release = RELEASES[nearest]
    problems = [
        *_of_release(node, nearest),
        *_of_extensions(node),
        *_of_strategy(facts, node, release),
    ]
    uses_cdi = not CDI.isdisjoint(facts.strategies)
    hook = f"; hook program {node.hook}" if uses_cdi and node.hook else ""
    return Verdict(f"Talos {node.version}: {_WAYS[_has_runtime(facts)]}{hook}", tuple(problems))


def _has_runtime(facts: Facts) -> bool:
    return any(nvidia_handlers(config) for config in facts.runtime.configs)


def _of_release(node: TalosFacts, nearest: tuple[int, int]) -> list[Problem]:
    if node.release == nearest:
        return []
    oldest, newest, like = (
        ".".join(map(str, one)) for one in (min(RELEASES), max(RELEASES), nearest)
    )
    return [
        warn(
            f"Talos {node.version} is not known: known are {oldest} to {newest}",
            "/etc/os-release",
            "Check with docs/talos.md of a newer version of this program; what follows supposes "
            f"that it is like {like}",
        )
    ]


def _of_extensions(node: TalosFacts) -> list[Problem]:
    if node.extensions is None:
        return []
    branches = {
        kind: {
            name.removeprefix(prefix)
            for prefix in prefixes
            for name in node.extensions
            if name.startswith(prefix)
        }
        for kind, prefixes in (("toolkit", (_TOOLKIT,)), ("modules", _MODULES))
    }
    problems = [
        fail(f"the image has no extension with the driver's {what}", _EXTENSIONS, _INSTALL)
        for kind, what in (("toolkit", "libraries"), ("modules", "kernel modules"))
        if not branches[kind]
    ]
    if not problems and branches["toolkit"] != branches["modules"]:
        listed = " and ".join(
            sorted(name for name in node.extensions if name.startswith((_TOOLKIT, *_MODULES)))
        )
        problems.append(
            fail(f"the extensions are of different branches: {listed}", _EXTENSIONS, _INSTALL)
        )
    return problems


def _of_strategy(facts: Facts, node: TalosFacts, release: Release) -> list[Problem]:
    strategies = facts.strategies
    problems = []
    if strategies & CDI and not node.hook:
        problems.append(
            warn(
                "there is no CDI hook program: containers do not find the driver's libraries",
                "/usr/local/bin",
                f"Set LD_LIBRARY_PATH={release.libraries} in containers with GPUs, as "
                "deploy/workloads/time-slicing-cdi-no-hook does",
            )
        )
    if not strategies & BY_RUNTIME:
        return problems
    if not release.runtime and not _has_runtime(facts):
        names = " and ".join(sorted(strategies & BY_RUNTIME))
        problems.append(
            fail(
                f"Talos {node.version} has no NVIDIA runtime, which the device list strategy "
                f"{names} needs",
                "/etc/cri/conf.d",
                "Use the overlay talos-cdi (DEVICE_LIST_STRATEGY=cdi-cri), and remove "
                "runtimeClassName from pods",
            )
        )
    if release.legacy and node.bpf_jit_harden == "2":
        problems.append(
            fail(
                "the BPF JIT is hardened: NVIDIA's runtime cannot start a container",
                "/proc/sys/net/core/bpf_jit_harden",
                "Apply deploy/talos/bpf-jit-until-1.12.yaml",
            )
        )
    if release.legacy and node.cache_names_driver is False:
        problems.append(
            fail(
                "the linker cache of the extension does not have the driver's libraries: "
                "containers end with 'init 250 result=11'",
                "/usr/local/glibc/etc/ld.so.cache",
                "Upgrade to Talos 1.13 or later, or use the overlay talos-cdi",
            )
        )
    return problems
