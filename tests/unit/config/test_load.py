"""The layers of the configuration, its errors and its warnings."""

from __future__ import annotations

import contextlib
import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuplugin.cli.options import given_options
from gpuplugin.cli.parser import build_parser
from gpuplugin.config.load import load_settings
from gpuplugin.config.loaded import ConfigError, Loaded
from gpuplugin.config.options import OPTIONS, Kind, Option
from gpuplugin.config.plans import health_policy, sharing_plan

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gpuplugin.config.loaded import Problem
    from gpuplugin.config.settings import Settings

    Load = Callable[..., Loaded]


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    return build_parser("run").parse_args(["run", *arguments])


def loaded(
    file: Path | str | None, *arguments: str, environment: dict[str, str] | None = None
) -> Loaded:
    name = None if file is None else str(file)
    return load_settings(given_options(parsed(arguments)), environment or {}, name)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a file's text (None: no file) under environment variables and flags."""

    def load_text(text: str | None, *arguments: str, **environment: str) -> Loaded:
        if text is None:
            return loaded(None, *arguments, environment=environment)
        path = tmp_path / "f.yaml"
        path.write_text(text, encoding="utf-8")
        return loaded(path, *arguments, environment=environment)

    return load_text


def problems(load: Load, text: str | None, *arguments: str, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, *arguments, **environment)
    return [without_folder(problem) for problem in caught.value.problems]


def without_folder(problem: Problem) -> str:
    """A file is named with its whole path, which differs from run to run."""
    return re.sub(r"^/\S*/(?=f\.yaml)", "", str(problem))


def shared(entry: str) -> str:
    """A file with one shared resource."""
    return f"sharing:\n  timeSlicing:\n    resources:\n    - {entry}\n"


# Layers


def string(settings: Settings) -> object:
    return settings.flags.nvidia_driver_root


def boolean(settings: Settings) -> object:
    return settings.flags.fail_on_init_error


def duration(settings: Settings) -> object:
    return settings.health.quiet_period


@pytest.mark.parametrize(
    ("read", "file", "variable", "flag", "values"),
    [
        pytest.param(
            string,
            "flags: {nvidiaDriverRoot: /file}",
            {"NVIDIA_DRIVER_ROOT": "/variable"},
            "--driver-root=/flag",
            ("/", "/file", "/variable", "/flag"),
            id="string",
        ),
        pytest.param(
            boolean,
            "flags: {failOnInitError: true}",
            {"FAIL_ON_INIT_ERROR": "F"},
            "--fail-on-init-error",
            (False, True, False, True),
            id="bool",
        ),
        pytest.param(
            duration,
            "health: {quietPeriod: 10s}",
            {"GPUPLUGIN_HEALTH_QUIET_PERIOD": "1m"},
            "--health-quiet-period=2m",
            (30, 10, 60, 120),
            id="duration",
        ),
    ],
)
def test_command_line_over_environment_over_file_over_default(
    load: Load,
    read: Callable[[Settings], object],
    file: str,
    variable: dict[str, str],
    flag: str,
    values: tuple[object, ...],
) -> None:
    found = (
        read(load("version: v1").settings),
        read(load(file).settings),
        read(load(file, **variable).settings),
        read(load(file, flag, **variable).settings),
    )

    assert found == values


@pytest.mark.parametrize(
    ("file", "variable", "flag", "strategies"),
    [
        pytest.param(
            "[envvar, cdi-cri]", None, None, ["envvar", "cdi-cri"], id="file"
        ),
        pytest.param(
            "[envvar]", "cdi-cri, volume-mounts", None, ["cdi-cri", "volume-mounts"],
            id="variable over file",
        ),
        pytest.param(
            "[envvar]", "cdi-cri,volume-mounts", "cdi-annotations", ["cdi-annotations"],
            id="flag over variable",
        ),
        pytest.param("[cdi-cri]", "", None, ["cdi-cri"], id="empty variable is ignored"),
        pytest.param("envvar", None, None, ["envvar"], id="one word stands for a list"),
        pytest.param("[]", None, None, [], id="none at all"),
    ],
)  # fmt: skip
def test_a_list_is_taken_whole_from_the_highest_layer(
    load: Load, file: str, variable: str | None, flag: str | None, strategies: list[str]
) -> None:
    text = f"flags:\n  plugin:\n    deviceListStrategy: {file}\n"
    arguments = [] if flag is None else [f"--device-list-strategy={flag}"]
    environment = {} if variable is None else {"DEVICE_LIST_STRATEGY": variable}

    found = load(text, *arguments, **environment).settings.flags.plugin.device_list_strategy

    assert found == strategies


def test_layers_are_merged_key_by_key(load: Load) -> None:
    text = "flags:\n  nvidiaDriverRoot: /file\n  plugin: {containerDriverRoot: /ctr}\n"

    flags = load(text, "--fail-on-init-error", DEVICE_ID_STRATEGY="uuid").settings.flags

    assert flags.nvidia_driver_root == "/file"
    assert flags.plugin.container_driver_root == "/ctr"
    assert flags.fail_on_init_error


def test_the_first_name_of_a_variable_wins_and_the_second_works(load: Load) -> None:
    both = load("", DRIVER_ROOT_CTR_PATH="/one", CONTAINER_DRIVER_ROOT="/two")
    second = load("", CONTAINER_DRIVER_ROOT="/two")

    assert both.settings.flags.plugin.container_driver_root == "/one"
    assert second.settings.flags.plugin.container_driver_root == "/two"


@pytest.mark.parametrize("flag", ["--driver-root", "--nvidia-driver-root"])
def test_every_name_of_a_flag_works(load: Load, flag: str) -> None:
    assert load("", flag, "/here").settings.flags.nvidia_driver_root == "/here"


def test_the_config_file_of_the_environment_is_the_default_of_the_flag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONFIG_FILE", "/from/variable")

    assert parsed([]).config_file == "/from/variable"
    assert parsed(["--config-file", "/from/flag"]).config_file == "/from/flag"


# Variables that are set but empty


def test_an_empty_string_variable_is_an_empty_string(load: Load) -> None:
    text = "flags: {nvidiaDriverRoot: /file}"
    assert load(text, NVIDIA_DRIVER_ROOT="").settings.flags.nvidia_driver_root == ""

    (problem,) = problems(load, "flags: {migStrategy: none}", MIG_STRATEGY="")
    assert problem.startswith("MIG_STRATEGY: flags.migStrategy: must be 'none'")
    assert "found ''" in problem


def test_an_empty_bool_variable_is_false(load: Load) -> None:
    text = "flags: {failOnInitError: true}"

    assert load(text, FAIL_ON_INIT_ERROR="").settings.flags.fail_on_init_error is False


def test_an_empty_duration_variable_is_ignored(load: Load) -> None:
    text = "health: {quietPeriod: 10s}"

    assert load(text, GPUPLUGIN_HEALTH_QUIET_PERIOD="").settings.health.quiet_period == 10


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flags[0])
def test_an_empty_variable_of_any_option_does_what_its_kind_says(
    load: Load, option: Option
) -> None:
    environment = {option.variables[0]: ""}
    if option.kind is Kind.STRING and (option.choices or option.path[-1] in CLOSED_STRINGS):
        (problem,) = problems(load, "", **environment)
        assert problem.startswith(option.variables[0])
    else:
        empty = {Kind.STRING: "", Kind.BOOL: False}
        usual = value_of(load(""), option)
        assert value_of(load("", **environment), option) == empty.get(option.kind, usual)


def value_of(loaded: Loaded, option: Option) -> object:
    """As the whole configuration has it that `config show` prints."""
    value: Any = loaded.effective
    for key in option.path:
        value = value[key]
    return value


CLOSED_STRINGS = {
    "migStrategy", "deviceIDStrategy", "sharedDevicesAllocationPolicy", "kubeletDir", "cdiRoot",
    "listenAddress", "hostProc", "podLogs", "sysfsRoot", "procfsRoot",
    "draDriverName",
}  # fmt: skip


# Spellings


@pytest.mark.parametrize("text", ["yes", "on", "2", "TrUe", " true"])
def test_a_boolean_variable_or_flag_is_spelled_as_go_does(load: Load, text: str) -> None:
    (by_variable,) = problems(load, "", FAIL_ON_INIT_ERROR=text)
    (by_flag,) = problems(load, "", f"--fail-on-init-error={text}")

    assert by_variable.startswith("FAIL_ON_INIT_ERROR: flags.failOnInitError: must be true or")
    assert by_flag.startswith("--fail-on-init-error: flags.failOnInitError: must be true or")


@pytest.mark.parametrize(("text", "value"), [("1", True), ("t", True), ("F", False), ("0", False)])
def test_go_booleans_are_read(load: Load, text: str, value: bool) -> None:
    assert load("", FAIL_ON_INIT_ERROR=text).settings.flags.fail_on_init_error is value
    assert load("", f"--fail-on-init-error={text}").settings.flags.fail_on_init_error is value


def test_a_word_of_yaml_1_1_is_a_boolean_in_the_file(load: Load) -> None:
    assert load("flags: {failOnInitError: yes}").settings.flags.fail_on_init_error is True


@pytest.mark.parametrize(
    ("value", "seconds"), [("90s", 90), ("1m30s", 90), ("90", 90), ("1.5", 1.5), ("'2m'", 120)]
)
def test_durations_of_the_file(load: Load, value: str, seconds: float) -> None:
    assert load(f"health: {{probeInterval: {value}}}").settings.health.probe_interval == seconds


@pytest.mark.parametrize("value", ["9ms", "-1", "soon", "'90'", "true", "false", "[1s]", ".nan"])
def test_durations_that_are_refused(load: Load, value: str) -> None:
    (problem,) = problems(load, f"health: {{probeInterval: {value}}}")

    assert problem.startswith("f.yaml:1: health.probeInterval: ")


# Errors


def test_all_errors_are_told_at_once_each_with_key_and_place(load: Load) -> None:
    text = """\
version: v2
flags:
  migStrategy: other
sharing:
  timeSlicing:
    renameByDefault: 7
    resources:
    - name: amd.com/gpu
      replicas: 0
    - name: gpu
health:
  quietPeriod: soon
"""
    found = problems(
        load,
        text,
        "--registration=other",
        FAIL_ON_INIT_ERROR="maybe",
        DEVICE_ID_STRATEGY="name",
    )

    assert {tuple(problem.split(": ")[:2]) for problem in found} == {
        ("f.yaml:1", "version"),
        ("f.yaml:3", "flags.migStrategy"),
        ("f.yaml:6", "sharing.timeSlicing.renameByDefault"),
        ("f.yaml:8", "sharing.timeSlicing.resources[0].name"),
        ("f.yaml:9", "sharing.timeSlicing.resources[0].replicas"),
        ("f.yaml:10", "sharing.timeSlicing.resources[1].replicas"),
        ("f.yaml:12", "health.quietPeriod"),
        ("--registration", "daemon.registration"),
        ("FAIL_ON_INIT_ERROR", "flags.failOnInitError"),
        ("DEVICE_ID_STRATEGY", "flags.plugin.deviceIDStrategy"),
    }
    assert len(found) == 10


def test_the_place_of_an_error_is_the_layer_that_won(load: Load) -> None:
    text = "flags: {migStrategy: single}"

    (problem,) = problems(load, text, "--mig-strategy=triple", MIG_STRATEGY="other")

    assert problem.startswith("--mig-strategy: flags.migStrategy: ")
    assert "triple" in problem


@pytest.mark.parametrize("wrong", ["flags: 5", "flags: [a]", "flags: {plugin: text}"])
def test_a_section_of_the_wrong_shape_is_told_even_if_a_variable_is_set(
    load: Load, wrong: str
) -> None:
    (problem,) = problems(load, wrong, DEVICE_ID_STRATEGY="uuid")

    assert problem.startswith("f.yaml:1: flags")


@pytest.mark.parametrize("section", ["flags", "sharing", "health", "version"])
@pytest.mark.parametrize("value", ["5", "[a]", "text"])
def test_a_section_of_the_wrong_shape_is_told(load: Load, section: str, value: str) -> None:
    (problem,) = problems(load, f"{section}: {value}")

    assert problem.startswith(f"f.yaml:1: {section}: must be ")


def test_a_file_that_is_not_there(load: Load, tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"

    with pytest.raises(ConfigError, match="cannot be read: No such file") as caught:
        loaded(missing)
    assert str(caught.value).startswith(str(missing))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \xc3\n"])
def test_a_file_that_is_not_text(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=str(path)):
        loaded(path)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        loaded(tmp_path)


def test_a_repeated_key_is_an_error_with_its_line(load: Load) -> None:
    assert problems(load, "version: v1\nversion: v1\n") == [
        "f.yaml:2: the key 'version' is given twice"
    ]


# What may stand in the file


@pytest.mark.parametrize("text", ["{}", "version:\n"])
def test_a_file_that_sets_nothing_shares_nothing(load: Load, text: str) -> None:
    assert replica_counts(load(text)) == {}


def test_the_null_device_is_an_empty_file() -> None:
    found = loaded("/dev/null")
    assert replica_counts(found) == {"nvidia.com/gpu": 10}
    assert found.blank


def test_a_file_of_more_than_a_mebibyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with path.open("wb") as stream:
        stream.truncate(1024**3)

    with pytest.raises(ConfigError, match="is larger than 1048576 bytes"):
        loaded(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")

    with pytest.raises(ConfigError, match="it is not a regular file"):
        loaded(tmp_path / "config.yaml")


def test_json_is_a_valid_file(load: Load) -> None:
    entries = [{"name": "gpu", "replicas": 3}]
    text = json.dumps({"version": "v1", "sharing": {"timeSlicing": {"resources": entries}}})

    assert replica_counts(load(text)) == {"nvidia.com/gpu": 3}


@pytest.mark.parametrize("config_file", [None, ""])
def test_without_a_file_every_gpu_is_shared_by_ten(config_file: str | None) -> None:
    found = loaded(config_file)
    plan = sharing_plan(found.settings)

    assert {one.name: one.replicas for one in plan.resources} == {"nvidia.com/gpu": 10}
    assert plan.fail_requests_greater_than_one
    assert not plan.rename_by_default
    assert found.warnings == ()


@pytest.mark.parametrize("value", ["v1", "''", "null", "'v1'"])
def test_versions_that_mean_v1(load: Load, value: str) -> None:
    assert load(f"version: {value}").settings.version == "v1"


@pytest.mark.parametrize("value", ["v2", "1", "V1", "v1.0", "true", "[v1]", "' v1'"])
def test_other_versions_are_refused(load: Load, value: str) -> None:
    (problem,) = problems(load, f"version: {value}")

    assert problem.startswith("f.yaml:1: version: must be 'v1'")


@pytest.mark.parametrize(
    "text",
    [
        "flags:",
        "sharing:",
        "health:",
        "flags: {plugin: null}",
        "flags: {migStrategy: null, plugin: {deviceListStrategy: null}}",
        "sharing: {mps: null}",
        "health: {quietPeriod: null}",
    ],
)
def test_null_counts_as_absent(load: Load, text: str) -> None:
    assert load(text).settings == load("{}").settings


@pytest.mark.parametrize("value", ["", "null", "{}", "{resources: null}", "{resources: []}"])
def test_time_slicing_without_resources_is_an_error(load: Load, value: str) -> None:
    (problem,) = problems(load, f"sharing:\n  timeSlicing: {value}\n")

    assert problem.startswith("f.yaml:2: sharing.timeSlicing.resources: ")


@pytest.mark.parametrize("value", ["{}", "{resources: [{name: gpu, replicas: 2}]}", "yes", "[]"])
def test_mps_is_refused(load: Load, value: str) -> None:
    (problem,) = problems(load, f"sharing:\n  mps: {value}\n")

    assert problem.startswith("f.yaml:2: sharing.mps: sharing by MPS is not supported")


@pytest.mark.parametrize(
    ("value", "replicas"), [("1", 1), ("2", 2), ("2.0", 2), ("16384", 16384), ("0x10", 16)]
)
def test_replica_counts(load: Load, value: str, replicas: int) -> None:
    plan = sharing_plan(load(shared(f"{{name: gpu, replicas: {value}}}")).settings)

    assert [one.replicas for one in plan.resources] == [replicas]


@pytest.mark.parametrize(
    "entry",
    [
        "{name: gpu, replicas: '4'}",
        "{name: gpu, replicas: 0}",
        "{name: gpu, replicas: -1}",
        "{name: gpu, replicas: 2.5}",
        "{name: gpu, replicas: null}",
        "{name: gpu, replicas: true}",
        "{name: gpu, replicas: [2]}",
        "{name: gpu, replicas: .inf}",
        "{name: gpu, replicas: .nan}",
        "{name: gpu}",
    ],
)
def test_replica_counts_that_are_refused(load: Load, entry: str) -> None:
    (problem,) = problems(load, shared(entry))

    assert problem.startswith("f.yaml:4: sharing.timeSlicing.resources[0].replicas: ")


@pytest.mark.parametrize(
    "entry", ["{replicas: 2}", "{name: null, replicas: 2}", "{name: 5, replicas: 2}"]
)
def test_a_shared_resource_needs_a_name(load: Load, entry: str) -> None:
    (problem,) = problems(load, shared(entry))

    assert problem.startswith("f.yaml:4: sharing.timeSlicing.resources[0].name: ")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("amd.com/gpu", "must have the prefix nvidia.com/"),
        ("GPU", "must be lower-case"),
        ("a" * 53, "is 64 characters long"),
    ],
)
def test_resource_names_that_are_refused(load: Load, name: str, reason: str) -> None:
    (problem,) = problems(load, shared(f"{{name: {name}, replicas: 2}}"))

    assert problem.startswith(f"f.yaml:4: sharing.timeSlicing.resources[0].name: {reason}")


def test_the_whole_time_slicing_section_reaches_the_plan(load: Load) -> None:
    text = (
        "sharing:\n  timeSlicing:\n    renameByDefault: true\n"
        "    failRequestsGreaterThanOne: true\n"
        "    resources: [{name: nvidia.com/gpu, replicas: 4}, {name: mig-1g.5gb, replicas: 2}]\n"
    )
    plan = sharing_plan(load(text).settings)

    assert {one.name: one.replicas for one in plan.resources} == {
        "nvidia.com/gpu": 4,
        "nvidia.com/mig-1g.5gb": 2,
    }
    assert [plan.advertised_name(one) for one in plan.resources] == [
        "nvidia.com/gpu.shared",
        "nvidia.com/mig-1g.5gb.shared",
    ]
    assert plan.fail_requests_greater_than_one


def test_in_a_file_requests_greater_than_one_pass_unless_it_says_otherwise(load: Load) -> None:
    plan = sharing_plan(load(shared("{name: gpu, replicas: 2}")).settings)

    assert not plan.fail_requests_greater_than_one


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("flags: {migStrategy: triple}", "flags.migStrategy"),
        ("flags: {migStrategy: ''}", "flags.migStrategy"),
        ("flags: {deviceDiscoveryStrategy: vfio}", "flags.deviceDiscoveryStrategy"),
        ("flags: {plugin: {deviceIDStrategy: name}}", "flags.plugin.deviceIDStrategy"),
        ("flags: {plugin: {deviceListStrategy: cdi}}", "flags.plugin.deviceListStrategy[0]"),
        (
            "flags: {plugin: {deviceListStrategy: [envvar, '']}}",
            "flags.plugin.deviceListStrategy[1]",
        ),
        (
            "flags: {plugin: {sharedDevicesAllocationPolicy: random}}",
            "flags.plugin.sharedDevicesAllocationPolicy",
        ),
        ("imex: {channelIDs: [1]}", "imex.channelIDs"),
        ("imex: {channelIDs: [0, 0]}", "imex.channelIDs"),
    ],
)
def test_a_choice_that_there_is_not_is_refused(load: Load, text: str, key: str) -> None:
    (problem,) = problems(load, text)

    assert problem.startswith(f"f.yaml:1: {key}: must be ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("flags: {deviceDiscoveryStrategy: tegra}", "Tegra is not supported"),
        ("sharing: {mps: {resources: [{name: gpu, replicas: 2}]}}", "MPS is not supported yet"),
    ],
)
def test_what_this_plugin_cannot_do_is_refused_in_so_many_words(
    load: Load, text: str, reason: str
) -> None:
    (problem,) = problems(load, text)

    assert reason in problem


def test_the_cap_of_the_quiet_period_is_never_below_it(load: Load) -> None:
    policy = health_policy(load("health: {quietPeriod: 2h, quietPeriodCap: 1m}").settings)

    assert (policy.quiet_period_s, policy.quiet_period_cap_s) == (7200, 7200)


def replica_counts(found: Loaded) -> dict[str, int]:
    return {one.name: one.replicas for one in sharing_plan(found.settings).resources}


# Warnings


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        pytest.param(
            "sharing:\n  time_slicing: {}\n",
            "f.yaml:2: sharing.time_slicing: is not a known key and has no effect; "
            "did you mean sharing.timeSlicing?",
            id="spelling",
        ),
        pytest.param(
            "flags: {}\nsharring: {}\n",
            "f.yaml:2: sharring: is not a known key and has no effect; did you mean sharing?",
            id="typing error",
        ),
        pytest.param(
            "version: v1\nrenameByDefault: true\n",
            "f.yaml:2: renameByDefault: is not a known key and has no effect; "
            "did you mean sharing.timeSlicing.renameByDefault?",
            id="wrong place",
        ),
        pytest.param(
            "flags:\n  passDeviceSpecs: true\n",
            "f.yaml:2: flags.passDeviceSpecs: is not a known key and has no effect; "
            "did you mean flags.plugin.passDeviceSpecs?",
            id="wrong section",
        ),
        pytest.param(
            shared("{name: gpu, replicas: 2, replica: 3}"),
            "f.yaml:4: sharing.timeSlicing.resources[0].replica: is not a known key and has no "
            "effect; did you mean sharing.timeSlicing.resources.replicas?",
            id="in a list",
        ),
        pytest.param(
            "version: v1\nxyzzy: 1\n",
            "f.yaml:2: xyzzy: is not a known key and has no effect",
            id="nothing like it",
        ),
        pytest.param(
            "version: v1\ndaemon: {logLevel: debug}\n",
            "f.yaml:2: daemon: is not a known key and has no effect",
            id="not for the file",
        ),
        pytest.param(
            "gpus: {}\n1: one\n",
            "f.yaml:2: 1: is not a known key and has no effect",
            id="a number as key",
        ),
    ],
)
def test_an_unknown_key_is_a_warning_with_a_suggestion(load: Load, text: str, warning: str) -> None:
    found = load(text)

    assert [without_folder(one) for one in found.warnings] == [warning]


def test_a_key_that_is_a_boolean_is_no_list_position(load: Load) -> None:
    (warning,) = load("flags: {on: one}").warnings

    assert without_folder(warning).startswith("f.yaml:1: flags.")
    assert "did you mean flags?" not in str(warning)


def test_the_options_of_the_daemon_cannot_be_set_in_the_file(load: Load) -> None:
    assert load("version: v1\ndaemon: {logLevel: debug}").settings.daemon.log_level == "info"


def test_the_default_of_one_reading_is_not_that_of_another(load: Load) -> None:
    load("").settings.flags.plugin.device_list_strategy.append("cdi-cri")
    load("").settings.gpus.include.append("0")

    again = load("").settings
    assert (again.flags.plugin.device_list_strategy, again.gpus.include) == (["envvar"], [])


def test_settings_do_not_change(load: Load) -> None:
    settings = load("").settings

    with pytest.raises(AttributeError, match="immutable"):
        setattr(settings.flags, "mig_strategy", "mixed")  # noqa: B010 - no checker of types may see it
    assert settings.flags.mig_strategy == "none"
    assert settings == load("").settings
    assert settings != load("flags: {migStrategy: mixed}").settings


# Any input at all


KEY_NAMES = (
    "version flags sharing health daemon timeSlicing mps resources name replicas plugin "
    "migStrategy deviceListStrategy failOnInitError quietPeriod renameByDefault devices "
    "rename imex backend kubeletDir x"
)
KEYS = st.sampled_from(KEY_NAMES.split())
SCALARS: st.SearchStrategy[object] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**70),
    st.floats(),
    st.dates(),
    st.binary(max_size=3),
    st.sampled_from(["v1", "none", "envvar", "uuid", "gpu", "nvidia.com/gpu", "30s", "-1s", ""]),
    st.text(max_size=6),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(KEYS, KEYS, st.text(max_size=4), st.integers(0, 3), st.booleans()),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


def structured(value: Any) -> Any:
    """Puts a value where the schema looks for one."""
    return st.one_of(
        st.just(value),
        st.just({"sharing": value}),
        st.just({"sharing": {"timeSlicing": value}}),
        st.just({"sharing": {"timeSlicing": {"resources": value}}}),
        st.just({"sharing": {"timeSlicing": {"resources": [value]}}}),
        st.just({"flags": {"plugin": value}}),
        st.just({"health": value}),
    )


@settings(max_examples=200)
@given(VALUES.flatmap(structured))
def test_any_structure_is_a_configuration_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "structure.yaml"
    path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")

    try:
        found = load_settings({}, {}, str(path))
    except ConfigError as error:
        messages = [problem.message for problem in error.problems]
        assert messages
        assert all(messages)
        return
    assert found.settings.version == "v1"
    assert all(one.replicas >= 1 for one in sharing_plan(found.settings).resources)


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_configuration_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)

    with contextlib.suppress(ConfigError):
        load_settings({}, {}, str(path))


@given(
    st.dictionaries(
        st.sampled_from([option.variables[0] for option in OPTIONS]), st.text(max_size=8)
    )
)
def test_any_environment_is_a_configuration_or_a_config_error(environment: dict[str, str]) -> None:
    with contextlib.suppress(ConfigError):
        load_settings({}, environment, None)
