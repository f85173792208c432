"""What a run in virtual time showed, as numbers with documented keys.

Schema in `schema`, the arithmetic in `statistics`, how an `Outcome` becomes a `Report` in `build`,
what is said of it in plain words in `words`. How it looks: `sim.study.html` and the CLI.
"""

from sim.study.report.build import kind_of, report_of
from sim.study.report.schema import Report
from sim.study.report.words import in_words

__all__ = ["Report", "in_words", "kind_of", "report_of"]
