"""Writes the generated parts of the documents: `make docs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.daemon.http.exposition import empty_family
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.daemon.http.series import Counted, Histogram, Scraped
from gpuplugin.doctor.checks import CHECKS
from gpuplugin.doctor.report import table_of
from tools.commands import command_reference
from tools.configuration import chart_schema, file_table, option_table
from tools.published import comparison_table
from tools.simdocs import function_table, gallery, key_table, scenario_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[1]
CHART_SCHEMA = ROOT / "deploy/helm/gpuplugin/values.schema.json"
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
    """Every metric of the daemon, from the code."""
    metrics = Metrics()
    rows = [
        "| metric | kind | labels | help |",
        "|---|---|---|---|",
        f"| `gpuplugin_build_info` | info | {_labels([*metrics.build])} | Version of the plugin. |",
    ]
    for metric in (*vars(metrics).values(), *vars(Metrics).values()):
        if isinstance(metric, Counted | Histogram | Scraped):
            family = empty_family(metric)
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = () if isinstance(metric, Histogram) else metric.label_names
            rows.append(f"| `{name}` | {family.type} | {_labels(labels)} | {metric.text} |")
    return "\n".join(rows)


def _labels(labels: Sequence[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels) or "-"


def doctor_table() -> str:
    """Every check of the doctor."""
    return table_of(CHECKS)


TABLES = {
    "commands": command_reference,
    "doctor": doctor_table,
    "keys": file_table,
    "options": option_table,
    "metrics": metrics_table,
    "functions": function_table,
    "scenario": scenario_reference,
    "gallery": gallery,
    "published": comparison_table,
    "report": key_table,
}


def begin(name: str) -> str:
    """The line before a table."""
    return f"<!-- {name}: make docs -->"


def with_tables(text: str) -> str:
    """A page with its tables made anew from the code."""
    for name, table in TABLES.items():
        before, found, rest = text.partition(begin(name))
        if found:
            text = f"{before}{found}\n{table()}\n{END}{rest.partition(END)[2]}"
    return text


def main() -> None:
    """Write every page and the chart's schema."""
    for page in PAGES:
        page.write_text(with_tables(page.read_text()))
    CHART_SCHEMA.write_text(chart_schema(CHART_SCHEMA.read_text()))


if __name__ == "__main__":
    main()
