"""GPUs as the kernel module lists them under /proc: who a GPU is that NVML cannot read any more."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

GPUS: Final = "driver/nvidia/gpus"
_LINE: Final = re.compile(r"(?P<key>[A-Za-z ]+):\s+(?P<value>.*\S)")
_UUID: Final = re.compile(r"GPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ProcGpu:
    """A GPU that the module drives; `pci_bus_id` is in the kernel's spelling."""

    uuid: str
    product: str
    pci_bus_id: str
    minor: int | None


def read_proc_gpus(procfs_root: Path) -> tuple[ProcGpu | None, ...]:
    """The GPUs in the order of their addresses, which is NVML's; None for one without a UUID.

    A GPU that was never initialised shows question marks for its UUID. One that the module was
    told to leave out (`GPU Excluded: Yes`) is left out here too.
    """
    try:
        folders = sorted((procfs_root / GPUS).iterdir())
    except OSError:
        return ()
    found: list[ProcGpu | None] = []
    for folder in folders:
        facts = _facts(folder / "information")
        if facts.get("GPU Excluded") == "Yes":
            continue
        uuid, minor = facts.get("GPU UUID", ""), facts.get("Device Minor", "")
        if _UUID.fullmatch(uuid) is None:
            found.append(None)
            continue
        number = int(minor) if minor.isdecimal() else None
        found.append(ProcGpu(uuid, facts.get("Model", ""), folder.name, number))
    return tuple(found)


def _facts(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    matches = (_LINE.fullmatch(line.strip()) for line in text.splitlines())
    return {match["key"].strip(): match["value"] for match in matches if match}
