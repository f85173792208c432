"""The fixtures for other projects, as a stranger uses them: pytest in a project of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sim.kubelet import Kubelet

PAGE = Path(__file__).parents[2] / "docs/testing-with-simulated-gpus.md"
TESTS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def run_pytest(folder: Path, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """pytest as in a new project, with none of the options of this one."""
    return subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    (tmp_path / "test_page.py").write_text("\n\n".join(TESTS))
    outcome = run_pytest(tmp_path)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert f"{sum(text.count('def test_') for text in TESTS)} passed" in outcome.stdout


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_wrong_arguments_and_a_configuration_that_is_none_are_told(tmp_path: Path) -> None:
    (tmp_path / "test_wrong.py").write_text(
        "import pytest\n"
        "@pytest.mark.gpu_node(replicas=4)\n"
        "def test_mark(gpu_node): pass\n"
        "@pytest.mark.gpu_node(config='version: v1\\nsharing: []\\n')\n"
        "def test_config(gpu_node): pass\n"
    )
    outcome = run_pytest(tmp_path)
    assert outcome.returncode == 1
    assert "gpu_node takes scenario= and config=" in outcome.stdout
    assert "it logged" in outcome.stdout
    assert "sharing" in outcome.stdout


def test_a_folder_that_is_too_deep_for_sockets_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has a path of \d+ bytes.*mkdtemp"):
        Kubelet(tmp_path / "a-folder-with-a-name-that-is-rather-long")


def test_the_fixtures_load_little_into_a_pytest_that_does_not_use_them() -> None:
    print_more = (
        "import sys, pytest; before = set(sys.modules); import sim.fixtures; "
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", print_more], capture_output=True, text=True, check=True
    )
    assert {"sim.fixtures"} <= set(done.stdout.split()) <= {"sim", "sim.fixtures"}
