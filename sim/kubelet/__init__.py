"""A stand-in for the kubelet, over real sockets, for tests and demonstrations without a cluster.

    with Kubelet(Path("/tmp/kubelet")) as kubelet:
        kubelet.wait_until(lambda node: node.allocatable("nvidia.com/gpu") == 80, timeout_s=10)
        status = kubelet.run_pod(simple_pod("trainer", {"nvidia.com/gpu": 1}))

It behaves as docs/simulation-reference.md says: both ways of registration, one preference and one
Allocate call per container, random id order, no deadlines, the 4 MiB limit, the checkpoint file,
five minutes of grace, the pod-resources service. Device manager, admission and checkpoint are pure
modules that take time as an argument.
"""

from sim.kubelet.devices import Amount
from sim.kubelet.kubelet import Kubelet
from sim.kubelet.pods import (
    CallRecord,
    Container,
    Grant,
    KubeletEvent,
    NodeView,
    Phase,
    Pod,
    PodClaim,
    PodStatus,
    PodView,
    simple_pod,
)

__all__ = [
    "Amount",
    "CallRecord",
    "Container",
    "Grant",
    "Kubelet",
    "KubeletEvent",
    "NodeView",
    "Phase",
    "Pod",
    "PodClaim",
    "PodStatus",
    "PodView",
    "simple_pod",
]
