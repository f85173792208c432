"""What a container gets for the devices it was allocated, independent of the wire format.

The strategies, names and paths are those of NVIDIA's plugin and container toolkit. A response
names nothing but the devices of its request.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, assert_never, get_args

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gpuplugin.core.inventory import Device

DeviceListStrategy: TypeAlias = Literal["envvar", "volume-mounts", "cdi-annotations", "cdi-cri"]
"""How a container gets the list of its devices, in the order in which several are applied.

What each does is in `inject` and `_is_cdi`."""

_STRATEGIES: tuple[DeviceListStrategy, ...] = get_args(DeviceListStrategy)

DeviceIdStrategy: TypeAlias = Literal["uuid", "index"]

VISIBLE_DEVICES = "NVIDIA_VISIBLE_DEVICES"
VISIBLE_IMEX_CHANNELS = "NVIDIA_IMEX_CHANNELS"
DEVICE_MOUNT_ROOT = "/var/run/nvidia-container-devices"
"""Where the container runtime reads device names from mounts."""

CDI_VENDOR = "k8s.device-plugin.nvidia.com"
CDI_ANNOTATION_NAME = "nvidia-device-plugin_"
IMEX_CHANNEL_FOLDER = "/dev/nvidia-caps-imex-channels"


@dataclass(frozen=True, slots=True)
class Mount:
    """A read-only mount."""

    container_path: str
    host_path: str


@dataclass(frozen=True, slots=True)
class Extras:
    """What every container with a GPU gets whatever its devices; `envs` are (name, value)."""

    envs: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()


@dataclass(frozen=True, slots=True)
class InjectionPlan:
    """How devices reach a container.

    `dev_root` is put before device nodes on the host. `control_nodes` are the nodes that every
    container needs and that exist on this node. `features` are extra kernel modules that are
    switched on, by their CDI class (`gdrcopy`, `gds`, `mofed`); `absent_features` are those of
    them without a device node here, for which there is no CDI device.
    """

    strategies: frozenset[DeviceListStrategy] = frozenset({"envvar"})
    id_strategy: DeviceIdStrategy = "uuid"
    pass_device_specs: bool = False
    dev_root: str = "/"
    control_nodes: tuple[str, ...] = ()
    imex_channels: tuple[int, ...] = ()
    features: tuple[str, ...] = ()
    absent_features: frozenset[str] = frozenset()
    cdi_annotation_prefix: str = "cdi.k8s.io/"
    stand_in_node: str = ""
    """What CDI puts in place of device nodes that a simulated node names and a host has not."""
    extras: Extras = Extras()
    """The files of a simulated node's driver; no container runtime brings those."""

    @property
    def uses_cdi(self) -> bool:
        """True if containers are given CDI names, so that specs must exist."""
        return any(map(_is_cdi, self.strategies))


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device node, readable and writable."""

    container_path: str
    host_path: str


@dataclass(frozen=True, slots=True)
class Injection:
    """Everything for one container, in a fixed order; pairs are (name, value)."""

    envs: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
    cdi_devices: tuple[str, ...] = ()


def _is_cdi(strategy: DeviceListStrategy) -> bool:
    match strategy:
        case "envvar" | "volume-mounts":
            return False
        case "cdi-annotations" | "cdi-cri":
            return True
        case _:
            assert_never(strategy)


def runtime_id(device: Device, plan: InjectionPlan) -> str:
    return device.uuid if plan.id_strategy == "uuid" else device.index


def inject(resource: str, devices: Sequence[Device], plan: InjectionPlan) -> Injection:
    """What a container gets for `devices` of `resource`; repeats of a device count once."""
    ids = tuple(dict.fromkeys(runtime_id(device, plan) for device in devices))
    channels = [str(channel) for channel in plan.imex_channels]
    envs = {f"NVIDIA_{feature.upper()}": "enabled" for feature in plan.features}
    mounts: list[Mount] = []
    # In CDI the spec has the device nodes.
    pass_nodes = False
    annotations: tuple[tuple[str, str], ...] = ()
    cdi_devices: tuple[str, ...] = ()
    for strategy in _STRATEGIES:
        if strategy not in plan.strategies:
            continue
        match strategy:
            case "envvar":
                pass_nodes = plan.pass_device_specs
                envs[VISIBLE_DEVICES] = ",".join(ids)
                if channels:
                    envs[VISIBLE_IMEX_CHANNELS] = ",".join(channels)
            case "volume-mounts":
                pass_nodes = plan.pass_device_specs
                envs[VISIBLE_DEVICES] = DEVICE_MOUNT_ROOT
                names = (*ids, *(f"imex/{channel}" for channel in channels))
                mounts = [Mount(f"{DEVICE_MOUNT_ROOT}/{name}", "/dev/null") for name in names]
            case "cdi-annotations":
                annotations = (annotation(resource, ids, plan),)
            case "cdi-cri":
                cdi_devices = _cdi_names(ids, plan)
            case _:
                assert_never(strategy)
    if not all(map(_is_cdi, plan.strategies)):
        envs.update(plan.extras.envs)
        mounts.extend(plan.extras.mounts)
    return Injection(
        envs=tuple(envs.items()),
        mounts=tuple(mounts),
        nodes=tuple(_nodes(devices, plan)) if pass_nodes else (),
        annotations=annotations,
        cdi_devices=cdi_devices,
    )


def cdi_name(kind: str, name: str) -> str:
    """A qualified CDI device name, for example `k8s.device-plugin.nvidia.com/gpu=GPU-...`."""
    return f"{CDI_VENDOR}/{kind}={name}"


def imex_channel_node(channel: int) -> str:
    return f"{IMEX_CHANNEL_FOLDER}/channel{channel}"


def _cdi_names(ids: Sequence[str], plan: InjectionPlan) -> tuple[str, ...]:
    return (
        *(cdi_name("gpu", one) for one in ids),
        *(cdi_name("imex-channel", str(channel)) for channel in plan.imex_channels),
        *(
            cdi_name(feature, "all")
            for feature in plan.features
            if feature not in plan.absent_features
        ),
    )


def annotation(resource: str, ids: Sequence[str], plan: InjectionPlan) -> tuple[str, str]:
    """The annotation with the CDI names of devices, by the runtime's ids of these.

    Its key is the same for the same request, and two resources of one container do not share it.
    """
    unique = uuid.uuid5(uuid.NAMESPACE_URL, f"{resource}?{','.join(ids)}")
    key = f"{plan.cdi_annotation_prefix}{CDI_ANNOTATION_NAME}{unique}"
    return key, ",".join(_cdi_names(ids, plan))


def _nodes(devices: Sequence[Device], plan: InjectionPlan) -> Iterable[DeviceNode]:
    paths = (
        *plan.control_nodes,
        *(node for device in devices for node in device.nodes),
        *(imex_channel_node(channel) for channel in plan.imex_channels),
    )
    root = plan.dev_root.rstrip("/")
    return (DeviceNode(path, root + path) for path in dict.fromkeys(paths))
