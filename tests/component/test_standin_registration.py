"""The kubelet stand-in: which plugins it takes, which it refuses, and when it loses one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import grpc
import pytest

from sim.kubelet import Amount, Kubelet, KubeletEvent, Phase, simple_pod
from sim.kubelet.registration import PluginWatcher, sockets_below
from tests.component.running import status_of
from tests.component.tinyplugin import WIDGET, TinyPlugin
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from pathlib import Path

    from sim.kubelet.registration import Registrant

GRACE_S = 300.0


class Recorder:
    """Every fact that the stand-in told, from any thread."""

    def __init__(self) -> None:
        self.facts: list[KubeletEvent] = []

    def __call__(self, fact: KubeletEvent) -> None:
        self.facts.append(fact)

    def texts(self, kind: str, part: str = "") -> list[str]:
        """Texts of one kind that have `part` in them, in order."""
        return [fact.text for fact in tuple(self.facts) if fact.kind == kind and part in fact.text]


class Looks:
    """How often the folder of sockets was looked into."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
        self.count += 1
        return sockets_below(folder)


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kubelet(kubelet_dir: Path, recorder: Recorder, clock: Clock) -> Iterator[Kubelet]:
    """A stand-in with a record of facts and a clock that stands still."""
    with Kubelet(kubelet_dir, listener=recorder, clock=clock) as running:
        yield running


@pytest.fixture
def registry(kubelet_dir: Path) -> Path:
    return kubelet_dir / "plugins_registry"


@pytest.fixture
def device_plugins(kubelet_dir: Path) -> Path:
    return kubelet_dir / "device-plugins"


def wait_for(kubelet: Kubelet, capacity: int, allocatable: int, resource: str = WIDGET) -> None:
    amount = Amount(capacity, allocatable)
    kubelet.wait_until(lambda node: node.amounts.get(resource) == amount, DEADLINE_S)


def test_a_watched_plugin_is_registered_and_told(kubelet: Kubelet, registry: Path) -> None:
    with TinyPlugin(registry / "w.sock") as plugin:
        wait_for(kubelet, 3, 3)
        eventually(lambda: plugin.statuses == [(True, "")])


def test_a_plugin_that_goes_while_it_is_registered_is_removed(
    kubelet_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket, looks, removed = kubelet_dir / "w.sock", Looks(), threading.Event()
    monkeypatch.setattr("sim.kubelet.registration.sockets_below", looks)
    monkeypatch.setattr("sim.kubelet.registration.POLL_S", 0.01)

    def connect(_plugin: Registrant) -> None:
        socket.unlink()
        before = looks.count
        eventually(lambda: looks.count > before + 1)

    watcher = PluginWatcher(
        kubelet_dir, connect, lambda _plugin: removed.set(), lambda _path, _reason: None
    )
    with TinyPlugin(socket):
        watcher.start()
        try:
            assert removed.wait(DEADLINE_S)
        finally:
            watcher.stop()
            watcher.join_workers()


def test_a_classic_plugin_is_registered(
    kubelet: Kubelet, kubelet_dir: Path, device_plugins: Path
) -> None:
    with TinyPlugin(device_plugins / "w.sock") as plugin:
        plugin.register(kubelet_dir)
        wait_for(kubelet, 3, 3)
        assert plugin.asked_info == 0
        assert plugin.statuses == []


def test_nested_folders_are_watched_and_hidden_names_are_not(
    kubelet: Kubelet, registry: Path
) -> None:
    with (
        TinyPlugin(registry / ".hidden.sock", resource="example.com/hidden") as hidden,
        TinyPlugin(registry / ".folder" / "a.sock", resource="example.com/in-hidden") as inside,
        TinyPlugin(registry / "one" / "two" / "w.sock"),
    ):
        wait_for(kubelet, 3, 3)
        assert list(kubelet.view().amounts) == [WIDGET]
        assert hidden.asked_info == inside.asked_info == 0


def test_the_endpoint_may_be_another_socket(
    kubelet: Kubelet, registry: Path, kubelet_dir: Path
) -> None:
    with (
        TinyPlugin(kubelet_dir / "elsewhere.sock", ["a", "b"]) as server,
        TinyPlugin(registry / "w.sock", endpoint=str(kubelet_dir / "elsewhere.sock")) as front,
    ):
        wait_for(kubelet, 2, 2)
        assert server.open_streams == 1
        assert front.open_streams == 0


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        ({"resource": "no-slash"}, "invalid name of device plugin resource"),
        ({"resource": "kubernetes.io/gpu"}, "invalid name of device plugin resource"),
        ({"resource": "example.com/"}, "invalid name of device plugin resource"),
        ({"versions": ("v1alpha",)}, "is not supported"),
        ({"versions": ()}, "is not supported"),
        ({"kind": "CSIPlugin"}, "no handler registered for plugin type: CSIPlugin"),
    ],
)
def test_a_watched_plugin_with_bad_information_is_told_why(
    kubelet: Kubelet, registry: Path, recorder: Recorder, refused: dict[str, object], words: str
) -> None:
    with TinyPlugin(registry / "w.sock", **refused) as plugin:  # type: ignore[arg-type]
        accepted, text = eventually(lambda: plugin.statuses)[0]
        assert not accepted
        assert words in text
        eventually(lambda: recorder.texts("refused", words))
        assert plugin.open_streams == 0
        assert kubelet.view().amounts == {}


@pytest.mark.parametrize(
    ("version", "resource", "words"),
    [
        ("v1alpha", WIDGET, 'requested API version "v1alpha" is not supported by kubelet'),
        ("", WIDGET, "is not supported by kubelet"),
        ("v1beta1", "no-slash", 'the ResourceName "no-slash" is invalid'),
        ("v1beta1", "", 'the ResourceName "" is invalid'),
    ],
)
def test_a_classic_plugin_with_bad_information_is_refused(
    kubelet: Kubelet,
    kubelet_dir: Path,
    device_plugins: Path,
    version: str,
    resource: str,
    words: str,
) -> None:
    with TinyPlugin(device_plugins / "w.sock") as plugin:
        with pytest.raises(grpc.RpcError) as refused:
            plugin.register(kubelet_dir, version=version, resource=resource)
        assert words in status_of(refused.value)[1]
        assert plugin.open_streams == 0
        assert kubelet.view().amounts == {}


def test_get_info_must_answer_within_a_second(
    kubelet: Kubelet, registry: Path, recorder: Recorder
) -> None:
    plugin = TinyPlugin(registry / "w.sock")
    plugin.hold_info = threading.Event()
    with plugin:
        eventually(lambda: recorder.texts("refused", "DeadlineExceeded"))
        assert kubelet.view().amounts == {}


def test_a_refused_path_is_tried_again_and_a_corrected_plugin_is_taken(
    kubelet: Kubelet, registry: Path
) -> None:
    with TinyPlugin(registry / "w.sock", versions=["v9"]) as plugin:
        eventually(lambda: len(plugin.statuses) >= 2)
        plugin.info.supported_versions[:] = ["v1beta1"]
        wait_for(kubelet, 3, 3)
        eventually(lambda: plugin.statuses[-1] == (True, ""))


def test_the_back_off_belongs_to_the_path(
    kubelet: Kubelet, registry: Path, recorder: Recorder
) -> None:
    """A good plugin waits at a path where a bad one failed; at a fresh path it does not."""
    with TinyPlugin(registry / "a.sock", versions=["v9"]) as bad:
        eventually(lambda: len(bad.statuses) >= 3)  # two seconds until the next try
    with (
        TinyPlugin(registry / "a.sock", resource="example.com/same-path") as same_path,
        TinyPlugin(registry / "b.sock", resource="example.com/fresh-path"),
    ):
        wait_for(kubelet, 3, 3, "example.com/fresh-path")
        assert "example.com/same-path" not in kubelet.view().amounts
        assert same_path.asked_info == 0


def test_a_plugin_that_hangs_while_it_registers_does_not_hold_up_another(
    kubelet: Kubelet, registry: Path
) -> None:
    """GetDevicePluginOptions has no deadline; every path is handled on its own."""
    slow = TinyPlugin(registry / "a.sock", resource="example.com/slow")
    slow.hold_options = threading.Event()
    with slow, TinyPlugin(registry / "b.sock"):
        eventually(lambda: slow.asked_info)
        kubelet.wait_until(lambda node: node.allocatable(WIDGET) == 3, timeout_s=5)


@pytest.mark.parametrize("health", ["Unhealthy", "healthy", "HEALTHY", "", "Unknown", "Healthy "])
def test_any_health_but_healthy_is_unhealthy(kubelet: Kubelet, registry: Path, health: str) -> None:
    with TinyPlugin(registry / "w.sock", ["good", ("odd", health)]):
        wait_for(kubelet, 2, 1)
        assert kubelet.view().unhealthy(WIDGET) == ("odd",)


def test_each_list_replaces_the_one_before(kubelet: Kubelet, registry: Path) -> None:
    with TinyPlugin(registry / "w.sock", ["a", "b"]) as plugin:
        wait_for(kubelet, 2, 2)
        plugin.send(["b", "c", ("d", "Unhealthy")])
        wait_for(kubelet, 3, 2)
        assert kubelet.view().devices[WIDGET] == {"b": True, "c": True, "d": False}
        plugin.send([])
        wait_for(kubelet, 0, 0)
        assert kubelet.view().list_updates[WIDGET] == 3


def big_list(count: int) -> list[str]:
    """Ids of fifty bytes, as NVIDIA's with a replica number."""
    return [f"{number:050d}" for number in range(count)]


@pytest.mark.parametrize("first", [0, 10])
def test_a_list_above_four_mebibytes_ends_the_stream(
    kubelet: Kubelet, registry: Path, recorder: Recorder, first: int
) -> None:
    with TinyPlugin(registry / "w.sock", big_list(first or 67_000)) as plugin:
        if first:
            wait_for(kubelet, first, first)
            plugin.send(big_list(67_000))
        (text,) = eventually(lambda: recorder.texts("stream-ended"))
        assert "code = ResourceExhausted" in text
        assert "4221000 vs. 4194304" in text
        wait_for(kubelet, first, 0)
        eventually(lambda: plugin.open_streams == 0)
        # Registration counts as a success all the same, and there is no second try.
        eventually(lambda: plugin.statuses == [(True, "")])


def test_a_list_just_below_the_limit_is_taken(kubelet: Kubelet, registry: Path) -> None:
    with TinyPlugin(registry / "w.sock", big_list(66_000)):
        wait_for(kubelet, 66_000, 66_000)


def test_capacity_is_kept_for_five_minutes(kubelet: Kubelet, registry: Path, clock: Clock) -> None:
    with TinyPlugin(registry / "w.sock"):
        wait_for(kubelet, 3, 3)
    wait_for(kubelet, 3, 0)
    clock.now_s += GRACE_S - 1
    wait_for(kubelet, 3, 0)
    clock.now_s += 1
    assert kubelet.view().amounts == {WIDGET: Amount(0, 0)}


def test_a_plugin_that_is_back_in_time_starts_the_grace_anew(
    kubelet: Kubelet, registry: Path, clock: Clock
) -> None:
    with TinyPlugin(registry / "w1.sock"):
        wait_for(kubelet, 3, 3)
    wait_for(kubelet, 3, 0)
    clock.now_s += GRACE_S - 1
    with TinyPlugin(registry / "w2.sock"):
        wait_for(kubelet, 3, 3)
        clock.now_s += 10 * GRACE_S
        assert kubelet.view().amounts == {WIDGET: Amount(3, 3)}
    wait_for(kubelet, 3, 0)


def test_a_stream_that_ends_takes_the_devices_and_nobody_asks_again(
    kubelet: Kubelet, kubelet_dir: Path, device_plugins: Path, recorder: Recorder
) -> None:
    with TinyPlugin(device_plugins / "w.sock") as plugin:
        plugin.register(kubelet_dir)
        wait_for(kubelet, 3, 3)
        plugin.end_streams()
        wait_for(kubelet, 3, 0)
        assert recorder.texts("stream-ended") == [f"{WIDGET}: closed by the plugin"]
        plugin.register(kubelet_dir)
        wait_for(kubelet, 3, 3)


def test_the_end_of_an_old_stream_disconnects_the_new_plugin(
    kubelet: Kubelet, kubelet_dir: Path, device_plugins: Path
) -> None:
    """Everything is keyed by the resource's name alone."""
    with (
        TinyPlugin(device_plugins / "old.sock", ["a", "b"]) as old,
        TinyPlugin(device_plugins / "new.sock", ["c", "d", "e", "f", "g"]) as new,
    ):
        old.register(kubelet_dir)
        wait_for(kubelet, 2, 2)
        new.register(kubelet_dir)
        wait_for(kubelet, 5, 5)
        old.send(["a", "b"])
        wait_for(kubelet, 2, 2)  # a stale stream that pushes again replaces the list
        new.send(["c", "d", "e", "f", "g"])
        wait_for(kubelet, 5, 5)
        old.end_streams()
        wait_for(kubelet, 5, 0)
        eventually(lambda: new.open_streams == 0)


def test_the_removal_of_an_old_socket_disconnects_the_new_plugin(
    kubelet: Kubelet, registry: Path
) -> None:
    old = TinyPlugin(registry / "a-old.sock", ["a", "b"])
    new = TinyPlugin(registry / "b-new.sock", ["c", "d", "e"])
    with old:
        wait_for(kubelet, 2, 2)
        with new:
            wait_for(kubelet, 3, 3)
            old.socket.unlink()
            wait_for(kubelet, 3, 0)
            eventually(lambda: new.open_streams == 0)
            assert new.statuses == [(True, "")], "the new plugin is not asked again"


def test_a_restart_removes_sockets_and_forgets_plugins(
    kubelet: Kubelet, kubelet_dir: Path, device_plugins: Path, registry: Path
) -> None:
    other = device_plugins / "other.txt"
    with (
        TinyPlugin(device_plugins / "c.sock", resource="example.com/classic") as classic,
        TinyPlugin(registry / "w.sock"),
    ):
        other.touch()
        classic.register(kubelet_dir)
        wait_for(kubelet, 3, 3, "example.com/classic")
        wait_for(kubelet, 3, 3)
        kubelet.restart()
        wait_for(kubelet, 3, 3)  # found again by the watcher
        assert not classic.socket.exists()
        assert kubelet.view().amounts["example.com/classic"] == Amount(0, 0)
        assert other.exists()


def test_the_kubelet_can_be_stopped_twice_and_started_again(
    kubelet: Kubelet, registry: Path, device_plugins: Path
) -> None:
    with TinyPlugin(registry / "w.sock") as plugin:
        wait_for(kubelet, 3, 3)
        kubelet.stop()
        kubelet.stop()
        assert not (device_plugins / "kubelet.sock").exists()
        eventually(lambda: plugin.open_streams == 0)
        kubelet.start()
        wait_for(kubelet, 3, 3)
        assert kubelet.run_pod(simple_pod("p", {WIDGET: 1})).phase is Phase.RUNNING
