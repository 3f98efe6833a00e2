"""A digest as people see it in the Dagster UI: tables in Markdown, and a plot of the last days."""

import base64
import datetime as dt
from collections.abc import Mapping, Sequence

from dags.common.markdown import code, markdown_table
from dags.daily_digest.digest import Digest, Page, Totals

# What a person reads at a glance, and what fits the width of the metadata pane; the table has everything.
MAX_TEAMS = 20
MAX_PAGES = 10
MAX_CURRENCIES = 10
MAX_PAGE_CHARACTERS = 60

PLOT_DAYS = 30
BAR_PIXELS, GAP_PIXELS, PANEL_PIXELS, TITLE_PIXELS = 14, 2, 70, 22


def digest_markdown(digests: Sequence[Digest]) -> str:
    """Return the teams with most pageviews, their revenue events that are in no sum, and the most viewed pages."""
    if not digests:
        return "No visits and no revenue events."
    busiest = sorted(digests, key=lambda digest: (-(digest.pageviews or 0), digest.team_id))[:MAX_TEAMS]
    rows = [
        [
            digest.team_id,
            *(_number(count) for count in (digest.visitors, digest.sessions, digest.pageviews)),
            _number(digest.revenue_usd),
        ]
        for digest in busiest
    ]
    parts = [markdown_table(["team", "visitors", "sessions", "pageviews", "US dollars"], "rrrrr", rows)]
    if len(digests) > MAX_TEAMS:
        parts.append(f"and {len(digests) - MAX_TEAMS} more teams")
    parts.append("\n".join(f"- Team {digest.team_id}: {text}" for digest in busiest if (text := not_converted(digest))))
    pages = [(digest.team_id, page) for digest in digests for page in digest.top_pages]
    pages.sort(key=lambda pair: (-pair[1].pageviews, pair[0], pair[1]))
    shown = [[team_id, code(_shortened(page)), page.pageviews] for team_id, page in pages[:MAX_PAGES]]
    parts.append(markdown_table(["team", "page", "pageviews"], "rlr", shown))
    return "\n\n".join(part for part in parts if part)


def not_converted(digest: Digest) -> str:
    """Return which revenue events are in no sum, and why; an empty text if all of them are."""
    reasons = []
    if digest.revenue_events_without_rate:
        currencies = ", ".join(code(one) or "no currency" for one in digest.currencies_without_rate[:MAX_CURRENCIES])
        reasons.append(f"{digest.revenue_events_without_rate} without a rate ({currencies})")
    if digest.revenue_events_without_amount:
        reasons.append(f"{digest.revenue_events_without_amount} without an amount")
    return f"{digest.revenue_events} revenue events, {', '.join(reasons)}" if reasons else ""


def plot_markdown(totals_by_day: Mapping[dt.date, Totals], last: dt.date) -> str:
    """Return a plot of pageviews and revenue of all teams, by day up to the last, as an image in Markdown.

    Matplotlib is not in the production image. An SVG of some bars needs no library and is a few kilobytes.
    """
    days = [last - dt.timedelta(days=age) for age in reversed(range(PLOT_DAYS))]
    totals = [totals_by_day.get(day) for day in days]
    panels: dict[str, Sequence[float | None]] = {
        "Pageviews": [one.pageviews if one else None for one in totals],
        "Revenue, US dollars": [one.revenue_usd if one else None for one in totals],
    }
    image = base64.b64encode(_svg(panels, f"{days[0]} to {last}").encode()).decode()
    return f"![Pageviews and revenue by day, {days[0]} to {last}](data:image/svg+xml;base64,{image})"


def _svg(panels: Mapping[str, Sequence[float | None]], days: str) -> str:
    """Return bars of each panel, scaled to its highest value. A value that is unknown or below zero has no bar."""
    step = BAR_PIXELS + GAP_PIXELS
    width = PLOT_DAYS * step + 2 * GAP_PIXELS
    height = len(panels) * (TITLE_PIXELS + PANEL_PIXELS) + TITLE_PIXELS
    parts = [f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for number, (title, values) in enumerate(panels.items()):
        top = number * (TITLE_PIXELS + PANEL_PIXELS)
        highest = max((value for value in values if value is not None), default=0)
        label = f"{title} (highest {_number(highest)})" if highest > 0 else f"{title} (none)"
        parts.append(f'<text x="{GAP_PIXELS}" y="{top + 16}">{label}</text>')
        for place, value in enumerate(values):
            if value is not None and value > 0:
                bar = max(1, round(PANEL_PIXELS * value / highest))
                x, y = GAP_PIXELS + place * step, top + TITLE_PIXELS + PANEL_PIXELS - bar
                parts.append(f'<rect x="{x}" y="{y}" width="{BAR_PIXELS}" height="{bar}" fill="#4f43dd"/>')
    parts.append(f'<text x="{GAP_PIXELS}" y="{height - 6}">{days} (UTC)</text>')
    body = "".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="12">{body}</svg>'
    )


def _number(value: object) -> str:
    return "unknown" if value is None else f"{value:,}"


def _shortened(page: Page) -> str:
    address = page.host + page.pathname
    return address if len(address) <= MAX_PAGE_CHARACTERS else f"{address[: MAX_PAGE_CHARACTERS - 1]}…"
