from collections.abc import Mapping
from typing import Any

import pytest
from clickhouse_driver import Client

from dags.web_preaggregated.channels import channel_expression

NOTHING = {
    "referring_domain": "$direct",
    "entry_host": "www.example.com",
    "utm_source": "",
    "utm_medium": "",
    "utm_campaign": "",
    "has_gclid": 0,
    "has_gad_source": 0,
    "has_fbclid": 0,
}


def referred(host: str) -> dict[str, Any]:
    return {"referring_domain": host}


def tagged(source: str = "", medium: str = "", campaign: str = "") -> dict[str, Any]:
    return {"utm_source": source, "utm_medium": medium, "utm_campaign": campaign}


CASES: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("Direct", {}),
    ("Direct", referred("")),
    # A session that goes on after its end is not referred by its own site.
    ("Direct", referred("www.example.com")),
    ("Referral", referred("blog.example.org")),
    ("Referral", tagged("partner.example.org", "referral")),
    ("Organic Search", referred("www.google.com")),
    ("Organic Search", referred("www.google.co.uk")),
    ("Organic Search", referred("duckduckgo.com")),
    ("Organic Search", referred("r.search.yahoo.com")),
    ("Organic Search", referred("search.yahoo.co.jp")),
    ("Organic Search", tagged("Bing", "organic")),
    # Names that only look like those of search engines and social sites.
    ("Referral", referred("notgoogle.com")),
    ("Referral", referred("google.com.evil.example")),
    ("Referral", referred("netflix.com.example.org")),
    ("Referral", referred("box.com")),
    ("Paid Search", tagged("google", "cpc")),
    ("Paid Search", {"has_gclid": 1}),
    ("Paid Search", {"referring_domain": "www.google.com", "has_gad_source": 1}),
    ("Paid Search", {"referring_domain": "www.google.com", "has_gclid": 1}),
    ("Paid Social", tagged("facebook", "paid-social")),
    ("Paid Social", {"referring_domain": "l.facebook.com", "utm_medium": "cpc"}),
    ("Organic Social", referred("l.facebook.com")),
    ("Organic Social", referred("t.co")),
    ("Organic Social", {"has_fbclid": 1}),
    ("Organic Social", tagged("newsroom", "social")),
    ("Organic Social", referred("news.ycombinator.com")),
    # The campaign's name counts before the host.
    ("Email", {"referring_domain": "www.google.com", "utm_source": "newsletter"}),
    ("Email", tagged("october", "e-mail")),
    ("Email", referred("mail.google.com")),
    ("Email", referred("outlook.live.com")),
    ("Paid Video", tagged("youtube", "cpv")),
    ("Paid Other", tagged("someone", "paid")),
    ("Organic Video", referred("www.youtube.com")),
    ("Organic Video", tagged("conference", "video")),
    ("Display", tagged("network", "banner")),
    ("Paid Shopping", tagged("google-shopping", "cpc")),
    ("Paid Shopping", tagged("google", "cpc", "Shopping November")),
    ("Organic Shopping", referred("www.amazon.de")),
    # Not a shop: the letters are part of a word.
    ("Organic Search", {"referring_domain": "www.google.com", "utm_campaign": "photoshop"}),
    ("Cross-network", tagged("google", "cpc", "Cross-network")),
    ("Affiliates", tagged("someone", "affiliate")),
    ("SMS", tagged("someone", "sms")),
    ("Audio", tagged("someone", "podcast")),
    ("Mobile Push", tagged("app", "web_push")),
    ("AI Assistant", referred("chatgpt.com")),
    ("AI Assistant", referred("gemini.google.com")),
    ("AI Assistant", tagged("chatgpt.com")),
    ("Other Campaign", tagged("poster", "print", "spring")),
)


@pytest.mark.parametrize("types", ["String", "LowCardinality(String)"])
def test_the_channel_of_each_case_is_the_documented_one(clickhouse_client: Client, types: str) -> None:
    names = list(NOTHING)
    columns = ", ".join(f"{name} {types if isinstance(NOTHING[name], str) else 'UInt8'}" for name in names)
    clickhouse_client.execute(f"CREATE TABLE cases (number UInt32, {columns}) ENGINE = Memory")
    rows = [(number, *({**NOTHING, **values}[name] for name in names)) for number, (_, values) in enumerate(CASES)]
    clickhouse_client.execute(f"INSERT INTO cases (number, {', '.join(names)}) VALUES", rows)
    found = clickhouse_client.execute(f"SELECT toString({channel_expression()}) FROM cases ORDER BY number")  # noqa: S608 - the expression under test
    wrong = [
        (values, f"expected {channel}, found {one}")
        for (channel, values), (one,) in zip(CASES, found, strict=True)
        if one != channel
    ]
    assert not wrong
