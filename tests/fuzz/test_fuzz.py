"""The connection under anything that a peer can send: hypothesis, the kept corpus, and atheris."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.harness import quiet, run, run_in_pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
CORPUS = sorted((HERE / "corpus").iterdir())
FEW = settings(
    deadline=None,
    max_examples=150,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


_op = st.one_of(
    st.builds(
        lambda kind, flags, stream, payload: bytes((kind, flags, stream, len(payload))) + payload,
        st.integers(0, 10),
        st.sampled_from([0, 1, 4, 5, 8, 12, 0x2C, 255]),
        st.integers(0, 9),
        st.one_of(st.binary(max_size=20), st.sampled_from([bytes(4), bytes(5), bytes(8), b"\x82"])),
    ),
    st.builds(
        lambda stream, choice: bytes((12, stream, choice)), st.integers(0, 9), st.integers(0, 255)
    ),
    st.builds(
        lambda stream, choice, end: bytes((13, stream, choice, end)),
        st.integers(0, 9),
        st.integers(0, 255),
        st.integers(0, 1),
    ),
    st.builds(lambda data: bytes((11, len(data))) + data, st.binary(max_size=30)),
)
_scripts = st.one_of(
    st.lists(_op, max_size=25).map(lambda ops: b"\x00" + b"".join(ops)), st.binary(max_size=200)
)


@FEW
@given(_scripts)
def test_anything_may_be_sent(data: bytes) -> None:
    run(data)


@FEW
@given(_scripts, st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_bytes_may_be_cut_anywhere(data: bytes, sizes: list[int]) -> None:
    run_in_pieces(data, sizes)


@FEW
@given(
    st.lists(st.sampled_from([5, 5, 1, 2, 3, 4]), min_size=1, max_size=2),
    st.lists(st.tuples(st.integers(0, 255), st.booleans()), max_size=8),
    st.sampled_from([0, 1, 100, 5_000]),
)
def test_the_short_way_of_a_call_does_what_the_long_way_does(
    choices: list[int], calls: list[tuple[int, bool]], window: int
) -> None:
    """The same calls again and again: whole ones take the short way, cut ones the long way."""
    script = bytes((0, 4, 0, 0, 6, 0, 4)) + window.to_bytes(4, "big")
    for number, (length, ended) in enumerate(calls):
        stream, choice = 2 * number + 1, choices[number % len(choices)]
        script += bytes((12, stream, choice, 13, stream, length, ended))
    run_in_pieces(script, [8])


@pytest.mark.parametrize("check", [run, lambda data: run_in_pieces(data, [1, 7, 30])])
def test_the_corpus(check: Callable[[bytes], None]) -> None:
    for path in CORPUS:
        check(path.read_bytes())
    assert len(CORPUS) > 20


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_atheris_finds_nothing_new(tmp_path: Path) -> None:
    shutil.copytree(HERE / "corpus", tmp_path / "corpus")
    command = (sys.executable, "-m", "tests.fuzz.fuzz_h2", "25", str(tmp_path / "corpus"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done " in done.stderr
