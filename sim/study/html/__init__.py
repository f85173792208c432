"""One self-contained page about a run: sentences, plots, tables. Needs the extra `report`.

Which plots: `charts` (latency, slices) and `curves` (everything over time); how they become a
page: `page`, with `page.css` and `page.js`. Nothing is fetched when the page is looked at.
"""

from sim.study.html.page import page_of

__all__ = ["page_of"]
