"""Scenarios: the GPUs of a simulated node, their load and faults. Validated, not run, here."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from gpuplugin.config.document import Document, parse_document
from gpuplugin.config.loaded import ConfigError, Problem
from gpuplugin.config.problems import checked, dotted
from hal import ComputeMode, LinkKind
from hal.nvml.kernelfiles import canonical_bus_id
from sim.gpu.calibration import Calibration, CannotUse, calibrated, load_calibration
from sim.gpu.faults import Failures, Repartition, ScenarioModel, TimedFault, XidFault
from sim.gpu.nvlinks import MOST_NVLINKS
from sim.gpu.profiles import (
    CannotPartition,
    UnknownModel,
    check_partition,
    load_profile,
    model_names,
)
from sim.gpu.workloads import MemoryUse, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

    from gpuplugin.config.document import KeyPath
    from sim.gpu.profiles import Profile


USAGE_MARK = "--- # usage over time"
"""The line of a recording below which the usage over time is (`sim.study.usage`)."""


class RecordedMig(ScenarioModel):
    """A MIG device of a recorded GPU, in the order of the group's `mig`."""

    uuid: str | None = None
    gpu_instance: Annotated[int, Field(ge=0)]
    compute_instance: Annotated[int, Field(ge=0)] = 0
    memory_bytes: Annotated[int, Field(ge=0)] | None = None


class RecordedGpu(ScenarioModel):
    """Who a single GPU is, where that is known: what is left out is as its model has it.

    Without `uuid` and `pci_bus_id` the node makes its own, from its seed; without `numa_node` the
    platform names none. `mig` has more of the devices that the group's `mig` names.
    """

    uuid: Annotated[str, Field(min_length=1)] | None = None
    pci_bus_id: str | None = None
    minor: Annotated[int, Field(ge=0)] | None = None
    numa_node: Annotated[int, Field(ge=0)] | None = None
    product: str | None = None
    memory_bytes: Annotated[int, Field(gt=0)] | None = None
    power_limit_w: Annotated[float, Field(gt=0)] | None = None
    mig: tuple[RecordedMig, ...] = ()


class GpuGroup(ScenarioModel):
    """`count` GPUs of one model, spread evenly over `numa_nodes` (default: 2 from 2 GPUs on).

    `mig` puts each of them into MIG mode with devices of these profiles (an empty list: none).
    `cooling` below 1 is an airflow that is worse than it should be: load slows the clocks down, or
    shuts the GPU down; `oversubscribe` lets memory overflow to the host (managed memory);
    `mechanism` is how tenants share the compute. `recorded` says who a single GPU is (`count: 1`),
    as `gpuplugin record` writes it.
    """

    model: str
    count: Annotated[int, Field(ge=1, le=64)] = 1
    numa_nodes: Annotated[int, Field(ge=1)] | None = None
    mig: list[str] | None = None
    cooling: Annotated[float, Field(gt=0, le=2)] = 1.0
    oversubscribe: bool = False
    mechanism: Literal["time-slicing", "mps", "exclusive"] = "time-slicing"
    compute_mode: ComputeMode = ComputeMode.DEFAULT
    recorded: RecordedGpu | None = None

    @model_validator(mode="after")
    def _one_gpu_if_recorded(self) -> GpuGroup:
        if self.recorded is not None and self.count != 1:
            raise ValueError("recorded is for one GPU: give each a group with count 1")
        if self.recorded is not None and len(self.recorded.mig) > len(self.mig or ()):
            raise ValueError("recorded.mig has more devices than mig")
        return self


class RecordedLink(ScenarioModel):
    """How two GPUs, by their indices, reach each other: the PCIe path, and direct NVLinks."""

    gpus: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    path: LinkKind
    nvlinks: Annotated[int, Field(ge=0, le=18)] = 0


class Tenant(ScenarioModel):
    """A process on the GPU with index `gpu`, or on its MIG device `mig`.

    With a `workload` its kernels compete for the GPU; `occupancy` (0 to 1) is how much of it they
    fill. Without one it is a constant load (`utilization`, 0 to 1) that nothing slows down; with
    `graphics` its context is one for graphics (Vulkan, X) and not for computing. Under MPS each
    other tenant takes longer by `mps_share` (0 to 1) of its time alone; without it, 0.59 times the
    occupancy.
    """

    name: str
    gpu: Annotated[int, Field(ge=0)]
    mig: Annotated[int, Field(ge=0)] | None = None
    start_s: Annotated[float, Field(ge=0)] = 0.0
    workload: Workload | None = None
    occupancy: Annotated[float, Field(gt=0, le=1)] = 1.0
    mps_share: Annotated[float, Field(ge=0, le=1)] | None = None
    memory: MemoryUse | None = None
    utilization: Annotated[float, Field(ge=0, le=1)] = 0.5
    memory_gib: Annotated[float, Field(ge=0)] = 1.0
    graphics: bool = False

    @model_validator(mode="after")
    def _constant_or_not(self) -> Tenant:
        if self.workload is not None and self.graphics:
            raise ValueError("a workload computes: leave it out, or graphics")
        if self.workload is None and (self.memory or self.start_s or self.mig is not None):
            raise ValueError("memory, mig and start_s need a workload; without one use memory_gib")
        return self


class Pods(ScenarioModel):
    """Pods of one kind, for `gpuplugin sim run` and `sim up`: a kubelet gives them devices.

    `count` pods come at `start_s`, or, with `arrivals_per_hour`, one after the other (Poisson) from
    then on without end (`count` is not used). Each asks for `devices` of `resource` and, once it
    has them, lives for `lifetime_s` (exponential around it with `random_lifetime`; None: without
    end). Its workload runs on the GPU of the first device. With `restart` a container that ended
    is started again with the kubelet's back-off: after 10 s, doubling to 5 min (in `sim up`: 1 s to
    30 s), and 10 s again after a container that ran for 10 min (`sim up`: 1 s after 1 min).
    """

    name: str
    count: Annotated[int, Field(ge=1, le=1000)] = 1
    start_s: Annotated[float, Field(ge=0)] = 0.0
    arrivals_per_hour: Annotated[float, Field(gt=0)] | None = None
    lifetime_s: Annotated[float, Field(gt=0)] | None = None
    random_lifetime: bool = False
    resource: str = "nvidia.com/gpu"
    devices: Annotated[int, Field(ge=1, le=64)] = 1
    restart: bool = True
    workload: Workload
    occupancy: Annotated[float, Field(gt=0, le=1)] = 1.0
    mps_share: Annotated[float, Field(ge=0, le=1)] | None = None
    memory: MemoryUse = MemoryUse()

    @model_validator(mode="after")
    def _arrivals_end(self) -> Pods:
        if self.arrivals_per_hour is not None and self.lifetime_s is None:
            raise ValueError("arrivals_per_hour needs lifetime_s: without it the node fills up")
        return self


_CUDA_OF_DRIVER = {
    525: (12, 0), 535: (12, 2), 550: (12, 4), 560: (12, 6), 570: (12, 8), 580: (13, 0),
}  # fmt: skip
"""The CUDA version that the branches of the driver support, as nvidia-smi prints it."""


class Scenario(ScenarioModel):
    """A node, its load and its faults; the same scenario and seed give the same node.

    `faults` may be spelled `happenings`, its name in earlier versions.
    """

    name: str = "unnamed"
    description: str = ""
    seed: int = 1
    driver_version: str = "580.105.08"
    confidential_compute: bool = False
    """True in a machine with confidential computing: GPUs then accept work only when ready."""
    gpus: Annotated[list[GpuGroup], Field(min_length=1)]
    calibrations: list[Calibration] = Field(default_factory=list)
    """what `gpuplugin calibrate` measured: it holds for all GPUs of its model"""
    tenants: list[Tenant] = Field(default_factory=list)
    pods: list[Pods] = Field(default_factory=list)
    links: list[RecordedLink] = Field(default_factory=list)
    faults: list[TimedFault] = Field(default_factory=list)
    failures: list[Failures] = Field(default_factory=list)
    length_s: Annotated[float, Field(gt=0)] | None = None
    """how long `gpuplugin sim run` runs it without `--until`; 10 minutes without it"""
    allocation: Literal["device-plugin", "dra"] = "device-plugin"
    """how pods get their GPUs: by the device-plugin API, or by Dynamic Resource Allocation"""
    config: dict[str, object] | None = None
    """the plugin's configuration in a run in virtual time, in NVIDIA's format; without it the
    built-in default"""

    @property
    def cuda_version(self) -> tuple[int, int]:
        """What the driver supports, by its branch."""
        branch = self.driver_version.partition(".")[0]
        number = int(branch) if branch.isdecimal() else 0
        known = (version for since, version in _CUDA_OF_DRIVER.items() if since <= number)
        return max(known, default=(11, 0))

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        properties["happenings"] = {**properties["faults"], "deprecated": True}
        return schema

    @model_validator(mode="before")
    @classmethod
    def _old_spelling(cls, data: object) -> object:
        if isinstance(data, dict) and "happenings" in data:
            if "faults" in data:
                raise ValueError("happenings is the old name of faults: give one of them")
            return {("faults" if key == "happenings" else key): data[key] for key in data}
        return data

    def profile_of(self, group: GpuGroup) -> Profile:
        """The profile of a group's model, with what was measured of it."""
        measured = {one.model: one for one in self.calibrations}
        return calibrated(load_profile(group.model), measured.get(group.model))

    def with_calibration(self, path: str) -> Scenario:
        """The scenario with the calibration of a file, which takes the place of one of its own.

        Raises:
            ScenarioError: the file cannot be used, or no GPU of the scenario is of its model.
        """
        try:
            found = load_calibration(path)
        except CannotUse as error:
            raise ScenarioError(str(error)) from error
        models = dict.fromkeys(group.model for group in self.gpus)
        if found.model not in models:
            raise ScenarioError(
                f"calibration {path} is of a {found.model}, and scenario {self.name} has none: its "
                f"GPUs are {', '.join(models)}"
            )
        others = [one for one in self.calibrations if one.model != found.model]
        return self.model_copy(update={"calibrations": [*others, found]})

    @property
    def gpu_count(self) -> int:
        return sum(group.count for group in self.gpus)

    @property
    def direct_nvlinks(self) -> dict[frozenset[int], int]:
        """The number of NVLinks between pairs of GPUs; the first recording of a pair counts."""
        found: dict[frozenset[int], int] = {}
        for link in self.links:
            pair = frozenset(link.gpus)
            if len(pair) == 2:
                found.setdefault(pair, link.nvlinks)
        return found


class ScenarioError(Exception):
    """The scenario cannot be used; the text names the file and every wrong key with its line."""


def scenario_names() -> tuple[str, ...]:
    files = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml")))


def load_scenario(name_or_path: str) -> Scenario:
    """A shipped scenario by its name, or one of the user's by its path; raises `ScenarioError`."""
    if name_or_path in scenario_names():
        text = _folder().joinpath(f"{name_or_path}.yaml").read_text("utf-8")
        return parse_scenario(text, name_or_path)
    try:
        text = Path(name_or_path).read_text("utf-8")
    except (OSError, ValueError) as error:
        near = get_close_matches(name_or_path, scenario_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ScenarioError(
            f"scenario {name_or_path}: {error}{hint}; shipped scenarios: "
            f"{', '.join(scenario_names())}"
        ) from error
    return parse_scenario(text, name_or_path)


def parse_scenario(text: str, name: str) -> Scenario:
    """A scenario from YAML text; raises `ScenarioError` with every key that is wrong.

    The usage over time below a recording is no part of it.
    """
    text = text.partition(f"\n{USAGE_MARK}")[0]
    try:
        document = parse_document(text, name)
        scenario = checked(document, Scenario)
    except ConfigError as error:
        raise ScenarioError(f"scenario {name} cannot be used:\n{error}") from None
    problems = [
        Problem(document.where(path), dotted(path), problem) for path, problem in _misfits(scenario)
    ]
    problems += _wrong_config(scenario, document)
    if problems:
        raise ScenarioError(f"scenario {name} cannot be used:\n{ConfigError(problems)}")
    return scenario


def _wrong_config(scenario: Scenario, document: Document) -> tuple[Problem, ...]:
    """What is wrong with the plugin's configuration in the scenario."""
    if scenario.config is None:
        return ()
    from gpuplugin.config.load import load_settings  # few scenarios have one

    lines = {path[1:]: line for path, line in document.lines.items() if path[0] == "config"}
    try:
        load_settings({}, {}, None, Document(document.name, scenario.config, lines))
    except ConfigError as error:
        return tuple(replace(one, key=f"config.{one.key}") for one in error.problems)
    return ()


_Misfits: TypeAlias = "Iterator[tuple[KeyPath, str]]"
"""What does not fit together, by the paths of keys."""


def _misfits(scenario: Scenario) -> _Misfits:
    gpus = list(_gpu_misfits(scenario))
    yield from gpus
    yield from _identity_misfits(scenario)
    yield from _link_misfits(scenario)
    if not gpus:
        yield from _tenant_misfits(scenario)
        yield from _fault_misfits(scenario)


def _gpu_misfits(scenario: Scenario) -> _Misfits:
    for position, group in enumerate(scenario.gpus):
        if group.model not in model_names():
            yield ("gpus", position, "model"), str(UnknownModel(group.model))
        else:
            yield from _mig_misfits(("gpus", position, "mig"), group, group.mig or ())


def _identity_misfits(scenario: Scenario) -> _Misfits:
    names = [group.name for group in scenario.pods]
    for position, name in enumerate(names):
        if name in names[:position]:
            yield ("pods", position, "name"), f"another group is named {name!r}, too"
    known = [group.recorded for group in scenario.gpus if group.recorded is not None]
    for key, values in (
        ("uuid", [one.uuid for one in known] + [mig.uuid for one in known for mig in one.mig]),
        ("pci_bus_id", [canonical_bus_id(one.pci_bus_id or "") or None for one in known]),
    ):
        given = [value for value in values if value is not None]
        twice = sorted({value for value in given if given.count(value) > 1})
        if twice:
            yield ("gpus",), f"recorded.{key} {twice[0]} is there twice"


def _tenant_misfits(scenario: Scenario) -> _Misfits:
    groups = _by_index(scenario)
    for position, tenant in enumerate(scenario.tenants):
        path: KeyPath = ("tenants", position)
        if tenant.gpu >= len(groups):
            yield (*path, "gpu"), _no_gpu(tenant.gpu, len(groups))
        elif tenant.workload is not None:
            devices = groups[tenant.gpu].mig
            if tenant.mig is None and devices is not None:
                yield (*path, "mig"), f"GPU {tenant.gpu} is in MIG mode: name the MIG device"
            if tenant.mig is not None and tenant.mig >= len(devices or ()):
                count = f"GPU {tenant.gpu} has {len(devices or ())} MIG devices"
                yield (*path, "mig"), f"{tenant.mig}, but {count}, counted from 0"


def _fault_misfits(scenario: Scenario) -> _Misfits:
    groups = _by_index(scenario)
    most_mig = [len(group.mig or ()) for group in groups]
    hit: list[tuple[int, TimedFault, int]] = []
    for position, fault in enumerate(scenario.faults):
        for index in fault.indices(len(groups)):
            if index >= len(groups):
                yield ("faults", position, "gpu"), _no_gpu(index, len(groups))
                continue
            hit.append((position, fault, index))
            if isinstance(fault.what, Repartition):
                mig = fault.what.mig or ()
                yield from _mig_misfits(("faults", position, "what", "mig"), groups[index], mig)
                most_mig[index] = max(most_mig[index], len(mig))
    for position, fault, index in hit:
        wanted = fault.what.mig if isinstance(fault.what, XidFault) else None
        if wanted is not None and wanted >= most_mig[index]:
            most = f"GPU {index} never has more than {most_mig[index]} MIG devices"
            yield ("faults", position, "what", "mig"), f"{wanted}, but {most}, counted from 0"


def _link_misfits(scenario: Scenario) -> _Misfits:
    nvlinks = [0] * scenario.gpu_count
    for position, link in enumerate(scenario.links):
        for index in link.gpus:
            if index >= len(nvlinks):
                yield ("links", position, "gpus"), _no_gpu(index, len(nvlinks))
                continue
            nvlinks[index] += link.nvlinks
            if nvlinks[index] > MOST_NVLINKS:
                count = f"GPU {index} has {nvlinks[index]} NVLinks with those before"
                yield ("links", position, "nvlinks"), f"{count}, of at most {MOST_NVLINKS}"


def _mig_misfits(path: KeyPath, group: GpuGroup, wanted: Sequence[str]) -> _Misfits:
    try:
        check_partition(group.model, load_profile(group.model), wanted)
    except CannotPartition as error:
        yield path, str(error)


def _by_index(scenario: Scenario) -> list[GpuGroup]:
    return [group for group in scenario.gpus for _ in range(group.count)]


def _no_gpu(index: int, count: int) -> str:
    return f"{index}, but the node has GPUs 0 to {count - 1}"


def _folder() -> resources.abc.Traversable:
    return resources.files("sim").joinpath("scenarios")
