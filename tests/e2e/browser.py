"""A real browser without a window."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browse(url: str, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page and print its DOM; the test is skipped where there is no browser."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser here: looked for {', '.join(BROWSERS)}")
    return subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *("--disable-background-networking", "--disable-component-update", "--no-first-run"),
            *(f"--user-data-dir={profile}", *options, "--dump-dom", url),
        ],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )


def complaints(page: subprocess.CompletedProcess[str]) -> list[str]:
    """What a page complained of: a script's error, or a request that its policy forbids."""
    return [line for line in page.stderr.splitlines() if "CONSOLE" in line]


PHONE, DESK = 390, 1200
"""Widths in CSS pixels. A window of Chromium is 500 wide at least, so a frame has the width."""

_LEAST_CONTRAST = 4.5
"""Level AA of WCAG 2 for text."""

_MEASURE = """
addEventListener("load", () => setTimeout(() => {
  const found = [], width = innerWidth;
  const box = (one) => one.getBoundingClientRect();
  const name = (one) => `${one.tagName.toLowerCase()} ${one.textContent.trim().slice(0, 40)}`;
  if (document.documentElement.scrollWidth > width)
    found.push(`the page is ${document.documentElement.scrollWidth} wide`);
  const scrolls = (one) => one.closest("pre, .modebar, .hoverlayer");
  for (const one of document.querySelectorAll("body *"))
    if (!scrolls(one) && box(one).width && box(one).right > width + 1)
      found.push(`${name(one)}: overflows`);
  for (const one of document.querySelectorAll("svg text")) {
    const svg = box(one.closest("svg")), own = box(one);
    if (own.width && (own.left < svg.left - 1 || own.right > svg.right + 1))
      found.push(`${name(one)}: is cut`);
  }
  const parts = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const back = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const rgba = parts(getComputedStyle(at).backgroundColor);
      if (rgba.length && (rgba[3] ?? 1) > 0) return rgba;
    }
    return [255, 255, 255];
  };
  let texts = 0;
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || one.closest("script, style, .hoverlayer") || !box(one).width) continue;
    const style = getComputedStyle(one);
    const text = parts(one.closest("svg") ? style.fill : style.color);
    const [less, more] = [light(text), light(back(one))].sort((a, b) => a - b);
    texts += 1;
    if ((more + 0.05) / (less + 0.05) < LEAST)
      found.push(`${name(one)}: contrast ${((more + 0.05) / (less + 0.05)).toFixed(2)}`);
  }
  const drawn = document.querySelectorAll(".js-plotly-plot").length;
  parent.postMessage(JSON.stringify({ found: [...new Set(found)], texts, drawn, width,
    dark: matchMedia("(prefers-color-scheme: dark)").matches }), "*");
}, 0));
"""
_FRAMES = """<!doctype html><body style="margin:0"><pre id="result">[]</pre>
<script>addEventListener("message", (event) => {{
  result.textContent = JSON.stringify([...JSON.parse(result.textContent), JSON.parse(event.data)]);
}});</script>{frames}</body>"""


def faults_of_layout(page: Path, folder: Path, scheme: Literal["dark", "light"]) -> list[str]:
    """What of a page overflows, is cut, or is hard to read against its background.

    `page` is a file. It is measured at the width of a phone and of a desk, which each line begins
    with.
    """
    script = _MEASURE.replace("LEAST", str(_LEAST_CONTRAST))
    measured, frame = folder / f"measured-{page.name}", folder / f"frame-{page.name}"
    text = page.read_text("utf-8")
    measured.write_text(text.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    frames = "".join(
        f'<iframe src="{escape(measured.as_uri())}" style="border:0;width:{width}px;height:2000px">'
        "</iframe>"
        for width in (PHONE, DESK)
    )
    frame.write_text(_FRAMES.format(frames=frames), "utf-8")
    shown = browse(
        frame.as_uri(),
        folder / "profile",
        f"--window-size={PHONE + DESK + 20},2100",
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        "--virtual-time-budget=5000",
    )
    result = re.search(r'<pre id="result">(.*?)</pre>', shown.stdout, re.DOTALL)
    assert result, "the page was not shown"
    sizes = json.loads(unescape(result[1]))
    assert {one["width"] for one in sizes} == {PHONE, DESK}, "the page was not measured"
    assert {one["dark"] for one in sizes} == {scheme == "dark"}
    assert complaints(shown) == []
    return [f"{one['width']}: {fault}" for one in sizes for fault in one["found"]]
