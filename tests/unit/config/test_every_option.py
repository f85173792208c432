"""Every option of NVIDIA's plugin (v0.20.0), by each of its ways, against what its reference says.

| reference | here |
|---|---|
| 1.1 flag, alias, variable, file key, default | a row of ROWS, named after the flag |
| 1.1 config-file | test_the_config_file_flag_and_variable |
| 1.1 DP_DISABLE_HEALTHCHECKS, DP_ENABLE_HEALTHCHECKS | rows of OWN, test_health_options.py |
| 1.1 rule column | INVALID, named after the flag |
| 1.1 GFD, file section flags.gfd | test_the_section_of_feature_discovery_is_read |
| 1.1 GFD, variables GFD_* | test_variables_that_have_no_effect |
| 1.2 CLI > env > file > default | test_layers |
| 1.2 null counts as absent | test_null_in_the_file_is_the_default |
| 1.2 present but empty | test_a_variable_that_is_set_but_empty |
| 1.2 Go booleans | test_only_the_spellings_of_go_are_booleans |
| 1.2 a list on the command line replaces the other | test_layers[device-list-strategy] |
| - a list that is given several times | test_a_list_that_is_given_several_times_has_all_of_it |
| 1.3 YAML 1.1 words, JSON, empty file, version | test_load.py |
| 1.3 unknown keys | test_an_unknown_key (a deliberate difference: warned of) |
| 1.3 case of keys | test_the_case_of_* |
| 1.3 resource names | NAMES, WRONG_NAMES |
| 1.3 replicas | test_replicas (a deliberate difference: 1), test_load.py |
| 1.3 devices | DEVICES, WRONG_DEVICES |
| 1.3 rename | test_rename_* (a deliberate difference: works) |
| 1.3 renameByDefault | test_load.py, test_rename_wins_over_rename_by_default |
| 1.3 timeSlicing or mps null | test_no_strategy_at_all |
| 1.3 both strategies | test_both_strategies (a deliberate difference: an error) |
| 1.3 same resource twice | test_a_resource_named_twice (a deliberate difference) |
| 1.3 an entry for a resource that is not there | test_an_entry_for_nothing_is_skipped |
| 1.3 top-level resources | test_top_level_resources (a deliberate difference: work) |

Deliberate differences are those of docs/migrating-from-nvidia.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gpuplugin.cli.options import given_options, load
from gpuplugin.cli.parser import build_parser
from gpuplugin.config.load import load_settings
from gpuplugin.config.loaded import ConfigError, Loaded
from gpuplugin.config.options import OPTIONS, Kind
from gpuplugin.config.plans import inventory_plan, sharing_plan
from gpuplugin.core.inventory import Inventory, build_inventory
from gpuplugin.core.sharing import Selection
from tests.unit.builders import gpus, uuid_of_gpu

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from gpuplugin.config.loaded import Problem

Sample = tuple[str, object]
"""How a value is written, and the value."""


@dataclass(frozen=True)
class Row:
    """An option: its names, where its value ends up, and a sample for each layer.

    `samples` are for the file, the variable and the flag, in this order. `needs` are arguments
    without which the samples are refused.
    """

    flags: tuple[str, ...]
    variables: tuple[str, ...]
    key: str | None
    lands: str
    default: object
    samples: tuple[Sample, Sample, Sample]
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.flags[0]

    def found(self, got: Loaded) -> object:
        return attrgetter(self.lands)(got.settings)

    def file(self, text: str) -> str:
        """The file that sets this option and nothing else."""
        assert self.key is not None
        for key in reversed(self.key.split(".")):
            text = f"{{{key}: {text}}}"
        return text


BOOLS: tuple[Sample, Sample, Sample] = (("true", True), ("f", False), ("T", True))
PATHS: tuple[Sample, Sample, Sample] = (("/f", "/f"), ("/v", "/v"), ("/c", "/c"))
ZERO: Sample = ("0", [0])


def words(*texts: str) -> tuple[Sample, Sample, Sample]:
    one, two, three = texts
    return (one, one), (two, two), (three, three)


def daemon(
    flag: str, variable: str, lands: str, default: object, *samples: Sample, needs: str = ""
) -> Row:
    """An option of the daemon, which has no key in the file; its first sample is of no use."""
    two, three = samples
    own = (two, two, three)
    return Row((flag,), (variable,), None, f"daemon.{lands}", default, own, tuple(needs.split()))


PLUGIN = "flags.plugin"
NVIDIA = (
    Row(("mig-strategy",), ("MIG_STRATEGY",), "flags.migStrategy", "flags.mig_strategy", "none",
        words("single", "mixed", "none")),
    # A deliberate difference: false by default.
    Row(("fail-on-init-error",), ("FAIL_ON_INIT_ERROR",), "flags.failOnInitError",
        "flags.fail_on_init_error", False, BOOLS),
    Row(("driver-root", "nvidia-driver-root"), ("NVIDIA_DRIVER_ROOT",), "flags.nvidiaDriverRoot",
        "flags.nvidia_driver_root", "/", PATHS),
    Row(("dev-root", "nvidia-dev-root"), ("NVIDIA_DEV_ROOT",), "flags.nvidiaDevRoot",
        "flags.nvidia_dev_root", "", PATHS),
    Row(("pass-device-specs",), ("PASS_DEVICE_SPECS",), f"{PLUGIN}.passDeviceSpecs",
        f"{PLUGIN}.pass_device_specs", False, BOOLS),
    Row(("device-list-strategy",), ("DEVICE_LIST_STRATEGY",), f"{PLUGIN}.deviceListStrategy",
        f"{PLUGIN}.device_list_strategy", ["envvar"],
        (("[envvar, cdi-cri]", ["envvar", "cdi-cri"]),
         ("volume-mounts,cdi-annotations", ["volume-mounts", "cdi-annotations"]),
         ("cdi-cri", ["cdi-cri"]))),
    Row(("device-id-strategy",), ("DEVICE_ID_STRATEGY",), f"{PLUGIN}.deviceIDStrategy",
        f"{PLUGIN}.device_id_strategy", "uuid", words("index", "uuid", "index")),
    *(
        Row((f"{name}-enabled",), (f"{name.upper()}_ENABLED",), f"flags.{name}Enabled",
            f"flags.{name}_enabled", False, BOOLS)
        for name in ("gdrcopy", "gds", "mofed")
    ),
    Row(("cdi-annotation-prefix",), ("CDI_ANNOTATION_PREFIX",), f"{PLUGIN}.cdiAnnotationPrefix",
        f"{PLUGIN}.cdi_annotation_prefix", "cdi.k8s.io/", words("f.io/", "v.io/", "c.io/")),
    Row(("nvidia-cdi-hook-path", "nvidia-ctk-path"), ("NVIDIA_CDI_HOOK_PATH", "NVIDIA_CTK_PATH"),
        f"{PLUGIN}.nvidiaCTKPath", f"{PLUGIN}.nvidia_ctk_path", "/usr/bin/nvidia-ctk", PATHS),
    Row(("driver-root-ctr-path", "container-driver-root"),
        ("DRIVER_ROOT_CTR_PATH", "CONTAINER_DRIVER_ROOT"), f"{PLUGIN}.containerDriverRoot",
        f"{PLUGIN}.container_driver_root", "/driver-root", PATHS),
    Row(("mps-root",), ("MPS_ROOT",), "flags.mpsRoot", "flags.mps_root", "", PATHS),
    Row(("shared-devices-allocation-policy",), ("SHARED_DEVICES_ALLOCATION_POLICY",),
        f"{PLUGIN}.sharedDevicesAllocationPolicy", f"{PLUGIN}.shared_devices_allocation_policy",
        "distributed", words("packed", "spread", "spread-strict")),
    Row(("device-discovery-strategy",), ("DEVICE_DISCOVERY_STRATEGY",),
        "flags.deviceDiscoveryStrategy", "flags.device_discovery_strategy", "auto",
        words("nvml", "auto", "nvml")),
    Row(("imex-channel-ids",), ("IMEX_CHANNEL_IDS",), "imex.channelIDs", "imex.channel_ids", [],
        (("[0]", [0]), ZERO, ZERO)),
    Row(("imex-required",), ("IMEX_REQUIRED",), "imex.required", "imex.required", False, BOOLS),
    daemon("kubelet-socket", "KUBELET_SOCKET", "kubelet_socket", None, *PATHS[1:]),
    daemon("cdi-feature-flags", "CDI_FEATURE_FLAGS", "cdi_feature_flags", [],
           ("a, b", ["a", "b"]), ("c", ["c"])),
    daemon("cdi-disable-hooks", "CDI_DISABLE_HOOKS", "cdi_disable_hooks", [],
           ("all", ["all"]), ("update-ldcache,x", ["update-ldcache", "x"])),
)  # fmt: skip
OWN = (
    Row(("include-gpus",), ("GPUPLUGIN_INCLUDE_GPUS",), "gpus.include", "gpus.include", [],
        (("['0']", ["0"]), ("1,2", ["1", "2"]), ("NVIDIA H100*", ["NVIDIA H100*"]))),
    Row(("exclude-gpus",), ("GPUPLUGIN_EXCLUDE_GPUS",), "gpus.exclude", "gpus.exclude", [],
        (("'7'", ["7"]), ("1, 2", ["1", "2"]), ("0000:07:00.0", ["0000:07:00.0"]))),
    Row(("health-quiet-period",), ("GPUPLUGIN_HEALTH_QUIET_PERIOD",), "health.quietPeriod",
        "health.quiet_period", 30, (("1m", 60), ("500ms", 0.5), ("1m30s", 90))),
    Row(("health-probe-interval",), ("GPUPLUGIN_HEALTH_PROBE_INTERVAL",), "health.probeInterval",
        "health.probe_interval", 5, (("1", 1), ("2s", 2), (".5h", 1800))),
    Row(("health-blind-after",), ("GPUPLUGIN_HEALTH_BLIND_AFTER",), "health.blindAfter",
        "health.blind_after", 10, (("1m", 60), ("500ms", 0.5), ("3s", 3))),
    Row(("health-evict-lost",), ("GPUPLUGIN_HEALTH_EVICT_LOST",), "health.evictLost",
        "health.evict_lost", False, BOOLS),
    Row(("health-fabric-check",), ("GPUPLUGIN_HEALTH_FABRIC_CHECK",), "health.fabricCheck",
        "health.fabric_check", True, BOOLS),
    Row(("health-confidential-check",), ("GPUPLUGIN_HEALTH_CONFIDENTIAL_CHECK",),
        "health.confidentialCheck", "health.confidential_check", True, BOOLS),
    Row(("health-ignore-xids",), ("DP_DISABLE_HEALTHCHECKS",), "health.ignoreXids",
        "health.ignore_xids", [],
        (("[13, all]", [13, "all"]), ("74, XIDS", [74, "xids"]), ("79", [79]))),
    Row(("health-fatal-xids",), ("DP_ENABLE_HEALTHCHECKS",), "health.fatalXids",
        "health.fatal_xids", [], (("79", [79]), ("all", ["all"]), ("1,2", [1, 2]))),
    daemon("backend", "GPUPLUGIN_BACKEND", "backend", "nvml", ("sim", "sim"), ("nvml", "nvml")),
    daemon("scenario", "GPUPLUGIN_SCENARIO", "scenario", "default", ("mig", "mig"), ("a", "a")),
    daemon("sysfs-root", "GPUPLUGIN_SYSFS_ROOT", "sysfs_root", Path("/sys"), ("/v", Path("/v")),
           ("/c", Path("/c"))),
    daemon("procfs-root", "GPUPLUGIN_PROCFS_ROOT", "procfs_root", Path("/proc"),
           ("/v", Path("/v")), ("/c", Path("/c"))),
    daemon("kubelet-dir", "GPUPLUGIN_KUBELET_DIR", "kubelet_dir", Path("/var/lib/kubelet"),
           ("/v", Path("/v")), ("/c", Path("/c"))),
    daemon("registration", "GPUPLUGIN_REGISTRATION", "registration", None,
           ("classic", "classic"), ("none", "none")),
    daemon("listen-address", "GPUPLUGIN_LISTEN_ADDRESS", "listen_address", "0.0.0.0:2112",
           ("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:2112", "[::1]:2112")),
    daemon("log-level", "GPUPLUGIN_LOG_LEVEL", "log_level", "info", ("debug", "debug"),
           ("error", "error")),
    daemon("log-format", "GPUPLUGIN_LOG_FORMAT", "log_format", "text", ("json", "json"),
           ("text", "text")),
    daemon("strict-config", "GPUPLUGIN_STRICT_CONFIG", "strict_config", False, ("1", True),
           ("0", False)),
    daemon("cdi-root", "GPUPLUGIN_CDI_ROOT", "cdi_root", Path("/var/run/cdi"), ("/v", Path("/v")),
           ("/c", Path("/c"))),
    daemon("allocation", "GPUPLUGIN_ALLOCATION", "allocation", "device-plugin", ("dra", "dra"),
           ("device-plugin", "device-plugin"), needs="--node-name=gpu-1"),
    daemon("dra-driver-name", "GPUPLUGIN_DRA_DRIVER_NAME", "dra_driver_name", "gpu.gpuplugin.dev",
           ("gpu.example.com", "gpu.example.com"), ("a", "a")),
    daemon("kubernetes-reports", "GPUPLUGIN_KUBERNETES_REPORTS", "kubernetes_reports", False,
           ("t", True), ("F", False), needs="--node-name=gpu-1"),
    daemon("node-labels", "GPUPLUGIN_NODE_LABELS", "node_labels", "off",
           ("node-feature", "node-feature"), ("file", "file"), needs="--node-name=gpu-1"),
    daemon("node-name", "NODE_NAME", "node_name", "", ("a-1.b", "a-1.b"), ("c", "c")),
    daemon("config-map-dir", "GPUPLUGIN_CONFIG_MAP_DIR", "config_map_dir", "", ("/v", "/v"),
           ("/c", "/c"), needs="--node-name=gpu-1"),
    daemon("default-config", "DEFAULT_CONFIG", "default_config", "", ("a", "a"), ("b", "b")),
    daemon("pod-files", "GPUPLUGIN_POD_FILES", "pod_files", "", ("/v", "/v"), ("/c", "/c")),
    daemon("rpc-engine", "GPUPLUGIN_RPC_ENGINE", "rpc_engine", "fast", ("grpcio", "grpcio"),
           ("fast", "fast")),
    daemon("metrics-interval", "GPUPLUGIN_METRICS_INTERVAL", "metrics_interval", 15.0, ("2s", 2.0),
           ("1m", 60.0)),
    daemon("pod-metrics", "GPUPLUGIN_POD_METRICS", "pod_metrics", True, ("f", False), ("T", True)),
    daemon("dcgm-metrics", "GPUPLUGIN_DCGM_METRICS", "dcgm_metrics", False,
           ("t", True), ("F", False)),
    daemon("host-proc", "GPUPLUGIN_HOST_PROC", "host_proc", Path("/proc"), ("/v", Path("/v")),
           ("/c", Path("/c"))),
    daemon("pod-logs", "GPUPLUGIN_POD_LOGS", "pod_logs", Path("/var/log/pods"), ("/v", Path("/v")),
           ("/c", Path("/c"))),
)  # fmt: skip
ROWS = (*NVIDIA, *OWN)

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@cache
def parser() -> argparse.ArgumentParser:
    return build_parser()


class Files:
    """Writes a file's text and loads it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "config.yaml"

    def load(self, text: str, *arguments: str, **environment: str) -> Loaded:
        self.path.write_text(text, encoding="utf-8")
        given = given_options(parser().parse_args(["run", *arguments]))
        return load_settings(given, environment, str(self.path))

    def problem(self, text: str, *arguments: str, **environment: str) -> Problem:
        """The one thing that is wrong."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, *arguments, **environment)
        (problem,) = caught.value.problems
        return problem

    def entry(self, text: str) -> Loaded:
        return self.load(shared(text))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def shared(*entries: str) -> str:
    return f"sharing: {{timeSlicing: {{resources: [{', '.join(entries)}]}}}}"


def inventory(got: Loaded, count: int = 3) -> Inventory:
    return build_inventory(gpus(count), inventory_plan(got.settings))


def sizes(got: Loaded, count: int = 3) -> dict[str, int]:
    """Devices by resource on a node with a few GPUs."""
    return {one.name: len(one.devices) for one in inventory(got, count).resources}


# 1.1 and 1.2: names, defaults, layers


def test_the_rows_are_all_the_options_there_are() -> None:
    named = {(tuple(f"--{flag}" for flag in row.flags), row.variables) for row in ROWS}

    assert named == {(option.flags, option.variables) for option in OPTIONS}


@every_row
def test_the_default(files: Files, row: Row) -> None:
    assert row.found(files.load("")) == row.default


@pytest.mark.parametrize(
    ("row", "flag"), [(row, flag) for row in ROWS for flag in row.flags], ids=str
)
def test_every_flag_and_alias(files: Files, row: Row, flag: str) -> None:
    for text, value in row.samples[1:]:
        assert row.found(files.load("", f"--{flag}", text, *row.needs)) == value
        assert row.found(files.load("", f"--{flag}={text}", *row.needs)) == value


@pytest.mark.parametrize(
    ("row", "variable"), [(row, name) for row in ROWS for name in row.variables], ids=str
)
def test_every_variable_and_alias(files: Files, row: Row, variable: str) -> None:
    for text, value in row.samples[1:]:
        assert row.found(files.load("", *row.needs, **{variable: text})) == value


WITH_KEY = [row for row in ROWS if row.key is not None]


@pytest.mark.parametrize("row", WITH_KEY, ids=lambda row: row.name)
def test_every_key_of_the_file(files: Files, row: Row) -> None:
    text, value = row.samples[0]
    got = files.load(row.file(text))

    assert row.found(got) == value
    assert got.warnings == ()


@pytest.mark.parametrize("row", WITH_KEY, ids=lambda row: row.name)
def test_null_in_the_file_is_the_default(files: Files, row: Row) -> None:
    assert row.found(files.load(row.file("null"))) == row.default


@pytest.mark.parametrize("row", WITH_KEY, ids=lambda row: row.name)
def test_every_key_of_the_file_in_another_case(files: Files, row: Row) -> None:
    text, value = row.samples[0]
    assert row.key is not None
    for key in (row.key.upper(), row.key.lower(), row.key.title()):
        other = Row(row.flags, row.variables, key, row.lands, row.default, row.samples)
        got = files.load(other.file(text))
        assert row.found(got) == value
        assert got.warnings == ()


@every_row
def test_layers(files: Files, row: Row) -> None:
    file, variable, flag = row.samples
    text = row.file(file[0]) if row.key else ""
    environment = {row.variables[0]: variable[0]}

    assert row.found(files.load(text, *row.needs, **environment)) == variable[1]
    given = (f"--{row.name}={flag[0]}", *row.needs)
    assert row.found(files.load(text, *given, **environment)) == flag[1]


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        ("--device-list-strategy=envvar --device-list-strategy cdi-cri", ["envvar", "cdi-cri"]),
        ("--device-list-strategy envvar,cdi-cri --device-list-strategy volume-mounts",
         ["envvar", "cdi-cri", "volume-mounts"]),
        ("--cdi-disable-hooks a --cdi-disable-hooks b", ["a", "b"]),
        ("--exclude-gpus=1 --exclude-gpus=2", ["1", "2"]),
        ("--health-ignore-xids 13 --health-ignore-xids=31,43", [13, 31, 43]),
    ],
)  # fmt: skip
def test_a_list_that_is_given_several_times_has_all_of_it(
    files: Files, arguments: str, values: list[object]
) -> None:
    words = arguments.split()
    (row,) = (row for row in ROWS if words[0].partition("=")[0] == f"--{row.name}")

    assert row.found(files.load("", *words, **{row.variables[0]: ""})) == values


@pytest.mark.parametrize("row", [row for row in ROWS if len(row.variables) > 1], ids=str)
def test_the_first_of_two_variables_wins(files: Files, row: Row) -> None:
    first, second = row.variables

    assert row.found(files.load("", **{first: "/1", second: "/2"})) == "/1"
    assert row.found(files.load("", **{second: "/2", first: ""})) == ""


def test_the_config_file_flag_and_variable(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("flags: {mpsRoot: /other}")
    monkeypatch.setenv("CONFIG_FILE", str(other))
    assert load(build_parser().parse_args(["run"])).settings.flags.mps_root == "/other"
    files.load("flags: {mpsRoot: /flag}")
    given = build_parser().parse_args(["run", "--config-file", str(files.path)])
    assert load(given).settings.flags.mps_root == "/flag"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GFD_MIG_STRATEGY", "mixed"),
        ("GFD_SLEEP_INTERVAL", "nonsense"),
    ],
)
def test_variables_that_have_no_effect(files: Files, variable: str, value: str) -> None:
    got = files.load("", **{variable: value})

    assert got.settings == files.load("").settings


def test_the_section_of_feature_discovery_is_read(files: Files) -> None:
    values = {
        "oneshot": True,
        "noTimestamp": True,
        "sleepInterval": "infinite",
        "outputFile": "/o",
        "machineTypeFile": "/m",
        "useNodeFeatureAPI": False,
    }
    got = files.load(json.dumps({"flags": {"gfd": values}}))
    gfd = got.settings.flags.gfd

    assert got.warnings == ()
    assert (gfd.oneshot, gfd.no_timestamp, gfd.sleep_interval) == (True, True, float("inf"))
    assert (gfd.output_file, gfd.machine_type_file) == ("/o", "/m")
    assert not gfd.use_node_feature_api


# 1.2: variables that are set but empty, booleans

CLOSED = {
    "mig-strategy", "device-id-strategy", "shared-devices-allocation-policy",
    "device-discovery-strategy", "backend", "registration", "log-level", "log-format",
    "rpc-engine", "allocation", "node-labels",
}  # fmt: skip
"""Options whose text is one of a few words: the empty one is not among them."""
NEVER_EMPTY = {
    "kubelet-dir", "cdi-root", "sysfs-root", "procfs-root", "listen-address", "host-proc",
    "pod-logs", "dra-driver-name",
}  # fmt: skip
KIND = {option.flags[0].removeprefix("--"): option.kind for option in OPTIONS}


@every_row
def test_a_variable_that_is_set_but_empty(files: Files, row: Row) -> None:
    text = row.file(row.samples[0][0]) if row.key else ""
    below = row.samples[0][1] if row.key else row.default
    environment = {row.variables[0]: ""}
    if row.name in CLOSED:
        problem = files.problem(text, **environment)
        assert problem.where == row.variables[0]
        assert "found ''" in problem.message
        return
    if row.name in NEVER_EMPTY:
        assert files.problem(text, **environment).where == row.variables[0]
        return
    found = row.found(files.load(text, **environment))
    match KIND[row.name]:
        case Kind.BOOL:
            assert found is False
        case Kind.STRING:
            assert found == ""
        case _:
            assert found == below


BOOL_ROWS = [row for row in ROWS if KIND[row.name] is Kind.BOOL]


@pytest.mark.parametrize("row", BOOL_ROWS, ids=lambda row: row.name)
def test_only_the_spellings_of_go_are_booleans(files: Files, row: Row) -> None:
    for text in ("1", "t", "T", "TRUE", "true", "True"):
        assert row.found(files.load("", *row.needs, **{row.variables[0]: text})) is True
        assert row.found(files.load("", f"--{row.name}={text}", *row.needs)) is True
    for text in ("0", "f", "F", "FALSE", "false", "False"):
        assert row.found(files.load("", *row.needs, **{row.variables[0]: text})) is False
    for text in ("yes", "no", "on", "tRUE", "2", "true "):
        assert files.problem("", **{row.variables[0]: text}).where == row.variables[0]
        assert files.problem("", f"--{row.name}={text}").where == f"--{row.name}"


# 1.1, last column: what is refused

INVALID: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("mig-strategy", ("triple", "Mixed", " none"), ("triple", "NONE", "5", "true", "[none]")),
    ("device-list-strategy", ("cdi", "envvar,cdi", "Envvar"), ("cdi", "[envvar, x]", "[1]", "7")),
    ("device-id-strategy", ("name", "UUID"), ("name", "0")),
    ("shared-devices-allocation-policy", ("random", "Packed"), ("random", "[packed]")),
    # A deliberate difference: Tegra is not supported.
    ("device-discovery-strategy", ("tegra", "wsl", "vfio"), ("tegra", "wsl", "vfio", "1")),
    ("imex-channel-ids", ("1", "0,0", "0,1", "-1", "x", "0.5"), ("[1]", "[0, 0]", "['0']", "0")),
    ("fail-on-init-error", ("maybe",), ("'true'", "1", "maybe", "[true]")),
    ("pass-device-specs", ("maybe",), ("'true'", "1")),
    ("gdrcopy-enabled", ("maybe",), ("'false'",)),
    ("gds-enabled", ("maybe",), ("0",)),
    ("mofed-enabled", ("maybe",), ("{}",)),
    ("imex-required", ("maybe",), ("'1'",)),
    ("driver-root", (), ("5", "[/]", "true")),
    ("dev-root", (), ("5",)),
    ("mps-root", (), ("5",)),
    ("cdi-annotation-prefix", (), ("5",)),
    ("nvidia-cdi-hook-path", (), ("[a]",)),
    ("driver-root-ctr-path", (), ("{a: b}",)),
    ("health-quiet-period", ("0s", "9ms", "30", "-1s", "soon"), ("0", "soon", "'30'", "[1s]")),
    ("health-probe-interval", ("9ms", "5"), ("-1s", "0.005", ".inf", "true")),
    ("include-gpus", (), ("5.5", "[0.5]", "[-1]", "[true]", "{a: b}")),
    ("exclude-gpus", (), ("true",)),
    ("kubelet-dir", ("",), ()),
    ("cdi-root", ("",), ()),
    ("sysfs-root", ("",), ()),
    ("procfs-root", ("",), ()),
    (
        "listen-address",
        (
            "",
            "0",
            ":0",
            "nowhere",
            "host:",
            "host:x",
            "host:70000",
            "::1:0",
            "[::1]",
            "[]:1",
            "[x]:1",
            "[::1:2",
            "::1]:2",
            "a b:1",
            "host:\u0661",
        ),
        (),
    ),
    ("registration", ("x",), ()),
    ("backend", ("x",), ()),
    ("log-level", ("x", "INFO"), ()),
    ("log-format", ("x",), ()),
    ("rpc-engine", ("x",), ()),
)
BY_NAME = {row.name: row for row in ROWS}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts, _ in INVALID for text in texts]
)
def test_a_flag_or_variable_that_is_refused(files: Files, name: str, text: str) -> None:
    row = BY_NAME[name]
    by_flag = files.problem("", f"--{name}={text}")
    by_variable = files.problem("", **{row.variables[0]: text})

    assert by_flag.where == f"--{name}"
    assert by_variable.where == row.variables[0]
    assert by_flag.message == by_variable.message
    assert row.key is None or by_flag.key.startswith(row.key)


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, _, texts in INVALID for text in texts]
)
def test_a_value_of_the_file_that_is_refused(files: Files, name: str, text: str) -> None:
    row = BY_NAME[name]
    assert row.key is not None
    problem = files.problem(row.file(text))

    assert problem.where == f"{files.path}:1"
    assert problem.key.startswith(row.key)


def test_an_unknown_policy_names_those_that_there_are(files: Files) -> None:
    message = files.problem("", "--shared-devices-allocation-policy=x").message

    for policy in ("distributed", "packed", "spread", "spread-strict"):
        assert f"'{policy}'" in message


@pytest.mark.parametrize(
    ("arguments", "way"),
    [
        ((), "watcher"),
        (("--kubelet-socket=/s",), "classic"),
        (("--kubelet-socket=",), "none"),
        (("--kubelet-socket=/s", "--registration=watcher"), "watcher"),
    ],
)
def test_the_kubelet_socket_says_how_to_register(
    files: Files, arguments: Sequence[str], way: str
) -> None:
    assert files.load("", *arguments).settings.daemon.way_of_registration == way


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("flags: {plugin: {deviceListStrategy: []}}", ()),
        ("{}", ("--device-list-strategy=",)),
        ("{}", ("--device-list-strategy=", "--strict-config")),
    ],
)
def test_an_empty_device_list_strategy_is_accepted_with_a_warning(
    files: Files, text: str, arguments: Sequence[str]
) -> None:
    got = files.load(text, *arguments)
    (warning,) = got.warnings

    assert got.settings.flags.plugin.device_list_strategy == []
    assert warning.where == (arguments[0].rstrip("=") if arguments else f"{files.path}:1")
    assert warning.key == "flags.plugin.deviceListStrategy"
    assert "containers get no device" in warning.message


@pytest.mark.parametrize("text", ["x", "0,x", "-1", "0.5", "0_0", "\u0660"])
def test_words_for_imex_channels_that_are_no_numbers(files: Files, text: str) -> None:
    message = files.problem("", f"--imex-channel-ids={text}").message

    assert message == f"must be 0 or empty, found {text!r}"


@pytest.mark.parametrize("key", ["quietPeriod", "probeInterval"])
def test_periods_have_a_floor(files: Files, key: str) -> None:
    problem = files.problem(f"health: {{{key}: 9ms}}")
    got = files.load(f"health: {{{key}: 10ms}}").settings.health

    assert problem.message == "must be at least 10ms, found 0.009s"
    assert 0.01 in (got.quiet_period, got.probe_interval)


@pytest.mark.parametrize("text", ["0", "0s", "0.0s"])
def test_a_period_of_0_is_never(files: Files, text: str) -> None:
    given = files.load("", f"--health-probe-interval={text}", f"--metrics-interval={text}")

    assert (given.settings.health.probe_interval, given.settings.daemon.metrics_interval) == (0, 0)
    assert files.load(f"health: {{probeInterval: {text}}}").settings.health.probe_interval == 0


@pytest.mark.parametrize("name", ["kubelet-dir", "cdi-root", "sysfs-root", "procfs-root"])
def test_folders_are_absolute_and_never_empty(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)

    found = BY_NAME[name].found(files.load("", f"--{name}=a/b"))
    assert found == tmp_path / "a/b"
    assert files.problem("", f"--{name}=").message == "must not be empty"


REPORTS = "--kubernetes-reports"
DRA = "--allocation=dra"


LABELS = ("--node-labels=node", "--node-labels=node-feature")


@pytest.mark.parametrize("option", [REPORTS, DRA, *LABELS])
@pytest.mark.parametrize(
    ("environment", "where"), [({}, ""), ({"NODE_NAME": ""}, "NODE_NAME")], ids=["unset", "empty"]
)
def test_who_asks_the_api_server_needs_the_name_of_the_node(
    files: Files, environment: dict[str, str], where: str, option: str
) -> None:
    problem = files.problem("", option, **environment)

    assert (problem.where, problem.key) == (where, "daemon.nodeName")
    for remedy in (
        option.replace("=", " "),
        "NODE_NAME",
        "fieldPath: spec.nodeName",
        "--node-name",
    ):
        assert remedy in problem.message


@pytest.mark.parametrize("name", ["a/b", "Node", "..", "a b", "-a", "a.", "\u0660", "a" * 254])
def test_the_name_of_the_node_is_looked_at_where_it_is_needed(files: Files, name: str) -> None:
    problem = files.problem("", REPORTS, NODE_NAME=name)

    assert (problem.where, problem.key) == ("NODE_NAME", "daemon.nodeName")
    assert problem.message.endswith(f"found {name!r}")
    assert files.load("", NODE_NAME=name).settings.daemon.node_name == name


@pytest.mark.parametrize("name", ["", "Gpu.example.com", "a/b", "a..b", "-a", "a_b", "a" * 64])
def test_the_name_of_a_driver_is_a_subdomain(files: Files, name: str) -> None:
    problem = files.problem("", f"--dra-driver-name={name}")
    assert (problem.where, problem.key) == ("--dra-driver-name", "daemon.draDriverName")


def test_a_folder_of_configurations_needs_the_name_of_the_node(files: Files) -> None:
    """Which is told beside what else is wrong, and once where reports need the name too."""
    folder = "--config-map-dir=/maps"
    problem = files.problem("", folder)
    assert (problem.where, problem.key) == ("--config-map-dir", "daemon.configMapDir")
    assert "NODE_NAME" in problem.message
    assert files.problem("", folder, REPORTS).key == "daemon.nodeName"
    with pytest.raises(ConfigError) as caught:
        files.load("", folder, "--log-level=x")
    assert {one.key for one in caught.value.problems} == {"daemon.configMapDir", "daemon.logLevel"}


# 1.3: entries of sharing.timeSlicing.resources

NAMES = (
    ("gpu", "nvidia.com/gpu"),
    ("nvidia.com/gpu", "nvidia.com/gpu"),
    ("mig-1g.5gb", "nvidia.com/mig-1g.5gb"),
    ("gpu.shared", "nvidia.com/gpu.shared"),
    ("'0'", "nvidia.com/0"),
    ("a" * 52, "nvidia.com/" + "a" * 52),
)
WRONG_NAMES = (
    "amd.com/gpu", "nvidia.com/a/b", "/gpu", "gpu/", "nvidia.com/", "''", "GPU", "gpu_1", "-gpu",
    "gpu-", ".gpu", "gpu.", "a..b", "gpü", "'g pu'", "a" * 53, "nvidia.com/" + "a" * 53,
)  # fmt: skip


@pytest.mark.parametrize(("written", "full"), NAMES)
def test_a_resource_name(files: Files, written: str, full: str) -> None:
    (entry,) = sharing_plan(files.entry(f"{{name: {written}, replicas: 2}}").settings).resources

    assert entry.name == full


@pytest.mark.parametrize("field", ["name", "rename"])
@pytest.mark.parametrize("written", WRONG_NAMES)
def test_a_resource_name_that_is_refused(files: Files, field: str, written: str) -> None:
    entry = {"name": "name: gpu", "rename": "rename: x"} | {field: f"{field}: {written}"}
    problem = files.problem(shared(f"{{{entry['name']}, {entry['rename']}, replicas: 2}}"))

    assert problem.key == f"sharing.timeSlicing.resources[0].{field}"


@pytest.mark.parametrize(("written", "devices"), [("1", 3), ("2", 6), ("2.0", 6), ("16384", 49152)])
def test_replicas(files: Files, written: str, devices: int) -> None:
    """A deliberate difference: 1 is not refused, and means not shared."""
    got = files.entry(f"{{name: gpu, replicas: {written}}}")

    assert sizes(got) == {"nvidia.com/gpu": devices}


def test_one_replica_has_no_replica_number(files: Files) -> None:
    (resource,) = inventory(files.entry("{name: gpu, replicas: 1}")).resources

    assert [device.id for device in resource.devices] == [uuid_of_gpu(gpu) for gpu in range(3)]


def test_one_replica_is_not_renamed(files: Files) -> None:
    text = "sharing: {timeSlicing: {renameByDefault: true, resources: [{name: gpu, replicas: 1}]}}"

    assert sizes(files.load(text)) == {"nvidia.com/gpu": 3}


UUID = "00000000-0000-4000-8000-00000000000a"
DEVICES: tuple[tuple[str, Selection], ...] = (
    ("all", Selection()),
    ("1", Selection(count=1)),
    ("2.0", Selection(count=2)),
    ("99", Selection(count=99)),
    ("[0]", Selection(ids=frozenset({"0"}))),
    ("['0', 1]", Selection(ids=frozenset({"0", "1"}))),
    ("['0:1']", Selection(ids=frozenset({"0:1"}))),
    (f"[GPU-{UUID}]", Selection(ids=frozenset({f"GPU-{UUID}"}))),
    (f"[MIG-{UUID}]", Selection(ids=frozenset({f"MIG-{UUID}"}))),
    (f"[MIG-GPU-{UUID}/3/0]", Selection(ids=frozenset({f"MIG-GPU-{UUID}/3/0"}))),
    (f"[0, '0:1', GPU-{UUID}]", Selection(ids=frozenset({"0", "0:1", f"GPU-{UUID}"}))),
)
WRONG_DEVICES = (
    "0", "-1", "1.5", "true", "ALL", "none", "'2'", "[]", "{a: 1}", "''", "[all]", "[-1]",
    "[1.5]", "[true]", "[null]", "['']", "[' 0']", "['-1']", "['0x1']", "['0:']", "[':1']",
    "['0:1:2']", "['0:-1']", "[[0]]", f"[{UUID}]", f"[gpu-{UUID}]", "[GPU-]", "[GPU-x]",
    f"[GPU-{UUID[:-1]}]", f"[GPU-{UUID}0]", f"[GPU-{UUID[:-1]}g]", f"['GPU-{UUID}::0']",
    f"[GPU-{UUID.replace('-', '')}]", f"[MIG-{UUID[1:]}]", f"[MIG-GPU-{UUID}]",
    f"[MIG-GPU-{UUID}/1]", f"[MIG-GPU-{UUID}/a/0]", f"[MIG-GPU-{UUID}/1/0/0]",
    f"[MIG-GPU-{UUID[:-1]}/1/0]", "['\u0661']", f"[0, GPU-{UUID[:-1]}]",
)  # fmt: skip


@pytest.mark.parametrize(("written", "selection"), DEVICES)
def test_devices(files: Files, written: str, selection: Selection) -> None:
    got = files.entry(f"{{name: gpu, devices: {written}, replicas: 2}}")

    assert sharing_plan(got.settings).resources[0].selection == selection
    only_mig = selection.ids is not None and not selection.ids & {"0", f"GPU-{UUID}"}
    assert [one.message for one in got.warnings] == only_mig * [
        "has no effect: it lists MIG devices only, and the MIG strategy is none"
    ]


@pytest.mark.parametrize("written", WRONG_DEVICES)
def test_devices_that_are_refused(files: Files, written: str) -> None:
    problem = files.problem(shared(f"{{name: gpu, devices: {written}, replicas: 2}}"))

    assert problem.key == "sharing.timeSlicing.resources[0].devices"


@pytest.mark.parametrize(
    ("written", "count"),
    [("all", 6), ("1", 4), ("9", 6), ("[2]", 4), (f"['0', {uuid_of_gpu(1)}]", 5), ("[7]", 3)],
)
def test_devices_are_honoured(files: Files, written: str, count: int) -> None:
    """A deliberate difference: NVIDIA's plugin reads the selection and shares all."""
    assert sizes(files.entry(f"{{name: gpu, devices: {written}, replicas: 2}}")) == {
        "nvidia.com/gpu": count
    }


def test_a_uuid_means_the_same_device_in_either_case(files: Files) -> None:
    """What is well-formed but in capitals is accepted, so it must find the device."""
    uuid = "GPU-0000000A-0000-4000-8000-000000000000"
    got = files.entry(f"{{name: gpu, devices: [{uuid}], replicas: 2}}")
    (resource,) = build_inventory(gpus(11), inventory_plan(got.settings)).resources

    assert [device.gpu_index for device in resource.devices if device.replica is not None] == [
        10,
        10,
    ]


def test_an_index_may_be_written_as_a_number_where_gpus_are_included(files: Files) -> None:
    """As in `devices` of a shared resource."""
    assert sizes(files.load("gpus: {include: [0, 2]}")) == {"nvidia.com/gpu": 2}
    assert sizes(files.load("gpus: {exclude: 1.0}")) == {"nvidia.com/gpu": 2}


@pytest.mark.parametrize("change", [str.upper, str.lower])
def test_a_uuid_in_either_case_names_the_gpu_that_is_included(
    files: Files, change: Callable[[str], str]
) -> None:
    got = files.load(f"gpus: {{include: [{change(uuid_of_gpu(10))}]}}")
    found = inventory(got, 11)

    assert [device.gpu_index for one in found.resources for device in one.devices] == [10]
    assert found.notes == ()


@pytest.mark.parametrize("key", ["rename", "devices"])
def test_null_in_an_entry_counts_as_absent(files: Files, key: str) -> None:
    assert sizes(files.entry(f"{{name: gpu, {key}: null, replicas: 2}}")) == {"nvidia.com/gpu": 6}


def test_rename_is_honoured(files: Files) -> None:
    """A deliberate difference: NVIDIA's plugin reads the name and drops it."""
    assert sizes(files.entry("{name: gpu, rename: small, replicas: 2}")) == {"nvidia.com/small": 6}


def test_rename_wins_over_rename_by_default(files: Files) -> None:
    entries = "[{name: gpu, devices: [0], rename: small, replicas: 2}, {name: gpu, replicas: 4}]"
    got = files.load(f"sharing: {{timeSlicing: {{renameByDefault: true, resources: {entries}}}}}")

    assert sizes(got) == {"nvidia.com/gpu.shared": 8, "nvidia.com/small": 2}


def test_the_length_of_a_name_made_by_default_is_not_checked_again(files: Files) -> None:
    name = "a" * 52
    entry = f"[{{name: {name}, replicas: 2}}]"
    got = files.load(f"sharing: {{timeSlicing: {{renameByDefault: true, resources: {entry}}}}}")
    plan = sharing_plan(got.settings)

    assert plan.advertised_name(plan.resources[0]) == f"nvidia.com/{name}.shared"


def test_a_resource_named_twice(files: Files) -> None:
    """A deliberate difference: the entry that names devices wins, not the later one."""
    for entries in (
        ("{name: gpu, devices: [1], replicas: 5}", "{name: gpu, replicas: 2}"),
        ("{name: gpu, replicas: 2}", "{name: gpu, devices: [1], replicas: 5}"),
    ):
        assert sizes(files.load(shared(*entries))) == {"nvidia.com/gpu": 9}
    later = shared("{name: gpu, replicas: 2}", "{name: gpu, replicas: 3}")
    assert sizes(files.load(later)) == {"nvidia.com/gpu": 9}


def test_an_entry_for_nothing_is_skipped(files: Files) -> None:
    got = files.load(shared("{name: mig-1g.5gb, replicas: 2}", "{name: gpu, replicas: 2}"))

    assert sizes(got) == {"nvidia.com/gpu": 6}


def test_top_level_resources(files: Files) -> None:
    """A deliberate difference: NVIDIA's plugin reads them and drops them."""
    text = "resources: {gpus: [{pattern: Test*, name: test}, {pattern: '*', name: gpu}]}"

    assert sizes(files.load(text)) == {"nvidia.com/test": 3}


@pytest.mark.parametrize("kind", ["gpus", "mig"])
@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ("{name: gpu}", "pattern"),
        ("{pattern: '', name: gpu}", "pattern"),
        ("{pattern: 5, name: gpu}", "pattern"),
        ("{pattern: '*'}", "name"),
        ("{pattern: '*', name: amd.com/gpu}", "name"),
        ("{pattern: '*', name: A}", "name"),
    ],
)
def test_top_level_resources_that_are_refused(
    files: Files, kind: str, entry: str, field: str
) -> None:
    problem = files.problem(f"resources: {{{kind}: [{entry}]}}")

    assert problem.key == f"resources.{kind}[0].{field}"


# 1.3: strategies


@pytest.mark.parametrize(
    "text", ["sharing: {mps: null}", "sharing: {mps: ~}", "sharing: null", "sharing: {}"]
)
def test_no_strategy_at_all(files: Files, text: str) -> None:
    got = files.load(text)

    assert sharing_plan(got.settings).resources == ()
    assert got.warnings == ()


MPS = "{resources: [{name: gpu, replicas: 2}]}"


def test_mps_is_an_error(files: Files) -> None:
    """A deliberate difference."""
    assert files.problem(f"sharing: {{mps: {MPS}}}").key == "sharing.mps"


def test_both_strategies(files: Files) -> None:
    """A deliberate difference: NVIDIA's plugin takes mps without a word."""
    problem = files.problem(f"sharing: {{timeSlicing: {MPS}, mps: {MPS}}}")

    assert problem.key == "sharing.mps"
    assert "time" in problem.message


# 1.3: keys in another case, unknown keys


def test_the_case_of_keys_of_sections_is_of_no_account(files: Files) -> None:
    text = (
        "Version: v1\nSHARING:\n  timeslicing:\n    RenameByDefault: true\n"
        "    FAILREQUESTSGREATERTHANONE: true\n    Resources: [{name: gpu, replicas: 2}]\n"
    )
    got = files.load(text)
    plan = sharing_plan(got.settings)

    assert (plan.rename_by_default, plan.fail_requests_greater_than_one) == (True, True)
    assert sizes(got) == {"nvidia.com/gpu.shared": 6}
    assert got.warnings == ()


def test_an_error_under_a_key_in_another_case_has_its_line(files: Files) -> None:
    problem = files.problem("FLAGS:\n  migstrategy: triple\n")

    assert (problem.where, problem.key) == (f"{files.path}:2", "flags.migStrategy")


@pytest.mark.parametrize(
    ("entry", "missing"),
    [("{Name: gpu, replicas: 2}", "name"), ("{name: gpu, Replicas: 2}", "replicas")],
)
def test_the_case_of_keys_of_an_entry_counts(files: Files, entry: str, missing: str) -> None:
    problem = files.problem(shared(entry))

    assert problem.key == f"sharing.timeSlicing.resources[0].{missing}"
    assert problem.message == "is required"


def test_the_case_of_optional_keys_of_an_entry_counts(files: Files) -> None:
    got = files.entry("{name: gpu, replicas: 2, Rename: small, DEVICES: [0]}")

    assert sizes(got) == {"nvidia.com/gpu": 6}
    assert len(got.warnings) == 2


def test_an_exact_key_wins_over_one_in_another_case(files: Files) -> None:
    for text in ("{mpsRoot: /a, MPSRoot: /b}", "{MPSRoot: /b, mpsRoot: /a}"):
        assert files.load(f"flags: {text}").settings.flags.mps_root == "/a"


UNKNOWN: tuple[tuple[str, str], ...] = (
    ("flags: {plugin: {migStrategy: none}}", "flags.migStrategy"),
    ("flags: {deviceIDStrategy: uuid}", "flags.plugin.deviceIDStrategy"),
    ("sharing: {renameByDefault: true}", "sharing.timeSlicing.renameByDefault"),
    ("imex: {channelIds: [0], channels: [0]}", "imex.channelIDs"),
)


@pytest.mark.parametrize(("text", "nearest"), UNKNOWN)
def test_an_unknown_key(files: Files, text: str, nearest: str) -> None:
    """A deliberate difference: NVIDIA's plugin says nothing."""
    (warning,) = files.load(text).warnings
    for problem in (
        files.problem(text, "--strict-config"),
        files.problem(text, GPUPLUGIN_STRICT_CONFIG="true"),
    ):
        assert problem == warning
    assert warning.message.endswith(f"did you mean {nearest}?")


def test_a_strict_configuration_without_unknown_keys_is_loaded(files: Files) -> None:
    got = files.load(shared("{name: gpu, replicas: 2}"), "--strict-config")

    assert sizes(got) == {"nvidia.com/gpu": 6}


def test_no_file_is_not_the_same_as_one_without_keys(files: Files) -> None:
    """A deliberate difference: NVIDIA's plugin shares nothing without a file."""
    without: Any = load_settings({}, {}, None)

    assert sizes(without) == {"nvidia.com/gpu": 30}
    assert sizes(files.load("{}")) == {"nvidia.com/gpu": 3}


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n"])
def test_a_file_with_nothing_in_it_is_as_good_as_none(files: Files, text: str) -> None:
    got = files.load(text)

    assert sizes(got) == {"nvidia.com/gpu": 30}
    (warning,) = got.warnings
    assert str(warning).startswith(f"{files.path}: is empty: the built-in default.yaml is used")


def test_a_replica_count_that_no_list_has_room_for_is_refused(files: Files) -> None:
    entry = "sharing: {timeSlicing: {resources: [{name: gpu, replicas: %s}]}}"

    assert files.load(entry % 100_000).settings.sharing.time_slicing is not None
    for replicas in ("100001", "9" * 1000, "9" * 5000):
        problem = files.problem(entry % replicas)
        assert problem.key in ("sharing.timeSlicing.resources[0].replicas", "")
        assert len(problem.message) < 500


def test_very_many_unknown_keys_are_counted(files: Files) -> None:
    got = files.load("flags: {}\n" + "".join(f"key{number}: 1\n" for number in range(2_000)))

    assert len(got.warnings) == 21
    assert got.warnings[-1].message == "and 1980 more like these"


def test_very_many_errors_are_counted(files: Files) -> None:
    with pytest.raises(ConfigError) as caught:
        files.load("resources: {gpus: [" + "7, " * 2_000 + "]}")

    assert len(caught.value.problems) == 21


def test_a_long_key_or_value_is_shown_in_part(files: Files) -> None:
    (warning,) = files.load("flags: {}\n" + "k" * 1000 + ": 1").warnings
    assert len(warning.key) < 500
    assert len(str(files.problem("flags: {migStrategy: " + "x" * 100_000 + "}"))) < 1000
