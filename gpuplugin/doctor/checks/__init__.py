"""All checks, in the order in which they are printed: from the hardware up to the pods.

A check is a function of facts: no file, no socket, no clock. Facts come from `collect`.
"""

from __future__ import annotations

from gpuplugin.doctor.checks import configuration, driver, gpus, kubelet, runtime, talos
from gpuplugin.doctor.verdict import Check

CHECKS: tuple[Check, ...] = (
    Check("gpus-on-bus", driver.gpus_on_bus),
    Check("kernel-modules", driver.kernel_modules),
    Check("nvml-library", driver.nvml_library),
    Check("driver-versions", driver.driver_versions),
    Check("driver-answers", driver.driver_answers),
    Check("device-nodes", driver.device_nodes),
    Check("gpu-health", gpus.gpu_health),
    Check("gpu-values", gpus.gpu_values),
    Check("nvlink-fabric", gpus.nvlink_fabric),
    Check("confidential-computing", gpus.confidential_computing),
    Check("driver-age", configuration.driver_age),
    Check("configuration", configuration.configuration),
    Check("advertised", configuration.advertised),
    Check("list-size", configuration.list_size),
    Check("mig-strategy", configuration.mig_strategy),
    Check("compute-mode", configuration.compute_mode),
    Check("time-slicing-with-mps", configuration.time_slicing_with_mps),
    Check("sharing-promises", configuration.sharing_promises),
    Check("kubelet-folder", kubelet.kubelet_folder),
    Check("kubelet-socket", kubelet.kubelet_socket),
    Check("plugin-folder", kubelet.plugin_folder),
    Check("stale-sockets", kubelet.stale_sockets),
    Check("one-plugin", kubelet.one_plugin_per_resource),
    Check("plugin-runs", kubelet.plugin_runs),
    Check("plugin-ready", kubelet.plugin_ready),
    Check("config-in-force", kubelet.configuration_in_force),
    Check("kubelet-contact", kubelet.kubelet_contact),
    Check("registered", kubelet.registered),
    Check("talos", talos.talos),
    Check("runtime", runtime.runtime),
    Check("list-strategy", runtime.list_strategy),
    Check("cdi-specs", runtime.cdi_specs),
    Check("cgroup-driver", runtime.cgroup_driver),
)
