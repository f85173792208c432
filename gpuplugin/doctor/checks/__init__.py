"""All checks, in the order in which they are printed: from the hardware up to the pods.

A check is a function of facts: no file, no socket, no clock. Facts come from `collect`.
"""

from __future__ import annotations

from gpuplugin.doctor.checks import configuration, dra, driver, gpus, kubelet, runtime, talos
from gpuplugin.doctor.verdict import Check

_DRIVER = ("gpus-on-bus", "kernel-modules", "nvml-library", "driver-versions")
_CONTACT = (
    *("kubelet-folder", "kubelet-socket", "plugin-folder", "one-plugin"),
    *_DRIVER, "driver-answers", "advertised", "plugin-ready",
)  # fmt: skip

CHECKS: tuple[Check, ...] = (
    Check("gpus-on-bus", driver.gpus_on_bus),
    Check("kernel-modules", driver.kernel_modules, ("gpus-on-bus",)),
    Check("nvml-library", driver.nvml_library, ("gpus-on-bus",)),
    Check("driver-versions", driver.driver_versions),
    Check("driver-answers", driver.driver_answers, _DRIVER),
    Check("device-nodes", driver.device_nodes, (*_DRIVER, "driver-answers")),
    Check("gpu-health", gpus.gpu_health),
    Check("gpu-values", gpus.gpu_values),
    Check("nvlink-fabric", gpus.nvlink_fabric),
    Check("confidential-computing", gpus.confidential_computing),
    Check("driver-age", configuration.driver_age),
    Check("configuration", configuration.configuration),
    Check("advertised", configuration.advertised, ("configuration",)),
    Check("list-size", configuration.list_size),
    Check("mig-strategy", configuration.mig_strategy, ("advertised",)),
    Check("compute-mode", configuration.compute_mode),
    Check("time-slicing-with-mps", configuration.time_slicing_with_mps),
    Check("sharing-promises", configuration.sharing_promises),
    Check("time-slices", configuration.time_slices),
    Check("node-labels", configuration.node_labels),
    Check("kubelet-folder", kubelet.kubelet_folder),
    Check("kubelet-socket", kubelet.kubelet_socket, ("kubelet-folder",)),
    Check("plugin-folder", kubelet.plugin_folder, ("kubelet-folder",)),
    Check("stale-sockets", kubelet.stale_sockets),
    Check("one-plugin", kubelet.one_plugin_per_resource),
    Check("plugin-runs", kubelet.plugin_runs, ("configuration",)),
    Check("plugin-ready", kubelet.plugin_ready, (*_DRIVER, "driver-answers", "advertised")),
    Check("config-in-force", kubelet.configuration_in_force),
    Check("kubelet-contact", kubelet.kubelet_contact, _CONTACT),
    Check("registered", kubelet.registered, ("one-plugin", "kubelet-contact")),
    Check("dra-api", dra.dra_api),
    Check("dra-gates", dra.dra_gates),
    Check("dra-rights", dra.dra_rights),
    Check("dra-one-way", dra.dra_one_way),
    Check("dra-slices", dra.dra_slices, ("dra-api", "dra-gates", "dra-rights", "dra-one-way")),
    Check("dra-class", dra.dra_class, ("dra-api",)),
    Check("talos", talos.talos),
    Check("runtime", runtime.runtime),
    Check("list-strategy", runtime.list_strategy),
    Check("cdi-specs", runtime.cdi_specs),
    Check("cgroup-driver", runtime.cgroup_driver),
)
