"""The doctor's checks of allocation by DRA: content with a sound cluster, finding what is off."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from gpuplugin.core.dra.devices import device_names
from gpuplugin.daemon.dra.claimwork import CDI_KIND
from gpuplugin.doctor.checks import CHECKS
from gpuplugin.doctor.checks.runtime import CLAIM_KIND
from gpuplugin.doctor.facts import (
    CdiSpec,
    ClassFact,
    ClusterFacts,
    Facts,
    PartFact,
    SliceFact,
    SocketFact,
    SocketState,
)
from gpuplugin.doctor.verdict import Severity, diagnose
from tests.unit.builders import uuid_of_gpu
from tests.unit.doctor.nodes import ROOT, verdict, well

if TYPE_CHECKING:
    from collections.abc import Callable

DRIVER, NODE, GPU = "gpu.gpuplugin.dev", "node-1", "nvidia.com/gpu"
FAIL, WARN, OK, SKIPPED = Severity.FAIL, Severity.WARN, Severity.OK, Severity.SKIPPED
NAMES = device_names(uuid_of_gpu(index) for index in range(2))
SLICE = SliceFact("one", 3, 1, MappingProxyType(dict.fromkeys(NAMES.values(), 10)))
OURS = ClassFact("ours", "2026-01-01T00:00:00Z", GPU, (f"device.driver == '{DRIVER}'",))
THEIRS = ClassFact("theirs", "2026-01-02T00:00:00Z", GPU, ("device.driver == 'gpu.nvidia.com'",))
RIGHTS = ("get resourceclaims", "list resourceslices", "update resourceslices")
CLUSTER = ClusterFacts(
    server="https://cluster",
    kubelet_version="v1.36.2",
    allocatable=MappingProxyType({"cpu": "8", GPU: "0"}),
    classes=(OURS,),
    slices=(SLICE,),
    gates_off=frozenset(),
    rights=MappingProxyType(dict.fromkeys(RIGHTS, True)),
)
DRA_CHECKS = [check.name for check in CHECKS if check.name.startswith("dra-")]


def sound() -> Facts:
    """A node that gives out two GPUs of ten shares each by DRA."""
    facts = well(GPUPLUGIN_ALLOCATION="dra", NODE_NAME=NODE)
    parts = (
        PartFact("kubelet:dra", True, "registered", 60.0, 0.0),
        PartFact("monitor", True, "watching 2 GPUs", 60.0, 0.0),
        PartFact("slices", True, "2 devices in 1 slice", 60.0, 0.0),
    )
    return replace(
        facts,
        cluster=CLUSTER,
        kubelet=replace(facts.kubelet, own_sockets=(), registered=MappingProxyType({})),
        plugin=replace(facts.plugin, parts=parts),
        runtime=replace(
            facts.runtime, specs=(CdiSpec("/var/run/cdi/one.json", CLAIM_KIND, ("a",)),)
        ),
    )


def cluster(**changes: Any) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, cluster=replace(CLUSTER, **changes))


def stored(**changes: Any) -> Callable[[Facts], Facts]:
    return cluster(slices=(replace(SLICE, **changes),))


def beside(name: str) -> Callable[[Facts], Facts]:
    """A live socket of another plugin."""
    socket = SocketFact(f"{ROOT}/device-plugins/{name}", SocketState.ANSWERS)
    return lambda facts: replace(facts, kubelet=replace(facts.kubelet, others=(socket,)))


def test_a_sound_node_with_dra_is_well_in_every_respect() -> None:
    findings = diagnose(sound(), CHECKS)
    assert {one.check: one.verdict.text for one in findings if one.verdict.problems} == {}
    said = {one.check: one.verdict for one in findings}
    assert all(said[name].severity is OK for name in DRA_CHECKS)
    assert said["dra-slices"].text == "2 devices, 20 shares, 0 devices with a taint"
    assert said["registered"].severity is SKIPPED
    assert "1 claims" in said["cdi-specs"].text


def test_without_dra_none_of_it_is_checked() -> None:
    findings = {one.check: one.verdict for one in diagnose(well(), CHECKS)}
    assert {findings[name].severity for name in DRA_CHECKS} == {SKIPPED}


def test_claims_have_specs_of_the_kind_that_the_daemon_writes() -> None:
    assert CLAIM_KIND == CDI_KIND


@pytest.mark.parametrize(
    ("check", "spoil", "severity", "said"),
    [
        ("dra-api", cluster(served=False), FAIL, "does not serve resource.k8s.io/v1"),
        ("dra-api", cluster(kubelet_version="v1.33.4"), FAIL, "v1.33.4"),
        ("dra-api", cluster(problem="no cluster is configured"), SKIPPED, "no cluster"),
        ("dra-gates", cluster(gates_off=frozenset({"DRAConsumableCapacity"})), FAIL, "DRAConsum"),
        ("dra-gates", cluster(kubelet_version="v1.35.1"), WARN, "DRAExtendedResource"),
        ("dra-gates", cluster(gates_off=None, denied=("gates: 403",)), SKIPPED, "gates: 403"),
        (
            "dra-rights",
            cluster(rights=MappingProxyType({RIGHTS[0]: True, RIGHTS[1]: False})),
            FAIL,
            "no right to list resourceslices",
        ),
        ("dra-rights", cluster(rights=None), SKIPPED, "not to be read"),
        ("dra-class", cluster(classes=()), WARN, f"extendedResourceName: {GPU}"),
        ("dra-class", cluster(classes=(THEIRS,)), WARN, "only claims get a GPU"),
        ("dra-class", cluster(classes=(THEIRS, OURS)), FAIL, "DeviceClass theirs selects"),
        ("dra-class", cluster(classes=(OURS, THEIRS)), OK, "every resource"),
        ("dra-class", cluster(classes=None), SKIPPED, "not to be read"),
        ("dra-slices", cluster(slices=()), FAIL, "no ResourceSlice"),
        ("dra-slices", cluster(slices=None), SKIPPED, "not to be read"),
        ("dra-slices", stored(count=2), FAIL, "1 of 2 slices"),
        ("dra-slices", stored(replicas=dict.fromkeys(NAMES.values(), 1)), WARN, "with 1 shares"),
        ("dra-slices", stored(replicas={}), WARN, "with 0 shares"),
        (
            "dra-slices",
            cluster(slices=(replace(SLICE, generation=2, replicas={}), SLICE)),
            OK,
            "20 shares",
        ),
        ("dra-slices", stored(tainted=frozenset({NAMES[uuid_of_gpu(0)]})), OK, "1 devices with"),
        ("dra-one-way", cluster(allocatable={GPU: "20"}), FAIL, f"{GPU}: 20 of a device plugin"),
        ("dra-one-way", cluster(allocatable={"nvidia.com/other": "2"}), OK, "no device plugin"),
        ("dra-one-way", beside("nvidia-gpu.sock"), FAIL, "beside DRA"),
        ("dra-one-way", beside("nvidia-other.sock"), OK, "no device plugin"),
        ("dra-one-way", cluster(allocatable=None), SKIPPED, "not known"),
    ],
)
def test_what_is_off_is_found(
    check: str, spoil: Callable[[Facts], Facts], severity: Severity, said: str
) -> None:
    found = verdict(check, spoil(sound()))
    assert found.severity is severity, found
    assert said in "; ".join((found.text, *(problem.what for problem in found.problems)))
    assert all(problem.do and problem.where for problem in found.problems)


def test_what_devices_come_by_is_cdi_whatever_the_strategy_says() -> None:
    facts = sound()
    (config,) = facts.runtime.configs
    off = replace(facts, runtime=replace(facts.runtime, configs=(replace(config, cdi=False),)))
    assert verdict("list-strategy", off).severity is FAIL
    assert "envvar" not in verdict("list-strategy", facts).text
