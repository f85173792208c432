"""Commands in the documents: programs know their flags, and files, names and labels exist.

kubectl and helm are asked for their flags. For talosctl, which is not at hand, see `test_talos`.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from functools import cache
from typing import TYPE_CHECKING

import pytest
import yaml

from gpuplugin.cli.parser import build_parser
from gpuplugin.config.document import parse_document
from sim.node.pools import SCENARIO_LABEL
from sim.node.scenario import parse_scenario
from tests.deploy.binaries import program
from tests.deploy.choices import CHOICES
from tests.deploy.rendering import (
    CHART,
    COMPONENTS,
    DEPLOY,
    KUSTOMIZE,
    NAMESPACE,
    OVERLAYS,
    PLUGIN,
    ROOT,
    Object,
    built,
    built_with,
    chart,
    names,
    of_kind,
    overlaid,
    plugin_of,
    pod_of,
    the,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(300)
"""The first one that asks builds everything: 45 programs, one after the other."""

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", CHART / "README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
ALLOCATION_LABEL, DRA_RELEASE = "gpu-allocation", "gpuplugin-dra"
"""Of docs/migrating-to-dra.md: which plugin a node has, and the second release of the chart."""
PLACEHOLDERS = {"NODE", "POD", "PLUGIN-POD", "FILE"}
OWN_OVERLAY = "deploy/kustomize/overlays/mine"
"""The one that the page tells its reader to write; a test writes it, too."""


def commands_of(tool: str) -> list[tuple[str, str]]:
    """Page and command, of blocks and of code in the text."""
    found = []
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        found += [(page.name, line[2:]) for line in lines if line.startswith(f"$ {tool} ")]
        found += [(page.name, one) for one in re.findall(rf"`({tool} [^`]+)`", outside)]
    return sorted(set(found))


def _words(command: str) -> tuple[list[str], list[str]]:
    """The command's words before `--`, and those behind; what is piped on does not matter."""
    words = shlex.split(re.split(r" \| ", command)[0])
    if "--" in words:
        place = words.index("--")
        return words[:place], words[place + 1 :]
    return words, []


def _positional(words: list[str], taking: set[str]) -> list[str]:
    """Words that are no flags and no values of flags."""
    found, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word.startswith("-"):
            skip = word in taking
        else:
            found.append(word)
    return found


@cache
def _help(tool: str, *words: str) -> str:
    done = subprocess.run(
        [program(tool), *words], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout


def _flags(text: str) -> tuple[set[str], set[str]]:
    """Flags in a help text, and those of them that take a value."""
    known, taking = set(), set()
    for short, long, rest in re.findall(
        r"^\s+(?:(-\w), )?(--[\w-]+)([= ].*)?$", text, re.MULTILINE
    ):
        both = {long} | ({short} if short else set())
        known |= both
        # kubectl writes `--all=false:`, helm `--atomic   text` for a switch.
        is_switch = rest.startswith(("=false:", "=true:")) or re.match(r"=?\s{2,}", rest)
        if not is_switch:
            taking |= both
    return known, taking


@cache
def _objects() -> list[Object]:
    """Everything that the documents may speak of by name."""
    every = [one for name in names(OVERLAYS) for one in built(OVERLAYS / name)]
    every += [one for name in names(COMPONENTS) for one in built_with(name)]
    for name in names(DEPLOY / "workloads"):
        every += built(DEPLOY / "workloads" / name)
    return every


def _exists(kind: str, name: str) -> bool:
    if name in PLACEHOLDERS:
        return True
    return any(
        kind in {one["kind"].lower(), f"{one['kind'].lower()}s"} and one["metadata"]["name"] == name
        for one in _objects()
    )


@pytest.mark.parametrize(("page", "command"), commands_of("kubectl"))
def test_kubectl_commands(page: str, command: str) -> None:
    words, inner = _words(command)
    verb = words[1:3] if words[1] in {"rollout", "auth", "create"} else words[1:2]
    known, taking = _flags(_help("kubectl", *verb, "--help") + _help("kubectl", "options"))
    given = [word.partition("=")[0] for word in words if word.startswith("-")]
    assert set(given) <= known, set(given) - known

    values = {
        word: words[place + 1]
        for place, word in enumerate(words)
        if word in taking and "=" not in word and place + 1 < len(words)
    }
    _check_values(values)
    _check_positional(verb, _positional(words[1 + len(verb) :], taking), values)
    if inner and inner[0] == "gpuplugin":
        build_parser().parse_args(inner[1:])


def _check_values(values: dict[str, str]) -> None:
    if folder := values.get("-k"):
        assert folder == OWN_OVERLAY or (ROOT / folder / "kustomization.yaml").is_file()
    assert values.get("-n", NAMESPACE) == NAMESPACE
    if container := values.get("-c"):
        assert container == plugin_of(built(KUSTOMIZE / "base"))["name"]
    if selector := values.get("-l"):
        key, _, value = selector.partition("=")
        templates = [
            one["spec"]["template"]["metadata"]["labels"]
            for one in _objects()
            if one["kind"] in {"DaemonSet", "Deployment"}
        ]
        assert any(labels.get(key) == value for labels in templates), selector
    if columns := values.get("-L"):
        assert set(columns.split(",")) <= _affinity().keys()


def _check_positional(verb: list[str], rest: list[str], values: dict[str, str]) -> None:
    """Kinds with names, as `kind name` or `kind/name`, and what is done with them."""
    if verb[0] in {"exec", "logs", "port-forward"}:
        for word in rest[:1]:
            kind, _, name = word.rpartition("/")
            assert _exists(kind or "pod", name), word
    elif verb == ["label"]:
        _check_label(rest)
    elif verb[0] in {"drain", "uncordon"}:
        assert rest == ["NODE"]
    elif rest and verb[0] not in {"auth", "create", "apply"} and verb != ["delete"]:
        kind, _, name = rest[0].partition("/")
        assert re.fullmatch(
            r"(node|pod|namespace|daemonset|deployment|runtimeclass|configmap|deviceclass"
            r"|resourceslice|resourceclaim)(e?s)?",
            kind,
        )
        for one in [name] if name else rest[1:]:
            assert _exists(kind, one), (kind, one)
        if kind.rstrip("s") in {"daemonset", "configmap"} or name == PLUGIN:
            assert values.get("-n") == NAMESPACE, "it is not in the default namespace"
    elif verb[0] == "create":
        assert rest == [NAMESPACE]


def _affinity() -> dict[str, list[str]]:
    affinity = pod_of(built(KUSTOMIZE / "base"))["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    expressions = [one for term in terms for one in term["matchExpressions"]]
    return {one["key"]: one.get("values", []) for one in expressions}


def _check_label(rest: list[str]) -> None:
    kind, name, label = rest
    key, _, value = label.partition("=")
    if kind == "namespace":
        made = the(built_with("openshift"), "Namespace")["metadata"]
        assert (name, made["labels"][key]) == (NAMESPACE, value)
    elif key == "nvidia.com/device-plugin.config":
        found = built(OVERLAYS / "per-node-config")
        assert value in the(found, "ConfigMap")["data"]
    elif key == SCENARIO_LABEL:
        maps = of_kind(built(OVERLAYS / "simulated-pools"), "ConfigMap")
        assert any(value in one["data"] for one in maps)
    elif key.removesuffix("-") == ALLOCATION_LABEL:
        assert label in {f"{key}=dra", f"{ALLOCATION_LABEL}-"}
    else:
        assert value in _affinity()[key]


@pytest.mark.parametrize(("page", "command"), commands_of("helm"))
def test_helm_commands(page: str, command: str) -> None:
    words, _ = _words(command)
    verb = words[1:3] if words[1] == "show" else words[1:2]
    known, taking = _flags(_help("helm", *verb, "--help"))
    given = [word.partition("=")[0] for word in words if word.startswith("-")]
    assert set(given) <= known, set(given) - known
    rest = _positional(words[1 + len(verb) :], taking)
    if verb[0] in {"rollback", "test", "uninstall"}:
        assert rest in ([], [PLUGIN], [DRA_RELEASE])
    elif rest:
        assert (ROOT / rest[-1]).resolve() == CHART
    if "--namespace" in words:
        assert words[words.index("--namespace") + 1] == NAMESPACE
    settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    assert chart(arguments=" ".join(f"--set {one}" for one in settings))


def test_values_in_the_pages_on_deploying_are_values_of_the_chart() -> None:
    text = (ROOT / "docs/deploy.md").read_text()
    section = text.partition("\n## Helm\n")[2].partition("\n## ")[0]
    settings = re.findall(r"`([a-zA-Z.]+=[^`]+)`", section)
    assert len(settings) >= 8
    for one in settings:
        whole = one.replace("sha256:...", f"sha256:{'5' * 64}")
        given = "" if one.startswith("replicas=") else "config: {map: {a: 'version: v1'}}"
        assert chart(given, arguments=f"--set {whole}"), one
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for name in re.findall(r"`([a-z][a-zA-Z]+(?:\.[a-zA-Z]+)?)`", section):
        first, _, second = name.partition(".")
        assert first in values, name
        assert not second or second in values[first], name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_deploy_that_a_page_names_exist(page: Path) -> None:
    for path in re.findall(r"(?<![\w/.])deploy/[\w./-]+\w", page.read_text()):
        assert path.startswith(OWN_OVERLAY) or (ROOT / path).exists(), path


def test_the_overlay_that_the_reader_writes_builds() -> None:
    text = (ROOT / "docs/deploy.md").read_text()
    shown, patch = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    found = overlaid(shown)
    images = {one["image"] for one in (plugin_of(found), *pod_of(found)["initContainers"])}
    assert images == {"registry.example/gpuplugin:0.1.0"}
    assert "registry.example/gpuplugin:0.1.0" in text.partition("```yaml")[0], "as it was pushed"
    strategy = the(overlaid(shown + patch), "DaemonSet")["spec"]["updateStrategy"]
    assert strategy["rollingUpdate"] == {"maxUnavailable": "10%", "maxSurge": 0}


def test_releases_of_a_migration_have_nodes_of_their_own() -> None:
    text = (ROOT / "docs/migrating-to-dra.md").read_text()
    blocks = re.findall(r"^```yaml\n# (\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    values = dict(blocks)
    assert values.keys() == {"not-dra.yaml", "dra.yaml"}
    for file in values:
        assert f"--values {file}" in text
    (term,) = pod_of(chart(values["not-dra.yaml"]))["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    label = {"key": ALLOCATION_LABEL, "operator": "NotIn", "values": ["dra"]}
    assert label in term["matchExpressions"]
    found = chart(values["dra.yaml"], release=DRA_RELEASE)
    assert pod_of(found)["nodeSelector"][ALLOCATION_LABEL] == "dra"
    assert "affinity" not in pod_of(found)
    names_of_both = [
        {(one["kind"], one["metadata"]["name"]) for one in objects}
        for objects in (chart(values["not-dra.yaml"]), found)
    ]
    shared = names_of_both[0] & names_of_both[1]
    assert {kind for kind, _ in shared} <= {"RuntimeClass"}


def test_git_ignores_the_overlay_that_the_reader_writes() -> None:
    assert f"/{OWN_OVERLAY}/" in (ROOT / ".gitignore").read_text().splitlines()
    assert names(OVERLAYS), "and so do the tests: see `names`"


@pytest.mark.parametrize(
    ("heading", "folder"), [("## Overlays", OVERLAYS), ("## Components", COMPONENTS)]
)
def test_the_page_on_deploying_has_them_all(heading: str, folder: Path) -> None:
    text = (ROOT / "docs/deploy.md").read_text()
    section = text.partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
    assert sorted(name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)) == names(
        folder
    )


def test_the_page_on_deploying_has_the_labels_that_are_accepted() -> None:
    text = (ROOT / "docs/deploy.md").read_text()
    section = text.partition("\n## Which nodes\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
    shown = {label for cell in cells for label in re.findall(r"`([^`]+)`", cell)}
    accepted = {f"{key}={value}" for key, values in _affinity().items() for value in values}
    assert shown == accepted | {key for key, values in _affinity().items() if not values}


def test_all_symptoms_are_there_and_the_doctor_comes_first() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == [
        "No capacity",
        "Pods pending",
        "Runtime errors",
        "UnexpectedAdmissionError",
        "Replicas on one GPU",
        "Out of memory",
    ]
    parts = re.split(r"^## .+$", text, flags=re.MULTILINE)
    assert all("```console\n$ kubectl" in part for part in parts)
    assert "gpuplugin doctor" in parts[0]


# --- the chart's notes -------------------------------------------------------------------------


def _notes(values: str) -> str:
    """What helm tells after an installation, as far as it can without a cluster."""
    words = ["install", PLUGIN, str(CHART), "--namespace", NAMESPACE, "--dry-run=client"]
    done = subprocess.run(
        [program("helm"), *words, "--values", "-"],
        input=values,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout.partition("\nNOTES:\n")[2]


NULLS = (
    "nodeSelector tolerations affinity podLabels podAnnotations resources podSecurityContext "
    "securityContext updateStrategy imagePullSecrets extraEnv extraArgs extraVolumes "
    "extraVolumeMounts includeGpus excludeGpus policy"
)


def test_what_null_takes_away_is_not_there() -> None:
    """Helm removes a default that is set to null."""
    values = "\n".join(
        (
            *(f"{one}: null" for one in NULLS.split()),
            "config: {map: null}",
            "probes: {startup: null, liveness: null, readiness: null}",
        )
    )
    assert "kubectl get daemonset" in _notes(values)
    found = chart(values)
    assert not any(key.endswith("Probe") for key in plugin_of(found))
    assert plugin_of(found)["securityContext"]["runAsNonRoot"]
    strategy = the(found, "DaemonSet")["spec"]["updateStrategy"]
    assert strategy["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}


def test_the_notes_tell_how_to_see_that_it_works() -> None:
    notes = _notes("")
    commands = re.findall(r"^  (kubectl .+)$", notes, re.MULTILINE)
    assert [one.split()[1] for one in commands] == ["get", "describe", "exec"]
    for command in commands:
        test_kubectl_commands("NOTES.txt", command)
    assert "DESIRED 0" in notes
    assert "perNodeConfig" not in notes


def test_the_notes_tell_of_files_that_nobody_chooses() -> None:
    several = "config: {map: {a: 'version: v1', default: 'version: v1'}}"
    assert "every node uses default" in _notes(several)
    assert "every node uses" not in _notes(f"{several}\nperNodeConfig: {{enabled: true}}")


# --- contents ----------------------------------------------------------------------------------


def test_configurations_in_all_config_maps_are_accepted() -> None:
    found = [one for one in _objects() if one["kind"] == "ConfigMap"]
    for choice in CHOICES.values():
        found += of_kind(chart(choice.values), "ConfigMap")
    checked = 0
    for one in found:
        for name, text in one["data"].items():
            if one["metadata"]["name"].endswith("-scenarios"):
                assert parse_scenario(text, name).gpu_count > 0
            elif not name.endswith(".json"):
                assert parse_document(text, name).data["version"] == "v1"
                checked += 1
    assert checked > 20
