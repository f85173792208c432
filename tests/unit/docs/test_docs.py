"""Documents: their commands exist, their links lead somewhere, generated parts are up to date.

`make docs` writes the generated parts anew.
"""

from __future__ import annotations

import json
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import yaml

from gpuplugin.cli.config import file_schema
from gpuplugin.cli.main import main
from gpuplugin.cli.parser import build_parser, module_of
from gpuplugin.config.document import parse_document
from gpuplugin.config.load import load_settings
from sim.gpu.profiles import model_names
from sim.gpu.workloads import Workload
from sim.node.scenario import Scenario, parse_scenario
from tools import docs
from tools.configuration import chart_schema, config_keys

ROOT = Path(__file__).parents[3]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
WORKLOADS = get_args(get_args(Workload)[0])
"""The models of the union, without what pydantic knows of it."""


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def _commands(program: str) -> list[tuple[str, str]]:
    return [
        (page.name, re.split(r"  #| > | \| ", line.removeprefix("$ "))[0])
        for page in PAGES
        for block in _blocks(page, "console")
        for line in block.splitlines()
        if line.startswith(f"$ {program} ")
    ]


@pytest.mark.parametrize(("page", "command"), _commands("gpuplugin"))
def test_commands_of_the_program_exist_with_their_options(page: str, command: str) -> None:
    parsed = build_parser().parse_args(shlex.split(command)[1:])
    assert callable(getattr(import_module(module_of(parsed)), parsed.function))


@pytest.mark.parametrize(("page", "command"), _commands("make"))
def test_make_targets_exist(page: str, command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def _anchors(page: Path) -> set[str]:
    """The anchors of the page's headings, as GitHub makes them."""
    outside = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", outside, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_anchors_of_links_are_headings(page: Path) -> None:
    missing = [
        f"{link}#{anchor}"
        for link, anchor in re.findall(r"\]\(([^):]*?)#([^)]+)\)", page.read_text())
        if anchor not in _anchors(page.parent / link if link else page)
    ]
    assert missing == []


def test_the_readme_shows_the_default_configuration() -> None:
    (shown,) = _blocks(ROOT / "README.md", "yaml")
    default = (ROOT / "gpuplugin/config/default.yaml").read_text()
    assert parse_document(shown, "").data == parse_document(default, "").data


def test_the_scenario_in_the_documentation_is_one() -> None:
    (shown,) = _blocks(ROOT / "docs/simulation.md", "yaml")
    assert parse_scenario(shown, "shown").gpu_count == 2
    (shown,) = _blocks(ROOT / "docs/nvml.md", "yaml")
    assert len(parse_scenario(shown, "shown").tenants) == 2


def test_the_scenarios_in_the_documentation_are_accepted_by_code_and_schema() -> None:
    for shown in _blocks(ROOT / "docs/scenarios.md", "yaml"):
        assert parse_scenario(shown, "shown").pods
        jsonschema.validate(yaml.safe_load(shown), Scenario.model_json_schema())


def test_the_health_options_in_the_documentation_are_accepted(tmp_path: Path) -> None:
    (shown,) = _blocks(ROOT / "docs/health.md", "yaml")
    file = tmp_path / "config.yaml"
    file.write_text(shown)
    loaded = load_settings({}, {"GPUPLUGIN_STRICT_CONFIG": "true"}, str(file))
    assert loaded.settings.health.ignore_xids == [74]


@pytest.mark.parametrize("page", docs.PAGES, ids=lambda page: page.name)
def test_generated_tables_are_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert docs.with_tables(text) == text


def test_the_schema_of_the_chart_is_up_to_date() -> None:
    text = docs.CHART_SCHEMA.read_text()
    assert chart_schema(text) == text


def test_the_schema_of_the_configuration_is_up_to_date() -> None:
    assert json.loads(docs.CONFIG_SCHEMA.read_text()) == file_schema()


def test_examples_name_the_schema_for_editors() -> None:
    for example in (ROOT / "gpuplugin/config/default.yaml", ROOT / "README.md"):
        (schema,) = re.findall(
            r"^# yaml-language-server: \$schema=(\S+)$", example.read_text(), re.MULTILINE
        )
        assert (example.parent / schema).resolve() == docs.CONFIG_SCHEMA


def test_the_keys_that_the_chart_knows_are_up_to_date() -> None:
    assert docs.CHART_KEYS.read_text() == config_keys()


def test_every_table_is_on_a_page() -> None:
    text = "".join(page.read_text() for page in docs.PAGES)
    assert all(docs.begin(name) in text for name in docs.TABLES)


FIDELITY = ROOT / "docs/fidelity.md"


def _named_tests() -> list[str]:
    return re.findall(r"`(tests/[\w/.]+::\w+)`", FIDELITY.read_text())


def test_the_page_on_fidelity_names_a_test_for_every_claim() -> None:
    claims = FIDELITY.read_text().partition("## Faithful")[2].partition("## Not simulated")[0]
    rows = [line for line in claims.splitlines() if re.match(r"\| (?!claim)", line)]
    assert len(rows) > 50
    for row in rows:
        (_name,) = re.findall(r"`(tests/[\w/.]+::\w+)` \|$", row)
    assert len(set(_named_tests())) == len(rows), "a test for each, and each once"


@pytest.mark.parametrize("name", _named_tests())
def test_tests_that_the_page_on_fidelity_names_exist(name: str) -> None:
    file, _, function = name.partition("::")
    assert re.search(rf"^(async )?def {function}\(", (ROOT / file).read_text(), re.MULTILINE)


def test_files_that_the_page_on_fidelity_names_exist() -> None:
    files = re.findall(r"`(tests/[\w/.]+)`", FIDELITY.read_text())
    assert files
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_the_page_on_fidelity_has_every_workload_and_mechanism() -> None:
    text = FIDELITY.read_text()
    workloads = [get_args(one.model_fields["kind"].annotation)[0] for one in WORKLOADS]
    assert len(workloads) == 6
    assert [kind for kind in workloads if f"| `{kind}` |" not in text] == []
    assert [one for one in ("MPS", "MIG", "Exclusive", "UVM", "Jetson") if one not in text] == []


def _shown_commands(start: str) -> list[tuple[list[str], str]]:
    """Commands of docs/simulation.md that begin so, and what is shown of them."""
    blocks = _blocks(ROOT / "docs/simulation.md", "console")
    parts = [block.partition("\n") for block in blocks if block.startswith(f"$ gpuplugin {start}")]
    return [(shlex.split(command)[2:], shown) for command, _, shown in parts]


@pytest.mark.parametrize(("arguments", "shown"), _shown_commands("sim share"))
def test_the_output_of_sim_share_in_the_documentation_is_what_it_prints(
    arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "shown"), _shown_commands("sim sweep"))
def test_the_output_of_sim_sweep_in_the_documentation_is_what_it_prints(
    arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out == shown


def test_the_number_of_models_in_the_documentation_is_right() -> None:
    text = (ROOT / "docs/simulation.md").read_text()
    assert f"Models are the {len(model_names())} files" in text


ARCHITECTURE = ROOT / "docs/architecture.md"


def _files_to_change() -> list[str]:
    table = ARCHITECTURE.read_text().partition("## To change something")[2].partition("\n## ")[0]
    return re.findall(r"`([\w/]+\.py)`", table)


def test_the_reading_path_names_files_that_exist() -> None:
    named = _files_to_change()
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize(
    ("name", "declared"),
    [
        ("hal/xid.py", "lookup_xid"),
        ("gpuplugin/core/preference/policies.py", "PolicyName"),
        ("gpuplugin/config/settings.py", "class Settings"),
        ("gpuplugin/daemon/http/metrics.py", "class Metrics"),
        ("sim/gpu/faults.py", "XidFault"),
        ("gpuplugin/doctor/checks/__init__.py", "CHECKS"),
        ("gpuplugin/cli/parser.py", "build_parser"),
        ("gpuplugin/core/injection.py", "DeviceListStrategy"),
        ("hal/backend.py", "class Backend"),
        ("gpuplugin/core/watch.py", "class Watch"),
        ("gpuplugin/core/node.py", "class NodeModel"),
    ],
)
def test_the_reading_path_leads_to_what_it_says(name: str, declared: str) -> None:
    assert name in _files_to_change()
    assert declared in (ROOT / name).read_text()


def test_the_architecture_names_modules_that_exist() -> None:
    text = ARCHITECTURE.read_text()
    named = set(re.findall(r"`((?:core|daemon|kubelet|config|rpc|cli)\.(?!sock)[\w.]+)`", text))
    paths = {name: ROOT / "gpuplugin" / name.replace(".", "/") for name in named}
    assert len(paths) > 20
    assert [
        name
        for name, path in paths.items()
        if not path.with_suffix(".py").exists() and not path.is_dir()
    ] == []


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert [name for name in sorted(pages) if f"({name})" not in index] == []
