"""The last Xids of a GPU: how often each was reported, the newest first, and no more than a few."""

from __future__ import annotations

from gpuplugin.core.xidlog import MAX_CODES, XidCount, XidLog, log_of, logged
from hal import XidError


def log(*events: tuple[str | None, int]) -> XidLog:
    found: XidLog = {}
    for now_s, (uuid, code) in enumerate(events):
        found = logged(found, XidError(uuid=uuid, xid=code), float(now_s))
    return found


def test_codes_are_counted_for_each_gpu() -> None:
    found = log(("A", 31), ("B", 79), ("A", 43), ("A", 31))
    assert found == {
        "A": (XidCount(31, 2, 3.0), XidCount(43, 1, 2.0)),
        "B": (XidCount(79, 1, 1.0),),
    }
    assert log_of(found, {"B", "C"}) == {"B": (XidCount(79, 1, 1.0),)}


def test_the_codes_that_were_reported_last_are_kept() -> None:
    codes = range(MAX_CODES + 2)
    found = log(*(("A", code) for code in codes))
    assert [one.code for one in found["A"]] == list(reversed(codes))[:MAX_CODES]


def test_an_xid_of_no_gpu_is_left_out() -> None:
    before = log(("A", 31))
    assert logged(before, XidError(uuid=None, xid=79), 5.0) == before
