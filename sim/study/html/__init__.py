"""Self-contained pages: sentences, plots, tables. They need the extra `report`.

About a run: `page`, with the plots of `charts` (latency, slices) and `curves` (everything over
time). About a sweep: `sweeppage`. What both have in common: `frame`, with `page.css` and `page.js`.
Nothing is fetched when a page is looked at.
"""

from sim.study.html.page import page_of
from sim.study.html.sweeppage import sweep_page

__all__ = ["page_of", "sweep_page"]
