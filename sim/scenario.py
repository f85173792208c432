"""Scenarios: which GPUs a simulated node has and what happens to them. Validated, not run, here."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gpuplugin.config.yamltext import YamlError, read_yaml
from sim.profiles import UnknownModel, load_profile, model_names

MIG_SLICES = 7


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GpuGroup(_Part):
    """`count` GPUs of one model, spread evenly over `numa_nodes` (default: 2 from 2 GPUs on).

    `mig` puts each of them into MIG mode with devices of these profiles (an empty list: none).
    """

    model: str
    count: Annotated[int, Field(ge=1, le=64)] = 1
    numa_nodes: Annotated[int, Field(ge=1)] | None = None
    mig: list[str] | None = None


class XidFault(_Part):
    """The driver reports an Xid, and the GPU suffers what the catalogue says."""

    kind: Literal["xid"] = "xid"
    xid: Annotated[int, Field(ge=1, le=999)]


class EccFault(_Part):
    """An ECC event without an Xid."""

    kind: Literal["ecc"] = "ecc"
    uncorrectable: bool = False


class LostFault(_Part):
    """The GPU stops answering, without an Xid."""

    kind: Literal["lost"] = "lost"


class Recovery(_Part):
    """The GPU was reset, or the node rebooted: it answers again and all is as new."""

    kind: Literal["recover"] = "recover"


Happening = Annotated[XidFault | EccFault | LostFault | Recovery, Field(discriminator="kind")]
"""What can befall a GPU."""

HAPPENING: TypeAdapter[XidFault | EccFault | LostFault | Recovery] = TypeAdapter(Happening)


class TimedHappening(_Part):
    """`what` befalls the GPU with index `gpu`, `at_s` seconds after the start."""

    at_s: Annotated[float, Field(ge=0)]
    gpu: Annotated[int, Field(ge=0)]
    what: Happening


class Tenant(_Part):
    """A process on a GPU: constant load (`utilization`, 0 to 1) and memory, until the end."""

    name: str
    gpu: Annotated[int, Field(ge=0)]
    utilization: Annotated[float, Field(ge=0, le=1)] = 0.5
    memory_gib: Annotated[float, Field(ge=0)] = 1.0


class Scenario(_Part):
    """A node and its fate; the same scenario and seed give the same node."""

    name: str = "unnamed"
    description: str = ""
    seed: int = 1
    driver_version: str = "580.105.08"
    gpus: Annotated[list[GpuGroup], Field(min_length=1)]
    tenants: list[Tenant] = []
    happenings: list[TimedHappening] = []

    @property
    def gpu_count(self) -> int:
        """GPUs over all groups."""
        return sum(group.count for group in self.gpus)


class ScenarioError(Exception):
    """The scenario cannot be used; the text names the file and every wrong key."""


def scenario_names() -> tuple[str, ...]:
    """Scenarios that come with the package."""
    files = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml")))


def load_scenario(name_or_path: str) -> Scenario:
    """A shipped scenario by its name, or one of the user's by its path.

    Raises:
        ScenarioError: not found, not YAML, or not a scenario.
    """
    if name_or_path in scenario_names():
        text = _folder().joinpath(f"{name_or_path}.yaml").read_text("utf-8")
        return parse_scenario(text, name_or_path)
    try:
        text = Path(name_or_path).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ScenarioError(
            f"scenario {name_or_path}: {error}; shipped scenarios: {', '.join(scenario_names())}"
        ) from error
    return parse_scenario(text, name_or_path)


def parse_scenario(text: str, name: str) -> Scenario:
    """A scenario from YAML text.

    Raises:
        ScenarioError: with every key that is wrong.
    """
    try:
        scenario = Scenario.model_validate(read_yaml(text))
    except YamlError as error:
        raise ScenarioError(f"scenario {name} is not YAML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, details['loc']))}: {details['msg']}" for details in error.errors()
        )
        raise ScenarioError(f"scenario {name}: {problems}") from None
    _check_references(scenario, name)
    return scenario


def _check_references(scenario: Scenario, name: str) -> None:
    for group in scenario.gpus:
        if group.model not in model_names():
            raise ScenarioError(f"scenario {name}: gpus: {UnknownModel(group.model)}")
        _check_mig(group, name)
    count = scenario.gpu_count
    for part, indices in (
        ("tenants", [tenant.gpu for tenant in scenario.tenants]),
        ("happenings", [happening.gpu for happening in scenario.happenings]),
    ):
        for position, index in enumerate(indices):
            if index >= count:
                raise ScenarioError(
                    f"scenario {name}: {part}[{position}].gpu: {index}, but the node has GPUs "
                    f"0 to {count - 1}"
                )


def _check_mig(group: GpuGroup, name: str) -> None:
    """Known profiles only, and no more slices than a GPU has."""
    if group.mig is None:
        return
    known = [one.profile for one in load_profile(group.model).mig]
    for profile in group.mig:
        if profile not in known:
            raise ScenarioError(
                f"scenario {name}: gpus: {group.model} has no MIG profile {profile!r}; "
                f"known: {', '.join(known) or 'none'}"
            )
    slices = sum(int(profile.partition("g.")[0]) for profile in group.mig)
    if slices > MIG_SLICES:
        raise ScenarioError(
            f"scenario {name}: gpus: the MIG profiles of {group.model} take {slices} slices, "
            f"a GPU has {MIG_SLICES}"
        )


def _folder() -> resources.abc.Traversable:
    return resources.files("sim").joinpath("scenarios")
