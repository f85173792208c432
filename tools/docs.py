"""Writes the generated parts of the documents: `make docs`."""

from __future__ import annotations

from pathlib import Path

from gpuplugin.daemon.http.exposition import families
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.daemon.http.usagemetrics import FAMILIES
from gpuplugin.doctor.checks import CHECKS
from gpuplugin.doctor.report import table_of
from sim.node.reference import gallery, scenario_reference
from sim.nvml.table import function_table
from sim.study.published import comparison_table
from sim.study.report.schema import key_table
from tools.configuration import chart_schema, file_table, option_table

ROOT = Path(__file__).parents[1]
CHART_SCHEMA = ROOT / "deploy/helm/gpuplugin/values.schema.json"
PAGES = (
    ROOT / "docs/configuration.md",
    ROOT / "docs/doctor.md",
    ROOT / "docs/fidelity.md",
    ROOT / "docs/metrics.md",
    ROOT / "docs/nvml.md",
    ROOT / "docs/scenarios.md",
    ROOT / "docs/simulation.md",
    ROOT / "sim/scenarios/README.md",
)
END = "<!-- end -->"


def metrics_table() -> str:
    """Every series of the daemon, from the code."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for family in families(Metrics("1", "nvml")):
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        info = [*Metrics().build] if family.type == "info" else []
        names = info or getattr(family, "_labelnames", [])
        labels = ", ".join(f"`{label}`" for label in names) or "-"
        name = f"`{family.name}{suffix}`"
        lines.append(f"| {name} | {family.type} | {labels} | {family.documentation} |")
    for one in FAMILIES:
        suffix = "_total" if one.kind == "counter" else ""
        labels = ", ".join(f"`{label}`" for label in one.labels) or "-"
        lines.append(f"| `gpuplugin_{one.name}{suffix}` | {one.kind} | {labels} | {one.meaning} |")
    return "\n".join(lines)


def doctor_table() -> str:
    """Every check of the doctor."""
    return table_of(CHECKS)


TABLES = {
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
