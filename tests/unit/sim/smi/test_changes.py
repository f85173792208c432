"""MIG, power limits and errors of the program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.smi.program import main
from tests.unit.sim.nvml.test_answers import H100, IN_MIG_MODE, OTHER_H100, T4

if TYPE_CHECKING:
    import pytest

    from tests.unit.sim.smi.conftest import Smi

OTHER = str(OTHER_H100)


def test_profiles_are_listed(smi: Smi) -> None:
    lines = smi("mig", "-lgip", "-i", str(IN_MIG_MODE)).lines
    assert {len(line) for line in lines} == {81}
    rows = [line.split() for line in lines if " MIG " in line]
    assert [row[3:6] for row in rows] == [
        ["1g.10gb", "19", "0/7"],
        ["1g.10gb+me", "20", "0/1"],
        ["1g.20gb", "15", "0/4"],
        ["2g.20gb", "14", "0/3"],
        ["3g.40gb", "9", "0/2"],
        ["4g.40gb", "5", "0/1"],
        ["7g.80gb", "0", "0/1"],
    ]
    assert (
        "   2  MIG 1g.10gb         19     0/7        9.75       No     16     1     0   "
        in lines[5]
    )
    placements = smi("mig", "-lgipp", "-i", str(IN_MIG_MODE)).lines
    assert "GPU  2 Profile ID 14 Placements: {0,2,4}:2" in placements
    assert "GPU  2 Profile ID  0 Placement: {0}:8" in placements


def test_instances_are_created_and_destroyed(smi: Smi) -> None:
    assert smi("-i", OTHER, "-mig", "1").lines[-1] == "All done."
    created = smi("mig", "-i", OTHER, "-cgi", "9,2g.20gb,19:6", "-C").lines
    using = "using profile MIG"
    where = "on GPU  1 GPU instance ID  1"
    assert created[:2] == [
        f"Successfully created GPU instance ID  1 on GPU  1 {using} 3g.40gb (ID  9)",
        f"Successfully created compute instance ID  0 {where} {using} 3g.40gb (ID  2)",
    ]
    listed = smi("mig", "-lgi", "-i", OTHER).lines
    rows = [line.split() for line in listed if " MIG " in line]
    assert [row[3:7] for row in rows] == [
        ["3g.40gb", "9", "1", "0:4"],
        ["2g.20gb", "14", "2", "4:2"],
        ["1g.10gb", "19", "3", "6:1"],
    ]
    assert len([line for line in smi("mig", "-lci", "-i", OTHER).lines if " MIG " in line]) == 3
    busy = smi("mig", "-dgi", "-i", OTHER, "-gi", "1")
    assert busy.status == 19
    assert busy.lines[-1].startswith("Failed to destroy GPU instances: ")
    assert smi("mig", "-dci", "-i", OTHER).status == 0
    destroyed = smi("mig", "-dgi", "-i", OTHER).lines
    assert destroyed[0] == "Successfully destroyed GPU instance ID  1 from GPU  1"
    none = smi("mig", "-lgi", "-i", OTHER)
    assert (none.status, none.text) == (6, "No GPU instances found: Not Found")


def test_a_compute_instance_can_come_later(smi: Smi) -> None:
    smi("-i", OTHER, "-mig", "1")
    smi("mig", "-i", OTHER, "-cgi", "7g.80gb")
    assert len(smi("-L", "-i", OTHER).lines) == 1
    part = smi("mig", "-i", OTHER, "-cci", "0", "-gi", "1")
    assert (part.status, part.lines[-1]) == (
        3,
        "Failed to create compute instances: Not Supported",
    )
    assert len(smi("-L", "-i", OTHER).lines) == 1
    assert smi("mig", "-i", OTHER, "-cci", "4", "-gi", "1").status == 0
    assert len(smi("-L", "-i", OTHER).lines) == 2
    assert smi("mig", "-i", OTHER, "-dci").status == 0
    assert smi("mig", "-i", OTHER, "-cci", "-gi", "1").status == 0
    assert len(smi("-L", "-i", OTHER).lines) == 2
    full = smi("mig", "-i", OTHER, "-cgi", "19")
    assert full.status == 23
    assert full.lines[-1].startswith("Failed to create GPU instances: ")


def test_mig_needs_mig_mode_and_a_known_profile(smi: Smi) -> None:
    off = smi("mig", "-lgip", "-i", str(H100))
    assert (off.status, off.text) == (6, "No MIG-enabled devices found.")
    assert smi("mig", "-i", str(IN_MIG_MODE), "-cgi", "9g.1tb").status == 2
    assert smi("mig", "-i", str(IN_MIG_MODE)).status == 2
    for wrong in (("-dgi", "-gi", "x"), ("-cgi", "19:x"), ("-cci", "x", "-gi", "1")):
        refused = smi("mig", "-i", str(IN_MIG_MODE), *wrong)
        assert (refused.status, "a number is needed" in refused.text) == (2, True)
    assert smi("-i", str(T4), "-mig", "1").status == 3
    pending = smi("-i", str(H100), "-mig", "1")
    assert pending.status == 0
    assert "pending enable state" in pending.lines[0]


def test_the_power_limit_is_set(smi: Smi) -> None:
    lines = smi("-i", OTHER, "-pl", "450").lines
    assert lines[0].endswith("was set to 450.00 W from 700.00 W.")
    query = ("--query-gpu=power.limit", "--format=csv,noheader,nounits", "-i", OTHER)
    assert smi(*query).lines == ["450.00"]
    wrong = smi("-i", OTHER, "-pl", "9000")
    assert wrong.status == 2
    assert "not a valid power limit" in wrong.text


def test_without_a_node_the_program_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-L"], {}) == 9
    assert "gpuplugin sim env" in capsys.readouterr().out
