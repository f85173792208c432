"""`make kind`: the commands that it gives, to programs that only write down what is asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.kind import NEEDED

ROOT = Path(__file__).parents[3]
FAKE = """\
#!/bin/sh
interrupt() { kill -INT $PPID; }
echo "${0##*/} $*" >> "$KIND_TEST/asked"
echo "$KUBECONFIG" >> "$KIND_TEST/kubeconfigs"
[ "$*" = "get clusters" ] && cat "$KIND_TEST/clusters" 2> /dev/null
case "$*" in *"$KIND_TEST_FAILS"*) $KIND_TEST_BEFORE; exit 3;; esac
exit 0
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in NEEDED:
        (folder / name).write_text(FAKE)
        (folder / name).chmod(0o755)
    return folder


def kind(
    programs: Path, *words: str, fails: str = "never", interrupts: bool = False
) -> subprocess.CompletedProcess[str]:
    """As make calls it, with these programs and the shell's alone.

    A command with `fails` in it fails, or (`interrupts`) Ctrl-C is pressed while it runs.
    """
    environment = os.environ | {
        "PATH": f"{programs}:/usr/bin:/bin",
        "KUBECONFIG": "the-users",
        "KIND_TEST": str(programs.parent),
        "KIND_TEST_FAILS": fails,
        "KIND_TEST_BEFORE": "interrupt" if interrupts else ":",
    }
    return subprocess.run(
        [sys.executable, "-m", "tools.kind", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def asked(programs: Path) -> list[str]:
    return (programs.parent / "asked").read_text().splitlines()


def places(lines: list[str], *starts: str) -> list[int]:
    return [next(n for n, line in enumerate(lines) if line.startswith(one)) for one in starts]


def test_from_an_image_to_a_lost_gpu_and_back_to_nothing(programs: Path) -> None:
    outcome = kind(programs)
    assert outcome.returncode == 0, outcome.stderr
    lines = asked(programs)
    kubectl = "kubectl --context kind-gpuplugin"
    order = places(
        lines,
        "docker build -f deploy/Containerfile --target sim -t gpuplugin:",
        "kind create cluster --name gpuplugin",
        "kind load docker-image gpuplugin:",
        f"{kubectl} apply -k deploy/kustomize/overlays/simulated",
        f"{kubectl} apply -k deploy/workloads/time-slicing-simulated",
        f"{kubectl} logs",
        f"{kubectl} exec -n gpu-device-plugin daemonset/nvidia-device-plugin -- gpuplugin sim",
        f"{kubectl} wait nodes --all --for=jsonpath=",
        "kind delete cluster --name gpuplugin",
    )
    assert order == sorted(order)
    for folder in (
        "deploy/kustomize/overlays/simulated",
        "deploy/workloads/time-slicing-simulated",
    ):
        assert (ROOT / folder / "kustomization.yaml").is_file()


@pytest.mark.parametrize("was_there", [False, True])
def test_a_cluster_is_kept_if_asked_or_if_it_was_there(programs: Path, was_there: bool) -> None:
    if was_there:
        (programs.parent / "clusters").write_text("other\ngpuplugin\n")
    outcome = kind(programs, *([] if was_there else ["--keep"]))
    assert outcome.returncode == 0
    lines = asked(programs)
    assert not any(line.startswith("kind delete") for line in lines)
    assert any(line.startswith("kind create") for line in lines) is not was_there
    assert "kind delete cluster --name gpuplugin" in outcome.stdout


def test_a_failure_is_told_with_what_there_is_and_cleaned_up(programs: Path) -> None:
    outcome = kind(programs, fails="rollout status daemonset")
    assert outcome.returncode == 1
    assert "rollout status daemonset/nvidia-device-plugin" in outcome.stderr
    assert "failed with 3" in outcome.stderr
    lines = asked(programs)
    assert any("get pods -A" in line for line in lines)
    assert lines[-1] == "kind delete cluster --name gpuplugin"


@pytest.mark.parametrize(
    "during", ["create cluster", "load docker-image", "rollout status", "wait nodes"]
)
@pytest.mark.parametrize("interrupts", [False, True], ids=["fails", "interrupted"])
def test_what_was_made_is_removed_whenever_it_ends(
    programs: Path, during: str, interrupts: bool
) -> None:
    outcome = kind(programs, fails=during, interrupts=interrupts)
    assert outcome.returncode == (130 if interrupts else 1)
    assert "Traceback" not in outcome.stderr
    assert asked(programs)[-1] == "kind delete cluster --name gpuplugin"


def test_a_kind_that_does_not_tell_what_there_is_removes_nothing(programs: Path) -> None:
    outcome = kind(programs, fails="get clusters")
    assert outcome.returncode == 1
    assert "'kind get clusters' failed" in outcome.stderr
    assert not any(line.startswith(("kind create", "kind delete")) for line in asked(programs))


@pytest.mark.parametrize("keep", [False, True])
def test_the_users_contexts_know_only_of_a_cluster_that_is_kept(programs: Path, keep: bool) -> None:
    assert kind(programs, *(["--keep"] if keep else [])).returncode == 0
    lines = (programs.parent / "kubeconfigs").read_text().splitlines()
    used = {
        path
        for command, path in zip(asked(programs), lines, strict=True)
        if command.startswith(("kubectl", "kind create", "kind load", "kind delete"))
    }
    assert len(used) == 1
    assert (used == {"the-users"}) is keep


@pytest.mark.parametrize("name", NEEDED)
def test_a_program_that_is_missing_is_named_with_its_source(programs: Path, name: str) -> None:
    (programs / name).unlink()
    environment = os.environ | {"PATH": str(programs)}
    outcome = subprocess.run(
        [sys.executable, "-m", "tools.kind"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 1
    assert outcome.stderr.strip() == f"make kind needs {name} ({NEEDED[name]})"


def test_a_docker_without_its_daemon_is_told(programs: Path) -> None:
    outcome = kind(programs, fails="info")
    assert outcome.returncode == 1
    assert "docker daemon" in outcome.stderr
