"""What programs made of the shipped files is shared by all processes of a run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.deploy import rendering

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, scope="session")
def shared_renderings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder that the other processes of this run have as well: pytest removes old ones."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with rendering.shared_in(root / "renderings"):
        yield
