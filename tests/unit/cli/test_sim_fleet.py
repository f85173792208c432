"""The options of `gpuplugin sim fleet`."""

from __future__ import annotations

import pytest

from gpuplugin.cli.parser import build_parser
from sim.cli.fleet import fleet


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--nodes 0", "there must be 1 to 5000 nodes"),
        ("--nodes 2 --scenario homelab=1", "not both"),
        ("--scenario homelab --scenario mig=1", "each needs a count"),
        ("--scenario homelab=many", "a count is a number"),
        ("--cpu many", "--cpu"),
        ("--label pool", "write KEY=VALUE"),
        ("--name-prefix Sim", "--name-prefix"),
        ("--lease-seconds 3", "--lease-seconds"),
        ("--replicas 0", "--replicas"),
    ],
)
def test_wrong_options_are_told(
    options: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parsed = build_parser().parse_args(["sim", "fleet", *options.split()])

    with pytest.raises(SystemExit) as ended:
        fleet(parsed)

    assert ended.value.code == 2
    assert told in capsys.readouterr().err
