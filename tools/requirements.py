"""Writes deploy/requirements: what an image installs, each package with its wheels' hashes.

`make requirements`, after a change of constraints.txt, of a pyproject.toml or of the image's base.
uv resolves for each machine; pip in the image installs with --require-hashes. No address is
written: a hash is the same wherever the wheel comes from.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy/requirements"
MACHINES = ("x86_64", "aarch64")
GLIBC = "2_36"
"""The oldest C library that the image's base may have: Debian 12's."""


def project(folder: str = ".") -> dict[str, list[str]]:
    """What a distribution needs, and its extras by name."""
    text = (ROOT / folder / "pyproject.toml").read_text()
    table = tomllib.loads(text)["project"]
    return {"": table.get("dependencies", []), **table["optional-dependencies"]}


def wanted() -> dict[str, list[str]]:
    """Requirements of each file by its name."""
    plugin, simulator = project(), project("distributions/sim")
    # `cli` is for `gpuplugin top` in a pod.
    installed = plugin[""] + plugin["kubernetes"] + plugin["cli"]
    return {
        "build": ["hatchling", "cyclonedx-bom"],
        "plugin": installed,
        # hatch_build.py names these two, beside gpuplugin itself.
        "sim": [*installed, "prometheus-client", "simpy", *simulator["cli"]],
    }


def python_version() -> str:
    """Of the image's base, such as 3.13."""
    text = (ROOT / "deploy/Containerfile").read_text()
    found = re.search(r"^ARG PYTHON_IMAGE=\S+/python:(\d+\.\d+)", text, re.MULTILINE)
    if found is None:
        raise SystemExit("deploy/Containerfile: PYTHON_IMAGE names no version of Python")
    return found[1]


def resolved(requirements: list[str], machine: str, python: str) -> dict[str, set[str]]:
    """SHA-256 of the wheels that suit a machine, by `name==version`.

    Raises:
        SystemExit: uv cannot resolve them.
    """
    done = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "compile", "-", "--quiet", "--no-build",
         "--format", "pylock.toml", "--constraints", str(ROOT / "constraints.txt"),
         "--python-version", python,
         "--python-platform", f"{machine}-manylinux_{GLIBC}"],
        input="\n".join(requirements),
        env=os.environ | {"UV_PYTHON_DOWNLOADS": "never"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"uv cannot resolve what the image installs on {machine}:\n{done.stderr}")
    return {
        f"{one['name']}=={one['version']}": {wheel["hashes"]["sha256"] for wheel in one["wheels"]}
        for one in tomllib.loads(done.stdout)["packages"]
    }


def text_of(requirements: list[str], python: str) -> str:
    """The contents of a file for a version of Python, such as 3.13."""
    every: dict[str, dict[str, set[str]]] = defaultdict(dict)
    for machine in MACHINES:
        for package, hashes in resolved(requirements, machine, python).items():
            every[package][machine] = hashes
    lines = ["# Written by make requirements; docs/image.md tells when."]
    for package, by_machine in sorted(every.items()):
        only = "" if len(by_machine) > 1 else f' ; platform_machine == "{next(iter(by_machine))}"'
        every_hash = sorted({one for found in by_machine.values() for one in found})
        lines += [f"{package}{only} \\", *(f"    --hash=sha256:{one} \\" for one in every_hash)]
        lines[-1] = lines[-1].removesuffix(" \\")
    return "\n".join(lines) + "\n"


def write(folder: Path, python: str) -> None:
    """Write every file for a version of Python."""
    folder.mkdir(exist_ok=True)
    for name, requirements in wanted().items():
        (folder / f"{name}.txt").write_text(text_of(requirements, python))


def main() -> None:
    write(FOLDER, python_version())


if __name__ == "__main__":
    main()
