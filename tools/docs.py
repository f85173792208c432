"""Writes the generated parts of the documents: `make docs`."""

from __future__ import annotations

import argparse
import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.config import file_schema
from gpuplugin.cli.parser import build_parser
from gpuplugin.daemon.http.exposition import empty_family
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.daemon.http.series import Counted, Histogram, Scraped
from gpuplugin.doctor.checks import CHECKS
from gpuplugin.doctor.verdict import table_of
from tools.configuration import chart_schema, config_keys, file_table, option_table
from tools.published import comparison_table
from tools.simdocs import (
    call_table,
    function_table,
    gallery,
    group_table,
    key_table,
    scenario_reference,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parents[1]
CONFIG_SCHEMA = ROOT / "docs/config.schema.json"
CHART_SCHEMA = ROOT / "deploy/helm/gpuplugin/values.schema.json"
CHART_KEYS = ROOT / "deploy/helm/gpuplugin/files/config-keys.json"
PAGES = (
    ROOT / "docs/commands.md",
    ROOT / "docs/configuration.md",
    ROOT / "docs/doctor.md",
    ROOT / "docs/fidelity.md",
    ROOT / "docs/metrics.md",
    ROOT / "docs/nvml.md",
    ROOT / "docs/scenarios-reference.md",
    ROOT / "docs/simulation-reference.md",
    ROOT / "sim/scenarios/README.md",
)
END = "<!-- end -->"


def metrics_table() -> str:
    metrics = Metrics()
    rows = [
        "| metric | kind | labels | help |",
        "|---|---|---|---|",
        f"| `gpuplugin_build_info` | info | {_labels([*metrics.build])} | Version of the plugin. |",
    ]
    for metric in (*vars(metrics).values(), *vars(Metrics).values()):
        if isinstance(metric, Counted | Histogram | Scraped):
            family = empty_family(metric)
            labels = () if isinstance(metric, Histogram) else metric.label_names
            rows.append(
                f"| `{family.sample_name}` | {family.kind} | {_labels(labels)} | {metric.text} |"
            )
    return "\n".join(rows)


def _labels(labels: Sequence[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels) or "-"


def command_reference() -> str:
    return "\n\n".join(_sections(build_parser()))


def _sections(parser: argparse.ArgumentParser, text: str = "") -> Iterator[str]:
    commands = [
        action
        for action in parser._actions  # noqa: SLF001 - argparse has no public way to list them
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
    ]
    if parser.get_default("function") is not None:
        yield _section(parser, text)
    for action in commands:
        texts = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001
        for name, command in action.choices.items():
            yield from _sections(command, texts.get(name, ""))


def _section(parser: argparse.ArgumentParser, text: str) -> str:
    rows = [
        f"| `{_escaped(_spelling(action))}` | {_escaped(_help(action))} |"
        for action in parser._actions  # noqa: SLF001
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)  # noqa: SLF001
    ]
    table = ["| argument | meaning |", "|---|---|", *rows] if rows else []
    epilog = [parser.epilog, ""] if parser.epilog else []
    return "\n".join([f"## {parser.prog}", "", f"{_sentence(text)}", "", *epilog, *table]).rstrip()


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _spelling(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
    if isinstance(value, tuple):
        value = " ".join(value)
    if not action.option_strings:
        return value or action.dest
    takes_value = action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction)
    shown = value or (action.dest.upper() if takes_value else "")
    return f"{', '.join(action.option_strings)} {shown}".strip()


def _help(action: argparse.Action) -> str:
    text = (action.help or "").replace("%%", "%")
    return re.sub(r"\[(\$[^\]]+)\]", r"(`\1`)", text)


def _escaped(text: str) -> str:
    """As it stands in a cell of a table, code included."""
    return text.replace("|", "\\|")


TABLES: dict[str, Callable[[], str]] = {
    "commands": command_reference,
    "doctor": partial(table_of, CHECKS),
    "keys": file_table,
    "options": option_table,
    "metrics": metrics_table,
    "functions": function_table,
    "groups": group_table,
    "calls": call_table,
    "scenario": scenario_reference,
    "gallery": gallery,
    "published": comparison_table,
    "report": key_table,
}


def begin(name: str) -> str:
    """The line before a table."""
    return f"<!-- {name}: make docs -->"


def with_tables(text: str) -> str:
    """A page with its tables generated from the code."""
    for name, table in TABLES.items():
        before, found, rest = text.partition(begin(name))
        if found:
            text = f"{before}{found}\n{table()}\n{END}{rest.partition(END)[2]}"
    return text


def main() -> None:
    for page in PAGES:
        page.write_text(with_tables(page.read_text()))
    CONFIG_SCHEMA.write_text(json.dumps(file_schema(), indent=2) + "\n")
    CHART_SCHEMA.write_text(chart_schema(CHART_SCHEMA.read_text()))
    CHART_KEYS.write_text(config_keys())


if __name__ == "__main__":
    main()
