"""The status page at `/`: HTML from a `PageView`; it fetches nothing, and all texts are escaped."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpuplugin.core.usage import TenantUse
    from gpuplugin.daemon.http.pageview import CallView, PageView, UnitView

REFRESH_S = 5
_GIB = 1024**3
_STYLE = Path(__file__).with_name("page.css")
_MOST_DOTS = 200
"""Replicas that are drawn one by one; of more only the count is shown."""


def page_html(view: PageView) -> str:
    title = f"gpuplugin on {view.node}" if view.node else "gpuplugin"
    sick = sum(unit.state != "Healthy" for unit in view.units)
    mark = "Ready" if view.ready else "Not ready"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="{REFRESH_S}">
<link rel="icon" href="data:,">
<title>{escape(mark)} &middot; {escape(title)}</title>
<style>{_style()}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<span class="badge {"good" if view.ready else "bad"}">{mark}</span>
<span class="soft">{len(view.units)} devices{f", {sick} not healthy" if sick else ""} &middot;
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


_NOTHING = '<p class="soft">No GPU is advertised.</p>'


def _style() -> str:
    return _STYLE.read_text("utf-8")


def _components(view: PageView) -> str:
    rows = "".join(
        f'<div><i class="dot {"good" if component.ok else "bad"}"></i><b>{escape(name)}</b> '
        f'{escape(component.text)} <span class="soft">{_age(view.now_s - component.since_s)}</span>'
        "</div>"
        for name, component in sorted(view.components.items())
    )
    return f'<section class="parts">{rows}</section>'


def _unit(unit: UnitView) -> str:
    tone = {"Healthy": "good", "Recovering": "warn"}.get(unit.state, "bad")
    reason = f'<p class="reason {tone}">{escape(unit.reason)}</p>' if unit.reason else ""
    return f"""<article>
<h2>GPU {escape(unit.index)} <span class="soft">{escape(unit.product)}</span>
<span class="badge {tone}">{escape(unit.state)}</span></h2>
<p class="soft uuid">{escape(unit.uuid)}</p>
{reason}{_gauges(unit)}{_replicas(unit)}{_tenants(unit)}{_history(unit)}
</article>"""


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
        f"throttled: {escape(unit.throttled)}" if unit.throttled else "",
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
    text = f'<p class="soft">{held} of {unit.replicas} replicas are held</p>'
    if unit.replicas > _MOST_DOTS or unit.allocated is None:
        return text
    dots = "".join(
        f'<i class="held" title="{number}: {escape(unit.holders[number])}"></i>'
        if number in unit.holders
        else f'<i title="{number}: free"></i>'
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
    tones = {"Healthy": "good", "Recovering": "warn"}
    rects = "".join(
        f'<rect class="{tones.get(span.state, "bad")}" x="{100 * span.begin:.2f}" y="0" '
        f'width="{max(0.3, 100 * (span.end - span.begin)):.2f}" height="8"><title>'
        f"{escape(f'{span.state} {span.reason}')}</title></rect>"
        for span in unit.history
    )
    return (
        '<svg class="history" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" '
        f'aria-label="health until now">{rects}</svg>'
        f'<p class="soft axis"><span>{_age(unit.history_s)} ago</span>'
        "<span>health</span><span>now</span></p>"
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
        '<div class="scroll"><table><thead><tr><th class="n">ago</th><th>resource</th>'
        f"<th>devices</th><th>response</th></tr></thead><tbody>{rows}</tbody></table></div>"
        if rows
        else '<p class="soft">None yet.</p>'
    )
    return f'<section class="card"><h2>Last Allocate calls</h2>{body}</section>'


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f}"


def _age(seconds: float) -> str:
    for unit_s, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"
