"""`-q` and `-q -x`: the tree of what a GPU says as text or XML, its MIG devices and processes."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

import pynvml

from sim.smi.driver import MIB, number, text
from sim.smi.fields import NOT_AVAILABLE
from sim.smi.tree import BOARD, PRODUCT, SECTIONS, TREE, Item

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sim.smi.driver import Gpu, MigDevice, Process
    from sim.smi.tree import Group

_LABEL_WIDTH: Final = 42


def text_report(gpus: Sequence[Gpu], sections: Sequence[str] = ()) -> Iterator[str]:
    yield ""
    yield "==============NVSMI LOG=============="
    yield ""
    for label, shown in _head():
        yield f"{label:<{_LABEL_WIDTH}}: {shown}"
        if label == "CUDA Version":
            yield ""
    for gpu in gpus:
        yield f"GPU {gpu.bus_id}"
        if sections:
            for section in sections:
                yield from _text(SECTIONS[section], gpu, 1)
        else:
            yield from _text(PRODUCT, gpu, 1)
            yield from _mig_text(gpu)
            yield from _text((*BOARD, *TREE), gpu, 1)
            yield from _processes_text(gpu)
        yield ""


def xml_report(gpus: Sequence[Gpu]) -> Iterator[str]:
    yield '<?xml version="1.0" ?>'
    yield '<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v13.dtd">'
    yield "<nvidia_smi_log>"
    for label, shown in _head():
        yield _element(1, label.lower().replace(" ", "_"), shown)
    for gpu in gpus:
        yield f'\t<gpu id="{gpu.bus_id}">'
        yield from _xml(PRODUCT, gpu, 2)
        yield from _mig_xml(gpu)
        yield from _xml((*BOARD, *TREE), gpu, 2)
        yield from _supported_clocks_xml(gpu)
        yield from _processes_xml(gpu)
        yield "\t\t<accounted_processes>"
        yield "\t\t</accounted_processes>"
        yield "\t\t<capabilities>"
        yield _element(3, "egm", "disabled")
        yield "\t\t</capabilities>"
        yield "\t</gpu>"
        yield ""
    yield "</nvidia_smi_log>"


def cuda_version() -> str:
    found = number(pynvml.nvmlSystemGetCudaDriverVersion)
    return NOT_AVAILABLE if found is None else f"{found // 1000}.{found % 1000 // 10}"


def driver_version() -> str:
    return text(pynvml.nvmlSystemGetDriverVersion) or NOT_AVAILABLE


def now() -> str:
    return datetime.now().astimezone().strftime("%a %b %e %H:%M:%S %Y")


def _head() -> Iterator[tuple[str, str]]:
    yield "Timestamp", now()
    yield "Driver Version", driver_version()
    yield "CUDA Version", cuda_version()
    yield "Attached GPUs", str(number(pynvml.nvmlDeviceGetCount))


def _text(nodes: Sequence[Item | Group], gpu: Gpu, depth: int) -> Iterator[str]:
    indent = "    " * depth
    for node in nodes:
        if isinstance(node, Item):
            yield f"{indent + node.label:<{_LABEL_WIDTH}}: {node.read(gpu)}"
        elif node.shown(gpu) and not node.nodes:
            yield f"{indent + node.label:<{_LABEL_WIDTH}}: {NOT_AVAILABLE}"
        elif node.shown(gpu):
            yield f"{indent}{node.label}"
            yield from _text(node.nodes, gpu, depth + 1)


def _xml(nodes: Sequence[Item | Group], gpu: Gpu, depth: int) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, Item):
            yield _element(depth, node.element, node.read(gpu))
        elif node.shown(gpu) and not node.nodes:
            yield _element(depth, node.element, NOT_AVAILABLE)
        elif node.shown(gpu):
            yield "\t" * depth + f"<{node.element}>"
            yield from _xml(node.nodes, gpu, depth + 1)
            yield "\t" * depth + f"</{node.element}>"


def _element(depth: int, name: str, shown: str) -> str:
    return "\t" * depth + f"<{name}>{escape(shown)}</{name}>"


def _supported_clocks_xml(gpu: Gpu) -> Iterator[str]:
    memory = gpu.value(pynvml.nvmlDeviceGetSupportedMemoryClocks)
    if not isinstance(memory, list):
        yield _element(2, "supported_clocks", NOT_AVAILABLE)
        return
    yield "\t\t<supported_clocks>"
    for clock in memory:
        yield "\t\t\t<supported_mem_clock>"
        yield _element(4, "value", f"{clock} MHz")
        graphics = gpu.value(pynvml.nvmlDeviceGetSupportedGraphicsClocks, clock)
        for one in graphics if isinstance(graphics, list) else ():
            yield _element(4, "supported_graphics_clock", f"{one} MHz")
        yield "\t\t\t</supported_mem_clock>"
    yield "\t\t</supported_clocks>"


def _shown(number: int | None) -> str:
    return NOT_AVAILABLE if number is None else str(number)


def _used(process: Process) -> str:
    found = process.memory_bytes
    return NOT_AVAILABLE if found is None else f"{found // MIB} MiB"


def _processes_xml(gpu: Gpu) -> Iterator[str]:
    yield "\t\t<processes>"
    for process in gpu.processes():
        yield "\t\t\t<process_info>"
        yield _element(4, "gpu_instance_id", _shown(process.gpu_instance))
        yield _element(4, "compute_instance_id", _shown(process.compute_instance))
        yield _element(4, "pid", str(process.pid))
        yield _element(4, "type", process.kind)
        yield _element(4, "process_name", process.name)
        yield _element(4, "used_memory", _used(process))
        yield "\t\t\t</process_info>"
    yield "\t\t</processes>"


def _processes_text(gpu: Gpu) -> Iterator[str]:
    processes = gpu.processes()
    if not processes:
        yield f"{'    Processes':<{_LABEL_WIDTH}}: None"
        return
    yield "    Processes"
    for process in processes:
        for label, shown in (
            ("        GPU instance ID", _shown(process.gpu_instance)),
            ("        Compute instance ID", _shown(process.compute_instance)),
            ("        Process ID", str(process.pid)),
            ("            Type", process.kind),
            ("            Name", process.name),
            ("            Used GPU Memory", _used(process)),
        ):
            yield f"{label:<{_LABEL_WIDTH}}: {shown}"


def _attributes(mig: MigDevice) -> Iterator[tuple[str, str, int]]:
    attributes = pynvml.nvmlDeviceGetAttributes(mig.handle)
    for label, element, name in (
        ("Multiprocessor count", "multiprocessor_count", "multiprocessorCount"),
        ("Copy Engine count", "copy_engine_count", "sharedCopyEngineCount"),
        ("Encoder count", "encoder_count", "sharedEncoderCount"),
        ("Decoder count", "decoder_count", "sharedDecoderCount"),
        ("OFA count", "ofa_count", "sharedOfaCount"),
        ("JPG count", "jpg_count", "sharedJpegCount"),
    ):
        yield label, element, int(getattr(attributes, name))


def _mig_xml(gpu: Gpu) -> Iterator[str]:
    yield "\t\t<mig_devices>"
    found = list(gpu.mig_devices())
    if not found:
        yield "\t\t\tNone"
    for mig in found:
        instance, compute = mig.instances
        yield "\t\t\t<mig_device>"
        yield _element(4, "index", str(mig.index))
        yield _element(4, "gpu_instance_id", str(instance))
        yield _element(4, "compute_instance_id", str(compute))
        yield "\t\t\t\t<device_attributes>"
        yield "\t\t\t\t\t<shared>"
        for _, element, shown in _attributes(mig):
            yield _element(6, element, str(shown))
        yield "\t\t\t\t\t</shared>"
        yield "\t\t\t\t</device_attributes>"
        yield "\t\t\t\t<ecc_error_count>"
        yield "\t\t\t\t\t<volatile_count>"
        yield _element(6, "sram_uncorrectable", "0")
        yield "\t\t\t\t\t</volatile_count>"
        yield "\t\t\t\t</ecc_error_count>"
        yield from _mig_memory_xml(mig)
        yield "\t\t\t</mig_device>"
    yield "\t\t</mig_devices>"


def _mig_memory_xml(mig: MigDevice) -> Iterator[str]:
    for element, names in (
        ("fb_memory_usage", ("total", "reserved", "used", "free")),
        ("bar1_memory_usage", ("total", "used", "free")),
    ):
        yield f"\t\t\t\t<{element}>"
        for name in names:
            yield _element(5, name, f"{_mig_mib(mig, element, name)} MiB")
        yield f"\t\t\t\t</{element}>"


def _mig_mib(mig: MigDevice, element: str, name: str) -> int:
    if element == "fb_memory_usage":
        return (mig.memory(name) or 0) // MIB
    found = mig.part(pynvml.nvmlDeviceGetBAR1MemoryInfo, f"bar1{name.capitalize()}")
    return (found or 0) // MIB


def _mig_text(gpu: Gpu) -> Iterator[str]:
    for mig in gpu.mig_devices():
        instance, compute = mig.instances
        yield "    MIG Device"
        for label, shown in (
            ("Index", mig.index),
            ("GPU Instance ID", instance),
            ("Compute Instance ID", compute),
        ):
            yield f"{'        ' + label:<{_LABEL_WIDTH}}: {shown}"
        yield "        Device Attributes"
        yield "            Shared"
        for label, _, count in _attributes(mig):
            yield f"{'                ' + label:<{_LABEL_WIDTH}}: {count}"
        yield "        FB Memory Usage"
        for name in ("total", "reserved", "used", "free"):
            label = f"            {name.capitalize()}"
            yield f"{label:<{_LABEL_WIDTH}}: {_mig_mib(mig, 'fb_memory_usage', name)} MiB"
