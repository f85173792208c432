"""Labels of the node: each plugin changes GPU labels of its own node alone."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.deploy.admission import Admission, account_of
from tests.deploy.rendering import built_with, chart, of_kind, overlaid, the

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.deploy.rendering import Object

ELSEWHERE = "namespace: gpus\nresources: [../../base]\ncomponents: [../../components/{}]\n"
NFD_VALUES = "nodeLabels: {enabled: true, writer: node-feature}\n"


def _ways(component: str, values: str) -> Mapping[str, Callable[[], list[Object]]]:
    return {
        "component": partial(built_with, component),
        "another namespace": partial(overlaid, ELSEWHERE.format(component)),
        "chart": partial(chart, values),
        "chart of another name": partial(
            chart, f"fullnameOverride: gpus\n{values}", namespace="gpus"
        ),
    }


ON_NODE = _ways("node-labels", "nodeLabels: {enabled: true}\n")
IN_FEATURE = _ways("node-labels-nfd", NFD_VALUES)

NODE: Object = {
    "metadata": {
        "name": "a",
        "labels": {"kubernetes.io/hostname": "a", "nvidia.com/gpu.count": "1"},
        "annotations": {"of": "somebody"},
    },
    "spec": {"taints": [{"key": "gpu", "effect": "NoSchedule"}]},
}


def changed(what: Callable[[Object], object]) -> Object:
    node = deepcopy(NODE)
    what(node)
    return node


ALLOWED: Mapping[str, Callable[[Object], object]] = {
    "nothing": lambda _node: None,
    "a new value": lambda node: node["metadata"]["labels"].update({"nvidia.com/gpu.count": "2"}),
    "a new label": lambda node: node["metadata"]["labels"].update({"nvidia.com/mig.capable": "x"}),
    "a label less": lambda node: node["metadata"]["labels"].pop("nvidia.com/gpu.count"),
}
DENIED: Mapping[str, Callable[[Object], object]] = {
    "a label of others": lambda node: node["metadata"]["labels"].update({"a.com/b": "c"}),
    "its value": lambda node: node["metadata"]["labels"].update({"kubernetes.io/hostname": "b"}),
    "its removal": lambda node: node["metadata"]["labels"].pop("kubernetes.io/hostname"),
    "an annotation": lambda node: node["metadata"]["annotations"].update({"of": "me"}),
    "no annotations": lambda node: node["metadata"].pop("annotations"),
    "a finalizer": lambda node: node["metadata"].update({"finalizers": ["x/y"]}),
    "an owner": lambda node: node["metadata"].update({"ownerReferences": [{"uid": "1"}]}),
    "taints": lambda node: node["spec"].pop("taints"),
    "cordoned": lambda node: node["spec"].update({"unschedulable": True}),
}


@pytest.mark.parametrize("name", ON_NODE)
def test_a_plugin_changes_gpu_labels_of_its_own_node_alone(name: str) -> None:
    found = ON_NODE[name]()
    says, user = Admission(found).says, account_of(found)
    for what in ALLOWED.values():
        assert says("UPDATE", user, "a", NODE, changed(what)) == ""
    for which, what in DENIED.items():
        assert says("UPDATE", user, "a", NODE, changed(what)), which
        assert says("UPDATE", "system:node:a", "a", NODE, changed(what)) == ""
    assert "own node" in says("UPDATE", user, "b", NODE, changed(ALLOWED["a new value"]))
    assert "not bound" in says("UPDATE", user, None, NODE, changed(ALLOWED["a new value"]))


def feature(node: str, label: str = "nvidia.com/gpu.count", name: str = "") -> Object:
    return {
        "metadata": {
            "name": name or f"nvidia-features-for-{node}",
            "labels": {"nfd.node.kubernetes.io/node-name": node},
        },
        "spec": {"labels": {label: "1"}},
    }


@pytest.mark.parametrize("name", IN_FEATURE)
def test_a_plugin_writes_the_node_feature_of_its_own_node_alone(name: str) -> None:
    found = IN_FEATURE[name]()
    says, user = Admission(found).says, account_of(found)
    for operation, old in (("CREATE", None), ("UPDATE", feature("a"))):
        assert says(operation, user, "a", old, feature("a")) == ""
        assert "own node" in says(operation, user, "a", old, feature("b"))
        assert "own node" in says(operation, user, "a", old, feature("a", name="other"))
        misled = feature("a")
        misled["metadata"]["labels"]["nfd.node.kubernetes.io/node-name"] = "b"
        assert "own node" in says(operation, user, "a", old, misled)
        assert "nvidia.com/" in says(operation, user, "a", old, feature("a", "a.com/b"))
        assert "not bound" in says(operation, user, None, old, feature("a"))
        assert says(operation, "system:serviceaccount:nfd:worker", "a", old, feature("b")) == ""


@pytest.mark.parametrize(("ways", "resource"), [(ON_NODE, "nodes"), (IN_FEATURE, "nodefeatures")])
def test_the_policy_is_about_every_right_to_write(
    ways: Mapping[str, Callable[[], list[Object]]], resource: str
) -> None:
    for render in ways.values():
        found = render()
        spec = the(found, "ValidatingAdmissionPolicy")["spec"]
        (rule,) = spec["matchConstraints"]["resourceRules"]
        assert spec["failurePolicy"] == "Fail"
        assert rule["resources"] == [resource]
        verbs = {
            verb
            for role in (*of_kind(found, "ClusterRole"), *of_kind(found, "Role"))
            for one in role["rules"]
            if resource in one["resources"]
            for verb in one["verbs"]
        }
        expected = {"create": "CREATE", "patch": "UPDATE"}
        assert set(rule["operations"]) == {expected[verb] for verb in verbs - {"get"}}


def test_the_policy_is_a_choice() -> None:
    found = chart("nodeLabels: {enabled: true, admissionPolicy: false}")
    assert not of_kind(found, "ValidatingAdmissionPolicy")
