"""Files with long tests come first; figures that tests record are shown at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

LONGEST = ("chaos", "e2e", "component", "deploy", "conformance")
"""Folders below this one; the others have many short tests, which fill up what is left."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No process may be left alone with a long file when the others have ended."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.nodeid.split("/")[1], len(order)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")
