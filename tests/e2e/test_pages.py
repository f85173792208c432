"""The pages of runs, sweeps and advice in a browser: on a phone and on a desk, light and dark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest

from sim.study.html.frame import document
from tests.e2e.browser import faults_of_layout
from tests.e2e.conftest import gpuplugin

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

SWEEP = ("sim", "sweep", "noisy-neighbour", "--seeds", "2", "--until", "5s", "--processes", "1")
COMMANDS: dict[str, tuple[str, ...]] = {
    "run": ("sim", "run", "noisy-neighbour", "--until", "65s"),
    "sixteen": ("sim", "run", "sixteen-gpus", "--until", "5s"),
    "faults": ("sim", "run", "flapping-gpu", "--until", "5m"),
    "sweep": (*SWEEP, "--set", "replicas=2,4", "--set", "mechanism=time-slicing,mps"),
    "many": (*SWEEP, "--set", "replicas=2,4", "--set", "model=l4,l40s,h200,b200,a10,t4,rtx4090"),
    "advise": ("advise", "--model", "l4", "--workload", "api:15/100/5:6", "--processes", "1"),
}


@pytest.fixture(scope="module", params=COMMANDS)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(request.param) / f"{request.param}.html"
    done = gpuplugin(*COMMANDS[request.param], "--quiet", "--html", str(made))
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_or_is_hard_to_read(
    page: Path, tmp_path: Path, scheme: Literal["light", "dark"]
) -> None:
    assert faults_of_layout(page, tmp_path, scheme) == []


def test_a_page_that_is_broken_on_purpose_does_not_pass(tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    faint = '<p style="color:#ccc;background:#fff">faint</p>'
    wide = '<p style="width:800px;white-space:nowrap">wide</p>'
    broken.write_text(document("broken", [faint, wide], []))
    assert faults_of_layout(broken, tmp_path, "light") == [
        "390: the page is 810 wide",
        "390: p wide: overflows",
        "390: p faint: contrast 1.61",
        "1200: p faint: contrast 1.61",
    ]
