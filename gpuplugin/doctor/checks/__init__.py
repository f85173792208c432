"""All checks, in the order in which they are told: from the hardware up to the pods.

A check is a function of facts: no file, no socket, no clock. Facts are gathered in `look`.
"""

from __future__ import annotations

from gpuplugin.doctor.checks import combinations, configuration, driver, kubelet, plugin, runtime
from gpuplugin.doctor.checks.devicenodes import device_nodes
from gpuplugin.doctor.checks.gpus import gpu_health
from gpuplugin.doctor.verdict import Check

CHECKS: tuple[Check, ...] = (
    Check(
        "gpus-on-bus",
        "GPUs on the PCI bus, and their driver: nvidia, or nouveau, vfio-pci, none",
        driver.gpus_on_bus,
    ),
    Check(
        "kernel-modules",
        "nvidia, nvidia_uvm and nvidia_modeset are loaded, nouveau is not",
        driver.kernel_modules,
    ),
    Check(
        "nvml-library",
        "libnvidia-ml.so.1: below the driver's root, or at another place that drivers are put",
        driver.nvml_library,
    ),
    Check(
        "driver-versions",
        "the loaded module and the library on disk are of one version",
        driver.driver_versions,
    ),
    Check(
        "driver-answers",
        "the driver opens and lists every GPU of the bus; a late one is waited for",
        driver.driver_answers,
    ),
    Check(
        "device-nodes",
        "nvidiactl, nvidia-uvm, each GPU's and MIG device's node: numbers and rights",
        device_nodes,
    ),
    Check("gpu-health", "lost GPUs, recovery actions, row remaps, heat, ECC", gpu_health),
    Check(
        "driver-age", "the driver is new enough for what is switched on", combinations.driver_age
    ),
    Check(
        "configuration",
        "valid, no unknown key, no file that nobody reads",
        configuration.configuration,
    ),
    Check("advertised", "resources and devices; if there are none, why", configuration.advertised),
    Check("list-size", "every device list fits into 4 MiB", configuration.list_size),
    Check(
        "mig-strategy",
        "the strategy suits the GPUs' MIG modes",
        combinations.mig_strategy,
    ),
    Check(
        "compute-mode",
        "no shared GPU is exclusive to one process, none prohibited",
        combinations.compute_mode,
    ),
    Check(
        "time-slicing-with-mps",
        "no MPS daemon runs where GPUs share time",
        combinations.time_slicing_with_mps,
    ),
    Check(
        "sharing-promises",
        "requests for several replicas, and a policy that goes with them",
        combinations.sharing_promises,
    ),
    Check(
        "kubelet-folder",
        "--kubelet-dir is the kubelet's folder (k0s, microk8s, others have their own)",
        kubelet.kubelet_folder,
    ),
    Check("kubelet-socket", "device-plugins/kubelet.sock answers", kubelet.kubelet_socket),
    Check(
        "plugin-folder",
        "the plugin's user may write where its sockets go",
        kubelet.plugin_folder,
    ),
    Check("stale-sockets", "no socket is left of a plugin that is gone", kubelet.stale_sockets),
    Check(
        "one-plugin",
        "no other plugin serves the same resource",
        combinations.one_plugin_per_resource,
    ),
    Check(
        "plugin-runs",
        "a plugin answers; if none runs, the labels that its DaemonSet may wait for",
        plugin.plugin_runs,
    ),
    Check("plugin-ready", "every part of the running plugin works", plugin.plugin_ready),
    Check(
        "config-in-force",
        "the running plugin took the configuration over",
        plugin.configuration_in_force,
    ),
    Check(
        "kubelet-contact",
        "when the kubelet last listened to each resource",
        kubelet.kubelet_contact,
    ),
    Check("registered", "what the kubelet's checkpoint says of each resource", plugin.registered),
    Check("runtime", "containerd or CRI-O knows NVIDIA's runtime, where needed", runtime.runtime),
    Check(
        "list-strategy",
        "the device list strategy and what the runtime accepts go together",
        runtime.list_strategy,
    ),
    Check("cdi-specs", "written, readable, true to the node", runtime.cdi_specs),
    Check(
        "cgroup-driver",
        "'systemctl daemon-reload' does not take GPUs from running containers",
        runtime.cgroup_driver,
    ),
)
