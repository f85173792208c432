"""The kubelet stand-in's device manager."""

from __future__ import annotations

import pytest

from sim.kubelet.devices import Amount, DeviceManager, DeviceShortage, Listed

GPU = "nvidia.com/gpu"


def a_manager(healthy: int = 3, unhealthy: int = 0, resource: str = GPU) -> DeviceManager:
    manager = DeviceManager()
    manager.connected(resource, has_preference=True, wants_pre_start=False)
    manager.listed(resource, listing(healthy, unhealthy))
    return manager


def listing(healthy: int, unhealthy: int = 0) -> list[Listed]:
    return [Listed(f"d{number}", healthy=number < healthy) for number in range(healthy + unhealthy)]


def amount(manager: DeviceManager, now_s: float = 0, resource: str = GPU) -> tuple[int, int]:
    found = manager.amounts(now_s).get(resource)
    assert found is not None
    return found.capacity, found.allocatable


def test_capacity_counts_all_and_allocatable_the_healthy_ones() -> None:
    assert amount(a_manager(healthy=3, unhealthy=2)) == (5, 3)


def test_a_plugin_without_a_list_has_no_devices_yet() -> None:
    manager = DeviceManager()
    manager.connected(GPU, has_preference=False, wants_pre_start=False)

    assert amount(manager) == (0, 0)
    assert manager.is_device_resource(GPU)
    assert not manager.is_device_resource("cpu")
    assert not DeviceManager().amounts(0)


def test_a_new_list_replaces_the_old_one() -> None:
    manager = a_manager(healthy=5)
    manager.listed(GPU, listing(1, 1))

    assert manager.devices(GPU) == {"d0": True, "d1": False}


def test_a_plugin_that_goes_leaves_its_devices_unhealthy_for_five_minutes() -> None:
    manager = a_manager(healthy=3, unhealthy=1)
    manager.disconnected(GPU, now_s=100)

    assert amount(manager, 100) == (4, 0)
    assert amount(manager, 399.9) == (4, 0)
    assert amount(manager, 400) == (0, 0), "the name stays"
    assert manager.is_device_resource(GPU)
    assert manager.resources == ()


def test_a_second_end_of_a_stream_does_not_prolong_the_grace() -> None:
    manager = a_manager()
    manager.disconnected(GPU, now_s=100)
    manager.disconnected(GPU, now_s=350)

    assert amount(manager, 400) == (0, 0)


def test_a_plugin_that_is_back_within_the_grace_keeps_its_capacity() -> None:
    manager = a_manager()
    manager.disconnected(GPU, now_s=0)
    manager.connected(GPU, has_preference=True, wants_pre_start=False)
    assert amount(manager, 299) == (3, 0), "until the first list"
    manager.listed(GPU, listing(3))

    assert amount(manager, 10_000) == (3, 3)


def test_a_plugin_that_is_back_after_the_grace_starts_anew() -> None:
    manager = a_manager()
    manager.disconnected(GPU, now_s=0)
    manager.amounts(300)
    manager.connected(GPU, has_preference=True, wants_pre_start=False)
    manager.listed(GPU, listing(2))

    assert amount(manager, 301) == (2, 2)


def test_the_end_of_an_old_stream_disconnects_the_new_plugin() -> None:
    """Pitfall of the real kubelet: clients are known by their resource alone."""
    manager = a_manager()
    manager.connected(GPU, has_preference=True, wants_pre_start=False)
    manager.listed(GPU, listing(3))
    manager.disconnected(GPU, now_s=1)

    assert amount(manager, 1) == (3, 0)


def test_a_stale_list_replaces_the_new_plugins_devices() -> None:
    manager = a_manager(healthy=5)
    manager.connected(GPU, has_preference=True, wants_pre_start=False)
    manager.listed(GPU, [Listed("new-0", healthy=True)])
    manager.listed(GPU, listing(2))

    assert manager.devices(GPU) == {"d0": True, "d1": True}


def test_the_end_of_an_unknown_plugin_is_nothing() -> None:
    manager = DeviceManager()
    manager.disconnected(GPU, now_s=1)

    assert manager.amounts(1) == {}


def test_resources_do_not_touch_each_other() -> None:
    manager = a_manager()
    manager.connected("a.com/x", has_preference=False, wants_pre_start=True)
    manager.listed("a.com/x", listing(2))
    manager.disconnected("a.com/x", now_s=0)

    assert manager.amounts(1) == {GPU: Amount(3, 3), "a.com/x": Amount(2, 0)}
    assert (manager.has_preference(GPU), manager.has_preference("a.com/x")) == (True, False)
    assert (manager.wants_pre_start(GPU), manager.wants_pre_start("a.com/x")) == (False, True)
    assert not manager.has_preference("other")
    assert not manager.wants_pre_start("other")


def test_held_devices_are_not_available_until_their_pod_ends() -> None:
    manager = a_manager()
    manager.hold("pod-1", "main", GPU, ["d1"], b"")
    manager.hold("pod-2", "main", GPU, ["d2"], b"")

    assert manager.available(GPU, 1) == ("d0",)
    assert manager.in_use(GPU) == {"d1", "d2"}
    manager.release("pod-1")
    manager.release("pod-unknown")
    assert manager.available(GPU, 1) == ("d0", "d1")


def test_holding_changes_neither_capacity_nor_allocatable() -> None:
    manager = a_manager()
    manager.hold("pod-1", "main", GPU, ["d1"], b"")

    assert amount(manager) == (3, 3)


def test_an_unhealthy_device_in_use_is_still_held() -> None:
    manager = a_manager()
    manager.hold("pod-1", "main", GPU, ["d2"], b"")
    manager.listed(GPU, listing(2, 1))

    assert manager.in_use(GPU) == {"d2"}
    assert manager.available(GPU, 2) == ("d0", "d1")


def test_a_holding_of_one_resource_does_not_block_another_with_equal_ids() -> None:
    manager = a_manager()
    manager.connected("a.com/x", has_preference=False, wants_pre_start=False)
    manager.listed("a.com/x", listing(3))
    manager.hold("pod-1", "main", "a.com/x", ["d0"], b"")

    assert manager.available(GPU, 3) == ("d0", "d1", "d2")


@pytest.mark.parametrize(
    ("manager", "needed", "text"),
    [
        pytest.param(
            a_manager(healthy=1, unhealthy=5),
            2,
            "requested number of devices unavailable for nvidia.com/gpu. "
            "Requested: 2, Available: 1",
            id="too few",
        ),
        pytest.param(
            a_manager(healthy=0, unhealthy=2),
            1,
            "no healthy devices present; cannot allocate unhealthy devices nvidia.com/gpu",
            id="none healthy",
        ),
        pytest.param(
            DeviceManager(), 1, "cannot allocate unregistered device nvidia.com/gpu", id="unknown"
        ),
    ],
)
def test_a_shortage_is_told_in_the_kubelets_words(
    manager: DeviceManager, needed: int, text: str
) -> None:
    with pytest.raises(DeviceShortage) as caught:
        manager.available(GPU, needed)
    assert str(caught.value) == text


def test_numa_nodes_are_kept_also_for_unhealthy_devices() -> None:
    manager = a_manager()
    manager.listed(GPU, [Listed("a", healthy=True, numa_nodes=(0, 1)), Listed("b", healthy=False)])
    manager.hold("pod", "main", GPU, ["b", "a"], b"raw")

    assert manager.allocatable() == {GPU: {"a": (0, 1)}}
    (holding,) = manager.holdings
    assert holding.device_ids == ("b", "a")
    assert dict(holding.numa) == {"a": (0, 1), "b": ()}
    assert holding.raw == b"raw"


def test_after_a_restart_devices_are_held_and_no_plugin_is_connected() -> None:
    before = a_manager()
    before.hold("pod", "main", GPU, ["d1"], b"raw")
    manager = DeviceManager()
    manager.restore(before.holdings, before.resources, now_s=1000)

    assert manager.holdings == before.holdings
    assert amount(manager, 1000) == (0, 0)
    with pytest.raises(DeviceShortage, match="no healthy devices present"):
        manager.available(GPU, 1)
    manager.connected(GPU, has_preference=True, wants_pre_start=False)
    manager.listed(GPU, listing(3))
    assert amount(manager, 2000) == (3, 3)
    assert manager.available(GPU, 2) == ("d0", "d2")


def test_a_restored_resource_whose_plugin_never_comes_goes_after_the_grace() -> None:
    manager = DeviceManager()
    manager.restore([], [GPU], now_s=1000)
    known = []
    for now_s in (1299, 1300):
        manager.amounts(now_s)
        known.append(manager.resources)

    assert known == [(GPU,), ()]
    with pytest.raises(DeviceShortage, match="cannot allocate unregistered device"):
        manager.available(GPU, 1)
