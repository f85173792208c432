"""CDI on this machine: device nodes of features, and specs that nobody wants any more.

Specs are written in `cdiwriter`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.config.plans import driver_root
from gpuplugin.core.cdi import spec_file_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.config.settings import Settings

_FEATURE_NODES = {
    "gdrcopy": ("dev/gdrdrv",),
    "gds": ("dev/nvidia-fs*",),
    "mofed": ("dev/infiniband/uverbs*", "dev/infiniband/rdma_cm"),
}


def present_features(settings: Settings) -> frozenset[str]:
    """The features that this machine has device nodes of, switched on or not."""
    root = driver_root(settings)
    return frozenset(feature for feature in _FEATURE_NODES if feature_nodes(root, feature))


def remove_specs(folder: Path, keep: Mapping[str, object] | None = None) -> tuple[Path, ...]:
    """Remove this plugin's specs but those in `keep`; returns what was removed.

    Raises:
        OSError: a file cannot be removed.
    """
    stale = [
        path for path in sorted(folder.glob(spec_file_name("*"))) if path.name not in (keep or {})
    ]
    for path in stale:
        path.unlink(missing_ok=True)
    return tuple(stale)


def feature_nodes(root: Path, feature: str) -> tuple[str, ...]:
    """The device nodes of a feature, below the driver's root or else on this machine."""
    bases = (root, Path("/"))
    for base in bases:
        found = [
            f"/{path.relative_to(base)}"
            for pattern in _FEATURE_NODES[feature]
            for path in sorted(base.glob(pattern))
        ]
        if found:
            return tuple(found)
    return ()
