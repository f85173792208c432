"""The status page at `/`: HTML from a `PageView`; it fetches nothing, and all texts are escaped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gpuplugin.core.usage import TenantUse
    from gpuplugin.daemon.http.pageview import CallView, PageView, SpanView, Tone, UnitView

REFRESH_S = 5
_GIB = 1024**3
_STYLE = Path(__file__).with_name("page.css")
_MOST_DOTS = 200
"""Replicas that are drawn one by one; of more only the count is shown."""


_ESCAPED = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"})


def escape(text: str) -> str:
    """As `html.escape`, whose module has all names of HTML's characters: half a MiB."""
    return text.translate(_ESCAPED)


def page_html(view: PageView) -> str:
    title = f"gpuplugin on {view.node}" if view.node else "gpuplugin"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="{REFRESH_S}">
<link rel="icon" href="data:,">
<title>{escape(view.summary)} &middot; {escape(title)}</title>
<style>{_style()}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{_badge(view.tone, view.summary)}
<span class="soft">{escape(view.counts)} &middot;
version {escape(view.version)} &middot; backend {escape(view.backend)}</span>
</header>
<main>
{_components(view)}
<section class="units">{"".join(map(_unit, view.units)) or _NOTHING}</section>
{_unseen(view)}
{_calls(view.calls)}
<details><summary>Configuration in force <span class="soft">{escape(view.source)}</span></summary>
<pre>{escape(view.configuration)}</pre></details>
</main>
<footer class="soft">Refreshes every {REFRESH_S} s &middot; <a href="/metrics">metrics</a> &middot;
<a href="/ready">ready</a> &middot; <a href="/health">health</a></footer>
</body>
</html>
"""


_MARKS: Mapping[Tone, str] = {"good": "&#10003;", "warn": "&#9650;", "bad": "&#10007;"}
"""Shapes beside the colours: a tick, a triangle and a cross."""
_TONES: Mapping[str, Tone] = {"Healthy": "good", "Recovering": "warn"}
_HEIGHTS: Mapping[Tone, int] = {"good": 3, "warn": 6, "bad": 10}
_NOTHING = '<p class="soft">No GPU is advertised.</p>'


def _style() -> str:
    return _STYLE.read_text("utf-8")


def _components(view: PageView) -> str:
    rows = "".join(
        f"<div>{_mark(ok=component.ok)} <b>{escape(name)}</b> {escape(component.text)} "
        f'<span class="soft">{_age(view.now_s - component.since_s)}</span></div>'
        for name, component in sorted(view.components.items())
    )
    return f'<section class="parts">{rows}</section>'


def _mark(*, ok: bool) -> str:
    tone: Tone = "good" if ok else "bad"
    return f'<span class="{tone}">{_MARKS[tone]}</span>'


def _badge(tone: Tone, text: str) -> str:
    return f'<span class="badge {tone}">{_MARKS[tone]} {escape(text)}</span>'


def _unit(unit: UnitView) -> str:
    tone = _TONES.get(unit.state, "bad")
    reason = f'<p class="reason {tone}">{escape(unit.reason)}</p>' if unit.reason else ""
    action = f"<p><b>What to do:</b> {escape(unit.action)}</p>" if unit.action else ""
    replaced = ", replaced by another one" if unit.gone else ""
    return f"""<article{' class="gone"' if unit.gone else ""}>
<h2>GPU {escape(unit.index)}{replaced} <span class="soft">{escape(unit.product)}</span>
{_badge(tone, unit.state)}</h2>
<p class="soft uuid">{escape(unit.uuid)}</p>
{reason}{action}{_gauges(unit)}{_replicas(unit)}{_tenants(unit)}{_xids(unit)}{_history(unit)}
</article>"""


def _xids(unit: UnitView) -> str:
    if not unit.xids:
        return ""
    items = "".join(
        f"<li>Xid {one.code} {escape(one.meaning)}: "
        f"{'once' if one.count == 1 else f'{one.count} times'}, last {_age(one.age_s)} ago</li>"
        for one in unit.xids
    )
    return f'<ul class="soft">{items}</ul>'


def _gauges(unit: UnitView) -> str:
    gauges = []
    if unit.utilization is not None:
        gauges.append(_bar("busy", unit.utilization, f"{unit.utilization:.0%}"))
    if unit.memory_used_bytes is not None and unit.memory_total_bytes:
        text = f"{_gib(unit.memory_used_bytes)} of {_gib(unit.memory_total_bytes)} GiB"
        gauges.append(_bar("memory", unit.memory_used_bytes / unit.memory_total_bytes, text))
    facts = [
        f"{unit.temperature_c:.0f} &deg;C" if unit.temperature_c is not None else "",
        f"{unit.power_w:.0f} W" if unit.power_w is not None else "",
        f"{unit.clock_mhz} MHz" if unit.clock_mhz is not None else "",
        f'<span class="warn">{_MARKS["warn"]} throttled: {escape(unit.throttled)}</span>'
        if unit.throttled
        else "",
    ]
    line = " &middot; ".join(fact for fact in facts if fact)
    return "".join(gauges) + (f'<p class="soft">{line}</p>' if line else "")


def _bar(name: str, share: float, text: str) -> str:
    width = min(100.0, max(0.0, 100 * share))
    tone = "warn" if share > 0.95 and name == "memory" else ""
    return (
        f'<div class="bar"><span>{name}</span><div class="track {tone}">'
        f'<div style="width:{width:.1f}%"></div></div><span>{text}</span></div>'
    )


def _replicas(unit: UnitView) -> str:
    held = "?" if unit.allocated is None else unit.allocated
    usable = "" if unit.usable else ", the others are not given out"
    text = f'<p class="soft">{held} of {unit.replicas} replicas are held{usable}</p>'
    if unit.replicas > _MOST_DOTS or unit.allocated is None:
        return text
    free = "free" if unit.usable else "unusable"
    dots = "".join(
        f'<i class="held" title="{number}: {escape(unit.holders[number])}"></i>'
        if number in unit.holders
        else f'<i class="{free}" title="{number}: {free}"></i>'
        for number in range(unit.replicas)
    )
    return f'<div class="replicas">{dots}</div>{text}'


def _tenants(unit: UnitView) -> str:
    if not unit.tenants:
        return ""
    rows = "".join(map(_tenant, unit.tenants))
    return (
        '<table><thead><tr><th>pod</th><th class="n">replicas</th><th class="n">memory</th>'
        f'<th class="n">SM</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _tenant(tenant: TenantUse) -> str:
    pod = tenant.pod
    name = f"{pod.namespace}/{pod.name}" if pod else "processes of no known pod"
    memory = "&ndash;" if tenant.memory_bytes is None else f"{_gib(tenant.memory_bytes)} GiB"
    if tenant.over_fair_share:
        fair = f"fair share: {_gib(tenant.fair_memory_bytes or 0)} GiB"
        memory = f'<b class="warn" title="{fair}">{memory}, over</b>'
    share = "&ndash;" if tenant.sm_share is None else f"{tenant.sm_share:.0%}"
    container = f' <span class="soft">{escape(tenant.container)}</span>' if tenant.container else ""
    return (
        f"<tr><td>{escape(name)}{container}</td>"
        f'<td class="n">{tenant.replicas}</td><td class="n">{memory}</td>'
        f'<td class="n">{share}</td></tr>'
    )


def _history(unit: UnitView) -> str:
    """Bars until now; a state that is worse is higher, too."""
    rects = "".join(map(_span, unit.history))
    return (
        '<svg class="history" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        f'aria-label="health until now">{rects}</svg>'
        f'<p class="soft axis"><span>{_age(unit.history_s)} ago</span>'
        "<span>health</span><span>now</span></p>"
    )


def _span(span: SpanView) -> str:
    tone = _TONES.get(span.state, "bad")
    height = _HEIGHTS[tone]
    return (
        f'<rect class="{tone}" x="{100 * span.begin:.2f}" y="{10 - height}" '
        f'width="{max(0.3, 100 * (span.end - span.begin)):.2f}" height="{height}"><title>'
        f"{escape(f'{span.state} {span.reason}')}</title></rect>"
    )


def _unseen(view: PageView) -> str:
    if not view.unseen:
        return ""
    items = "".join(
        f"<li><b>{escape(what)}</b>: {escape(why)}</li>" for what, why in view.unseen.items()
    )
    return f'<section class="card"><h2>Not seen</h2><ul>{items}</ul></section>'


def _calls(calls: Iterable[CallView]) -> str:
    rows = "".join(
        f'<tr><td class="n">{_age(call.age_s)}</td><td>{escape(call.resource)}</td>'
        f"<td>{escape(', '.join(call.devices))}</td>"
        f'<td class="{"bad" if call.error else "good"}">{escape(call.error) or "ok"}</td></tr>'
        for call in calls
    )
    body = (
        '<div class="scroll"><table><thead><tr><th class="n">ago</th><th>resource or claim</th>'
        f"<th>devices</th><th>response</th></tr></thead><tbody>{rows}</tbody></table></div>"
        if rows
        else '<p class="soft">None yet.</p>'
    )
    return f'<section class="card"><h2>Last calls</h2>{body}</section>'


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f}"


def _age(seconds: float) -> str:
    for unit_s, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"
