"""What the Containerfile and its neighbours say; that it works is for tests/e2e/test_sandbox.py."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from gpuplugin.version import VERSION
from tests.e2e.containerfile import FILE, ROOT, image_environment, stages, steps
from tests.unit.deploy.manifests import plugin_container, pod_spec

TEXT = FILE.read_text()
STAGES = stages(TEXT)
BASE = STAGES["base"]
BUILDS = {"plugin": "build", "sim": "build-sim"}
"""The stage that makes /app, by the target that gets it."""


def _rest(word: str) -> list[str]:
    return [step.rest for step in BASE if step.word == word]


def test_every_stage_is_on_the_base_of_the_argument_or_on_another_stage() -> None:
    assert steps(TEXT)[0].word == "ARG"
    froms = {name: stage[0].words[0] for name, stage in STAGES.items()}
    assert froms == {
        "build": "${PYTHON_IMAGE}",
        "build-sim": "build",
        "base": "${PYTHON_IMAGE}",
        "sim": "base",
        "plugin": "base",
    }
    assert list(STAGES)[-1] == "plugin", "what is built if no target is given"


def test_the_base_is_named_by_tag_and_by_the_digest_of_its_index() -> None:
    """The tag tells Renovate what to look for; the digest is what is built."""
    (argument,) = [step.rest for step in steps(TEXT) if step.rest.startswith("PYTHON_IMAGE=")]
    assert re.fullmatch(
        r"PYTHON_IMAGE=docker\.io/library/python:\d+\.\d+-slim@sha256:[0-9a-f]{64}", argument
    )


def test_an_image_differs_by_what_is_copied_from_its_build() -> None:
    for target, build in BUILDS.items():
        copied = [step.rest for step in STAGES[target] if step.word == "COPY"]
        assert copied == [f"--from={build} /app /app"]
        assert {step.word for step in STAGES[target]} <= {"FROM", "COPY", "LABEL"}


def test_production_is_built_without_the_simulator() -> None:
    copied = {
        name for step in STAGES["build"] if step.word == "COPY" for name in step.rest.split()[:-1]
    }
    assert not {"benchmarks", "distributions", "sim"} & copied


def test_the_image_runs_as_the_user_of_the_daemonset_without_a_shell() -> None:
    context = plugin_container()["securityContext"]
    assert _rest("USER") == [f"{context['runAsUser']}:{context['runAsGroup']}"]
    assert "--chown" not in TEXT, "files are root's: COPY makes them so whatever USER says"
    for word in ("ENTRYPOINT", "CMD", "RUN"):
        (step,) = [step for step in BASE if step.word == word]
        assert step.is_exec_form, word


def test_it_starts_what_the_daemonset_starts() -> None:
    words = [word for step in BASE if step.word in {"ENTRYPOINT", "CMD"} for word in step.words]
    assert words == plugin_container()["command"]
    assert image_environment(BASE, {"PATH": "/bin"})["PATH"] == "/app/bin:/bin"


def health_check() -> list[str]:
    (rest,) = _rest("HEALTHCHECK")
    found: list[str] = json.loads(rest.partition(" CMD ")[2])
    return found


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_asks_for_health(status: int, healthy: bool) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *_arguments: object) -> None:  # noqa: A002 - its name
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        program, option, script = health_check()
        port = plugin_container()["ports"][0]["containerPort"]
        assert f":{port}/" in script
        done = subprocess.run(
            [sys.executable, option, script.replace(str(port), str(server.server_port))],
            capture_output=True,
            check=False,
        )
        thread.join()
    assert (program, done.returncode == 0) == ("python3", healthy)


def test_the_manifest_names_the_version_that_is_built() -> None:
    containers = [*pod_spec()["initContainers"], *pod_spec()["containers"]]
    assert {one["image"] for one in containers} == {f"gpuplugin:{VERSION}"}


@pytest.mark.parametrize("name", ["version", "revision", "source"])
def test_it_says_where_it_comes_from(name: str) -> None:
    (labels,) = _rest("LABEL")
    assert f'org.opencontainers.image.{name}="${{{name.upper()}}}"' in labels
    assert f"{name.upper()}=unknown" in _rest("ARG")


def test_what_is_installed_has_hashes_and_is_never_compiled() -> None:
    installs = [
        part
        for build in BUILDS.values()
        for step in STAGES[build]
        for part in re.findall(r"pip (?:--python \S+ )?install [^&]+", step.rest)
    ]
    assert len(installs) == 5
    for install in installs:
        own = re.search(r"--no-index --no-deps .*/build/dist/gpuplugin(_sim)?-\*\.whl", install)
        pinned = re.search(
            r"--require-hashes --only-binary :all: .*-r deploy/requirements/\w+\.txt", install
        )
        assert bool(own) != bool(pinned), install


def test_the_context_has_what_is_copied_and_nothing_that_is_made() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in rules if line.startswith("!")}
    copied = {
        name
        for build in BUILDS.values()
        for step in STAGES[build]
        if step.word == "COPY"
        for name in step.rest.split()[:-1]
    }
    assert allowed == copied
    assert all((ROOT / name).exists() for name in copied)
    assert "*" in rules
    assert any(fnmatch.fnmatch("gpuplugin/__pycache__", rule) for rule in rules[1:])
