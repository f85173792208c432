"""`mig`: profiles, and GPU and compute instances, listed, created and destroyed."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pynvml

from sim.smi.driver import Gpu, SmiError, value

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

_MOST: Final = 16
_COMPUTE_PROFILES: Final = {1: 0, 2: 1, 3: 2, 4: 3, 7: 4}
"""NVML's compute instance profile by the number of slices."""


@dataclass(frozen=True, slots=True)
class _Profile:
    id: int
    name: str
    info: pynvml.c_nvmlGpuInstanceProfileInfo_v2_t

    @property
    def compute_profile(self) -> int:
        """That of a compute instance which has all of it."""
        return _COMPUTE_PROFILES[int(self.info.sliceCount)]


@dataclass(frozen=True, slots=True)
class _Instance:
    """A GPU instance, and its compute instance if it has one."""

    gpu: Gpu
    handle: object
    id: int
    profile: _Profile
    placement: tuple[int, int]

    def compute(self) -> object | None:
        return value(pynvml.nvmlGpuInstanceGetComputeInstanceById, self.handle, 0)


def run(parsed: argparse.Namespace, gpus: Sequence[Gpu]) -> Iterator[str]:
    """The lines of one `mig` command; raises `SmiError`."""
    enabled = [gpu for gpu in gpus if gpu.mig_enabled]
    if not enabled:
        raise SmiError("No MIG-enabled devices found.", 6)
    if parsed.list_profiles:
        yield from _list_profiles(enabled)
    elif parsed.list_placements:
        yield from _list_placements(enabled)
    elif parsed.list_instances:
        yield from _list_instances(enabled)
    elif parsed.list_compute:
        yield from _list_compute(enabled)
    elif parsed.create is not None:
        yield from _create(enabled, parsed.create, compute=parsed.with_compute)
    elif parsed.create_compute is not None:
        chosen = _chosen(enabled, parsed.instances)
        yield from _create_compute(chosen, parsed.create_compute.strip())
    elif parsed.destroy_compute:
        yield from _destroy_compute(_chosen(enabled, parsed.instances))
    elif parsed.destroy:
        yield from _destroy(_chosen(enabled, parsed.instances))
    else:
        raise SmiError("mig: no command given; see 'nvidia-smi mig -h'", 2)


def _profiles(gpu: Gpu) -> list[_Profile]:
    found: list[_Profile] = []
    for number in range(int(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT)):
        info = gpu.value(pynvml.nvmlDeviceGetGpuInstanceProfileInfo, number)
        if info is not None:
            name = getattr(info, "name", b"")
            shown = name.decode() if isinstance(name, bytes) else str(name)
            found.append(_Profile(int(getattr(info, "id", 0)), shown.removeprefix("MIG "), info))
    return sorted(found, key=lambda one: (one.info.sliceCount, one.info.memorySizeMB, one.name))


def _instances(gpu: Gpu) -> list[_Instance]:
    found: list[_Instance] = []
    for profile in _profiles(gpu):
        handles = (pynvml.c_nvmlGpuInstance_t * _MOST)()
        count = ctypes.c_uint(0)
        pynvml.nvmlDeviceGetGpuInstances(gpu.handle, profile.id, handles, ctypes.byref(count))
        for handle in handles[: count.value]:
            info = pynvml.nvmlGpuInstanceGetInfo(handle)
            placement = (int(info.placement.start), int(info.placement.size))
            found.append(_Instance(gpu, handle, int(info.id), profile, placement))
    return sorted(found, key=lambda one: one.id)


def _chosen(gpus: Sequence[Gpu], ids: str | None) -> list[_Instance]:
    wanted = None if ids is None else {_number(one, "GPU instance ID") for one in ids.split(",")}
    found = [one for gpu in gpus for one in _instances(gpu) if wanted is None or one.id in wanted]
    if not found:
        raise SmiError("No GPU instances found: Not Found", 6)
    return found


def _list_profiles(gpus: Sequence[Gpu]) -> Iterator[str]:
    rule = f"+{'-' * 79}+"
    yield rule
    yield f"| {'GPU instance profiles:':<78}|"
    yield "| GPU   Name               ID    Instances   Memory     P2P    SM    DEC   ENC  |"
    yield "|                                Free/Total   GiB              CE    JPEG  OFA  |"
    yield f"|{'=' * 79}|"
    for gpu in gpus:
        for profile in _profiles(gpu):
            info = profile.info
            free = int(pynvml.nvmlDeviceGetGpuInstanceRemainingCapacity(gpu.handle, profile.id))
            room = f"{free}/{info.instanceCount}"
            memory = f"{info.memorySizeMB / 1024:.2f}"
            yield (
                f"|{gpu.index:>4}  {'MIG ' + profile.name:<19}{profile.id:>3}     {room:<7}"
                f"{memory:>8}       No{info.multiprocessorCount:>7}{info.decoderCount:>6}"
                f"{info.encoderCount:>6}   |"
            )
            yield (f"|{info.copyEngineCount:>64}{info.jpegCount:>6}{info.ofaCount:>6}   |")
            yield rule


def _list_placements(gpus: Sequence[Gpu]) -> Iterator[str]:
    for gpu in gpus:
        for profile in _profiles(gpu):
            placements = (pynvml.c_nvmlGpuInstancePlacement_t * _MOST)()
            count = ctypes.c_uint(0)
            pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(
                gpu.handle, profile.id, placements, ctypes.byref(count)
            )
            starts = ",".join(str(one.start) for one in placements[: count.value])
            several = "s" if count.value > 1 else ""
            shown = f"{{{starts}}}:{placements[0].size}"
            yield f"GPU {gpu.index:>2} Profile ID {profile.id:>2} Placement{several}: {shown}"


def _list_instances(gpus: Sequence[Gpu]) -> Iterator[str]:
    found = _chosen(gpus, None)
    rule = f"+{'-' * 52}+"
    yield rule
    yield f"| {'GPU instances:':<51}|"
    yield "| GPU   Name          Profile  Instance   Placement  |"
    yield "|                       ID       ID       Start:Size |"
    yield f"|{'=' * 52}|"
    for one in found:
        start, size = one.placement
        yield (
            f"|{one.gpu.index:>4}  {'MIG ' + one.profile.name:<16}{one.profile.id:>3}{one.id:>9}"
            f"{start:>11}:{size}     |"
        )
        yield rule


def _list_compute(gpus: Sequence[Gpu]) -> Iterator[str]:
    found = [one for gpu in gpus for one in _instances(gpu) if one.compute() is not None]
    if not found:
        raise SmiError("No compute instances found: Not Found", 6)
    rule = f"+{'-' * 68}+"
    yield rule
    yield f"| {'Compute instances:':<67}|"
    yield "| GPU     GPU       Name             Profile   Instance   Placement  |"
    yield "|       Instance                       ID        ID       Start:Size |"
    yield "|         ID                                                         |"
    yield f"|{'=' * 68}|"
    for one in found:
        profile = one.profile
        yield (
            f"|{one.gpu.index:>4}{one.id:>7}       {'MIG ' + profile.name:<17}"
            f"{profile.compute_profile:>5}{0:>10}{0:>11}:{profile.info.sliceCount:<6}|"
        )
        yield rule


def _create(gpus: Sequence[Gpu], wanted: str, *, compute: bool) -> Iterator[str]:
    for gpu in gpus:
        for word in wanted.split(","):
            profile, start = _asked(gpu, word.strip())
            on = f"on GPU {gpu.index:>2}"
            using = f"using profile MIG {profile.name} (ID {profile.id:>2})"
            try:
                handle = _made(gpu, profile, start)
                made = int(pynvml.nvmlGpuInstanceGetInfo(handle).id)
                yield f"Successfully created GPU instance ID {made:>2} {on} {using}"
                if compute:
                    yield _compute_made(gpu, handle, made, profile)
            except pynvml.NVMLError as error:
                text = f"Unable to create a GPU instance {on} {using}: {error}"
                failed = f"Failed to create GPU instances: {error}"
                raise SmiError(f"{text}\n{failed}", int(error.value)) from error


def _asked(gpu: Gpu, word: str) -> tuple[_Profile, int | None]:
    """The profile of `9`, `3g.20gb` or `MIG 3g.20gb`, and the start of `19:4`."""
    name, _, start = word.removeprefix("MIG ").partition(":")
    for profile in _profiles(gpu):
        if name in (str(profile.id), profile.name):
            return profile, _number(start, "placement") if start else None
    raise SmiError(f"Invalid GPU instance profile {word!r}; see 'nvidia-smi mig -lgip'", 2)


def _made(gpu: Gpu, profile: _Profile, start: int | None) -> object:
    if start is None:
        made: object = pynvml.nvmlDeviceCreateGpuInstance(gpu.handle, profile.id)
        return made
    placement = pynvml.c_nvmlGpuInstancePlacement_t(start=start, size=0)
    placed: object = pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(
        gpu.handle, profile.id, ctypes.byref(placement)
    )
    return placed


def _number(text: str, what: str) -> int:
    if not (text.strip().isascii() and text.strip().isdecimal()):
        raise SmiError(f"Invalid {what} {text!r}: a number is needed", 2)
    return int(text)


def _compute_made(
    gpu: Gpu, handle: object, instance: int, profile: _Profile, wanted: int | None = None
) -> str:
    """`wanted` is a compute instance profile; None for that of all of the GPU instance."""
    pynvml.nvmlGpuInstanceCreateComputeInstance(
        handle, profile.compute_profile if wanted is None else wanted
    )
    return (
        f"Successfully created compute instance ID  0 on GPU {gpu.index:>2} GPU instance ID "
        f"{instance:>2} using profile MIG {profile.name} (ID {profile.compute_profile:>2})"
    )


def _create_compute(instances: Sequence[_Instance], wanted: str) -> Iterator[str]:
    for one in instances:
        whole = wanted in ("", one.profile.name)
        number = None if whole else _number(wanted, "compute instance profile ID")
        try:
            yield _compute_made(one.gpu, one.handle, one.id, one.profile, number)
        except pynvml.NVMLError as error:
            text = (
                f"Unable to create a compute instance on GPU {one.gpu.index:>2} GPU instance ID "
                f"{one.id:>2}: {error}\nFailed to create compute instances: {error}"
            )
            raise SmiError(text, int(error.value)) from error


def _destroy_compute(instances: Sequence[_Instance]) -> Iterator[str]:
    for one in instances:
        compute = one.compute()
        if compute is None:
            continue
        where = f"ID  0 from GPU {one.gpu.index:>2} GPU instance ID {one.id:>2}"
        try:
            pynvml.nvmlComputeInstanceDestroy(compute)
        except pynvml.NVMLError as error:
            text = (
                f"Unable to destroy compute instance {where}: {error}\n"
                f"Failed to destroy compute instances: {error}"
            )
            raise SmiError(text, int(error.value)) from error
        yield f"Successfully destroyed compute instance {where}"


def _destroy(instances: Sequence[_Instance]) -> Iterator[str]:
    for one in instances:
        where = f"ID {one.id:>2} from GPU {one.gpu.index:>2}"
        try:
            pynvml.nvmlGpuInstanceDestroy(one.handle)
        except pynvml.NVMLError as error:
            text = (
                f"Unable to destroy GPU instance {where}: {error}\n"
                f"Failed to destroy GPU instances: {error}"
            )
            raise SmiError(text, int(error.value)) from error
        yield f"Successfully destroyed GPU instance {where}"
