"""The simulated cluster of a command: an API server with a node, and a DeviceClass for its GPUs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from gpuplugin.config.values import DEFAULT_DRIVER_NAME

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sim.apiserver import ApiServer

NODE = "simulated"
RESOURCE = "nvidia.com/gpu"
_MOST_REQUESTS = 100
"""Nobody asks for them, and it may serve for days."""


def add_dra(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dra",
        action="store_true",
        help="give GPUs to pods by Dynamic Resource Allocation, with an API server of its own",
    )


@contextmanager
def cluster(
    folder: Path, driver: str = DEFAULT_DRIVER_NAME, resources: Sequence[str] = (RESOURCE,)
) -> Iterator[ApiServer]:
    """Serve it; `kubeconfig` in the folder leads there. Pods get the resources by a class each."""
    from sim.apiserver import ApiServer
    from sim.scheduler.claims import create_class

    with ApiServer([NODE], most_requests=_MOST_REQUESTS) as server:
        server.kubeconfig(folder)
        for number, resource in enumerate(resources):
            name = driver if number == 0 else f"{driver}-{number}"
            create_class(server.store, driver, resource, name)
        yield server
