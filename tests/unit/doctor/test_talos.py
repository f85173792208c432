"""The doctor on made-up nodes of each Talos release: what it recognises, and what it advises."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gpuplugin.doctor.collect.driver import collect_driver
from gpuplugin.doctor.collect.host import HostRoot
from gpuplugin.doctor.collect.runtime import collect_runtime
from gpuplugin.doctor.collect.talos import collect_talos
from gpuplugin.doctor.facts import ConfigFacts
from gpuplugin.doctor.verdict import Severity
from tests.talos import VERSIONS, Tree, talos_tree
from tests.unit.doctor.nodes import settings, verdict, well

if TYPE_CHECKING:
    from pathlib import Path

    from gpuplugin.doctor.facts import Facts

WITH_RUNTIME = ("1.10", "1.12", "1.13", "1.14")
LEGACY = ("1.10", "1.12")
HARDENED = "proc/sys/net/core/bpf_jit_harden"
CACHE = "usr/local/glibc/etc/ld.so.cache"


def facts_of(tree: Tree, strategy: str = "envvar") -> Facts:
    """A sound node, but for what is read from the tree."""
    host = HostRoot(tree.root)
    node = well()
    return replace(
        node,
        config=ConfigFacts("the file", settings(DEVICE_LIST_STRATEGY=strategy)),
        driver=replace(node.driver, libraries=collect_driver(host, "/").libraries),
        runtime=collect_runtime(host, "/var/run/cdi"),
        talos=collect_talos(host, "/usr/bin/nvidia-ctk"),
    )


@pytest.mark.parametrize("release", VERSIONS)
def test_the_release_is_recognised_with_the_ways_that_it_has(tmp_path: Path, release: str) -> None:
    text = verdict("talos", facts_of(talos_tree(tmp_path, release))).text

    assert text.startswith(f"Talos {VERSIONS[release][0]}: ")
    assert "overlay talos-cdi" in text
    assert ("RuntimeClass nvidia (overlay talos)" in text) is (release in WITH_RUNTIME)


@pytest.mark.parametrize("release", VERSIONS)
def test_cdi_needs_no_patch_and_the_hook_is_judged(tmp_path: Path, release: str) -> None:
    tree = talos_tree(tmp_path, release)
    facts = facts_of(tree, "cdi-cri")

    if release in WITH_RUNTIME:
        assert verdict("talos", facts_of(tree)).severity is Severity.OK
    assert verdict("list-strategy", facts).severity is Severity.OK
    assert verdict("runtime", facts).severity is Severity.OK
    problems = verdict("talos", facts).problems
    hook = "/usr/local/bin/nvidia-cdi-hook" + (".real" if release in LEGACY else "")
    if release in WITH_RUNTIME:
        assert problems == ()
        assert verdict("talos", facts).text.endswith(f"; hook program {hook}")
    else:
        (problem,) = problems
        assert problem.severity is Severity.WARN
        assert f"LD_LIBRARY_PATH=/{tree.libraries}" in problem.do


def test_without_the_runtime_a_strategy_that_needs_it_fails(tmp_path: Path) -> None:
    (problem,) = verdict("talos", facts_of(talos_tree(tmp_path, "1.15"))).problems
    assert problem.severity is Severity.FAIL
    assert "v1.15.0 has no NVIDIA runtime" in problem.what
    assert "talos-cdi" in problem.do


@pytest.mark.parametrize("release", VERSIONS)
def test_a_hardened_jit_is_a_problem_of_the_old_runtime_alone(tmp_path: Path, release: str) -> None:
    tree = talos_tree(tmp_path, release)
    tree.write(HARDENED, "2\n")
    what = [one.what for one in verdict("talos", facts_of(tree)).problems]
    assert any("BPF JIT" in one for one in what) is (release in LEGACY)

    assert not any(
        "BPF" in one.what for one in verdict("talos", facts_of(tree, "cdi-cri")).problems
    )
    tree.write(HARDENED, "1\n")
    assert not any("BPF" in one.what for one in verdict("talos", facts_of(tree)).problems)


def test_a_linker_cache_without_the_driver_is_found(tmp_path: Path) -> None:
    tree = talos_tree(tmp_path, "1.12")
    tree.write(CACHE, "libc.so.6\0")
    (problem,) = verdict("talos", facts_of(tree)).problems
    assert "init 250 result=11" in problem.what

    tree.write(CACHE, "libc.so.6\0libnvidia-ml.so.1\0")
    assert verdict("talos", facts_of(tree)).severity is Severity.OK


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("nvidia-open-gpu-kernel-modules-lts",), "no extension with the driver's libraries"),
        (("nvidia-container-toolkit-lts",), "no extension with the driver's kernel modules"),
        (
            ("nonfree-kmod-nvidia-lts", "nvidia-container-toolkit-production"),
            "different branches: nonfree-kmod-nvidia-lts and nvidia-container-toolkit-production",
        ),
    ],
)
def test_extensions_that_do_not_fit(tmp_path: Path, names: tuple[str, ...], what: str) -> None:
    tree = talos_tree(tmp_path, "1.14")
    tree.extensions("glibc", *names)
    (problem,) = verdict("talos", facts_of(tree)).problems
    assert what in problem.what
    assert "deploy/talos/schematic.yaml" in problem.do


@pytest.mark.parametrize(
    "names",
    [
        ("nvidia-open-gpu-kernel-modules-production", "nvidia-container-toolkit-production"),
        ("nonfree-kmod-nvidia-production", "nvidia-container-toolkit-production"),
        ("nonfree-kmod-nvidia-lts", "nvidia-container-toolkit-lts", "glibc"),
    ],
)
def test_extensions_that_fit(tmp_path: Path, names: tuple[str, ...]) -> None:
    tree = talos_tree(tmp_path, "1.14")
    tree.extensions(*names)
    assert verdict("talos", facts_of(tree)).severity is Severity.OK


def test_a_list_of_extensions_that_cannot_be_read_is_no_verdict(tmp_path: Path) -> None:
    tree = talos_tree(tmp_path, "1.14")
    for text in ("", "layers: [1]", "{"):
        tree.write("etc/extensions.yaml", text)
        assert verdict("talos", facts_of(tree)).severity is Severity.OK


@pytest.mark.parametrize(
    ("version", "like"),
    [("v1.9.5", "1.10"), ("v1.16.0", "1.15"), ("v2.0.0", "1.15"), ("of our own", "1.10")],
)
def test_a_release_that_is_not_known_is_said(tmp_path: Path, version: str, like: str) -> None:
    tree = talos_tree(tmp_path, "1.14")
    tree.write("etc/os-release", f"ID=talos\nVERSION_ID={version}\n")
    problem = verdict("talos", facts_of(tree)).problems[0]
    assert problem.severity is Severity.WARN
    assert f"Talos {version} is not known: known are 1.10 to 1.15" in problem.what
    assert f"it is like {like}" in problem.do


def test_another_system_is_not_judged(tmp_path: Path) -> None:
    tree = talos_tree(tmp_path, "1.14")
    tree.write("etc/os-release", 'ID=debian\nVERSION_ID="13"\n')
    assert verdict("talos", facts_of(tree)).skipped


def test_advice_of_other_checks_is_for_talos(tmp_path: Path) -> None:
    facts = facts_of(talos_tree(tmp_path, "1.14"))
    unloaded = replace(facts, driver=replace(facts.driver, modules=frozenset()))
    assert "deploy/talos/gpu-from-1.14.yaml" in verdict("kernel-modules", unloaded).problems[0].do

    (problem,) = verdict("runtime", facts).problems
    assert "the handler nvidia, not the default" in problem.what
    assert "deploy/talos/default-runtime-" in problem.do
    assert "nvidia-ctk" not in problem.do
