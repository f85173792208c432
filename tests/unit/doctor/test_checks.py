"""The doctor's checks: each is content with a sound node, and finds what it is there for."""

from __future__ import annotations

import re
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from gpuplugin.core.faults import fault_of_probe
from gpuplugin.doctor.checks import CHECKS
from gpuplugin.doctor.checks.gpus import CURES
from gpuplugin.doctor.facts import (
    CdiSpec,
    Facts,
    Failure,
    FileFact,
    GpuFacts,
    HardwareFacts,
    KubeletFacts,
    Library,
    PartFact,
    PciGpu,
    PluginFacts,
    RuntimeConfig,
    SocketFact,
    SocketState,
    UnitFact,
)
from gpuplugin.doctor.verdict import (
    EXIT_STATUS,
    Severity,
    as_json,
    as_text,
    diagnose,
    worst,
)
from hal import (
    CallFailure,
    ComputeMode,
    FabricState,
    GpuState,
    MigDevice,
    Probe,
    RecoveryAction,
    XidAction,
)
from hal.nvml.api import Code, NvmlError
from hal.nvml.failures import call_failure
from hal.nvml.library import LIBRARY_DIRS
from tests.unit.builders import a_gpu, a_probe, uuid_of_gpu
from tests.unit.doctor.nodes import (
    PLUGIN_FOLDER,
    ROOT,
    SOCKET,
    TOOLKIT,
    a_folder,
    a_node,
    nodes,
    settings,
    settings_of,
    verdict,
    well,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FAIL, WARN, OK, SKIPPED = Severity.FAIL, Severity.WARN, Severity.OK, Severity.SKIPPED
NO_PLUGIN = PluginFacts(problem="no control socket")
LABELS_NOT_WRITTEN = PartFact(
    "gpu-labels",
    True,
    "the labels are not written: 403 from the API server; the plugin's service account needs patch "
    "on nodes",
    1.0,
    0.0,
)
TIME_SLICES_NOT_SET = PartFact(
    "time-slices", True, "Long on GPU 0; not set on GPU 1 to Long: no root", 1.0, 0.0
)


def test_a_sound_node_is_well_in_every_respect() -> None:
    findings = diagnose(well(), CHECKS)
    assert {f.check: f.verdict.text for f in findings if f.verdict.problems} == {}
    assert EXIT_STATUS[worst(findings)] == 0


def test_names_of_checks_are_different() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS) > 20


def driver(**changes: Any) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, driver=replace(facts.driver, **changes))


def hardware(**changes: Any) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, hardware=replace(facts.hardware, **changes))


def kubelet(**changes: Any) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, kubelet=replace(facts.kubelet, **changes))


def unconnected(**changes: Any) -> Callable[[Facts], Facts]:
    """Something of the kubelet, and no plugin that it is connected to."""
    return lambda facts: replace(kubelet(**changes)(facts), plugin=PluginFacts(problem="none"))


def plugin(**changes: Any) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, plugin=replace(facts.plugin, **changes))


def runtime(**changes: Any) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, runtime=replace(facts.runtime, **changes))


def containerd(**changes: Any) -> Callable[[Facts], Facts]:
    def change(facts: Facts) -> Facts:
        config = replace(facts.runtime.configs[0], **changes)
        return replace(facts, runtime=replace(facts.runtime, configs=(config,)))

    return change


def config(**environment: str) -> Callable[[Facts], Facts]:
    return lambda facts: replace(
        facts, config=replace(facts.config, settings=settings(**environment))
    )


def told(**changes: Any) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, config=replace(facts.config, **changes))


def gpu(**changes: Any) -> Callable[[Facts], Facts]:
    """Change the first GPU."""

    def change(facts: Facts) -> Facts:
        first, *others = facts.hardware.gpus
        changed = replace(first, gpu=replace(first.gpu, **changes))
        return replace(facts, hardware=replace(facts.hardware, gpus=(changed, *others)))

    return change


def probed(probe: Probe | None, problem: str = "") -> Callable[[Facts], Facts]:
    one = GpuFacts(a_gpu(0), probe, problem=problem)
    return lambda facts: replace(facts, hardware=replace(facts.hardware, gpus=(one,)))


def both(*changes: Callable[[Facts], Facts]) -> Callable[[Facts], Facts]:
    def change(facts: Facts) -> Facts:
        for one in changes:
            facts = one(facts)
        return facts

    return change


def parts(*given: PartFact) -> Callable[[Facts], Facts]:
    return plugin(parts=given)


def on_bus(*bound_to: str) -> Callable[[Facts], Facts]:
    return driver(
        pci=tuple(PciGpu(f"0000:0{bus}:00.0", "0302", one) for bus, one in enumerate(bound_to))
    )


def with_node(path: str, node: FileFact | None) -> Callable[[Facts], Facts]:
    changed = {**nodes(2), path: node}
    left = {name: one for name, one in changed.items() if one is not None}
    return driver(nodes=MappingProxyType(left))


MIG = MigDevice(
    "MIG-a", 0, 1, 0, "1g.10gb", 10 * 1024**3, ("/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap12")
)
REFUSED = CallFailure(
    "nvmlDeviceGetUUID", 4, "Insufficient Permissions", "See /dev/nvidia*", "check-permissions"
)
CDI = {"DEVICE_LIST_STRATEGY": "cdi-cri"}
LOST = replace(a_probe(), reachable=False, recovery_action=RecoveryAction.UNKNOWN)
SPEC = CdiSpec("/var/run/cdi/a.json", "k8s.device-plugin.nvidia.com/gpu", ("a",))
DENIED = SocketFact("/x", SocketState.DENIED)


@pytest.mark.parametrize(
    ("check", "spoil", "severity", "what", "do"),
    [
        ("gpus-on-bus", driver(pci=()), FAIL, "no NVIDIA GPU on the PCI bus", "lspci"),
        ("gpus-on-bus", on_bus("nouveau"), FAIL, "bound to nouveau", "blacklist nouveau"),
        ("gpus-on-bus", on_bus("vfio-pci"), FAIL, "vfio-pci", "leave this node out"),
        ("gpus-on-bus", on_bus("nvidia", "vfio-pci"), WARN, "vfio-pci", "leave it so"),
        ("gpus-on-bus", on_bus(""), FAIL, "has no driver", "modprobe nvidia"),
        ("gpus-on-bus", on_bus("snd"), WARN, "driven by snd", "nvidia"),
        ("kernel-modules", driver(modules=frozenset()), FAIL, "nvidia is not loaded", "modprobe"),
        (
            "kernel-modules",
            driver(modules=frozenset({"nvidia"})),
            FAIL,
            "nvidia_uvm is not loaded",
            "nvidia-modprobe -u",
        ),
        (
            "kernel-modules",
            driver(modules=frozenset({"nvidia", "nvidia_uvm", "nouveau"})),
            WARN,
            "nouveau is loaded",
            "Blacklist",
        ),
        (
            "driver-versions",
            driver(module_version="580.65.06"),
            FAIL,
            "the loaded module is 580.65.06, the library on disk is 580.105.08",
            "reboot",
        ),
        (
            "driver-versions",
            driver(libraries=(Library("/a", "580.105.08"), Library("/b", "535.1.2"))),
            WARN,
            "several drivers: 535.1.2, 580.105.08",
            "Remove",
        ),
        (
            "driver-answers",
            hardware(gpus=(), failure=Failure.HUNG, cause="a call takes over 10 s"),
            FAIL,
            "takes over 10 s",
            "reboot",
        ),
        (
            "driver-answers",
            hardware(
                gpus=(),
                failure=Failure.UNAVAILABLE,
                cause="Driver/library version mismatch (18)",
                remedy="reload its modules or reboot",
            ),
            FAIL,
            "version mismatch",
            "reload its modules",
        ),
        ("driver-answers", hardware(gpus=()), FAIL, "lists no GPU", "NVIDIA_VISIBLE_DEVICES=all"),
        (
            "driver-answers",
            driver(pci=(PciGpu("a", "0302", "nvidia"),) * 3),
            WARN,
            "lists 2 of the 3 GPUs",
            "dmesg",
        ),
        (
            "gpu-values",
            gpu(unknown=(CallFailure("nvmlDeviceGetName", 999, "Unknown Error", "See 'dmesg'"),)),
            WARN,
            "a value of GPU 0 is unknown: nvmlDeviceGetName: Unknown Error (999)",
            "dmesg",
        ),
        (
            "time-slices",
            plugin(parts=(TIME_SLICES_NOT_SET,)),
            WARN,
            "Long on GPU 0; not set on GPU 1 to Long: no root",
            "nvidia-smi",
        ),
        (
            "node-labels",
            plugin(parts=(LABELS_NOT_WRITTEN,)),
            WARN,
            "needs patch on nodes",
            "component node-labels",
        ),
        (
            "gpu-health",
            gpu(state=GpuState.LOST, failure=REFUSED),
            FAIL,
            "GPU 0 cannot be read (nvmlDeviceGetUUID: Insufficient Permissions (4))",
            "/dev/nvidia",
        ),
        (
            "nvlink-fabric",
            probed(replace(a_probe(), fabric=FabricState.IN_PROGRESS)),
            FAIL,
            "not ready in the NVLink fabric (in-progress): CUDA fails there with error 802",
            "nvidia-fabricmanager",
        ),
        (
            "nvlink-fabric",
            both(
                config(GPUPLUGIN_HEALTH_FABRIC_CHECK="false"),
                probed(replace(a_probe(), fabric=FabricState.NOT_STARTED)),
            ),
            WARN,
            "not-started",
            "nvidia-fabricmanager",
        ),
        (
            "confidential-computing",
            probed(replace(a_probe(), confidential_ready=False)),
            FAIL,
            "accept no work",
            "conf-compute -srs 1",
        ),
        ("device-nodes", with_node("/dev/nvidiactl", None), FAIL, "/dev/nvidiactl", "modprobe"),
        ("device-nodes", with_node("/dev/nvidia-uvm", None), FAIL, "/dev/nvidia-uvm", "modprobe"),
        ("device-nodes", with_node("/dev/nvidia1", None), FAIL, "/dev/nvidia1", "modprobe"),
        (
            "device-nodes",
            with_node("/dev/nvidia1", FileFact("/dev/nvidia1")),
            FAIL,
            "is not a device node",
            "Remove it",
        ),
        (
            "device-nodes",
            with_node("/dev/nvidia1", a_node("/dev/nvidia1", (195, 7))),
            FAIL,
            "has the numbers 195:7, the driver's are 195:1",
            "mknod -m 666 /dev/nvidia1 c 195 1",
        ),
        (
            "device-nodes",
            with_node("/dev/nvidia1", a_node("/dev/nvidia1", (195, 1), 0o660)),
            WARN,
            "mode 0660",
            "NVreg_DeviceFileMode=0666",
        ),
        (
            "device-nodes",
            gpu(mig_enabled=True, mig_devices=(MIG,)),
            FAIL,
            "/dev/nvidia-caps/nvidia-cap12",
            "nvidia-modprobe",
        ),
        ("gpu-health", probed(LOST), FAIL, "GPU 0 is lost", "79: it fell off the bus"),
        ("gpu-health", probed(None, "a call takes over 3 s"), FAIL, "takes over 3 s", "reboot"),
        (
            "gpu-health",
            probed(a_probe(action=RecoveryAction.RESET)),
            FAIL,
            "the driver requests an action for GPU 0: reset",
            f"nvidia-smi --gpu-reset -i {uuid_of_gpu(0)}",
        ),
        ("gpu-health", probed(a_probe(action=RecoveryAction.REBOOT)), FAIL, "reboot", "reboot it"),
        ("gpu-health", probed(a_probe(remap_failed=True)), FAIL, "remap", "replaced"),
        (
            "gpu-health",
            probed(replace(a_probe(), row_remap_pending=True)),
            WARN,
            "a bad row to remap",
            "--gpu-reset",
        ),
        (
            "gpu-health",
            probed(replace(a_probe(), thermal_shutdown=True)),
            FAIL,
            "shutdown temperature",
            "fans",
        ),
        (
            "gpu-health",
            probed(replace(a_probe(), uncorrectable_ecc=3)),
            WARN,
            "3 uncorrectable",
            "ECC",
        ),
        (
            "gpu-health",
            plugin(units=(UnitFact("GPU-x", "3", "Unhealthy", "Xid 79", "reboot-node", 5.0),)),
            FAIL,
            "GPU 3 is Unhealthy for 5 s: Xid 79",
            "gpuplugin health clear 3",
        ),
        (
            "gpu-health",
            plugin(units=(UnitFact("GPU-x", "3", "Recovering", "Xid 94", "ignore", 5.0),)),
            WARN,
            "Recovering",
            "Wait",
        ),
        (
            "driver-age",
            both(hardware(driver_version="418.126.02"), config(MIG_STRATEGY="mixed")),
            FAIL,
            "too old for MIG, which needs 450",
            "Update the driver",
        ),
        ("configuration", told(problems=("a:3: b: wrong",)), FAIL, "a:3: b: wrong", "config check"),
        ("configuration", told(warnings=("a:3: unknown",)), WARN, "unknown", "no effect"),
        ("advertised", config(GPUPLUGIN_EXCLUDE_GPUS="*"), FAIL, "nothing is advertised", "gpus."),
        (
            "advertised",
            both(config(MIG_STRATEGY="single"), gpu(mig_enabled=True, mig_devices=(MIG,))),
            FAIL,
            "GPUs 1 are not in MIG mode",
            "Change one",
        ),
        (
            "mig-strategy",
            gpu(mig_enabled=True, mig_devices=(MIG,)),
            FAIL,
            "GPU 0 is in MIG mode and advertised as a whole",
            "MIG_STRATEGY=single or mixed",
        ),
        ("mig-strategy", config(MIG_STRATEGY="mixed"), WARN, "no GPU is in MIG mode", "-mig 1"),
        (
            "mig-strategy",
            both(config(MIG_STRATEGY="single"), gpu(mig_enabled=True, mig_devices=(MIG,))),
            FAIL,
            "only some GPUs",
            "mixed",
        ),
        (
            "mig-strategy",
            both(config(MIG_STRATEGY="mixed"), gpu(mig_enabled=True)),
            WARN,
            "without a MIG device",
            "mig -cgi",
        ),
        (
            "compute-mode",
            gpu(compute_mode=ComputeMode.EXCLUSIVE_PROCESS),
            FAIL,
            "GPU 0 is shared and in compute mode exclusive-process",
            "nvidia-smi -c DEFAULT -i 0",
        ),
        (
            "compute-mode",
            gpu(compute_mode=ComputeMode.PROHIBITED),
            FAIL,
            "prohibited",
            "-c DEFAULT",
        ),
        ("time-slicing-with-mps", driver(mps_processes=("an MPS daemon",)), WARN, "MPS", "stop"),
        (
            "time-slicing-with-mps",
            hardware(gpus=(GpuFacts(a_gpu(0), a_probe(), ("/usr/bin/nvidia-cuda-mps-server",)),)),
            WARN,
            "nvidia-cuda-mps-server",
            "stop the MPS daemon",
        ),
        (
            "kubelet-folder",
            unconnected(folder=None, elsewhere=("/var/lib/k0s/kubelet",)),
            FAIL,
            "no kubelet folder at /var/lib/kubelet; there is a kubelet in /var/lib/k0s/kubelet",
            "GPUPLUGIN_KUBELET_DIR=/var/lib/k0s/kubelet",
        ),
        ("kubelet-folder", unconnected(folder=None), FAIL, "no kubelet folder", "--kubelet-dir"),
        (
            "kubelet-folder",
            unconnected(configured_root="/data/kubelet"),
            FAIL,
            "uses /data/kubelet",
            "GPUPLUGIN_KUBELET_DIR=/data/kubelet",
        ),
        (
            "kubelet-folder",
            unconnected(
                socket=SocketFact("/x", SocketState.MISSING), elsewhere=("/var/lib/k0s/kubelet",)
            ),
            FAIL,
            "there is one below /var/lib/k0s/kubelet",
            "GPUPLUGIN_KUBELET_DIR=/var/lib/k0s/kubelet",
        ),
        (
            "kubelet-socket",
            unconnected(socket=SocketFact("/x", SocketState.MISSING)),
            FAIL,
            "does not exist",
            "Start the kubelet",
        ),
        (
            "kubelet-socket",
            unconnected(socket=SocketFact("/x", SocketState.REFUSED)),
            FAIL,
            "no process listens on it",
            "Start the kubelet",
        ),
        (
            "kubelet-socket",
            unconnected(socket=SocketFact("/x", SocketState.SILENT)),
            FAIL,
            "does not answer",
            "hangs",
        ),
        (
            "kubelet-socket",
            both(kubelet(socket=DENIED), config(GPUPLUGIN_REGISTRATION="classic")),
            FAIL,
            "user 65534 may not connect",
            "--registration watcher",
        ),
        (
            "plugin-folder",
            kubelet(own_folder=a_folder(PLUGIN_FOLDER, mode=0o750)),
            FAIL,
            "user 65534 may not write",
            "chown 65534:65534",
        ),
        (
            "plugin-folder",
            kubelet(own_folder=None),
            FAIL,
            f"may not write in {ROOT}/plugins_registry",
            "init container",
        ),
        ("plugin-folder", kubelet(own_folder=None, registry=None), FAIL, "no /var", "start it"),
        ("plugin-folder", kubelet(own_folder=FileFact("/x")), FAIL, "is not a folder", "Remove it"),
        (
            "plugin-folder",
            config(GPUPLUGIN_REGISTRATION="classic"),
            FAIL,
            f"user 65534 may not write in {ROOT}/device-plugins",
            "as root",
        ),
        (
            "stale-sockets",
            kubelet(own_sockets=(SocketFact(SOCKET, SocketState.REFUSED),)),
            WARN,
            "left by a plugin that no longer runs",
            "remove it by hand",
        ),
        (
            "one-plugin",
            kubelet(
                others=(SocketFact(f"{ROOT}/device-plugins/nvidia-gpu.sock", SocketState.ANSWERS),)
            ),
            FAIL,
            "another plugin serves nvidia.com/gpu",
            "devicePlugin.enabled=false",
        ),
        (
            "one-plugin",
            kubelet(own_sockets=(SocketFact(SOCKET, SocketState.ANSWERS),) * 2),
            WARN,
            "two of this plugin serve one resource",
            "maxSurge: 0",
        ),
        (
            "plugin-runs",
            both(plugin(source="", control=DENIED)),
            WARN,
            "does not report its status",
            "as root",
        ),
        (
            "plugin-ready",
            parts(PartFact("monitor", False, "no driver", 9.0, None)),
            FAIL,
            "monitor, for 9 s: no driver",
            "needs no restart",
        ),
        (
            "kubelet-contact",
            parts(PartFact("kubelet:nvidia.com/gpu", False, "stream lost", 9.0, 42.0)),
            FAIL,
            "no contact to the kubelet, last 42 s ago: stream lost",
            "kubelet-socket",
        ),
        (
            "kubelet-contact",
            parts(PartFact("kubelet:nvidia.com/gpu", False, "waiting", 9.0, None)),
            FAIL,
            "last never: waiting",
            "kubelet-socket",
        ),
        ("kubelet-contact", parts(), FAIL, "serves no resource", "plugin-ready"),
        (
            "registered",
            kubelet(registered=MappingProxyType({"nvidia.com/gpu": 0})),
            FAIL,
            "has no device of nvidia.com/gpu",
            "restart the plugin",
        ),
        (
            "runtime",
            containerd(handlers=MappingProxyType({"runc": ""})),
            FAIL,
            "no handler with NVIDIA's runtime, which the device list strategy envvar needs",
            "nvidia-ctk runtime configure --runtime=containerd",
        ),
        (
            "runtime",
            containerd(default_handler="runc"),
            WARN,
            "is the handler nvidia, not the default",
            "runtimeClassName: nvidia",
        ),
        ("runtime", containerd(problem="line 3"), FAIL, "line 3", "Correct"),
        ("list-strategy", runtime(toolkit=TOOLKIT), WARN, "may still see all", "cdi-cri"),
        (
            "list-strategy",
            runtime(toolkit=replace(TOOLKIT, unprivileged_variable=False)),
            FAIL,
            "ignores NVIDIA_VISIBLE_DEVICES in unprivileged",
            "cdi-cri or volume-mounts",
        ),
        (
            "list-strategy",
            both(runtime(toolkit=TOOLKIT), config(DEVICE_LIST_STRATEGY="volume-mounts")),
            FAIL,
            "ignores mounts",
            "as-volume-mounts = true",
        ),
        (
            "list-strategy",
            both(config(**CDI), containerd(cdi=None, version=2)),
            WARN,
            "before 2.0 has switched off",
            "enable_cdi = true",
        ),
        (
            "list-strategy",
            both(config(**CDI), containerd(cdi=False)),
            FAIL,
            "has CDI switched off",
            "enable_cdi = true",
        ),
        (
            "list-strategy",
            both(config(**CDI), containerd(cdi_folders=("/etc/cdi",))),
            FAIL,
            "CDI specs go to /var/run/cdi, containerd looks in /etc/cdi",
            "--cdi-root",
        ),
        ("cdi-specs", config(**CDI), FAIL, "no spec of its GPUs", "writable by user 65534"),
        (
            "cdi-specs",
            both(config(**CDI), runtime(specs=(replace(SPEC, missing=("/usr/lib/x",)),))),
            FAIL,
            "names files that do not exist: /usr/lib/x",
            "restart the plugin",
        ),
        (
            "cdi-specs",
            runtime(specs=(CdiSpec("/etc/cdi/b.json", problem="no JSON"),)),
            WARN,
            "/etc/cdi/b.json cannot be used: no JSON",
            "Remove it",
        ),
        (
            "cdi-specs",
            both(
                config(**CDI),
                plugin(source=""),
                runtime(cdi_folder=a_folder("/var/run/cdi")),
            ),
            FAIL,
            "user 65534 may not write CDI specs",
            "init container",
        ),
        (
            "cgroup-driver",
            kubelet(cgroup_driver="systemd"),
            WARN,
            "systemctl daemon-reload",
            "create-dev-char-symlinks",
        ),
    ],
)
def test_a_check_finds_what_it_is_there_for(
    check: str, spoil: Callable[[Facts], Facts], severity: Severity, what: str, do: str
) -> None:
    assert verdict(check, well()).severity in (OK, SKIPPED)
    said = verdict(check, spoil(well()))
    assert said.severity is severity
    matching = [problem for problem in said.problems if what in problem.what]
    assert matching, said
    assert any(do in problem.do for problem in matching), matching


@pytest.mark.parametrize(
    ("check", "spoil"),
    [
        ("kubelet-socket", kubelet(socket=DENIED)),
        (
            "kubelet-socket",
            kubelet(socket=SocketFact("/x", SocketState.MISSING), device_plugins=None),
        ),
        ("kernel-modules", driver(modules=None)),
        ("gpus-on-bus", driver(pci=None)),
        ("gpus-on-bus", driver(pci=(), wsl=True)),
        ("device-nodes", driver(nodes=MappingProxyType({}), wsl=True)),
        ("driver-versions", driver(module_version="")),
        ("runtime", runtime(configs=())),
        ("compute-mode", gpu(compute_mode=ComputeMode.DEFAULT)),
        (
            "compute-mode",
            both(
                config(GPUPLUGIN_EXCLUDE_GPUS="0"), gpu(compute_mode=ComputeMode.EXCLUSIVE_PROCESS)
            ),
        ),
        (
            "compute-mode",
            both(config(GPUPLUGIN_EXCLUDE_GPUS="0"), gpu(compute_mode=ComputeMode.PROHIBITED)),
        ),
        ("mig-strategy", both(config(GPUPLUGIN_EXCLUDE_GPUS="0"), gpu(mig_enabled=True))),
        (
            "mig-strategy",
            both(
                config(GPUPLUGIN_INCLUDE_GPUS="0", MIG_STRATEGY="single"),
                gpu(mig_enabled=True, mig_devices=(MIG,)),
            ),
        ),
        ("gpu-health", both(config(GPUPLUGIN_EXCLUDE_GPUS="0"), gpu(state=GpuState.LOST))),
        (
            "gpu-health",
            both(
                config(GPUPLUGIN_EXCLUDE_GPUS="0"),
                plugin(units=(UnitFact(uuid_of_gpu(0), "0", "Unhealthy", "Xid 62", "", 9.0),)),
            ),
        ),
        ("driver-answers", on_bus("nvidia", "nvidia", "vfio-pci")),
        ("list-strategy", both(config(**CDI), containerd(cdi=None, version=3))),
        ("cgroup-driver", both(kubelet(cgroup_driver="systemd"), config(**CDI))),
        ("cgroup-driver", both(kubelet(cgroup_driver="systemd"), driver(char_links=True))),
        (
            "list-strategy",
            both(config(**CDI), containerd(cdi_folders=("/etc/cdi", "/run/cdi/"))),
        ),
        ("runtime", both(config(**CDI), containerd(handlers=MappingProxyType({"runc": ""})))),
        ("cdi-specs", both(config(**CDI), runtime(specs=(SPEC,)))),
        (
            "one-plugin",
            kubelet(
                others=(SocketFact(f"{ROOT}/device-plugins/nvidia-gpu.sock", SocketState.REFUSED),)
            ),
        ),
    ],
)
def test_a_check_leaves_alone_what_is_no_fault(check: str, spoil: Callable[[Facts], Facts]) -> None:
    assert verdict(check, spoil(well())).problems == ()


def test_what_only_root_may_see_is_skipped_not_failed() -> None:
    facts = kubelet(
        hidden=True,
        own_folder=None,
        registry=None,
        device_plugins=None,
        socket=SocketFact("/x", SocketState.MISSING),
        own_sockets=(),
        registered=None,
    )(replace(well(), plugin=NO_PLUGIN))
    findings = {one.check: one.verdict for one in diagnose(facts, CHECKS)}
    assert worst(diagnose(facts, CHECKS)) is OK
    for check in ("kubelet-socket", "plugin-folder", "stale-sockets", "plugin-runs"):
        assert findings[check].severity is SKIPPED
        assert "root" in findings[check].text


def test_exclusive_gpus_that_are_not_shared_are_right() -> None:
    facts = gpu(compute_mode=ComputeMode.EXCLUSIVE_PROCESS)(well())
    unshared = settings_of("version: v1")
    facts = replace(facts, config=replace(facts.config, settings=unshared))
    assert verdict("compute-mode", facts).problems == ()


def test_a_list_that_does_not_fit_is_told_with_the_count_that_does() -> None:
    facts = well()
    large = settings_of("sharing: {timeSlicing: {resources: [{name: gpu, replicas: 100000}]}}")
    (problem,) = verdict(
        "list-size", replace(facts, config=replace(facts.config, settings=large))
    ).problems
    assert problem.severity is FAIL
    assert "Set replicas to 3" in problem.do


def test_a_driver_that_cannot_tell_the_recovery_action_is_no_fault_but_told() -> None:
    facts = probed(a_probe(action=RecoveryAction.UNKNOWN))(well())
    said = verdict("driver-age", facts)
    assert said.severity is OK
    assert "judged by Xid alone" in said.text


def test_a_simulated_node_has_no_driver_to_look_at() -> None:
    facts = both(hardware(backend="sim"), driver(pci=(), modules=None, nodes=MappingProxyType({})))(
        well()
    )
    skipped = {f.check for f in diagnose(facts, CHECKS) if f.verdict.severity is SKIPPED}
    assert skipped >= {"gpus-on-bus", "kernel-modules", "nvml-library", "device-nodes"}


@pytest.mark.parametrize("action", [action for action in XidAction if not action.application_error])
def test_every_action_that_an_xid_asks_for_has_a_cure(action: XidAction) -> None:
    assert action is XidAction.UNSPECIFIED or action.value in CURES


def test_every_action_that_a_probe_asks_for_has_a_cure() -> None:
    asked = (a_probe(action=action) for action in RecoveryAction)
    spoilt = (
        replace(a_probe(), thermal_shutdown=True),
        replace(a_probe(), row_remap_failed=True),
        replace(a_probe(), confidential_ready=False),
    )
    faults = filter(None, map(fault_of_probe, (*asked, *spoilt)))
    assert {fault.action for fault in faults} <= CURES.keys()


def test_the_gpu_of_a_mig_device_is_what_is_to_be_reset() -> None:
    ill = UnitFact("MIG-a", "1:0", "Unhealthy", "Xid 95", "reset-gpu", 9.0)
    (problem,) = verdict("gpu-health", plugin(units=(ill,))(well())).problems
    assert "--gpu-reset -i 1'" in problem.do
    assert "health clear 1:0" in problem.do
    whole = replace(ill, uuid="GPU-b", index="1")
    (problem,) = verdict("gpu-health", plugin(units=(whole,))(well())).problems
    assert "--gpu-reset -i GPU-b'" in problem.do


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/run/nvidia/driver/usr/lib/x86_64-linux-gnu", "/run/nvidia/driver"),
        ("/run/opengl-driver/lib", "/run/opengl-driver"),
        ("/usr/lib/wsl/lib", "/usr/lib/wsl"),
        ("/opt/nvidia/lib64", "/"),
    ],
)
def test_the_root_to_set_is_one_below_which_the_library_is_found(path: str, root: str) -> None:
    elsewhere = (Library(f"{path}/libnvidia-ml.so.1"),)
    missing = hardware(gpus=(), failure=Failure.NOT_FOUND)
    (problem,) = verdict(
        "nvml-library", both(driver(libraries=(), elsewhere=elsewhere), missing)(well())
    ).problems
    assert f"NVIDIA_DRIVER_ROOT={root} " in problem.do
    assert path.removeprefix(root.rstrip("/")).removeprefix("/") in LIBRARY_DIRS


@pytest.mark.parametrize(
    ("uid", "mode", "wanted", "allowed"),
    [
        (0, 0o000, 7, True),
        (7, 0o700, 3, True),
        (7, 0o077, 3, False),
        (8, 0o070, 3, True),
        (9, 0o772, 3, False),
        (9, 0o773, 3, True),
    ],
)
def test_rights_are_those_of_the_class_that_a_user_is_in(
    uid: int, mode: int, wanted: int, allowed: bool
) -> None:
    assert FileFact("/x", uid=7, gid=8, mode=mode).permits(uid, wanted) is allowed


def test_ask_14_a_library_at_another_place_names_the_root_to_set() -> None:
    facts = both(
        driver(
            libraries=(),
            elsewhere=(Library("/run/nvidia/driver/usr/lib64/libnvidia-ml.so.1", "580.105.08"),),
        ),
        hardware(gpus=(), failure=Failure.NOT_FOUND, cause="not found; searched: a, b"),
    )(well())
    (problem,) = verdict("nvml-library", facts).problems
    assert "is not below /, but at /run/nvidia/driver/usr/lib64" in problem.what
    assert "NVIDIA_DRIVER_ROOT=/run/nvidia/driver " in problem.do


def test_ask_14_a_library_that_is_nowhere_names_the_paths_and_the_runtime_class() -> None:
    facts = both(
        driver(libraries=()),
        hardware(gpus=(), failure=Failure.NOT_FOUND, cause="not found; searched: /usr/lib64"),
    )(well())
    (problem,) = verdict("nvml-library", facts).problems
    assert problem.severity is FAIL
    assert "/usr/lib64" in problem.where
    assert "runtimeClassName" in problem.do


def test_ask_14_a_dangling_library_is_told_from_a_missing_one() -> None:
    dangling = Library("/usr/lib64/libnvidia-ml.so.1", problem="it is a link to x, missing")
    facts = both(
        driver(libraries=(dangling,)), hardware(gpus=(), failure=Failure.NOT_FOUND, cause="c")
    )(well())
    (problem,) = verdict("nvml-library", facts).problems
    assert "it is a link to x" in problem.what
    assert "mount the whole driver" in problem.do


@pytest.mark.parametrize("pci_class", ["0300", "0302"])
def test_ask_15_gpus_without_a_plugin_name_the_label_that_is_waited_for(pci_class: str) -> None:
    facts = replace(well(), plugin=NO_PLUGIN, kubelet=KubeletFacts())
    facts = driver(pci=(PciGpu("0000:01:00.0", pci_class, "nvidia"),))(facts)
    (problem,) = verdict("plugin-runs", facts).problems
    assert problem.severity is FAIL
    assert "no plugin runs" in problem.what
    assert f"feature.node.kubernetes.io/pci-{pci_class}_10de.present" in problem.do
    assert "kubectl label node" in problem.do


@pytest.mark.parametrize("ends", [True, False])
def test_ask_16_a_late_driver_is_waited_for_or_ends_the_plugin_and_the_doctor_says_which(
    ends: bool,
) -> None:
    late = HardwareFacts(failure=Failure.UNAVAILABLE, cause="Driver Not Loaded (9)")
    facts = config(FAIL_ON_INIT_ERROR=str(ends).lower())(replace(well(), hardware=late))
    (problem,) = verdict("driver-answers", facts).problems
    assert problem.severity is FAIL
    assert "tries again by itself" in problem.do
    assert ("the plugin ends" in problem.do) is ends
    unloaded = verdict("kernel-modules", driver(modules=frozenset())(facts))
    assert "needs no restart" in unloaded.problems[0].do


def test_ask_16_a_plugin_that_idles_without_a_driver_says_so() -> None:
    waiting = PartFact("monitor", False, "libnvidia-ml.so.1 was not found", 3600.0, None)
    (problem,) = verdict("plugin-ready", parts(waiting)(well())).problems
    assert "monitor, for 3600 s: libnvidia-ml.so.1" in problem.what


def test_ask_20_a_configuration_that_nobody_reads_is_found() -> None:
    facts = told(unread=("/etc/gpuplugin/config.yaml",))(well())
    (problem,) = verdict("configuration", facts).problems
    assert problem.severity is WARN
    assert "CONFIG_FILE=/etc/gpuplugin/config.yaml" in problem.do


def test_ask_20_a_change_that_was_refused_is_found() -> None:
    refused = PartFact("config", True, "a change was refused at noon, ...: line 3", 9.0, 0.0)
    (problem,) = verdict("config-in-force", parts(refused)(well())).problems
    assert problem.severity is FAIL
    assert "line 3" in problem.what


def test_ask_20_another_kubelet_folder_is_found_and_named() -> None:
    facts = unconnected(folder=None, elsewhere=("/var/snap/microk8s/common/var/lib/kubelet",))(
        well()
    )
    (problem,) = verdict("kubelet-folder", facts).problems
    assert "--kubelet-dir" in problem.do


def test_a_runtime_of_several_files_may_have_its_default_elsewhere() -> None:
    other = RuntimeConfig("crio", "/etc/crio/crio.conf.d", default_handler="crun")
    facts = well()
    facts = runtime(configs=(*facts.runtime.configs, other))(facts)
    assert verdict("runtime", facts).severity is FAIL


def test_every_action_for_a_code_of_nvml_has_a_cure() -> None:
    actions = {call_failure(NvmlError(code, "")).action for code in Code}
    assert actions - {"see-dmesg"} <= CURES.keys()


# What does no harm


def test_unhealthy_devices_are_not_in_the_checkpoint_and_no_reason_to_restart_the_plugin() -> None:
    facts = kubelet(registered=MappingProxyType({"nvidia.com/gpu": 0}))(well())
    sick = plugin(devices={"nvidia.com/gpu": (20, 0)})(facts)
    assert verdict("registered", sick).skipped
    assert "no device of nvidia.com/gpu is Healthy" in verdict("registered", sick).text
    some = plugin(devices={"nvidia.com/gpu": (20, 3)})(facts)
    assert verdict("registered", some).severity is FAIL


@pytest.mark.parametrize("way", ["watcher", "classic"])
def test_a_kubelet_with_a_root_dir_of_its_own_and_an_open_stream_is_well(way: str) -> None:
    """It has device-plugins in /var/lib/kubelet all the same, and the rest in its --root-dir."""
    root = "/data/kubelet" if way == "watcher" else ROOT
    facts = kubelet(
        configured_root="/data/kubelet",
        root=root,
        socket=SocketFact(f"{ROOT}/device-plugins/kubelet.sock", SocketState.ANSWERS),
        elsewhere=(ROOT,) if way == "watcher" else (),
    )(config(GPUPLUGIN_REGISTRATION=way)(well()))
    for name in ("kubelet-folder", "kubelet-socket"):
        assert verdict(name, facts).problems == (), name
    without = plugin(source="", parts=())(facts)
    for name in ("kubelet-folder", "kubelet-socket"):
        assert verdict(name, without).problems == (), name


def test_a_missing_socket_is_well_where_the_watcher_has_an_open_stream() -> None:
    facts = kubelet(socket=SocketFact("/x", SocketState.MISSING))(well())
    assert verdict("kubelet-socket", facts).skipped
    classic = config(GPUPLUGIN_REGISTRATION="classic")(facts)
    assert verdict("kubelet-socket", classic).severity is FAIL


def test_the_host_of_a_simulated_node_is_not_checked() -> None:
    facts = hardware(backend="sim")(both(containerd(handlers=MappingProxyType({})))(well()))
    for name in ("runtime", "list-strategy", "cdi-specs", "cgroup-driver", "nvml-library"):
        assert verdict(name, facts).skipped, name
    other = kubelet(configured_root="/data/kubelet")(facts)
    assert verdict("kubelet-folder", other).problems == ()


# One cause, told once


def test_failures_of_one_cause_are_told_once() -> None:
    facts = unconnected(
        folder=None, registry=None, own_folder=None, socket=SocketFact("/x", SocketState.MISSING)
    )(well())
    findings = {one.check: one for one in diagnose(facts, CHECKS)}
    assert findings["kubelet-folder"].cause == ""
    assert findings["kubelet-socket"].cause == "kubelet-folder"
    text = as_text(tuple(findings.values()))
    assert text.count("\nFAIL: ") == 1 + (findings["plugin-runs"].verdict.severity is FAIL)
    assert "(follows from kubelet-folder)" in text
    assert "failed (1 of them because of another)" in text
    assert '"follows_from": "kubelet-folder"' in as_json(tuple(findings.values()))


def test_problems_with_one_cure_are_told_together() -> None:
    lost = [GpuFacts(replace(a_gpu(index), state=GpuState.LOST)) for index in range(3)]
    text = as_text(diagnose(hardware(gpus=tuple(lost))(well(3)), CHECKS))
    (told,) = [part for part in text.split("\n\n") if "(check gpu-health)" in part]
    assert told.count("also:  GPU ") == 2
    assert told.count("do: ") == 1


def test_text_is_wrapped_by_words_and_coloured_on_a_terminal() -> None:
    findings = diagnose(unconnected(folder=None)(well()), CHECKS)
    header = "asked: " + "somebody " * 20
    words = as_text(findings, header).split()
    for width in (30, 60, 80):
        lines = as_text(findings, header, width).splitlines()
        assert "\n".join(lines).split() == words
        assert width < 80 or max(map(len, lines)) <= width
    coloured = as_text(findings, "", 80, colour=True)
    assert "\x1b[31mfail\x1b[0m  kubelet-folder" in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured) == as_text(findings, "", 80)
