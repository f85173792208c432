"""A process that holds one edge: `python -m sim.calibrate.child MODULE:CLASS PARENT`.

A request is a line of JSON on standard input, its answer a line on standard output. It ends with
its input, and is killed with the process that started it.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from sim.calibrate.edges import Answer, EdgeError, Request
from sim.calibrate.processes import end_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.calibrate.edges import Edge


def main(place: str, parent: int) -> int:
    end_with_parent()
    if os.getppid() != parent:
        return 1  # it ended before it could take this process along
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    requests: TypeAdapter[Request] = TypeAdapter(Request)
    module, _, name = place.partition(":")
    make: Callable[[], Edge] = getattr(import_module(module), name)
    edge = make()
    for line in sys.stdin:
        try:
            answer = edge.answer(requests.validate_json(line))
        except EdgeError as error:
            answer = Answer(error=str(error))
        answers.write(answer.model_dump_json(exclude_none=True) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
