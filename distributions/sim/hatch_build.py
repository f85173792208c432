"""What pyproject.toml cannot say: the same version of gpuplugin, packages of other folders."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

ROOT = Path(__file__).parents[2]


class Dependencies(MetadataHookInterface):
    """The simulator uses the inside of gpuplugin, so only the same version will do."""

    def update(self, metadata: dict[str, Any]) -> None:
        own = f"gpuplugin=={metadata['version']}"
        metadata["dependencies"] = [own, "prometheus-client>=0.22", "simpy>=4.1.1"]


class Packages(BuildHookInterface[Any]):
    """An editable install reads the packages where they are; a wheel has them in it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            for name in ("benchmarks", "sim"):
                build_data["force_include"][str(ROOT / name)] = name
