"""GPU models that come with the package."""

from __future__ import annotations

import re

import pytest

from sim.gpu.profiles import (
    Profile,
    TimeSlice,
    UnknownModel,
    load_profile,
    model_names,
    slice_parameters,
)
from sim.gpu.scheduler import TEGRA_SLICE_NS

NAMES = model_names()


@pytest.fixture(params=NAMES)
def profile(request: pytest.FixtureRequest) -> Profile:
    return load_profile(request.param)


def test_there_are_profiles() -> None:
    assert {"h100-sxm5-80gb", "a100-sxm4-80gb", "t4", "rtx3090"} <= set(NAMES)
    assert {"rtx5090", "gb10"} <= set(NAMES)
    assert list(NAMES) == sorted(NAMES)


def test_memory_is_sane(profile: Profile) -> None:
    assert 4 * 1024**3 < profile.memory_bytes < 1024**4
    assert (profile.memory_reserved_bytes or 0) < profile.memory_bytes / 4


def test_power_is_sane(profile: Profile) -> None:
    power = profile.power_w
    steps = [power.min_limit, power.default_limit, power.max_limit]
    known = [step for step in steps if step is not None]
    assert known == sorted(known)
    if power.idle is not None and power.default_limit is not None:
        assert 0 < power.idle < power.default_limit


def test_clocks_are_sane(profile: Profile) -> None:
    clocks = profile.clocks_mhz
    if clocks.sm_idle is not None and clocks.sm_max is not None:
        assert 0 < clocks.sm_idle <= clocks.sm_max < 5000
    if clocks.memory is not None:
        assert 0 < clocks.memory < 20_000


def test_temperatures_are_sane(profile: Profile) -> None:
    thermal = profile.thermal_c
    if thermal is None:
        return
    if thermal.max_operating is not None:
        assert 60 <= thermal.max_operating <= 110
    if thermal.slowdown is None or thermal.shutdown is None:
        return
    if thermal.style == "margin":
        assert thermal.shutdown < thermal.slowdown <= 0, "distances below the limit"
    else:
        assert 60 < thermal.slowdown < thermal.shutdown < 120


def test_compute_capability_fits_the_architecture(profile: Profile) -> None:
    majors = {"Turing": {7}, "Ampere": {8}, "Ada": {8}, "Hopper": {9}, "Blackwell": {10, 12}}
    architecture = profile.architecture.split()[0]

    assert profile.compute_capability[0] in majors[architecture]


def test_mig_profiles_fit_the_gpu(profile: Profile) -> None:
    names = [mig.profile for mig in profile.mig]
    assert len(set(names)) == len(names)
    for mig in profile.mig:
        assert re.fullmatch(r"[1-7]g\.\d+gb(\+[a-z.]+)?", mig.profile)
        assert 1 <= mig.instances <= 7
        assert (mig.memory_mib or 0) * 1024**2 * mig.instances <= profile.memory_bytes
        if mig.sm is not None and profile.sm_count is not None:
            assert mig.sm <= profile.sm_count


def test_slices_are_sane_and_have_a_source(profile: Profile) -> None:
    parameters = slice_parameters(profile)
    assert 500_000 <= parameters.slice_ns <= 5_000_000
    assert 10_000 < parameters.switch_ns(0, 0) <= parameters.switch_ns(1, 1) < 1_000_000
    if profile.time_slice != TimeSlice():
        assert profile.slices_measured


def test_only_models_that_somebody_measured_are_called_measured() -> None:
    measured = {name for name in model_names() if load_profile(name).slices_measured}
    assert measured == {
        *("a100-sxm4-80gb", "gb10", "jetson-orin-nano-8gb", "rtx3090", "rtx4090", "rtx5090", "t4")
    }


def test_consumer_and_desktop_blackwell() -> None:
    rtx5090, gb10 = load_profile("rtx5090"), load_profile("gb10")
    assert (rtx5090.sm_count, rtx5090.memory_bytes >> 20) == (170, 32607)
    assert (rtx5090.compute_capability, rtx5090.pci_device_id) == ((12, 0), 0x2B8510DE)
    assert (gb10.sm_count, gb10.compute_capability) == (48, (12, 1))
    assert (gb10.memory_bytes >> 30, gb10.memory_bandwidth_gb_s) == (128, 273)
    for profile in (rtx5090, gb10):
        assert profile.mig == ()
        assert profile.nvlink is None


def test_a_jetson_slices_time_by_the_scheduler_of_tegra() -> None:
    jetson = load_profile("jetson-orin-nano-8gb")
    assert (jetson.sm_count, jetson.compute_capability, jetson.tegra) == (8, (8, 7), True)
    parameters = slice_parameters(jetson)
    assert parameters.slice_ns == TEGRA_SLICE_NS == 1_024_000
    assert parameters.switch_ns(0, 0) > 200_000
    assert not jetson.has_levels
    assert [name for name in NAMES if load_profile(name).tegra] == ["jetson-orin-nano-8gb"]


def test_bus_ids_are_nvmls_and_unique(profile: Profile) -> None:
    assert len(set(profile.bus_ids)) == len(profile.bus_ids)
    for bus_id in profile.bus_ids:
        assert re.fullmatch(r"[0-9A-F]{8}:[0-9A-F]{2}:[0-9A-F]{2}\.0", bus_id)


def test_every_profile_names_its_sources(profile: Profile) -> None:
    assert profile.sources
    assert all(profile.sources.values())


@pytest.mark.parametrize("name", ["", "h200x", "../scenarios/default", "t4.yaml", "T4"])
def test_an_unknown_model_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(UnknownModel, match="t4") as caught:
        load_profile(name)
    assert repr(name) in str(caught.value)
