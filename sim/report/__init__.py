"""What a run in virtual time showed, as numbers with documented keys.

Schema in `schema`, the arithmetic in `statistics`, how an `Outcome` becomes a `Report` in `build`,
what is said of it in plain words in `words`. How it looks is elsewhere: `sim.html` and the CLI.
"""

from sim.report.build import kind_of, report_of
from sim.report.schema import Report
from sim.report.words import in_words

__all__ = ["Report", "in_words", "kind_of", "report_of"]
