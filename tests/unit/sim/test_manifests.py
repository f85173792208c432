"""Pods from manifests and from command lines."""

from __future__ import annotations

import contextlib

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.kubelet import PodClaim
from sim.kubelet.control import pods_from_yaml
from sim.kubeletsocket import ManifestError, parse_limits

POD = """\
apiVersion: v1
kind: Pod
metadata: {name: trainer, namespace: ml, labels: {a: b}}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: x
    resources:
      limits: {nvidia.com/gpu: 2, cpu: "1", memory: 1Gi}
  - name: side
"""


WITH_CLAIMS = """\
kind: Pod
metadata: {name: p}
spec:
  resourceClaims:
  - {name: mine, resourceClaimName: shared}
  - {name: own, resourceClaimTemplateName: one-gpu}
  containers:
  - {name: a, resources: {claims: [{name: mine}, {name: own, request: first}]}}
  - name: b
"""


def test_a_pod_with_claims() -> None:
    (pod,) = pods_from_yaml(WITH_CLAIMS)

    assert pod.claims == (PodClaim("mine", claim="shared"), PodClaim("own", template="one-gpu"))
    assert [container.claims for container in pod.containers] == [("mine", "own/first"), ()]


def with_limits(limits: str) -> str:
    return (
        "kind: Pod\nmetadata: {name: p}\n"
        f"spec: {{containers: [{{name: c, resources: {{limits: {limits}}}}}]}}\n"
    )


def test_a_manifest_becomes_a_pod() -> None:
    (pod,) = pods_from_yaml(POD)

    assert (pod.key, pod.static) == ("ml/trainer", False)
    assert [container.name for container in pod.containers] == ["main", "side"]
    assert dict(pod.containers[0].limits) == {"nvidia.com/gpu": 2}
    assert dict(pod.containers[1].limits) == {}


def test_many_documents_are_many_pods_and_empty_ones_none() -> None:
    text = f"---\n{POD}---\n---\n{with_limits('{}')}"

    assert [pod.key for pod in pods_from_yaml(text)] == ["ml/trainer", "default/p"]
    assert pods_from_yaml("") == ()


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ("{a.com/x: 3}", {"a.com/x": 3}),
        ("{a.com/x: '3'}", {"a.com/x": 3}),
        ("{cpu: 500m, memory: 1Gi, a.com/x: 1}", {"a.com/x": 1}),
        ("{cpu: 0.5, a.com/x: 1}", {"a.com/x": 1}),
        ("{a.com/x: 0}", {"a.com/x": 0}),
        ("{}", {}),
    ],
)
def test_only_devices_matter_among_the_limits(limits: str, expected: dict[str, int]) -> None:
    (pod,) = pods_from_yaml(with_limits(limits))

    assert dict(pod.containers[0].limits) == expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("kind: [", id="not YAML"),
        pytest.param("word", id="a word"),
        pytest.param("[]", id="a list"),
        pytest.param("{}", id="nothing"),
        pytest.param(POD.replace("kind: Pod", "kind: Deployment"), id="another kind"),
        pytest.param("kind: Pod\nmetadata: {name: p}\n", id="no spec"),
        pytest.param("kind: Pod\nspec: {containers: []}\n", id="no name"),
        pytest.param(with_limits("{a.com/x: one}"), id="a word as amount"),
        pytest.param(with_limits("{a.com/x: 500m}"), id="half a device"),
        pytest.param(with_limits("{a.com/x: 1.5}"), id="one and a half devices"),
        pytest.param(with_limits("{a.com/x: -1}"), id="less than none"),
        pytest.param(with_limits("{a.com/x: '-1'}"), id="less than none as text"),
        pytest.param(with_limits("{a.com/x: true}"), id="a boolean as amount"),
        pytest.param(with_limits("{a.com/x: '" + "9" * 5000 + "'}"), id="more than can be read"),
        pytest.param(with_limits("{a.com/x: 0x" + "f" * 5000 + "}"), id="more than can be told"),
        pytest.param(with_limits("{a.com/x: [1]}"), id="a list as amount"),
        pytest.param(POD + "x: !!bool maybe\n", id="no boolean behind its tag"),
        pytest.param("x: " + "[" * 1000, id="too deep"),
    ],
)
@pytest.mark.usefixtures("usual_recursion_limit")
def test_what_is_no_pod_is_refused(text: str) -> None:
    with pytest.raises(ManifestError):
        pods_from_yaml(text)


def test_another_kind_is_named() -> None:
    with pytest.raises(ManifestError, match="only Pods can be run, found kind 'Job'"):
        pods_from_yaml(POD.replace("kind: Pod", "kind: Job"))


def test_every_problem_has_its_line_and_the_nearest_key() -> None:
    text = (
        "kind: Pod\nmetadata: {nmae: p}\nspec:\n  containers:\n  - name: c\n    resources:\n"
        "      limit: {nvidia.com/gpu: 1}\n"
    )
    with pytest.raises(ManifestError) as caught:
        pods_from_yaml(f"# one\n{text}", "pods.yaml")

    assert str(caught.value).splitlines()[1:] == [
        "pods.yaml:3: metadata.name: is required",
        "pods.yaml:3: metadata.nmae: is not a known key; did you mean name?",
        "pods.yaml:8: spec.containers[0].resources.limit: is not a known key; did you mean limits?",
    ]


def test_keys_of_a_pod_that_are_not_looked_at_are_no_mistakes() -> None:
    assert pods_from_yaml(POD.replace("spec:", "spec:\n  initContainers: []\n  nodeName: n", 1))


@settings(max_examples=200)
@given(
    st.recursive(
        st.one_of(st.none(), st.integers(), st.floats(), st.dates(), st.text(max_size=4)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=2),
            st.dictionaries(st.sampled_from(["a.com/x", "cpu", "name", "b/"]), inner, max_size=3),
        ),
        max_leaves=6,
    )
)
def test_any_limits_are_a_pod_or_a_manifest_error(limits: object) -> None:
    text = yaml.safe_dump(
        {
            "kind": "Pod",
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "resources": {"limits": limits}}]},
        }
    )
    with contextlib.suppress(ManifestError):
        (pod,) = pods_from_yaml(text)
        assert all(count >= 0 for count in pod.requests().values())


@given(st.text(max_size=40))
def test_any_text_is_pods_or_a_manifest_error(text: str) -> None:
    with contextlib.suppress(ManifestError):
        pods_from_yaml(text)


@pytest.mark.parametrize(
    ("texts", "limits"),
    [
        ([], {}),
        (["nvidia.com/gpu=2"], {"nvidia.com/gpu": 2}),
        (["a.com/x=1", "b.com/y=0"], {"a.com/x": 1, "b.com/y": 0}),
    ],
)
def test_limits_of_a_command_line(texts: list[str], limits: dict[str, int]) -> None:
    assert dict(parse_limits(texts)) == limits


@pytest.mark.parametrize(
    "text", ["nvidia.com/gpu", "nvidia.com/gpu=", "=1", "a.com/x=-1", "a.com/x=1.5", "a=b", ""]
)
def test_a_limit_of_another_form_is_quoted(text: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_limits([text])
    assert repr(text) in str(caught.value)


@given(st.text(max_size=8))
def test_any_limit_is_one_or_a_manifest_error(text: str) -> None:
    with contextlib.suppress(ManifestError):
        assert all(count >= 0 for count in parse_limits([text]).values())
