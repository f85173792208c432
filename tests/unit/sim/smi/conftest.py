"""The nodes of the tests of the library, and `nvidia-smi` on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pytest

from sim.smi.program import main
from tests.unit.sim.nvml.conftest import library, nvml, world

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.sim.nvml.conftest import World

__all__ = ["library", "nvml", "world"]


@dataclass(frozen=True, slots=True)
class Done:
    """Exit status and lines of a run."""

    status: int
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Smi(Protocol):
    """Runs the program with these arguments."""

    def __call__(self, *arguments: str) -> Done: ...


@pytest.fixture
def smi(nvml: World, library: Path, capsys: pytest.CaptureFixture[str]) -> Smi:
    environment = {"LD_LIBRARY_PATH": str(library.parent), "GPUPLUGIN_SIM_NVML": str(nvml.socket)}

    def run(*arguments: str) -> Done:
        status = main(arguments, environment)
        return Done(status, capsys.readouterr().out.splitlines())

    return run
