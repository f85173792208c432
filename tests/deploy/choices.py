"""The same choices for kustomize and for the chart: components here, values there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tests.deploy.rendering import COMPONENTS, OVERLAYS, built, built_with, chart, names

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.deploy.rendering import Object


@dataclass(frozen=True, slots=True)
class Choice:
    """Components of kustomize, in order, and values of the chart that mean the same."""

    components: tuple[str, ...]
    values: str
    """Without a cluster to ask, the chart makes the RuntimeClass: see `NO_CLASS`."""


CDI = "deviceListStrategy: cdi-cri\n"
PER_NODE = """\
perNodeConfig: {enabled: true}
config:
  default: config.yaml
  map:
    config.yaml: |
      version: v1
      sharing:
        timeSlicing:
          renameByDefault: false
          failRequestsGreaterThanOne: true
          resources: [{name: nvidia.com/gpu, replicas: 10}]
    exclusive: |
      version: v1
    development: |
      version: v1
      sharing:
        timeSlicing:
          failRequestsGreaterThanOne: true
          resources: [{name: nvidia.com/gpu, replicas: 4}]
    ci: |
      version: v1
      sharing:
        timeSlicing:
          failRequestsGreaterThanOne: true
          resources: [{name: nvidia.com/gpu, replicas: 20}]
"""


POOLS = """\
simulated:
  enabled: true
  pools:
    default: |
      name: default-pool
      gpus: [{model: l4, count: 1}]
    inference: |
      name: inference-pool
      gpus: [{model: l40s, count: 4}]
    training: |
      name: training-pool
      gpus: [{model: h100-sxm5-80gb, count: 8}]
"""
NO_CLASS = "runtimeClass: {create: false}\n"
"""As kustomize does without the component runtime-class."""


_CHOICES = {
    "base": Choice((), ""),
    **{
        f"replicas-{count}": Choice((f"replicas-{count}",), f"replicas: {count}\n")
        for count in (4, 10, 20)
    },
    "simulated": Choice(("simulated",), "simulated: {enabled: true}\n"),
    "simulated-loads": Choice(
        ("simulated", "simulated-loads"), "simulated: {enabled: true, loads: true}\n"
    ),
    "simulated-pools": Choice(("simulated", "simulated-pools"), POOLS),
    "any-node": Choice(("any-node",), "affinity: null\n"),
    "classic": Choice(("classic-registration",), "registration: classic\n"),
    "pod-metrics": Choice(("pod-metrics",), "metrics: {pods: true}\n"),
    "cdi": Choice(("cdi",), CDI),
    "set-time-slices": Choice(("set-time-slices",), "setTimeSlices: {enabled: true}\n"),
    "runtime-class": Choice(("runtime-class",), "runtimeClass: {create: true}\n"),
    "selinux": Choice(("selinux",), "selinux: {enabled: true}\n"),
    "openshift": Choice(("openshift",), "openshift: {enabled: true}\n"),
    "observability": Choice(("observability",), "observability: {enabled: true}\n"),
    "kube-prometheus-stack": Choice(
        ("monitoring", "kube-prometheus-stack"),
        "metrics: {podMonitor: true, alerts: true, dashboard: true, "
        "labels: {release: kube-prometheus-stack}}\n",
    ),
    "pod-metrics-k0s": Choice(
        ("pod-metrics-k0s",), "kubeletDir: /var/lib/k0s/kubelet\nmetrics: {pods: true}\n"
    ),
    "pod-metrics-microk8s": Choice(
        ("pod-metrics-microk8s",),
        "kubeletDir: /var/snap/microk8s/common/var/lib/kubelet\nmetrics: {pods: true}\n",
    ),
    "privileged": Choice(("cdi", "privileged-driver"), f"{CDI}runtimeClassName: null\n"),
    "dra": Choice(("dra",), "allocation: dra\n"),
    "dra-as-root": Choice(("dra", "pod-metrics"), "allocation: dra\nmetrics: {pods: true}\n"),
    "dra-privileged": Choice(
        ("dra", "privileged-driver"), "allocation: dra\nruntimeClassName: null\n"
    ),
    "dcgm-metrics": Choice(("dcgm-metrics",), "metrics: {dcgm: true}\n"),
    "node-reports": Choice(("node-reports",), "nodeReports: {enabled: true}\n"),
    "node-labels": Choice(("node-labels",), "nodeLabels: {enabled: true}\n"),
    "node-labels-nfd": Choice(
        ("node-labels-nfd",), "nodeLabels: {enabled: true, writer: node-feature}\n"
    ),
    "node-labels-file": Choice(
        ("node-labels-file",), "nodeLabels: {enabled: true, writer: file}\n"
    ),
    "per-node-config": Choice(("per-node-config",), PER_NODE),
    "monitoring": Choice(
        ("monitoring",), "metrics: {podMonitor: true, alerts: true, dashboard: true}\n"
    ),
    "service-monitor": Choice(("service-monitor",), "metrics: {serviceMonitor: true}\n"),
    "network-policy": Choice(("network-policy",), "networkPolicy: {enabled: true}\n"),
    "priority-quota": Choice(("priority-quota",), "priorityQuota: {create: true}\n"),
    "k0s": Choice(("kubelet-dir-k0s",), "kubeletDir: /var/lib/k0s/kubelet\n"),
    "microk8s": Choice(
        ("kubelet-dir-microk8s",), "kubeletDir: /var/snap/microk8s/common/var/lib/kubelet\n"
    ),
    "everything": Choice(
        (
            "pod-metrics",
            "cdi",
            "classic-registration",
            "node-reports",
            "per-node-config",
            "monitoring",
        ),
        f"""{CDI}{PER_NODE}\
registration: classic
nodeReports: {{enabled: true}}
metrics: {{pods: true, podMonitor: true, alerts: true, dashboard: true}}
""",
    ),
}

CHOICES = {
    name: choice
    if "runtimeClass:" in choice.values
    else Choice(choice.components, choice.values + NO_CLASS)
    for name, choice in _CHOICES.items()
}

RENDERED: dict[str, Callable[[], list[Object]]] = {
    **{f"overlay {name}": partial(built, OVERLAYS / name) for name in names(OVERLAYS)},
    **{f"component {name}": partial(built_with, name) for name in names(COMPONENTS)},
    **{f"chart {name}": partial(chart, choice.values) for name, choice in CHOICES.items()},
}
"""Everything that the shipped files make, by what it is made of."""
