"""The summary without options, as drivers from 575 on draw it, and the list of `-L`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pynvml

from sim.smi.driver import MIB
from sim.smi.fields import FIELDS, NOT_AVAILABLE
from sim.smi.report import cuda_version, driver_version, now

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sim.smi.driver import Gpu, MigDevice, Process

_WIDTH: Final = 89
_LONGEST_NAME: Final = 27
_LONGEST_PROGRAM: Final = 34
_RULE: Final = f"+{'-' * 41}+{'-' * 24}+{'-' * 22}+"
_BOX: Final = f"+{'-' * _WIDTH}+"
_MIG_RULE: Final = f"+{'-' * 18}+{'-' * 34}+{'-' * 11}+{'-' * 23}+"
_COMPUTE_MODES: Final = {"Exclusive_Process": "E. Process", "Exclusive_Thread": "E. Thread"}


def listed(gpus: Sequence[Gpu]) -> Iterator[str]:
    """A line for each GPU and MIG device, with its UUID."""
    for gpu in gpus:
        yield f"GPU {gpu.index}: {gpu.name} (UUID: {gpu.uuid})"
        for mig in gpu.mig_devices():
            yield f"  MIG {mig.profile:<11} Device {mig.index:>2}: (UUID: {mig.uuid})"


def summary(gpus: Sequence[Gpu]) -> Iterator[str]:
    version = driver_version()
    yield f"{now()}       "
    yield _BOX
    yield (
        f"| NVIDIA-SMI {version:<23}Driver Version: {version:<15}CUDA Version: {cuda_version():<9}|"
    )
    yield _RULE
    yield (
        "| GPU  Name                 Persistence-M | Bus-Id          Disp.A |"
        " Volatile Uncorr. ECC |"
    )
    yield (
        "| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage |"
        " GPU-Util  Compute M. |"
    )
    yield f"|{'':41}|{'':24}|{'MIG M.':>21} |"
    yield f"|{'=' * 41}+{'=' * 24}+{'=' * 22}|"
    for gpu in gpus:
        yield from _gpu(gpu)
        yield _RULE
    yield from _mig_devices(gpus)
    yield ""
    yield _BOX
    yield f"| {'Processes:':<{_WIDTH - 1}}|"
    yield (
        "|  GPU   GI   CI              PID   Type   Process name"
        "                        GPU Memory |"
    )
    yield f"|        ID   ID{'':63}Usage      |"
    yield f"|{'=' * _WIDTH}|"
    rows = [_process(gpu, process) for gpu in gpus for process in gpu.processes()]
    yield from rows or [f"|  {'No running processes found':<{_WIDTH - 2}}|"]
    yield _BOX


def _value(gpu: Gpu, name: str) -> str:
    return FIELDS[name].read(gpu) or NOT_AVAILABLE


def _with_unit(gpu: Gpu, name: str, unit: str) -> str:
    found = FIELDS[name].read(gpu)
    return NOT_AVAILABLE if found is None else f"{round(float(found))}{unit}"


def _gpu(gpu: Gpu) -> Iterator[str]:
    name = gpu.name
    if len(name) > _LONGEST_NAME:
        name = name[: _LONGEST_NAME - 3] + "..."
    persistence = "On" if _value(gpu, "persistence_mode") == "Enabled" else "Off"
    display = "On" if _value(gpu, "display_active") == "Enabled" else "Off"
    errors = _value(gpu, "ecc.errors.uncorrected.volatile.total")
    yield (
        f"|{gpu.index:>4}  {name:<31}{persistence:<3} |   {gpu.bus_id} {display:>3} |{errors:>21} |"
    )
    fan = _with_unit(gpu, "fan.speed", "%")
    heat = _with_unit(gpu, "temperature.gpu", "C")
    usage, cap = (_with_unit(gpu, one, "W") for one in ("power.draw", "power.limit"))
    used, total = (_with_unit(gpu, one, "MiB") for one in ("memory.used", "memory.total"))
    load = _with_unit(gpu, "utilization.gpu", "%")
    mode = _value(gpu, "compute_mode")
    yield (
        f"|{fan:>4}{heat:>6}    {_value(gpu, 'pstate'):<3}{usage:>15} / {cap:>5} "
        f"|{used:>11} / {total:>9} |{load:>8}{_COMPUTE_MODES.get(mode, mode):>13} |"
    )
    yield f"|{'':41}|{'':24}|{_value(gpu, 'mig.mode.current'):>21} |"


def _mig_devices(gpus: Sequence[Gpu]) -> Iterator[str]:
    enabled = [gpu for gpu in gpus if gpu.mig_enabled]
    if not enabled:
        return
    yield ""
    yield _BOX
    yield f"| {'MIG devices:':<{_WIDTH - 1}}|"
    yield _MIG_RULE
    yield f"| GPU  GI  CI  MIG |{'Memory-Usage':>33} |        Vol|        Shared         |"
    yield f"|      ID  ID  Dev |{'BAR1-Usage':>33} | SM     Unc| CE ENC  DEC  OFA  JPG |"
    yield f"|{'':18}|{'':34}|        ECC|{'':23}|"
    yield f"|{'=' * 18}+{'=' * 34}+{'=' * 11}+{'=' * 23}|"
    devices = [(gpu, mig) for gpu in enabled for mig in gpu.mig_devices()]
    if not devices:
        yield f"|  {'No MIG devices found':<{_WIDTH - 2}}|"
        yield _BOX
    for gpu, mig in devices:
        yield from _mig_device(gpu, mig)
        yield _MIG_RULE


def _mig_device(gpu: Gpu, mig: MigDevice) -> Iterator[str]:
    instance, compute = mig.instances
    attributes = pynvml.nvmlDeviceGetAttributes(mig.handle)
    used, total = (f"{(mig.memory(one) or 0) // MIB}MiB" for one in ("used", "total"))
    engines = (
        f"{attributes.sharedCopyEngineCount:>3}{attributes.sharedEncoderCount:>4}"
        f"{attributes.sharedDecoderCount:>5}{attributes.sharedOfaCount:>5}"
        f"{attributes.sharedJpegCount:>5} "
    )
    yield (
        f"|{gpu.index:>3}{instance:>5}{compute:>4}{mig.index:>4}  |{used:>19} / {total:<12}"
        f"|{attributes.multiprocessorCount:>3}      0 |{engines}|"
    )
    bar1 = [
        f"{(mig.part(pynvml.nvmlDeviceGetBAR1MemoryInfo, one) or 0) // MIB}MiB"
        for one in ("bar1Used", "bar1Total")
    ]
    yield f"|{'':18}|{bar1[0]:>19} / {bar1[1]:<12}|{'':11}|{'':23}|"


def _process(gpu: Gpu, process: Process) -> str:
    instances = [
        NOT_AVAILABLE if one is None else str(one)
        for one in (process.gpu_instance, process.compute_instance)
    ]
    name = process.name
    if len(name) > _LONGEST_PROGRAM:
        name = "..." + name[-(_LONGEST_PROGRAM - 3) :]
    used = process.memory_bytes
    memory = NOT_AVAILABLE if used is None else f"{used // MIB}MiB"
    return (
        f"|{gpu.index:>5}{instances[0]:>6}{instances[1]:>5}{process.pid:>16}{process.kind:>7}"
        f"   {name:<36}{memory:>10} |"
    )
