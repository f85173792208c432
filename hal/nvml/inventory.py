"""Which GPUs there are: enumeration, the identity of GPUs that were lost, and MIG devices.

What a GPU is doing is read in `hal.nvml.readings`, its events in `hal.nvml.watch`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from hal.errors import HalError, HalHung, UnknownGpu
from hal.gpucalls import GpuCalls
from hal.nvml.api import Code, Handle, NvmlError
from hal.nvml.calls import CALLS
from hal.nvml.failures import call_failure, hal_error
from hal.nvml.kernelfiles import canonical_bus_id, mig_device_nodes
from hal.nvml.values import MOST_MEMORY_BYTES, Values, check_responds, named
from hal.types import GIB, ComputeMode, Gpu, GpuState, MigDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from hal.nvml.api import Memory, NvmlApi
    from hal.nvml.kernelfiles import ProcGpu
    from hal.types import CallFailure

_log = logging.getLogger(__name__)

_FRESH_S: Final = 0.5
"""For this long after a scan the handle of a GPU need not be verified again."""

_MIB: Final = 1024**2

_NOT_FOR_COMPUTE: Final = frozenset({"DGX Display", "NVIDIA DGX Display"})
_COMPUTE_MODES: Final = {
    0: ComputeMode.DEFAULT,
    # Exclusive to a thread: removed in CUDA 8, and as exclusive to other processes.
    1: ComputeMode.EXCLUSIVE_PROCESS,
    2: ComputeMode.PROHIBITED,
    3: ComputeMode.EXCLUSIVE_PROCESS,
}
_MIG_HANDLE: Final = CALLS["mig_handle"].function
_MIG_PROFILE: Final = re.compile(r"\bMIG (?P<profile>(?:\d+c\.)?\d+g\.\d+gb(?:[+-][a-z.]+)*)$")


def is_sane(memory: Memory) -> bool:
    return 0 <= memory.free <= memory.total <= MOST_MEMORY_BYTES


def mig_profile(name: str, gpu_slices: int, compute_slices: int, mib: int, gpu_bytes: int) -> str:
    """The profile of a MIG device in NVIDIA's spelling, for example `1g.10gb`.

    The device's name ends with it on newer drivers, extensions such as `+me` included. Otherwise
    it is made up from the slices, and from the memory in eighths of the GPU's.
    """
    match = _MIG_PROFILE.search(name)
    if match is not None:
        return match["profile"]
    eighths = math.ceil(8 * mib * _MIB / gpu_bytes) / 8 if gpu_bytes else 0.0
    # Half up, as NVIDIA's tools round; Python's round() takes the even neighbour.
    gb = math.floor(eighths * math.ceil(gpu_bytes / GIB) + 0.5)
    compute = "" if compute_slices == gpu_slices else f"{compute_slices}c."
    return f"{compute}{gpu_slices}g.{gb}gb"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The GPUs at one moment, ordered by index, and the handles of those that responded.

    `displays` is how many GPUs NVML counts besides: those that are for a display alone.
    """

    gpus: tuple[Gpu, ...]
    handles: Mapping[str, Handle]
    displays: int = 0


@dataclass(frozen=True, slots=True)
class _Found:
    """What one pass over all indices has found."""

    seen: dict[str, Gpu] = field(default_factory=dict)
    handles: dict[str, Handle] = field(default_factory=dict)
    failures: dict[int, NvmlError] = field(default_factory=dict)
    hanging: set[int] = field(default_factory=set)
    displays: set[int] = field(default_factory=set)


class _Identity(NamedTuple):
    """What does not change of a GPU on one connection."""

    product: str
    bus_id: str
    minor: int | None
    numa_node: int | None
    compute_capability: tuple[int, int] | None
    pci_class: int | None


_NOTHING_KNOWN: Final = _Identity("", "", None, None, None, None)
MAX_GPUS = 256
"""Of a node, and of those that are kept as lost; the largest nodes have less than a hundred."""
_MOST_MIG_DEVICES = 64
_REMEDY = "Check the driver: reload it, or reboot the node"


class Kernel(Protocol):
    """What the kernel knows of GPUs; see `hal.nvml.kernelfiles.KernelFolders`."""

    def numa_node(self, bus_id: str, warn: Callable[[str], None]) -> int | None: ...
    def pci_class(self, bus_id: str) -> int | None: ...
    def mig_minors(self) -> Mapping[tuple[int, int, int | None], int]: ...
    def gpus(self) -> Sequence[ProcGpu | None]: ...


class Inventory:
    """The GPUs that were ever seen. Safe to use from several threads."""

    def __init__(self, kernel: Kernel, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._kernel = kernel
        self._clock_s = clock_s
        self._scanned_s = -math.inf
        self._lock = threading.Lock()
        self.calls: GpuCalls[int | tuple[int, int]] = GpuCalls(clock_s)
        """Calls about GPUs, by index, and about pairs of them."""
        self._known: dict[str, Gpu] = {}
        self._answering: Mapping[str, Handle] = {}
        self.latest: Snapshot | None = None
        """The last scan of any caller; None before the first on this connection."""
        self.scans = 0
        self._begun = 0
        self._newest = 0
        """The scan that `latest` is of, by the order in which they began."""
        self._warned: set[str] = set()

    def connected(self) -> None:
        """Another connection to NVML begins: handles of the last one are invalid."""
        self._answering = {}
        self._scanned_s = -math.inf
        self.latest = None

    def learn(self, gpus: Iterable[Gpu], handles: Mapping[str, Handle]) -> None:
        """Take as known what was read in another way: a simulated node, from its model."""
        self._known = {gpu.uuid: gpu for gpu in gpus}
        self._answering = handles

    def scan(self, api: NvmlApi) -> Snapshot:
        """Read every GPU. Those that do not respond are listed as lost.

        One that hangs is left out and stays as it was, or, never read before, is listed as lost.
        Their identity is known from earlier scans, or else from the kernel module. Of two scans at
        the same time the one that began later counts.
        Raises HalError if the driver does not respond at all; never because of a single GPU.
        """
        scanned_s = self._clock_s()
        with self._lock:
            self._begun += 1
            number = self._begun
        try:
            count = api.device_count()
        except NvmlError as err:
            raise hal_error(err, "Counting the GPUs") from err
        if count > MAX_GPUS:
            raise HalError(
                f"NVML counts {count} GPUs, more than the {MAX_GPUS} that a node can have", _REMEDY
            )
        found = self._read_all(api, count)
        with self._lock:
            self.scans += 1
            if number < self._newest and self.latest is not None:
                return self.latest  # a scan that began later has ended before this one
            self._newest = number
            seen = found.seen
            for uuid, gpu in self._known.items():
                if uuid not in seen:
                    hangs = gpu.index in found.hanging
                    seen[uuid] = gpu if hangs else _lost(gpu, found.failures.get(gpu.index))
            for gpu in self._never_read(found, count):
                seen[gpu.uuid] = gpu
            _drop_longest_lost(seen)
            self._known = dict(seen)
            ordered = sorted(seen.values(), key=lambda gpu: (gpu.index, gpu.state is GpuState.LOST))
            snapshot = Snapshot(tuple(ordered), found.handles, len(found.displays))
            self.latest = snapshot
            self._answering = found.handles
            self._scanned_s = scanned_s
        self._warn_of_unreadable(found.failures, seen)
        return snapshot

    def _read_all(self, api: NvmlApi, count: int) -> _Found:
        """Read the GPUs of all indices; raises `HalError` if the driver does not respond."""
        found = _Found()
        for index in range(count):
            try:
                with self.calls.about(index):
                    handle = named(api.handle_by_index, index)
                    gpu = self._read(api, handle, index)
            except HalHung:
                found.hanging.add(index)
                continue
            except NvmlError as err:
                if err.is_driver_failure:
                    raise hal_error(err, f"Reading the GPU with index {index}") from err
                found.failures[index] = err
                continue
            if gpu is None:
                found.displays.add(index)
                continue
            found.seen[gpu.uuid] = gpu
            found.handles[gpu.uuid] = handle
        return found

    def _never_read(self, found: _Found, count: int) -> list[Gpu]:
        """GPUs that were lost or hung before the first scan, as the kernel module lists them."""
        taken = {gpu.index for gpu in found.seen.values()}
        # One without permission may belong to somebody else.
        silent = {index for index, err in found.failures.items() if err.code != Code.NO_PERMISSION}
        lost = sorted((silent | found.hanging) - taken)
        listed_gpus = self._kernel.gpus() if lost else ()
        if len(listed_gpus) != count:
            return []  # a container may see some only: which ones is not known
        silent_gpus = [(index, listed_gpus[index]) for index in lost]
        return [
            Gpu(
                uuid=one.uuid,
                index=index,
                minor=one.minor,
                pci_bus_id=canonical_bus_id(one.pci_bus_id),
                pci_class=self._kernel.pci_class(canonical_bus_id(one.pci_bus_id)),
                numa_node=self._kernel.numa_node(
                    canonical_bus_id(one.pci_bus_id), lambda _text: None
                ),
                product=one.product,
                memory_bytes=None,
                compute_capability=None,
                state=GpuState.LOST,
                failure=call_failure(found.failures[index]) if index in found.failures else None,
            )
            for index, one in silent_gpus
            if one is not None
            and one.uuid not in found.seen
            and one.product not in _NOT_FOR_COMPUTE
        ]

    def known(self, uuid: str) -> Gpu:
        """The GPU as it was last seen; raises `UnknownGpu` if it never was."""
        with self._lock:
            gpu = self._known.get(uuid)
        if gpu is None:
            raise UnknownGpu(uuid)
        return gpu

    def identify(self, api: NvmlApi, uuid: str) -> Gpu:
        """As `known`, after a scan if the GPU is not known yet."""
        try:
            return self.known(uuid)
        except UnknownGpu:
            self.scan(api)
            return self.known(uuid)

    def handle(self, api: NvmlApi, uuid: str, *, anew: bool = False) -> Handle:
        """The handle of a GPU, checked to be that GPU's.

        A scan right before is as good as a call now, unless it must be done `anew`.

        Raises:
            UnknownGpu: it was never seen.
            NvmlError: it does not respond.
        """
        gpu = self.identify(api, uuid)
        try:
            handle = self._answering.get(uuid)
            just_now = not anew and self._clock_s() - self._scanned_s < _FRESH_S
            if handle is not None and just_now:
                return handle
            if handle is None:
                # By index: NVML searches all GPUs for a UUID, and fails if any of them is lost.
                handle = named(api.handle_by_index, gpu.index)
            if named(api.uuid, handle) == uuid:
                return handle
        except NvmlError as err:
            if err.is_lost or err.is_driver_failure:
                raise
        # The GPUs have changed.
        found = self.scan(api).handles.get(uuid)
        if found is None:
            why = self.known(uuid).failure or _GONE
            raise NvmlError(why.code, why.text, why.call)
        return found

    def _read(self, api: NvmlApi, handle: Handle, index: int) -> Gpu | None:
        uuid = named(api.uuid, handle)
        values = Values()
        with self._lock:
            known = self._known.get(uuid)
        identity = self._kept_identity(known, handle) or self._read_identity(
            api, handle, known, values
        )
        if identity.product in _NOT_FOR_COMPUTE:
            return None
        # Read every time: of a lost GPU the driver still reports the rest from its cache.
        memory = values.bounded(None, is_sane, api.memory, handle)
        if memory is None:
            check_responds(api, handle)
        total = memory.total if memory is not None else known.memory_bytes if known else None
        minor = identity.minor
        # Where the mode cannot be read now, MIG devices must not vanish under their pods.
        mig_mode = values.read(None, api.mig_mode, handle)
        mig_enabled = bool(mig_mode or (mig_mode is None and known and known.mig_enabled))
        before = known.mig_devices if known is not None else ()
        mig_devices = (
            self._mig_devices(api, handle, uuid, total or 0, before, values) if mig_enabled else ()
        )
        minors = self._kernel.mig_minors() if mig_devices else {}
        mode = values.read(None, api.compute_mode, handle)
        self.warn_of_unknown(uuid, values.failures)
        return Gpu(
            uuid=uuid,
            index=index,
            minor=minor,
            pci_bus_id=identity.bus_id,
            numa_node=identity.numa_node,
            product=identity.product,
            memory_bytes=total,
            compute_capability=identity.compute_capability,
            mig_enabled=mig_enabled,
            mig_devices=tuple(
                replace(
                    mig,
                    device_nodes=mig_device_nodes(
                        minor, mig.gpu_instance, mig.compute_instance, minors
                    ),
                )
                for mig in mig_devices
            ),
            mig_capable=mig_mode is not None or (known is not None and known.mig_capable),
            pci_class=identity.pci_class,
            compute_mode=None if mode is None else _COMPUTE_MODES.get(mode),
            unknown=tuple(values.failures),
        )

    def _kept_identity(self, known: Gpu | None, handle: Handle) -> _Identity | None:
        """As the last scan of this connection found it, if the GPU has kept its handle."""
        if known is None or known.unknown or self._answering.get(known.uuid) != handle:
            return None
        return _identity_of(known)

    def _read_identity(
        self, api: NvmlApi, handle: Handle, known: Gpu | None, values: Values
    ) -> _Identity:
        """What cannot be read now is as it was last known."""
        before = _identity_of(known) if known is not None else _NOTHING_KNOWN
        product = values.read(before.product, api.name, handle)
        if product in _NOT_FOR_COMPUTE:
            return _NOTHING_KNOWN._replace(product=product)
        # A GPU that is part of the processor's chip may be on no bus.
        bus_id = canonical_bus_id(values.read(before.bus_id, api.pci_bus_id, handle))
        return _Identity(
            product,
            bus_id,
            values.read(before.minor, api.minor, handle),
            self._kernel.numa_node(bus_id, self.warn_once),
            values.read(before.compute_capability, api.compute_capability, handle),
            self._kernel.pci_class(bus_id),
        )

    def warn_of_unknown(self, uuid: str, failures: Iterable[CallFailure]) -> None:
        for failure in failures:
            self.warn_once(f"A value of GPU {uuid} is unknown: {failure}. {failure.remedy}")

    def _mig_devices(
        self,
        api: NvmlApi,
        gpu: Handle,
        uuid: str,
        gpu_bytes: int,
        before: Sequence[MigDevice],
        values: Values,
    ) -> tuple[MigDevice, ...]:
        """One that cannot be read is as it was `before`, or left out."""
        known = {mig.index: mig for mig in before}
        count = values.bounded(None, _is_sane_mig_count, api.max_mig_devices, gpu)
        if count is None:
            return tuple(before)
        devices: list[MigDevice] = []
        for index in range(count):
            try:
                mig = named(api.mig_handle, gpu, index)
                devices.append(_read_mig(api, mig, index, gpu_bytes, known.get(index)))
            except NvmlError as err:
                if err.code in (Code.NOT_FOUND, Code.INVALID_ARGUMENT) and err.call == _MIG_HANDLE:
                    continue
                values.failures.append(call_failure(err))
                if index in known:
                    devices.append(known[index])
                else:
                    self.warn_once(f"MIG device {index} of GPU {uuid} is skipped: {err}")
        return tuple(devices)

    def _warn_of_unreadable(
        self, failures: Mapping[int, NvmlError], listed: Mapping[str, Gpu]
    ) -> None:
        lost = {gpu.index for gpu in listed.values() if gpu.state is GpuState.LOST}
        for index, err in failures.items():
            if index not in lost:
                failure = call_failure(err)
                self.warn_once(
                    f"The GPU with index {index} is skipped, it could never be read: {failure}. "
                    f"{failure.remedy}"
                )

    def warn_once(self, text: str) -> None:
        with self._lock:
            if text in self._warned:
                return
            self._warned.add(text)
        _log.warning("%s", text)


def _identity_of(gpu: Gpu) -> _Identity:
    return _Identity(
        gpu.product,
        gpu.pci_bus_id,
        gpu.minor,
        gpu.numa_node,
        gpu.compute_capability,
        gpu.pci_class,
    )


_GONE: Final = call_failure(NvmlError(Code.GPU_NOT_FOUND, "no GPU has this UUID any more"))


def _lost(gpu: Gpu, err: NvmlError | None) -> Gpu:
    failure = _GONE if err is None else call_failure(err)
    return dataclasses.replace(gpu, state=GpuState.LOST, failure=failure, unknown=())


def _read_mig(
    api: NvmlApi, mig: Handle, index: int, gpu_bytes: int, before: MigDevice | None
) -> MigDevice:
    """Raises `NvmlError` where it cannot be told what the device is."""
    values = Values()
    name = values.read("", api.name, mig)
    match = _MIG_PROFILE.search(name)
    attributes = None
    try:
        attributes = named(api.mig_attributes, mig)
    except NvmlError:
        if match is None:
            raise
        profile, memory_bytes = match["profile"], named(api.memory, mig).total
    else:
        profile = mig_profile(
            name, attributes.gpu_slices, attributes.compute_slices, attributes.memory_mib, gpu_bytes
        )
        memory_bytes = attributes.memory_mib * _MIB
    uuid = named(api.uuid, mig)
    if attributes is None and before is not None and before.uuid == uuid:
        attributes = before.attributes
    return MigDevice(
        uuid=uuid,
        index=index,
        gpu_instance=named(api.gpu_instance, mig),
        compute_instance=named(api.compute_instance, mig),
        profile=profile,
        memory_bytes=memory_bytes,
        attributes=attributes,
    )


def _is_sane_mig_count(count: int) -> bool:
    return 0 <= count <= _MOST_MIG_DEVICES


def _drop_longest_lost(gpus: dict[str, Gpu]) -> None:
    """Of very many that are lost, those that were listed earlier come later."""
    lost = [uuid for uuid, gpu in gpus.items() if gpu.state is GpuState.LOST]
    for uuid in lost[MAX_GPUS:]:
        del gpus[uuid]
