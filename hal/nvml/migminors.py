"""Device nodes of MIG devices, from the driver's list of capability minors under /proc."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MIG_MINORS: Final = "driver/nvidia-caps/mig-minors"
_LINE: Final = re.compile(r"gpu(\d+)/gi(\d+)(?:/ci(\d+))?/access (\d+)")


def read_mig_minors(procfs_root: Path) -> Mapping[tuple[int, int, int | None], int]:
    """Capability minors by (GPU minor, GPU instance, compute instance or None).

    Lines read `gpu0/gi1/access 12` and `gpu0/gi1/ci0/access 13`; others (`config`, `monitor`) are
    for administrators. Empty where the driver keeps no such list.
    """
    try:
        text = (procfs_root / MIG_MINORS).read_text()
    except OSError:
        return {}
    minors: dict[tuple[int, int, int | None], int] = {}
    for line in text.splitlines():
        if found := _LINE.fullmatch(line.strip()):
            gpu, gi, ci, minor = found.groups()
            minors[int(gpu), int(gi), None if ci is None else int(ci)] = int(minor)
    return minors


def mig_device_nodes(
    gpu_minor: int | None,
    gpu_instance: int,
    compute_instance: int,
    minors: Mapping[tuple[int, int, int | None], int],
) -> tuple[str, ...]:
    """What a process needs to use the MIG device: the GPU's node and those of both instances."""
    if gpu_minor is None:
        return ()
    keys = ((gpu_minor, gpu_instance, None), (gpu_minor, gpu_instance, compute_instance))
    capabilities = (minors[key] for key in keys if key in minors)
    return (
        f"/dev/nvidia{gpu_minor}",
        *(f"/dev/nvidia-caps/nvidia-cap{minor}" for minor in capabilities),
    )
