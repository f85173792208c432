"""The labels of NVIDIA's GPU feature discovery (GFD): facts and plan in, labels out. Pure.

Names and values are those of GFD 0.20; where they differ on purpose, docs/node-labels.md says why.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuplugin.core.inventory import InventoryError, plan_devices
from hal import PCI_3D, PCI_VGA

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gpuplugin.core.inventory import Plan
    from hal import Gpu, MigDevice

PREFIX = "nvidia.com/"
NOT_WRITTEN = "the labels are not written"
"""What the status says then, with the reason behind it."""
LONGEST = 63
"""Characters of a label's value, and of its key without the prefix."""

_CUDA = (
    *("driver.major", "driver.minor", "driver.rev", "runtime.major", "runtime.minor"),
    *(f"driver-version.{part}" for part in ("major", "minor", "revision", "full")),
    *(f"runtime-version.{part}" for part in ("major", "minor", "full")),
)
_SHARED = ("product", "count", "replicas", "sharing-strategy", "memory")
_MODEL = ("family", "compute.major", "compute.minor")
_PARTS = {
    "multiprocessors": "multiprocessors",
    "slices.gi": "gpu_slices",
    "slices.ci": "compute_slices",
    "engines.copy": "copy_engines",
    "engines.decoder": "decoders",
    "engines.encoder": "encoders",
    "engines.jpeg": "jpeg_engines",
    "engines.ofa": "ofa_engines",
}
"""Labels of MIG devices, and the attribute that each shows."""

_OF_MIG = (*_SHARED, *_PARTS)
NAMES = frozenset(
    {
        *("gfd.timestamp", "mig.capable", "mig.strategy", "mps.capable"),
        *("gpu.present", "gpu.machine", "gpu.mode"),
        *(f"cuda.{name}" for name in _CUDA),
        *(f"gpu.{name}" for name in (*_MODEL, *_OF_MIG)),
    }
)
"""Everything that is written but labels of MIG profiles, without the prefix."""

_MIG_NAME = re.compile(rf"mig-.+\.(?:{'|'.join(map(re.escape, _OF_MIG))})")
_LONGEST_PROFILE = LONGEST - len("mig-.") - max(map(len, _OF_MIG))
_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9\-_. ]")
_FAMILIES = {
    1: "tesla",
    2: "fermi",
    3: "kepler",
    5: "maxwell",
    6: "pascal",
    7: "volta",
    8: "ampere",
    9: "hopper",
    10: "blackwell",
    12: "blackwell",
    13: "rubin",
}
"""By the major number of the compute capability, as GFD names them."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What labels say beside the GPUs; `timestamp` is in Unix seconds, None for no such label."""

    driver_version: str = ""
    cuda_version: tuple[int, int] | None = None
    machine: str = ""
    timestamp: int | None = None


@dataclass(frozen=True, slots=True)
class _Share:
    """How often a device is advertised, and whether under a name that says that it is shared."""

    replicas: int = 1
    renamed: bool = False


def is_own(key: str) -> bool:
    """Whether the label is one of those that this plugin, and GFD, writes and removes."""
    name = key.removeprefix(PREFIX)
    return name != key and (name in NAMES or _MIG_NAME.fullmatch(name) is not None)


def differences(stored: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str | None]:
    """What has to be written, None for a label that has to go."""
    gone: dict[str, str | None] = dict.fromkeys(sorted(stored.keys() - wanted.keys()))
    return gone | {key: wanted[key] for key in wanted if stored.get(key) != wanted[key]}


def gpu_labels(gpus: Iterable[Gpu], plan: Plan, facts: NodeFacts) -> dict[str, str]:
    """All labels of the node, ordered by key; without a GPU the timestamp alone."""
    present = [gpu for gpu in gpus if plan.gpu_filter.admits(gpu)]
    present.sort(key=lambda gpu: gpu.index)
    labels: dict[str, object] = {}
    if facts.timestamp is not None:
        labels["gfd.timestamp"] = facts.timestamp
    if present:
        labels |= {
            "gpu.present": "true",
            "gpu.machine": _sanitised(facts.machine) or "unknown",
            "gpu.mode": _mode(present),
            "mig.capable": str(any(gpu.mig_capable for gpu in present)).lower(),
            "mps.capable": "false",
        }
        labels |= _versions(facts)
        labels |= _of_resources(present, plan)
    return {f"{PREFIX}{name}": str(value) for name, value in sorted(labels.items())}


def _versions(facts: NodeFacts) -> dict[str, object]:
    labels: dict[str, object] = {}
    version = _sanitised(facts.driver_version)
    numbers = version.split(".")
    if len(numbers) in (2, 3):
        major, minor, revision = (*numbers, "")[:3]
        labels |= {
            "cuda.driver.major": major,
            "cuda.driver.minor": minor,
            "cuda.driver.rev": revision,
            "cuda.driver-version.major": major,
            "cuda.driver-version.minor": minor,
            "cuda.driver-version.revision": revision,
            "cuda.driver-version.full": version,
        }
    if facts.cuda_version is not None:
        first, second = facts.cuda_version
        labels |= {
            "cuda.runtime.major": first,
            "cuda.runtime.minor": second,
            "cuda.runtime-version.major": first,
            "cuda.runtime-version.minor": second,
            "cuda.runtime-version.full": f"{first}.{second}",
        }
    return labels


def _mode(gpus: Sequence[Gpu]) -> str:
    classes = {gpu.pci_class for gpu in gpus}
    if len(classes) == 1:
        return {PCI_VGA: "graphics", PCI_3D: "compute"}.get(classes.pop() or 0, "unknown")
    return "unknown"


def _of_resources(gpus: Sequence[Gpu], plan: Plan) -> dict[str, object]:
    try:
        shares = _shares(gpus, plan)
    except InventoryError:
        shares = None
    labels = _of_whole_gpus(gpus, shares or {})
    if plan.mig_strategy == "none":
        return labels
    labels["mig.strategy"] = plan.mig_strategy
    in_mig_mode = [gpu for gpu in gpus if gpu.mig_enabled]
    if shares is None:
        # A node that does not suit the strategy `single` offers nothing.
        labels |= {f"gpu.{name}": 0 for name in ("count", "replicas", "memory")}
        labels["gpu.sharing-strategy"] = ""
        labels["gpu.product"] = _product([in_mig_mode[0].product or "GPU", "MIG", "INVALID"])
        return labels
    devices: dict[str, list[tuple[Gpu, MigDevice]]] = {}
    for gpu in in_mig_mode:
        for mig in gpu.mig_devices:
            profile = _sanitised(mig.profile.replace("+", "."))[:_LONGEST_PROFILE].rstrip("-_.")
            if profile:
                devices.setdefault(profile, []).append((gpu, mig))
    for profile, alike in devices.items():
        gpu, mig = alike[0]
        prefix = "gpu" if plan.mig_strategy == "single" else f"mig-{profile}"
        share = _most([shares.get(one.uuid, _Share()) for _, one in alike])
        labels |= _base(prefix, [gpu.product, "MIG", profile], len(alike), share)
        labels |= _attributes(prefix, mig)
    return labels


def _of_whole_gpus(gpus: Sequence[Gpu], shares: Mapping[str, _Share]) -> dict[str, object]:
    """Labels of one model: of that with most GPUs, whole ones first; the lowest index decides."""
    counts = Counter(gpu.product for gpu in gpus)
    first = min(gpus, key=lambda gpu: (gpu.mig_enabled, -counts[gpu.product], gpu.index))
    whole = [gpu for gpu in gpus if gpu.product == first.product and not gpu.mig_enabled]
    share = _most([shares.get(gpu.uuid, _Share()) for gpu in whole]) if whole else None
    labels = _base("gpu", [first.product], counts[first.product], share)
    if first.memory_bytes:
        labels["gpu.memory"] = first.memory_bytes // 2**20
    if first.compute_capability is not None:
        major, minor = first.compute_capability
        labels["gpu.family"] = _family(major, minor)
        labels["gpu.compute.major"], labels["gpu.compute.minor"] = major, minor
    return labels


def _family(major: int, minor: int) -> str:
    if major == 7 and minor >= 5:
        return "turing"
    if major == 8 and minor >= 9:
        return "ada-lovelace"
    return _FAMILIES.get(major, "undefined")


def _base(
    prefix: str, product: Sequence[str], count: int, share: _Share | None
) -> dict[str, object]:
    """`share` is None for GPUs that are only there for their MIG devices."""
    shared = share is not None and share.replicas > 1
    suffix = ["SHARED"] if share is not None and shared and not share.renamed else []
    name = _product([*product, *suffix])
    return {
        **({f"{prefix}.product": name} if name else {}),
        f"{prefix}.count": count,
        f"{prefix}.replicas": 0 if share is None else share.replicas,
        f"{prefix}.sharing-strategy": "time-slicing" if shared else "none",
    }


def _attributes(prefix: str, mig: MigDevice) -> dict[str, object]:
    found = mig.attributes
    if found is None:
        return {f"{prefix}.memory": mig.memory_bytes // 2**20}
    parts = {f"{prefix}.{name}": getattr(found, field) for name, field in _PARTS.items()}
    return {f"{prefix}.memory": found.memory_mib, **parts}


def _shares(gpus: Sequence[Gpu], plan: Plan) -> dict[str, _Share]:
    """By the UUIDs of what is advertised; raises `InventoryError`."""
    planned = plan_devices(gpus, plan)
    shares: dict[str, _Share] = {}
    for name, devices in planned.resources.items():
        for device, replicas in devices:
            position = planned.entries.get(device.uuid)
            entry = None if position is None else plan.sharing.resources[position]
            shares[device.uuid] = _Share(replicas, entry is not None and name != entry.name)
    return shares


def _most(shares: Iterable[_Share]) -> _Share:
    """Where devices of one kind are shared differently, the one label is about the most shared."""
    return max(shares, key=lambda share: share.replicas)


def _product(parts: Sequence[str]) -> str:
    """The parts joined, cut at the end of the first, which is NVML's name; empty without that."""
    end = "".join(f"-{part}" for part in map(_sanitised, parts[1:]) if part)
    name = _sanitised(parts[0])[: LONGEST - len(end)].rstrip("-_.")
    return f"{name}{end}" if name else ""


def _sanitised(text: str) -> str:
    """Text as a label's value may be, blanks as `-`."""
    value = "-".join(_NOT_ALLOWED.sub("", text).split())
    return value.strip("-_.")[:LONGEST].rstrip("-_.")
