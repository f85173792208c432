"""The forms in which kubelets and runtimes name the cgroup of a container."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.daemon.cluster.pods import pod_uid

UID = "0f7d3a52-91c4-4a0e-8d1b-5c2e7f6a9b10"
UNIT_UID = UID.replace("-", "_")
CONTAINER = "4be1c9d0" * 8
STATIC = "8c1f4e2a" * 4

FORMS = {
    "v2 systemd containerd": f"0::/kubepods.slice/kubepods-burstable.slice/"
    f"kubepods-burstable-pod{UNIT_UID}.slice/cri-containerd-{CONTAINER}.scope",
    "v2 systemd containerd, guaranteed": f"0::/kubepods.slice/kubepods-pod{UNIT_UID}.slice/"
    f"cri-containerd-{CONTAINER}.scope",
    "v2 systemd CRI-O": f"0::/kubepods.slice/kubepods-besteffort.slice/"
    f"kubepods-besteffort-pod{UNIT_UID}.slice/crio-{CONTAINER}.scope",
    "v2 systemd CRI-O, a cgroup of the container's own": f"0::/kubepods.slice/"
    f"kubepods-besteffort.slice/kubepods-besteffort-pod{UNIT_UID}.slice/"
    f"crio-{CONTAINER}.scope/container",
    "v2 systemd cri-dockerd": f"0::/kubepods.slice/kubepods-besteffort.slice/"
    f"kubepods-besteffort-pod{UNIT_UID}.slice/docker-{CONTAINER}.scope",
    "v2 cgroupfs": f"0::/kubepods/burstable/pod{UID}/{CONTAINER}",
    "v2 cgroupfs CRI-O": f"0::/kubepods/burstable/pod{UID}/crio-{CONTAINER}",
    "v2 cgroupfs, guaranteed": f"0::/kubepods/pod{UID}/{CONTAINER}",
    "v2 systemd below containerd's unit": f"0::/system.slice/containerd.service/"
    f"kubepods-besteffort-pod{UNIT_UID}.slice:cri-containerd:{CONTAINER}",
    "v2 systemd of a kubelet in a container": f"0::/docker/{'ab' * 32}/kubelet.slice/"
    f"kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/"
    f"kubelet-kubepods-besteffort-pod{UNIT_UID}.slice/cri-containerd-{CONTAINER}.scope",
    "v2 cgroupfs of a kubelet in a container": f"0::/docker/{'ab' * 32}/kubelet/kubepods/"
    f"besteffort/pod{UID}/{CONTAINER}",
    "v2 from another cgroup namespace": f"0::/../../pod{UID}/{CONTAINER}",
    "v2 systemd from another cgroup namespace": f"0::/../../"
    f"kubepods-besteffort-pod{UNIT_UID}.slice/cri-containerd-{CONTAINER}.scope",
    "v1 cgroupfs": f"12:memory:/kubepods/burstable/pod{UID}/{CONTAINER}\n"
    f"11:cpu,cpuacct:/kubepods/burstable/pod{UID}/{CONTAINER}\n"
    "1:name=systemd:/\n",
    "v1 systemd": f"4:devices:/kubepods.slice/kubepods-pod{UNIT_UID}.slice/"
    f"cri-containerd-{CONTAINER}.scope\n0::/\n",
    "v1, the first controller is not the pod's": f"13:rdma:/\n"
    f"12:memory:/kubepods/besteffort/pod{UID}/{CONTAINER}\n",
    "v1 of a runtime with a parent of its own": f"3:pids:/actions/kubepods/pod{UID}/{CONTAINER}",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_names_the_pod(form: str) -> None:
    assert pod_uid(FORMS[form]) == UID


def test_a_static_pods_uid_is_a_hash() -> None:
    text = f"0::/kubepods/burstable/pod{STATIC}/{CONTAINER}"
    assert pod_uid(text) == STATIC


def test_a_pod_in_a_pod_is_the_inner_one() -> None:
    outer = "ffffffff-0000-4000-8000-000000000000"
    text = (
        f"0::/kubepods/besteffort/pod{outer}/{'cd' * 32}/kubepods/besteffort/pod{UID}/{CONTAINER}"
    )
    assert pod_uid(text) == UID


def test_a_pod_without_a_container_is_still_the_pod() -> None:
    assert pod_uid(f"0::/kubepods/burstable/pod{UID}") == UID


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0::/",
        "nonsense",
        "0::/user.slice/user-1000.slice/session-3.scope",
        f"0::/docker/{CONTAINER}",
        f"0::/machine.slice/libpod-{CONTAINER}.scope",
        f"0::/system.slice/pod{UID}.service",
        f"0::/kubepods/burstable/pod{UID[:-1]}/{CONTAINER}",
        f"0::/kubepods/burstable/tripod{UID}/{CONTAINER}",
    ],
)
def test_what_is_in_no_pod(text: str) -> None:
    assert pod_uid(text) == ""


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    pod_uid(text)
    pod_uid(f"0::/kubepods/{text}")
