"""Which door serves the node, and what a door for DRA must have."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from gpuplugin.config.load import load_settings
from gpuplugin.config.options import OPTIONS
from gpuplugin.daemon.frontdoor import DoorContext, load_front_door, make_front_door
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.daemon.status import StatusBoard
from gpuplugin.daemon.tasks import Fatal

if TYPE_CHECKING:
    from pathlib import Path

    from gpuplugin.config.settings import Settings


def settings(**flags: str) -> Settings:
    given = {f"--{name.replace('_', '-')}": value for name, value in flags.items()}
    options = {option: given[option.flags[0]] for option in OPTIONS if option.flags[0] in given}
    return load_settings(options, {}, None).settings


DRA = {"allocation": "dra", "node_name": "node-1"}


def context() -> DoorContext:
    """What a door that cannot be made does not come to use."""
    return DoorContext(StatusBoard(), Metrics(), None, str, lambda _levels, _wait: {})  # type: ignore[arg-type]


def test_a_client_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in tuple(sys.modules):  # what another test has loaded would not be loaded here
        if name.startswith(("gpuplugin.daemon.dra.", "gpuplugin.daemon.cluster.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightkube", None)
    with pytest.raises(Fatal, match=r"--allocation dra.*pip install 'gpuplugin\[kubernetes\]'"):
        load_front_door(settings(**DRA))
    load_front_door(settings())


def test_a_cluster_that_is_not_configured_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(
        Fatal, match=r"--allocation dra: .*automountServiceAccountToken.*KUBECONFIG"
    ):
        make_front_door(settings(**DRA), context())


def test_a_boot_id_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"the boot id cannot be read: .*boot_id"):
        make_front_door(settings(**DRA, procfs_root=str(tmp_path)), context())
