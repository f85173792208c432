"""The labels of a node: those of NVIDIA's GPU feature discovery, documented differences aside."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.config.load import load_settings
from gpuplugin.config.plans import inventory_plan
from gpuplugin.core.gpulabels import PREFIX, NodeFacts, differences, gpu_labels, is_own
from gpuplugin.core.inventory import Plan
from gpuplugin.core.sharing import SharedResource, TimeSlicing
from hal import Gpu, MigAttributes, MigDevice
from sim.node.node import SimulatedNode
from sim.node.scenario import Scenario
from tests.unit.builders import a_gpu, gpus, sharing
from tests.unit.core.test_mig_strategies import mig_gpu

DATA = yaml.safe_load(Path(__file__).with_name("gfd-labels.yaml").read_text("utf-8"))
ALWAYS: dict[str, str | None] = {"vgpu.present": None, "gpu.present": "true"}
FACTS = NodeFacts("580.105.08", (13, 0), "PowerEdge XE9680", 1_700_000_000)
KEY = re.compile(r"nvidia\.com/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def labels_of(present: list[Gpu], plan: Plan, facts: NodeFacts = FACTS) -> dict[str, str]:
    """Without the prefix."""
    found = gpu_labels(present, plan, facts)
    assert all(key.startswith(PREFIX) and is_own(key) for key in found)
    return {key.removeprefix(PREFIX): value for key, value in found.items()}


@pytest.mark.parametrize("name", DATA["scenarios"])
def test_labels_are_those_of_gfd(name: str, tmp_path: Path) -> None:
    given_ = DATA["scenarios"][name]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(given_.get("config", {})))
    plan = inventory_plan(load_settings({}, {}, str(config)).settings)
    present: list[Gpu] = []
    if given_["gpus"]:
        node = SimulatedNode(Scenario.model_validate({"gpus": given_["gpus"]}))
        present = list(node.listed())
        assert node.scenario.cuda_version == FACTS.cuda_version
    expected = given_["labels"] | ALWAYS | given_.get("differs", {})
    assert labels_of(present, plan) == {
        name: value for name, value in expected.items() if value is not None
    }


def test_a_gpu_that_is_lost_is_labelled_as_before() -> None:
    present = [a_gpu(0), a_gpu(1)]
    before = labels_of(present, Plan())
    assert labels_of([present[0], a_gpu(1, lost=True)], Plan()) == before
    assert before["gpu.count"] == "2"


def test_what_is_not_known_has_no_label() -> None:
    unknown = replace(a_gpu(0), product="", memory_bytes=None, compute_capability=None)
    found = labels_of([unknown], Plan(), NodeFacts(driver_version="580"))
    assert found == {
        "gpu.present": "true",
        "gpu.machine": "unknown",
        "gpu.mode": "unknown",
        "gpu.count": "1",
        "gpu.replicas": "1",
        "gpu.sharing-strategy": "none",
        "mig.capable": "false",
        "mps.capable": "false",
    }


@pytest.mark.parametrize(
    ("capability", "family"),
    [
        ((3, 7), "kepler"), ((6, 0), "pascal"), ((7, 0), "volta"), ((7, 4), "volta"),
        ((7, 5), "turing"), ((8, 0), "ampere"), ((8, 6), "ampere"), ((8, 9), "ada-lovelace"),
        ((9, 0), "hopper"), ((10, 3), "blackwell"), ((11, 0), "undefined"), ((12, 0), "blackwell"),
        ((13, 0), "rubin"), ((14, 0), "undefined"),
    ],
)  # fmt: skip
def test_families(capability: tuple[int, int], family: str) -> None:
    found = labels_of([replace(a_gpu(0), compute_capability=capability)], Plan())
    assert found["gpu.family"] == family


def test_gpus_of_several_classes_have_no_mode() -> None:
    present = [replace(a_gpu(0), pci_class=0x030000), replace(a_gpu(1), pci_class=0x030200)]
    assert labels_of(present, Plan())["gpu.mode"] == "unknown"


def test_a_name_that_is_too_long_keeps_what_follows_it() -> None:
    long = replace(a_gpu(0), product="NVIDIA " + "RTX-" * 20)
    product = labels_of([long], sharing(10))["gpu.product"]
    assert len(product) <= 63
    assert product.startswith("NVIDIA-RTX-RTX")
    assert product.endswith("-RTX-R-SHARED")


def test_whole_gpus_come_before_those_in_mig_mode() -> None:
    in_mig_mode = [replace(one, mig_enabled=True, product="A100") for one in gpus(3)]
    found = labels_of([*in_mig_mode, a_gpu(3)], Plan(mig_strategy="mixed"))
    assert found["gpu.product"] == "Test-GPU"
    assert (found["gpu.count"], found["gpu.replicas"]) == ("1", "1")


def test_differences() -> None:
    stored = {"a": "1", "b": "2", "c": "3"}
    assert differences(stored, {"b": "2", "c": "4", "d": "5"}) == {"a": None, "c": "4", "d": "5"}
    assert differences(stored, stored) == {}


@pytest.mark.parametrize(
    "key",
    [
        "nvidia.com/device-plugin.config", "nvidia.com/mig.config", "nvidia.com/mig.config.state",
        "nvidia.com/gpu.deploy.driver", "nvidia.com/gpu.workload.config", "nvidia.com/vgpu.present",
        "nvidia.com/gpu.clique", "gpu.product", "example.com/gpu.product", "nvidia.com/mig-manager",
        "feature.node.kubernetes.io/pci-10de.present",
    ],
)  # fmt: skip
def test_labels_of_others_are_not_ours(key: str) -> None:
    assert not is_own(key)


attributes = st.builds(MigAttributes, *[st.integers(0, 10**6)] * 3)
migs = st.builds(
    lambda profile, found: MigDevice(f"MIG-{profile}", 0, 1, 0, profile, 2**30, (), found),
    st.one_of(st.from_regex(r"\A[1-7]g\.[0-9]{1,3}gb([+-][a-z.]{1,40})?\Z"), st.text(max_size=80)),
    st.none() | attributes,
)
any_gpus = st.lists(
    st.builds(
        lambda product, found, memory: replace(
            a_gpu(0),
            product=product,
            memory_bytes=memory,
            mig_enabled=bool(found),
            mig_devices=tuple(found),
        ),
        st.text(max_size=100),
        st.lists(migs, max_size=3),
        st.none() | st.integers(0, 2**48),
    ),
    max_size=4,
).map(lambda found: [replace(one, uuid=f"GPU-{n}", index=n) for n, one in enumerate(found)])
plans = st.builds(
    lambda replicas, strategy, rename: Plan(
        TimeSlicing((SharedResource("nvidia.com/gpu", replicas),), rename_by_default=rename),
        strategy,
    ),
    st.integers(1, 10**6),
    st.sampled_from(["none", "single", "mixed"]),
    st.booleans(),
)
facts = st.builds(
    NodeFacts,
    st.text(max_size=80) | st.from_regex(r"\A[0-9]{1,3}\.[0-9]{1,3}(\.[0-9]{1,40})?\Z"),
    st.none() | st.tuples(st.integers(0, 99), st.integers(0, 99)),
    st.text(max_size=100),
    st.none() | st.integers(0, 2**40),
)


@given(any_gpus, plans, facts)
def test_keys_and_values_are_valid_whatever_the_driver_says(
    present: list[Gpu], plan: Plan, known: NodeFacts
) -> None:
    for key, value in gpu_labels(present, plan, known).items():
        assert KEY.fullmatch(key), key
        assert VALUE.fullmatch(value), value
        assert is_own(key), key


def test_labels_of_a_long_profile_are_not_too_long() -> None:
    gpu = mig_gpu(0, "1g." + 20 * "10gb.")
    found = labels_of([gpu], Plan(mig_strategy="mixed"))
    sizes = {len(name) for name in found if name.startswith("mig-")}
    assert max(sizes) == 63
    assert min(sizes) < 55
