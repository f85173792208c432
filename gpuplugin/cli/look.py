"""One look at the GPUs of this machine under a configuration, for commands that only show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuplugin.cli.backends import BackendError, make_backend
from gpuplugin.cli.options import load
from gpuplugin.config.loaded import ConfigError
from gpuplugin.config.plans import inventory_plan
from gpuplugin.core.inventory import Inventory, InventoryError, build_inventory
from hal import HalError

if TYPE_CHECKING:
    import argparse

    from gpuplugin.config.settings import Settings
    from hal import Gpu


class CannotLook(Exception):
    """The configuration, the scenario or the driver cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The GPUs, and what would be advertised of them."""

    settings: Settings
    gpus: tuple[Gpu, ...]
    inventory: Inventory


def look(parsed: argparse.Namespace) -> Seen:
    """List the GPUs once.

    Raises:
        CannotLook: with the reason.
    """
    try:
        settings = load(parsed).settings
        with make_backend(settings, control=False) as backend:
            backend.open()
            try:
                gpus = backend.gpus()
            finally:
                backend.close()
        inventory = build_inventory(gpus, inventory_plan(settings))
    except (ConfigError, BackendError, HalError, InventoryError) as error:
        raise CannotLook(str(error)) from error
    return Seen(settings, gpus, inventory)
