"""Talos Linux: patches are valid where they are said to be, commands exist, and the page, the
manifests and the doctor say the same.

Talos itself is not at hand. What its releases accept is data: `talosconfig` for the machine
configuration, `TALOSCTL` for the commands.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

import pytest
import yaml

from gpuplugin.doctor.checks.talos import RELEASES as KNOWN
from tests.deploy.rendering import DEPLOY, OVERLAYS, ROOT, built, plugin_of, the
from tests.deploy.talosconfig import GENERATED_BY_1_14, RELEASES, problems
from tests.deploy.test_documents import commands_of
from tests.talos import VERSIONS, talos_tree

if TYPE_CHECKING:
    from pathlib import Path

    from tests.deploy.rendering import Object

TALOSCTL = {
    "version": set[str](),
    "gen config": set[str](),
    "apply-config": {"--insecure", "--file", "--config-patch"},
    "upgrade": {"--image"},
    "get": {"--insecure", "--output"},
    "patch": {"--patch"},
    "read": set[str](),
    "reboot": set[str](),
    "list": set[str](),
    "dmesg": set[str](),
    "services": set[str](),
    "logs": set[str](),
}
"""Commands and flags that the talosctl of every release from 1.10 to 1.15 has.

Sources: the command-line reference of each: siderolabs/docs, public/talos/v1.10 and v1.11,
reference/cli.mdx; siderolabs/talos, website/content/v1.12 to v1.15, reference/cli.md. `services` is
an alias of `service` (siderolabs/talos, cmd/talosctl/cmd/talos/service.go).
"""
RESOURCES = {"extensions", "machineconfig", "disks"}
FOLDER = DEPLOY / "talos"
PAGE = ROOT / "docs/talos.md"
MODULES = ["nvidia", "nvidia_uvm", "nvidia_drm", "nvidia_modeset"]
SCHEMATICS = {
    "schematic": ("nvidia-open-gpu-kernel-modules", "lts"),
    "schematic-production": ("nvidia-open-gpu-kernel-modules", "production"),
    "schematic-nonfree": ("nonfree-kmod-nvidia", "lts"),
    "schematic-gb10": ("nonfree-kmod-nvidia", "production"),
}
PATCHES = (
    "bpf-jit-until-1.12",
    "default-runtime-1.14",
    "default-runtime-until-1.13",
    "gpu-from-1.14",
    "gpu-until-1.13",
    "install-from-1.14",
    "install-until-1.13",
)
OPERATOR = ("gpu-operator-until-1.14", "gpu-operator-from-1.15")


def documents(name: str) -> list[Object]:
    return list(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text()))


def releases_of(name: str) -> list[str]:
    """Those that a patch is for, by its name."""
    kind, _, release = re.sub(r"-(until|from)-", r" \1 ", name).rpartition(" ")
    if kind.endswith(" until"):
        return list(RELEASES[: RELEASES.index(release) + 1])
    if kind.endswith(" from"):
        return list(RELEASES[RELEASES.index(release) :])
    return [name.rpartition("-")[2]]


def section(heading: str) -> str:
    found = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert found, heading
    return found


def table(text: str) -> dict[str, dict[str, str]]:
    """The first table of a text: cells by the first cell of their row, then by their heading."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()  # type: ignore[index]
    ]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


# --- the machine configuration ------------------------------------------------------------------


def test_every_file_is_of_a_known_sort() -> None:
    names = {path.stem for path in FOLDER.iterdir()}
    assert names == {*SCHEMATICS, *PATCHES, *OPERATOR}


@pytest.mark.parametrize(
    ("name", "release"), [(name, one) for name in PATCHES for one in releases_of(name)]
)
def test_a_patch_is_valid_on_its_releases(name: str, release: str) -> None:
    assert problems(documents(name), release) == []


@pytest.mark.parametrize("name", ["gpu-from-1.14", "default-runtime-1.14"])
def test_patches_fit_into_a_new_cluster_of_1_14(name: str) -> None:
    assert problems([GENERATED_BY_1_14, *documents(name)], "1.14") == []


@pytest.mark.parametrize("name", ["gpu-from-1.14", "install-from-1.14", "default-runtime-1.14"])
def test_documents_are_refused_where_they_are_not_known(name: str) -> None:
    assert problems(documents(name), "1.13")


def test_a_label_beside_the_new_document_loses_the_whole_patch() -> None:
    """What the patch of old did on a cluster created with 1.14."""
    old = {"machine": {"nodeLabels": {"node-type": "gpu"}}}
    assert problems([old], "1.14") == []
    assert problems([GENERATED_BY_1_14, old], "1.14") == [
        ".machine.nodeLabels is already set in v1alpha1 config"
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"machine": {"kernel": {"modules": ["nvidia"]}}},
        {"machine": {"kernel": {"module": []}}},
        {"machine": {"files": [{"op": "create", "path": "/etc/containerd/x", "content": ""}]}},
        {"apiVersion": "v1alpha1", "kind": "KernelModule", "name": "nvidia"},
        {"kind": "KernelModuleConfig", "name": "nvidia"},
        {"apiVersion": "v1alpha1", "kind": "KernelModuleConfig", "names": ["nvidia"]},
        {"apiVersion": "v1alpha1", "kind": "CRICustomizationConfig", "name": "customization"},
    ],
)
def test_slips_of_the_pen_are_noticed(wrong: Object) -> None:
    assert problems([wrong], "1.14")


def test_no_patch_sets_a_label() -> None:
    """The affinity knows those of Talos; labels are what the two kinds of patches fight over."""
    for name in PATCHES:
        for one in documents(name):
            assert "nodeLabels" not in one.get("machine", {})
            assert one.get("kind") != "KubeNodeConfig"


def test_both_kinds_load_the_four_modules() -> None:
    (old,) = documents("gpu-until-1.13")
    assert [one["name"] for one in old["machine"]["kernel"]["modules"]] == MODULES
    assert old["machine"].keys() == {"kernel"}, "nothing else: each release has its own needs"
    new = documents("gpu-from-1.14")
    assert [(one["kind"], one["name"]) for one in new] == [
        ("KernelModuleConfig", name) for name in MODULES
    ]


def test_the_hardening_is_relaxed_where_the_old_runtime_is_and_nowhere_else() -> None:
    assert documents("bpf-jit-until-1.12") == [
        {"machine": {"sysctls": {"net.core.bpf_jit_harden": "1"}}}
    ]
    legacy = [".".join(map(str, release)) for release, one in KNOWN.items() if one.legacy]
    assert releases_of("bpf-jit-until-1.12") == legacy
    others = [name for name in PATCHES if not name.startswith("bpf-jit")]
    assert not any("bpf_jit" in (FOLDER / f"{name}.yaml").read_text() for name in others)


def test_the_default_runtime_is_the_one_of_the_runtime_class() -> None:
    handler = the(built(OVERLAYS / "talos"), "RuntimeClass")["handler"]
    (old,), (new,) = documents("default-runtime-until-1.13"), documents("default-runtime-1.14")
    for content in (old["machine"]["files"][0]["content"], new["content"]):
        section = tomllib.loads(content)["plugins"]["io.containerd.cri.v1.runtime"]
        assert section == {"containerd": {"default_runtime_name": handler}}


@pytest.mark.parametrize("name", SCHEMATICS)
def test_extensions_are_of_one_branch(name: str) -> None:
    modules, branch = SCHEMATICS[name]
    (one,) = documents(name)
    assert one["customization"]["systemExtensions"]["officialExtensions"] == [
        f"siderolabs/{modules}-{branch}",
        f"siderolabs/nvidia-container-toolkit-{branch}",
    ]
    assert one["customization"].get("extraKernelArgs") == (
        ["arm64.nobti"] if name == "schematic-gb10" else None
    )


@pytest.mark.parametrize("name", OPERATOR)
def test_the_operator_beside_the_plugin_serves_no_devices(name: str) -> None:
    (values,) = documents(name)
    assert values["devicePlugin"] == {"enabled": False}
    assert values["driver"] == {"enabled": False}
    assert values["hostPaths"] == {"driverInstallDir": "/usr/local"}
    assert values["toolkit"]["enabled"] is values.get("cdi", {}).get("nriPluginEnabled", False)


# --- overlays and pods --------------------------------------------------------------------------


def test_the_overlays_name_no_place_of_one_release() -> None:
    """The plugin looks for libraries and the hook program where each release has them."""
    for name in ("talos", "talos-cdi"):
        text = yaml.safe_dump_all(built(OVERLAYS / name))
        assert "glibc" not in text
        assert "NVIDIA_CDI_HOOK_PATH" not in text


def test_specs_go_where_every_release_looks_for_them() -> None:
    """/var/run is a link to /run; 1.13 and later name /run/cdi, earlier ones the default."""
    mounts = plugin_of(built(OVERLAYS / "talos-cdi"))["volumeMounts"]
    (mount,) = [one for one in mounts if one["name"] == "cdi"]
    assert mount["mountPath"] == "/var/run/cdi"


def test_pods_without_a_hook_name_the_folder_of_the_newest_release(tmp_path: Path) -> None:
    deployment = the(built(DEPLOY / "workloads/time-slicing-cdi-no-hook"), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    folder = talos_tree(tmp_path, "1.15").libraries
    assert pod["containers"][0]["env"] == [{"name": "LD_LIBRARY_PATH", "value": f"/{folder}"}]
    assert "runtimeClassName" not in pod


# --- the page -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "command"), commands_of("talosctl"))
def test_talosctl_commands(page: str, command: str) -> None:
    words = command.split()
    verb = " ".join(words[1:3]) if words[1] == "gen" else words[1]
    assert verb in TALOSCTL
    given = {word for word in words if word.startswith("-")}
    assert given <= TALOSCTL[verb] | {"--nodes"}
    if verb in {"get", "patch"}:
        assert words[2] in RESOURCES
    for word in words:
        if word.startswith("@"):
            assert (ROOT / word[1:]).is_file()


def test_every_file_is_on_the_page() -> None:
    page = PAGE.read_text()
    for path in FOLDER.iterdir():
        assert f"deploy/talos/{path.name}" in page
    for name in ("time-slicing", "time-slicing-cdi", "time-slicing-cdi-no-hook", "one-pod"):
        assert f"deploy/workloads/{name}" in page
    assert all(f"`{name}`" in page for name in MODULES)


def columns(row: dict[str, str], release: str) -> str:
    """The cell of the column for a release, such as `1.12` in `1.10 to 1.12`."""
    (heading,) = [one for one in row if release in one.replace(" and later", "")]
    return row[heading]


@pytest.mark.parametrize("release", ["1.12", "1.13", "1.14", "1.15"])
def test_one_column_leads_to_a_shared_gpu(release: str, tmp_path: Path) -> None:
    rows = {step: columns(row, release) for step, row in table(section("Your release")).items()}
    known = KNOWN[1, int(release.partition(".")[2])]

    for step in ("new machine", "modules", "sysctl"):
        for name in re.findall(r"`([\w.-]+)\.yaml`", rows[step]):
            assert release in releases_of(name), name
    assert rows["sysctl"].startswith("`bpf-jit") is known.legacy
    assert re.findall(r"`gpu-[\w.-]+`", rows["modules"])
    assert rows["overlay"] == ("`talos`" if known.runtime else "`talos-cdi`")
    assert rows["test pods"] == (
        "`time-slicing`" if known.runtime else "`time-slicing-cdi-no-hook`"
    )
    assert rows["driver's libraries"] == f"`{known.libraries}`"
    assert known.libraries == f"/{talos_tree(tmp_path, release).libraries}"
    reboots = release in releases_of("default-runtime-until-1.13")
    assert ("the node reboots" in rows["change of `machine.files`"]) is reboots


@pytest.mark.parametrize("release", ["1.12", "1.13", "1.14", "1.15"])
def test_the_ways_are_those_that_the_doctor_knows(release: str) -> None:
    ways = table(section("3. How containers get the GPU"))
    known = KNOWN[1, int(release.partition(".")[2])]
    cells = {way[:2]: columns(row, release) for way, row in ways.items()}

    assert cells["A."].startswith("yes") is known.runtime
    assert cells["B."].startswith("yes")
    assert ("/run/cdi/nvidia.yaml" in cells["Ta"]) is known.own_spec


def test_nothing_is_said_to_have_run_on_talos() -> None:
    page = PAGE.read_text()
    assert "Nothing on this page has been run on Talos" in page
    assert not re.search(r"\b(tested|verified|ran|works) on Talos", page)


@pytest.mark.parametrize("step", ["1.12 to 1.13", "1.13 to 1.14", "1.14 to 1.15"])
def test_every_upgrade_says_what_goes_first_and_who_owns_the_class(step: str) -> None:
    text = section("Upgrades").partition(f"\n### {step}\n")[2].partition("\n### ")[0]
    for word in ("Before", "Running pods", "RuntimeClass"):
        assert word in text, (step, word)


@pytest.mark.parametrize(
    "symptom",
    [
        "reboots every 70 minutes",
        "init 250 result=11",
        "empty device edits",
        "No devices found",
        ".machine.nodeLabels is already set",
        "no runtime for",
        "libnvidia-ml.so.1 was not found",
        "load program: invalid argument",
        "UnattendedInstallConfig config is incompatible",
    ],
)
def test_failures_have_a_row_with_a_command_that_shows_them(symptom: str) -> None:
    (row,) = [key for key in table(section("Problems")) if symptom in key]
    cells = table(section("Problems"))[row]
    assert re.search(r"`(talosctl|kubectl) ", cells["what shows it"]), symptom
    assert cells["remedy"]


def test_a_missing_library_is_looked_for_where_each_release_has_it() -> None:
    (row,) = [one for key, one in table(section("Problems")).items() if "libnvidia-ml" in key]
    assert {one.libraries for one in KNOWN.values()} <= set(
        re.findall(r"/usr/local/[\w/]+", row["what shows it"])
    )


def test_generations_name_an_existing_schematic_each() -> None:
    rows = table(section("1. An image with the driver"))
    for generation, row in rows.items():
        (name,) = re.findall(r"`deploy/talos/([\w.-]+)\.yaml`", row["schematic"])
        assert name in SCHEMATICS, generation
    assert {"Pascal", "Blackwell", "GB10"} <= set(re.findall(r"\w+", " ".join(rows)))


def test_the_trees_are_of_the_releases_that_the_doctor_knows() -> None:
    assert {tuple(map(int, release.split("."))) for release in VERSIONS} <= KNOWN.keys()
