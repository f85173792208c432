"""Allocation by DRA: classes that select the right devices, a policy that keeps nodes apart."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import celpy
import pytest
from celpy.adapter import json_to_cel
from celpy.celtypes import BoolType, IntType

from gpuplugin.core.dra.devices import Offering, offers
from gpuplugin.core.health import HealthPolicy
from gpuplugin.core.healthboard import HealthBoard
from gpuplugin.core.inventory import GPU_RESOURCE, Plan, build_inventory
from gpuplugin.core.sharing import Selection, SharedResource, TimeSlicing
from hal import MigDevice
from tests.deploy.admission import Admission, account_of, evaluated
from tests.deploy.rendering import (
    DEPLOY,
    OVERLAYS,
    Refused,
    built,
    built_with,
    chart,
    of_kind,
    overlaid,
    plugin_of,
    pod_of,
    the,
    variables,
)
from tests.unit.builders import GIB, a_gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.deploy.rendering import Object

DRIVER, OTHER_DRIVER = "gpu.gpuplugin.dev", "gpu.example.com"
K0S = "/var/lib/k0s/kubelet"
ELSEWHERE = """\
namespace: gpus
resources: [../../base]
components: [../../components/dra]
"""
RENDERED: Mapping[str, tuple[str, Callable[[], list[Object]]]] = {
    "component": (DRIVER, partial(built_with, "dra")),
    "overlay": (DRIVER, partial(built, OVERLAYS / "dra")),
    "another namespace": (DRIVER, partial(overlaid, ELSEWHERE)),
    "chart": (DRIVER, partial(chart, "allocation: dra")),
    "chart of another name": (
        OTHER_DRIVER,
        partial(
            chart,
            f"allocation: dra\nfullnameOverride: gpus\ndra: {{driverName: {OTHER_DRIVER}}}\n",
            namespace="gpus",
        ),
    ),
    "chart with another account": (
        DRIVER,
        partial(chart, "allocation: dra\nserviceAccount: {create: false}", namespace="gpus"),
    ),
}
"""Driver name and objects of everything that sets DRA up."""


# --- what a plugin may write --------------------------------------------------------------------


def a_slice(node: str | None, driver: str) -> Object:
    spec = {"driver": driver, "pool": {"name": "pool"}}
    return {"spec": spec if node is None else {**spec, "nodeName": node}}


@pytest.mark.parametrize("name", RENDERED)
def test_a_plugin_writes_slices_of_its_own_node_and_driver_alone(name: str) -> None:
    driver, render = RENDERED[name]
    found = render()
    says, user = Admission(found).says, account_of(found)
    for operation, node, whose, what in product(
        ("CREATE", "UPDATE", "DELETE"), ("a", None), ("a", "b", None), (driver, "gpu.nvidia.com")
    ):
        one = a_slice(whose, what)
        old, new = (
            (None if operation == "CREATE" else one),
            (None if operation == "DELETE" else one),
        )
        allowed = node == whose == "a" and what == driver
        assert (not says(operation, user, node, old, new)) == allowed
    assert "own node" in says("UPDATE", user, "a", a_slice("b", driver), a_slice("b", driver))
    assert "not bound" in says("CREATE", user, None, None, a_slice("a", driver))
    for other in ("system:node:a", "system:serviceaccount:kube-system:other", "admin"):
        assert not says("DELETE", other, None, a_slice("b", driver), None)


@pytest.mark.parametrize("name", RENDERED)
def test_the_policy_is_about_every_way_to_write_a_slice(name: str) -> None:
    found = RENDERED[name][1]()
    spec = the(found, "ValidatingAdmissionPolicy")["spec"]
    assert spec["failurePolicy"] == "Fail"
    assert spec["matchConstraints"]["resourceRules"] == [
        {
            "apiGroups": ["resource.k8s.io"],
            "apiVersions": ["*"],
            "operations": ["CREATE", "UPDATE", "DELETE"],
            "resources": ["resourceslices"],
        }
    ]
    written = {
        verb
        for role in of_kind(found, "ClusterRole")
        for rule in role["rules"]
        if "resourceslices" in rule["resources"]
        for verb in rule["verbs"]
    }
    assert written - {"get", "list", "watch"} == {"create", "update", "delete"}


# --- classes ------------------------------------------------------------------------------------


def devices(driver: str, plan: Plan) -> list[Object]:
    """What a node of two GPUs and one with a MIG device offers, as a selector sees it."""
    mig = MigDevice("MIG-0123456789ab-1", 0, 1, 0, "1g.10gb", 10 * GIB)
    gpus = (a_gpu(0), a_gpu(1), replace(a_gpu(2), mig_enabled=True, mig_devices=(mig,)))
    board = HealthBoard().with_gpus(gpus, 0.0, HealthPolicy())
    made = offers(build_inventory(gpus, plan), gpus, board, Offering(driver))
    return [seen(driver, one.as_json()) for one in made]


def seen(driver: str, device: Mapping[str, Any]) -> Object:
    """A device of a slice as CEL has it: attributes by domain, values without their type."""
    attributes: dict[str, dict[str, object]] = {}
    for name, value in device["attributes"].items():
        domain, _, bare = name.rpartition("/")
        attributes.setdefault(domain or driver, {})[bare] = next(iter(value.values()))
    capacity = {driver: {name: one["value"] for name, one in device["capacity"].items()}}
    return {"driver": driver, "attributes": attributes, "capacity": capacity}


def selected(found: list[Object], name: str, offered: list[Object]) -> list[str]:
    """Devices that a class selects, by what they are."""
    (one,) = [one for one in of_kind(found, "DeviceClass") if one["metadata"]["name"] == name]
    (selector,) = one["spec"]["selectors"]
    expression = selector["cel"]["expression"]
    chosen = [
        device for device in offered if evaluated(expression, device=device) == BoolType(True)
    ]
    own = [next(iter(device["attributes"].values())) for device in chosen]
    return [f"{one['type']}:{'shared' if one['shared'] else 'whole'}" for one in own]


MIXED = Plan(
    TimeSlicing((SharedResource(GPU_RESOURCE, 4, Selection(ids=frozenset({"1"}))),)),
    mig_strategy="mixed",
)
RENAMED = Plan(
    TimeSlicing((SharedResource(GPU_RESOURCE, 4),), rename_by_default=True), mig_strategy="mixed"
)
SHARED_MIG = Plan(TimeSlicing((SharedResource("nvidia.com/mig-1g.10gb", 2),)), mig_strategy="mixed")


@pytest.mark.parametrize("name", RENDERED)
def test_classes_select_what_they_are_called_after(name: str) -> None:
    driver, render = RENDERED[name]
    found, offered = render(), devices(driver, MIXED)
    assert selected(found, driver, offered) == ["gpu:whole", "gpu:shared"]
    assert selected(found, f"whole.{driver}", offered) == ["gpu:whole"]
    assert selected(found, f"shared.{driver}", offered) == ["gpu:shared"]
    assert selected(found, f"mig.{driver}", offered) == ["mig:whole"]
    assert selected(found, f"mig.{driver}", devices(driver, SHARED_MIG)) == ["mig:shared"]
    assert selected(found, driver, devices(driver, RENAMED)) == []
    foreign = [seen("gpu.nvidia.com", {"attributes": {}, "capacity": {}})]
    for one in of_kind(found, "DeviceClass"):
        assert selected(found, one["metadata"]["name"], foreign) == []


@pytest.mark.parametrize("name", RENDERED)
def test_one_class_is_what_unmodified_pods_ask_for(name: str) -> None:
    driver, render = RENDERED[name]
    named = {
        one["metadata"]["name"]: one["spec"]["extendedResourceName"]
        for one in of_kind(render(), "DeviceClass")
        if "extendedResourceName" in one["spec"]
    }
    assert named == {driver: "nvidia.com/gpu"}


def test_classes_of_the_chart_are_a_choice() -> None:
    found = chart("allocation: dra\ndra: {deviceClasses: {extendedResourceName: ''}}")
    classes = of_kind(found, "DeviceClass")
    assert {one["metadata"]["name"] for one in classes} == {
        f"{kind}.{DRIVER}" for kind in ("whole", "shared", "mig")
    }
    assert not [one for one in classes if "extendedResourceName" in one["spec"]]
    found = chart("allocation: dra\ndra: {deviceClasses: {extendedResourceName: example.com/gpu}}")
    (named,) = [one["spec"] for one in of_kind(found, "DeviceClass") if len(one["spec"]) == 2]
    assert "'example.com/gpu'" in named["selectors"][0]["cel"]["expression"]
    found = chart("allocation: dra\ndra: {deviceClasses: {create: false}}")
    assert not of_kind(found, "DeviceClass")
    assert not of_kind(chart("dra: {deviceClasses: {create: true}}"), "DeviceClass")
    found = chart("allocation: dra\ndra: {admissionPolicy: false}")
    assert not of_kind(found, "ValidatingAdmissionPolicy")


# --- folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kubelet", ["/var/lib/kubelet", K0S])
def test_folders_that_the_kubelet_is_told_of_are_at_the_path_of_the_host(kubelet: str) -> None:
    found = chart(f"allocation: dra\nkubeletDir: {kubelet}\nmetrics: {{pods: true}}")
    paths = {
        one["name"]: one["hostPath"]["path"]
        for one in pod_of(found)["volumes"]
        if "hostPath" in one
    }
    for container in (*pod_of(found)["initContainers"], plugin_of(found)):
        for mount in container["volumeMounts"]:
            if paths.get(mount["name"], "").startswith(kubelet):
                assert mount["mountPath"] == paths[mount["name"]]
    assert paths["claims"] == f"{kubelet}/plugins/{DRIVER}"
    own = variables(plugin_of(found)).get("GPUPLUGIN_KUBELET_DIR", "/var/lib/kubelet")
    assert own == kubelet


def test_options_of_the_chart_reach_the_plugin() -> None:
    found = chart(
        f"allocation: dra\ndra: {{driverName: {OTHER_DRIVER}, evictLost: true}}\n"
        "simulated: {enabled: true}\n"
    )
    given = variables(plugin_of(found))
    assert given["GPUPLUGIN_ALLOCATION"] == "dra"
    assert given["GPUPLUGIN_DRA_DRIVER_NAME"] == OTHER_DRIVER
    assert given["GPUPLUGIN_HEALTH_EVICT_LOST"] == "true"
    assert "NODE_NAME" in given
    assert not {one for one in variables(plugin_of(chart(""))) if "DRA" in one}


def test_the_group_of_ones_own_is_kept() -> None:
    found = chart("allocation: dra\npodSecurityContext: {supplementalGroups: [44]}")
    assert pod_of(found)["securityContext"]["supplementalGroups"] == [44, 2000002112]


@pytest.mark.parametrize(
    ("given", "rolling"),
    [
        ("{}", {"maxUnavailable": 0, "maxSurge": 1}),
        ("{maxSurge: 10%}", {"maxUnavailable": 0, "maxSurge": "10%"}),
        # The API server refuses both: who wants a part of the nodes at a time has a gap there.
        ("{maxUnavailable: 10%}", {"maxUnavailable": "10%", "maxSurge": 0}),
        ("{maxSurge: 0}", {"maxUnavailable": 1, "maxSurge": 0}),
    ],
)
def test_an_upgrade_has_no_gap(given: str, rolling: dict[str, object]) -> None:
    found = chart(f"allocation: dra\nupdateStrategy: {{rollingUpdate: {given}}}")
    assert the(found, "DaemonSet")["spec"]["updateStrategy"]["rollingUpdate"] == rolling
    on_delete = chart("allocation: dra\nupdateStrategy: {type: OnDelete, rollingUpdate: null}")
    strategy = the(on_delete, "DaemonSet")["spec"]["updateStrategy"]
    assert strategy in ({"type": "OnDelete", "rollingUpdate": None}, {"type": "OnDelete"})


# --- versions of Kubernetes, examples -----------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "passes"), [("1.33.9", False), ("1.34.0", True), ("1.37.1", True)]
)
def test_a_cluster_without_the_api_is_refused(version: str, passes: bool) -> None:
    arguments = f"--kube-version {version}"
    if passes:
        assert of_kind(chart("allocation: dra", arguments=arguments), "DeviceClass")
    else:
        with pytest.raises(Refused, match=f"needs Kubernetes 1.36.*this is v{version}"):
            chart("allocation: dra", arguments=arguments)
        assert chart("", arguments=arguments)


def test_the_example_asks_for_what_a_class_offers() -> None:
    (deployment,) = built(DEPLOY / "workloads" / "dra")
    assert deployment["spec"]["replicas"] == 12
    (template,) = of_kind(built(DEPLOY / "workloads" / "dra-claims"), "ResourceClaimTemplate")
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    classes = {one["metadata"]["name"] for one in of_kind(built_with("dra"), "DeviceClass")}
    assert request["exactly"]["deviceClassName"] in classes


def test_the_example_claim_selects_by_memory() -> None:
    (template,) = of_kind(built(DEPLOY / "workloads" / "dra-claims"), "ResourceClaimTemplate")
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    (selector,) = request["exactly"]["selectors"]
    units = {"": 1, "Gi": GIB}

    def quantity(text: object) -> IntType:
        digits = str(text).rstrip("Gi")
        return IntType(int(digits) * units[str(text)[len(digits) :]])

    def compare(one: object, other: object) -> IntType:
        left, right = int(str(quantity(one))), int(str(other))
        return IntType((left > right) - (left < right))

    environment = celpy.Environment()
    program = environment.program(
        environment.compile(selector["cel"]["expression"]),
        functions={"quantity": quantity, "compareTo": compare},
    )
    for memory, fits in ((80 * GIB, True), (10 * GIB, True), (10 * GIB - 1, False)):
        device = {"capacity": {DRIVER: {"memory": str(memory)}}}
        assert bool(program.evaluate({"device": json_to_cel(device)})) is fits
