"""Coverage-guided fuzzing of a connection by atheris: `python -m tests.fuzz.fuzz_h2 SECONDS [DIR]`.

Inputs that reach new code are added to DIR (tests/fuzz/corpus unless given). Not run by the tests,
except for a few seconds by one that is marked slow.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gpuplugin.rpc.h2", "hpack"]):
    from tests.fuzz import harness

_LONGEST_BYTES = 1024
_HANG_S = 5
_MEMORY_MB = 1024


def main() -> None:
    """Fuzz for a time; ends with a traceback and the input at the first fault."""
    seconds, folder = int(sys.argv[1]), Path(__file__).parent / "corpus"
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else folder
    limits = (f"-max_total_time={seconds}", f"-max_len={_LONGEST_BYTES}", f"-timeout={_HANG_S}")
    atheris.Setup([sys.argv[0], str(folder), *limits, f"-rss_limit_mb={_MEMORY_MB}"], _one)
    with harness.quiet():
        atheris.Fuzz()


def _one(data: bytes) -> None:
    harness.run(data)
    harness.run_in_pieces(data, [1 + len(data) % 13, 64])


if __name__ == "__main__":
    main()
