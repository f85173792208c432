"""Reads deploy/Containerfile and does what it says, without an engine: bubblewrap runs its steps.

Knows the instructions that the file has, and refuses any other. The base image is a folder that
the caller made. Layers, image formats and registries are not here.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy/Containerfile"
_CACHE = re.compile(r"--mount=type=cache,target=(\S+)\s+")
_FROM = re.compile(r"--from=(\S+)\s+")


@dataclass(frozen=True)
class Step:
    """One instruction: its word, and the rest with its lines joined."""

    word: str
    rest: str

    @property
    def words(self) -> list[str]:
        """What the exec form or plain words say."""
        if self.is_exec_form:
            found: list[str] = json.loads(self.rest)
            return found
        return shlex.split(self.rest)

    @property
    def is_exec_form(self) -> bool:
        """True if no shell runs it."""
        return self.rest.startswith("[")


def steps(text: str) -> list[Step]:
    """Every instruction of a Containerfile."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    parts = (line.partition(" ") for line in joined.splitlines() if line)
    return [Step(word, rest.strip()) for word, _, rest in parts]


def stages(text: str) -> dict[str, list[Step]]:
    """The instructions of each stage by its name, from its FROM on, without those it stands on."""
    found: dict[str, list[Step]] = {}
    name = ""
    for step in steps(text):
        if step.word == "FROM":
            name = step.words[-1]
            found[name] = []
        if name:
            found[name].append(step)
    return found


def image_environment(stage: Sequence[Step], base: Mapping[str, str]) -> dict[str, str]:
    """The variables that a stage sets, on top of those of its base."""
    environment = dict(base)
    for step in stage:
        if step.word == "ENV":
            _set(environment, step)
    return environment


@dataclass
class Stage:
    """A stage being built: where COPY writes, and the sandbox in which RUN runs."""

    root: Path
    sandbox: Sequence[str]
    environment: dict[str, str]
    cache: Path
    """Folder on this machine for every cache mount."""

    sources: Mapping[str, Path] = field(default_factory=dict)
    """Roots of the stages before, by name."""

    instead: Mapping[str, Path] = field(default_factory=dict)
    """Folders to copy in place of those of the tree, by their names in it."""

    workdir: str = "/"

    def build(self, stage: Sequence[Step]) -> None:
        """Do every step."""
        for step in stage:
            match step.word:
                case "ARG":
                    name, _, value = step.rest.partition("=")
                    self.environment[name] = value
                case "ENV":
                    _set(self.environment, step)
                case "WORKDIR":
                    self.workdir = step.rest
                    self._at(step.rest).mkdir(parents=True, exist_ok=True)
                case "COPY":
                    self._copy(step)
                case "RUN":
                    self._run(step)
                case "FROM" | "LABEL" | "USER" | "ENTRYPOINT" | "CMD" | "HEALTHCHECK":
                    pass
                case other:
                    raise AssertionError(f"a step that this cannot do: {other}")

    def _at(self, path: str) -> Path:
        return self.root / (Path(self.workdir) / path).relative_to("/")

    def _copy(self, step: Step) -> None:
        found = _FROM.match(step.rest)
        *names, target = _FROM.sub("", step.rest).split()
        for name in names:
            if found:
                source = self.sources[found[1]] / name.lstrip("/")
            else:
                source = self.instead.get(name, ROOT / name)
            goal = self._at(target) / name if target.endswith("/") else self._at(target)
            goal.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                ignored = shutil.ignore_patterns() if found else _without_bytecode
                shutil.copytree(source, goal, symlinks=True, ignore=ignored)
            else:
                shutil.copy(source, goal)

    def _run(self, step: Step) -> None:
        caches = [
            word
            for target in _CACHE.findall(step.rest)
            for word in ("--bind", str(self.cache), target)
        ]
        command = step.words if step.is_exec_form else ["/bin/sh", "-c", _CACHE.sub("", step.rest)]
        done = subprocess.run(
            [*self.sandbox, *caches, "--chdir", self.workdir, "--", *command],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"RUN {step.rest}:\n{done.stdout}{done.stderr}"


_without_bytecode = shutil.ignore_patterns("__pycache__")


def _set(environment: dict[str, str], step: Step) -> None:
    for word in shlex.split(step.rest):
        name, _, value = word.partition("=")
        environment[name] = Template(value).substitute(environment)
