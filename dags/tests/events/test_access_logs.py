import datetime as dt
import uuid

import pytest

from dags.common.settings import Settings, SettingsError
from dags.events.access_logs import LogRules, log_rules_from_settings
from dags.tests.events.world import CHROME, IPHONE, VISITOR_HASH_KEY, World, log_line


def text(*found: str) -> bytes:
    return "".join(f"{line}\n" for line in found).encode()


def at(clock: str, day: int = 1) -> str:
    return f"{day:02d}/Oct/2026:{clock}:00 +0000"


def test_a_page_view_has_path_referrer_campaign_browser_and_device(world: World) -> None:
    world.put(
        "access.log.gz",
        text(
            log_line(
                "/blog/post?id=7&utm_source=news%20letter&utm_medium=email&token=secret",
                at="01/Oct/2026:12:00:00 +0200",
                referrer="https://www.example.org/search?q=private",
                agent=IPHONE,
            )
        ),
        team=5,
    )
    (entry,) = world.load().loaded
    assert (entry.lines, entry.rows, entry.format) == (1, 1, "access log")
    assert world.rows(
        "SELECT event, team_id, toString(timestamp), pathname, referring_domain, browser, os, device_type, utm_source, "
        "utm_medium, session_id != '' FROM events"
    ) == [
        (
            "$pageview",
            5,
            "2026-10-01 10:00:00.000000",
            "/blog/post",
            "www.example.org",
            "Mobile Safari",
            "iOS",
            "Mobile",
            "news letter",
            "email",
            1,
        )
    ]
    assert world.rows(
        "SELECT count() FROM events WHERE properties LIKE '%%secret%%' OR properties LIKE '%%private%%'"
    ) == [(0,)]


def test_click_ids_of_advertisements_are_flags(world: World) -> None:
    targets = ["/?gclid=Cj0&gad_source=1", "/?fbclid=IwAR", "/?gclid=&fbclidx=1", "/gclid=1"]
    found = [log_line(target, at=at(f"10:0{number}")) for number, target in enumerate(targets)]
    world.put("access.log", text(*found))
    world.load()
    assert world.rows("SELECT has_gclid, has_gad_source, has_fbclid FROM events ORDER BY timestamp") == [
        (1, 1, 0),
        (0, 0, 1),
        (0, 0, 0),
        (0, 0, 0),
    ]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (log_line("/logo.png"), "asset"),
        (log_line("/style.css?v=3"), "asset"),
        (log_line("/app.JS"), "asset"),
        (log_line("/fonts/a.woff2"), "asset"),
        (log_line("/robots.txt"), "asset"),
        (log_line(agent="Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"), "bot"),
        (log_line(agent="-"), "bot"),
        (log_line(agent=""), "bot"),
        (log_line(status=404), "status is not 2xx or 3xx"),
        (log_line(status=500), "status is not 2xx or 3xx"),
        (log_line(status=101), "status is not 2xx or 3xx"),
        (log_line(status=301), "redirect (3xx)"),
        (log_line(status=206), "partial answer (206)"),
        (log_line("//favicon.ico"), "asset"),
        (log_line("/feed.xml?page=2"), "data file"),
        (log_line("/data.JSON"), "data file"),
        (log_line("/api/users"), "API path"),
        (log_line("/api"), "API path"),
        (log_line(request="OPTIONS * HTTP/1.0"), "method is not GET"),
        (log_line(request="GET favicon HTTP/1.1"), "request is not METHOD path HTTP/x"),
        (log_line(agent="ELB-HealthChecker/2.0"), "bot"),
        (log_line(agent="kube-probe/1.27"), "bot"),
        ("\0\0\0", "blank line"),
        (log_line(request="POST /form HTTP/1.1"), "method is not GET"),
        (log_line(request="HEAD / HTTP/1.1"), "method is not GET"),
        (log_line(request="-", status=408), "request is not METHOD path HTTP/x"),
        (log_line(request=r"\x16\x03\x01", status=400), "request is not METHOD path HTTP/x"),
        (log_line(request="", status=400), "request is not METHOD path HTTP/x"),
        (log_line(request="GET /without-version"), "request is not METHOD path HTTP/x"),
        ("   ", "blank line"),
    ],
)
def test_a_line_that_is_not_a_page_view_is_skipped_by_a_named_rule(world: World, line: str, rule: str) -> None:
    world.put("access.log", text(log_line("/page"), line))
    (entry,) = world.load().loaded
    assert entry.skipped_rows == {rule: 1}
    assert (entry.rows, entry.rejected_rows) == (1, 0)
    assert world.column("pathname") == ["/page"]


@pytest.mark.parametrize("status", [200, 204, 304])
def test_answers_of_2xx_and_304_are_page_views(world: World, status: int) -> None:
    world.put("access.log", text(log_line("/page", status=status)))
    assert [entry.rows for entry in world.load().loaded] == [1]


def test_each_rule_can_be_set_to_count_its_lines(world: World) -> None:
    found = [log_line(status=302), log_line(status=206), log_line("/api/users"), log_line("/data.json")]
    world.put("access.log", text(*found))
    rules = LogRules(count_redirects=True, count_partial_answers=True, count_api_paths=True, count_data_files=True)
    (entry,) = world.load(log_rules=rules).loaded
    assert (entry.rows, entry.skipped_rows) == (4, {})


def test_paths_that_only_resemble_an_api_or_a_data_file_are_pages(world: World) -> None:
    paths = ["/apis", "/docs/api/users", "/xml", "/page.json.html", "/a?b=/api/c.json"]
    world.put("access.log", text(*map(log_line, paths)))
    (entry,) = world.load().loaded
    assert (entry.rows, entry.skipped_rows) == (len(paths), {})


def test_the_rules_come_from_the_settings() -> None:
    assert log_rules_from_settings(Settings(debug=True)) == LogRules()
    settings = Settings(debug=True, access_log_count_redirects=True, access_log_trusted_proxies="203.0.113.5, ::1")
    assert log_rules_from_settings(settings) == LogRules(
        count_redirects=True, trusted_proxies=("203.0.113.5/32", "::1/128")
    )
    with pytest.raises(SettingsError, match="ACCESS_LOG_TRUSTED_PROXIES"):
        log_rules_from_settings(Settings(debug=True, access_log_trusted_proxies="203.0.113.500"))


def without_tail(line: str) -> str:
    """Return a line of the combined format in the common one."""
    return line.rsplit(' "', 2)[0]


@pytest.mark.parametrize(
    ("line", "host", "browser", "referrer", "address"),
    [
        (log_line(referrer="http://x.org/"), "", "Chrome", "x.org", "203.0.113.7"),
        (without_tail(log_line()), "", "", "$direct", "203.0.113.7"),
        (without_tail(log_line(address="host.example.net")), "", "", "$direct", "host.example.net"),
        ("WWW.example.com:443 " + log_line(), "www.example.com", "Chrome", "$direct", "203.0.113.7"),
        ("www.example.com:80 " + log_line(address="host.example.net"), "www.example.com", "Chrome", "$direct", None),
        ("www.example.com " + log_line(), "www.example.com", "Chrome", "$direct", "203.0.113.7"),
        (
            "www.example.com:443 " + log_line(address="2001:db8::1"),
            "www.example.com",
            "Chrome",
            "$direct",
            "2001:db8::1",
        ),
        ("198.51.100.1:80 " + without_tail(log_line()), "198.51.100.1", "", "$direct", "203.0.113.7"),
        (log_line(address="2001:db8::1"), "", "Chrome", "$direct", "2001:db8::1"),
        (log_line(address="host.example.net"), "", "Chrome", "$direct", "host.example.net"),
        (log_line().replace(" - - ", " - 10.0.0.1 user "), "", "Chrome", "$direct", "203.0.113.7"),
        (log_line("http://shop.example.com/a"), "shop.example.com", "Chrome", "$direct", "203.0.113.7"),
        ("a.example.com:80 " + log_line("http://b.example.com/a"), "b.example.com", "Chrome", "$direct", "203.0.113.7"),
        (log_line("//blog/post"), "", "Chrome", "$direct", "203.0.113.7"),
        (log_line() + ' "198.51.100.9"', "", "Chrome", "$direct", "198.51.100.9"),
        (log_line() + ' "198.51.100.9, 10.0.0.3" 0.2 "x"', "", "Chrome", "$direct", "198.51.100.9"),
        (log_line() + ' "192.168.1.7, 198.51.100.9"', "", "Chrome", "$direct", "198.51.100.9"),
        (log_line() + ' "10.1.2.3"', "", "Chrome", "$direct", "10.1.2.3"),
        (log_line() + ' "[2001:db8::9]:443, 10.0.0.3"', "", "Chrome", "$direct", "2001:db8::9"),
        (log_line() + ' "-"', "", "Chrome", "$direct", "203.0.113.7"),
        (log_line() + ' "unknown"', "", "Chrome", "$direct", "203.0.113.7"),
        (log_line() + ' "999.1.1.1"', "", "Chrome", "$direct", "203.0.113.7"),
        (log_line() + ' 0.123 "198.51.100.9"', "", "Chrome", "$direct", "203.0.113.7"),
    ],
)
def test_the_format_is_detected_by_line(
    world: World, line: str, host: str, browser: str, referrer: str, address: str | None
) -> None:
    world.put("access.log", text(line))
    (entry,) = world.load().loaded
    assert (entry.rows, entry.rejected_rows, entry.skipped_rows) == (1, 0, {})
    assert world.rows("SELECT host, browser, referring_domain FROM events") == [(host, browser, referrer)]
    if address is not None:
        # The plain line of this address gives the same visitor.
        tail = log_line(address=address)
        world.put("plain.log", text(tail if browser else without_tail(tail)))
        world.load()
        assert len(set(world.column("distinct_id"))) == 1


@pytest.mark.parametrize(
    ("sender", "forwarded", "visitor"),
    [
        ("203.0.113.5", "198.51.100.1, 198.51.100.2", "198.51.100.2"),
        ("203.0.113.5", "198.51.100.1, 198.51.100.2, 203.0.113.6", "198.51.100.2"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("192.0.2.1", "198.51.100.1", "192.0.2.1"),
        ("host.example.net", "198.51.100.1", "host.example.net"),
    ],
)
def test_with_trusted_proxies_the_visitor_is_the_last_address_that_is_none(
    world: World, sender: str, forwarded: str, visitor: str
) -> None:
    world.put("a.log", text(f'{log_line(address=sender)} "{forwarded}"', log_line(address=visitor)))
    world.load(log_rules=LogRules(trusted_proxies=("203.0.113.0/24",)))
    assert len(world.column("distinct_id")) == 2
    assert len(set(world.column("distinct_id"))) == 1


def test_what_rotation_and_editors_leave_at_the_edges_of_a_file_loses_no_other_line(world: World) -> None:
    whole = [log_line(f"/{number}").encode() for number in range(6)]
    found = [
        b"\xef\xbb\xbf" + whole[0],
        b"\0" * 500 + whole[1],
        whole[2][5:],
        whole[3][40:],
        whole[4],
        b"",
        whole[5][:-20],
    ]
    world.put("access.log", b"\n".join(found))
    (entry,) = world.load().loaded
    assert world.column("pathname") == ["/0", "/1", "/4"]
    assert (entry.lines, entry.skipped_rows) == (7, {"blank line": 1})
    assert world.rows("SELECT line, reason FROM events_rejected ORDER BY line") == [
        (3, "address is cut off"),
        (4, "not a line of a known log format"),
        (7, "not a line of a known log format"),
    ]


def test_bytes_that_are_not_utf8_become_replacement_characters(world: World) -> None:
    line = log_line("/caf\xe9?utm_source=%E9", agent=f"{CHROME} \xfc").encode("latin-1")
    world.put("access.log", line)
    (entry,) = world.load().loaded
    assert (entry.rows, entry.rejected_rows) == (1, 0)
    assert world.rows("SELECT pathname, utm_source, browser FROM events") == [
        ("/caf\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}", "Chrome")
    ]


def test_a_line_of_the_day_after_tomorrow_is_rejected(world: World) -> None:
    ahead = dt.datetime.now(dt.UTC) + dt.timedelta(days=2)
    world.put("access.log", text(log_line("/good"), log_line(at=f"{ahead:%d/%b/%Y:%H:%M:%S} +0000")))
    world.load()
    assert world.column("pathname") == ["/good"]
    assert world.rows("SELECT reason FROM events_rejected") == [("time is more than a day ahead",)]


def test_health_checks_are_no_page_views_and_odd_phones_are(world: World) -> None:
    phones = [
        f"{IPHONE} (Ecosia ios@9.2.3.1367)",
        CHROME.replace("Windows NT 10.0; Win64; x64", "Linux; Android 6.0; CUBOT MAX"),
    ]
    checks = ["ELB-HealthChecker/2.0", "kube-probe/1.27"]
    world.put("agents.log", text(*(log_line("/a", agent=agent) for agent in (*checks, *phones))))
    (entry,) = world.load().loaded
    assert (entry.rows, entry.skipped_rows) == (2, {"bot": 2})
    assert len(set(world.column("distinct_id"))) == 2


def test_two_slashes_at_the_start_of_a_path_invent_no_host(world: World) -> None:
    found = [log_line("//favicon.ico"), log_line("//blog/post"), log_line("/post")]
    world.put("double_slash.log", text(*found))
    (entry,) = world.load().loaded
    assert entry.skipped_rows == {"asset": 1}
    assert world.rows("SELECT host, pathname FROM events ORDER BY pathname") == [("", "//blog/post"), ("", "/post")]


def test_debians_format_has_a_visitor_for_each_address_and_the_host(world: World) -> None:
    addresses = ["203.0.113.5", "198.51.100.7", "192.0.2.9"]
    world.put("vhost.log", text(*(f"www.example.com:443 {log_line('/a', address=one)}" for one in addresses)))
    world.load()
    assert world.rows("SELECT uniqExact(distinct_id), count(), any(host), uniqExact(host) FROM events") == [
        (3, 3, "www.example.com", 1)
    ]


@pytest.mark.parametrize(
    ("line", "path", "referrer"),
    [
        (log_line("/a", agent=rf"{CHROME} \"odd\" browser"), "/a", "$direct"),
        (log_line("/a", agent=f'{CHROME} "bare" browser'), "/a", "$direct"),
        (log_line("/a", referrer=r"http://x.org/?q=\"y\" z"), "/a", "x.org"),
        (log_line("/a", referrer='http://x.org/?q="y"'), "/a", "x.org"),
        (log_line(r"/say\"hi\""), r"/say\"hi\"", "$direct"),
        (log_line('/say"hi"'), '/say"hi"', "$direct"),
        (log_line("/a") + ' "198.51.100.1" 0.123', "/a", "$direct"),
        (log_line("/a") + "\r", "/a", "$direct"),
        (log_line("/a", address="2001:db8::1"), "/a", "$direct"),
        (log_line("/a").replace(" - - ", " - some user "), "/a", "$direct"),
        (log_line("/a").replace(" 512 ", " - "), "/a", "$direct"),
        (log_line("http://example.com/a?b=c"), "/a", "$direct"),
        (log_line("/a#b"), "/a", "$direct"),
    ],
)
def test_unusual_quoting_and_extra_fields_are_accepted(world: World, line: str, path: str, referrer: str) -> None:
    world.put("access.log", text(line))
    (entry,) = world.load().loaded
    assert (entry.rows, entry.rejected_rows) == (1, 0)
    assert world.rows("SELECT pathname, referring_domain FROM events") == [(path, referrer)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "203.0.113.7 something else from 203.0.113.8, 2001:db8::17 and 2001:db8:0:0:0:0:0:17",
            "not a line of a known log format",
        ),
        (log_line("/a").rsplit('"', 1)[0], "not a line of a known log format"),
        (log_line("/a", at="01/Foo/2026:10:00:00 +0000"), "time is not a time"),
        (log_line("/a", at="01/Oct/1985:10:00:00 +0000"), "time is out of range"),
    ],
)
def test_a_bad_line_is_rejected_without_its_address(world: World, line: str, reason: str) -> None:
    world.put("access.log", text(log_line("/good"), line))
    (entry,) = world.load().loaded
    assert (entry.rows, entry.rejected_rows) == (1, 1)
    ((number, found, raw),) = world.rows("SELECT line, reason, raw FROM events_rejected")
    assert (number, found) == (2, reason)
    assert raw.startswith("<address> ")
    assert ":10:00:00 +0000]" in raw or "Oct" not in line
    assert "203.0.113" not in raw
    assert "2001:db8" not in raw


def test_a_visitor_is_a_keyed_hash_of_address_and_agent_within_a_team(world: World) -> None:
    world.put(
        "access.log",
        text(
            log_line("/1", address="203.0.113.7", agent=CHROME),
            log_line("/2", address="203.0.113.7", agent=CHROME),
            log_line("/3", address="203.0.113.7", agent=IPHONE),
            log_line("/4", address="203.0.113.8", agent=CHROME),
        ),
    )
    world.put("access.log", text(log_line("/5", address="203.0.113.7", agent=CHROME)), team=2)
    world.load()
    visitors: dict[str, str] = dict(world.rows("SELECT pathname, distinct_id FROM events"))
    assert visitors["/1"] == visitors["/2"]
    assert len(set(visitors.values())) == 4
    assert all(len(visitor) == 32 for visitor in visitors.values())

    from pydantic import SecretStr

    world.put("other.log", text(log_line("/6", address="203.0.113.7", agent=CHROME)))
    world.load(visitor_hash_key=SecretStr("another key of the hash"))
    assert len(set(world.column("distinct_id"))) == 5


def test_neither_address_nor_key_nor_secret_is_stored_or_logged(world: World) -> None:
    address = "203.0.113.199"
    world.put("access.log", text(log_line("/a", address=address), f"{address} garbage {address}"))
    world.load()
    world.rows("SYSTEM FLUSH LOGS")
    names = "concat(toString(tuple(*)))"
    for table in ("events", "events_rejected", "ingested_objects"):
        assert world.rows(f"SELECT count() FROM {table}")[0][0] > 0  # noqa: S608 - names from code
        assert world.rows(f"SELECT count() FROM {table} WHERE position({names}, %(address)s) > 0", address=address) == [  # noqa: S608 - names from code
            (0,)
        ]
    key = VISITOR_HASH_KEY.get_secret_value()
    from dags.events.access_logs import visitor_key_table

    halves = visitor_key_table(VISITOR_HASH_KEY)["data"][0]
    ours = "FROM system.query_log WHERE current_database = currentDatabase() AND query NOT LIKE '%%query_log%%'"
    assert world.rows(f"SELECT count() {ours} AND query LIKE '%%FROM s3(%%'")[0][0] > 0
    secret = world.storage.secret_access_key.get_secret_value()
    for private in (address, key, secret, str(halves["low"]), str(halves["high"])):
        assert world.rows(f"SELECT count() {ours} AND position(query, %(private)s) > 0", private=private) == [(0,)]


def test_a_visit_ends_after_half_an_hour_without_a_page_view(world: World) -> None:
    clocks = ["10:00", "10:29", "10:59", "11:29", "12:00", "12:10"]
    world.put("access.log", text(*(log_line(f"/{clock}", at=at(clock)) for clock in clocks)))
    world.load()
    visits: dict[str, str] = dict(world.rows("SELECT pathname, session_id FROM events"))
    assert len({visits[f"/{clock}"] for clock in clocks[:4]}) == 1
    assert len({visits[f"/{clock}"] for clock in clocks[4:]}) == 1
    assert len(set(visits.values())) == 2


def test_the_id_of_a_visit_contains_its_start(world: World) -> None:
    world.put("access.log", text(log_line("/a", at=at("10:00")), log_line("/b", at=at("10:10"))))
    world.load()
    assert world.rows("SELECT DISTINCT toString(UUIDv7ToDateTime(toUUID(session_id), 'UTC')) FROM events") == [
        ("2026-10-01 10:00:00.000",)
    ]
    assert uuid.UUID(world.column("session_id")[0]).version == 7


def test_a_visit_lasts_at_most_a_day(world: World) -> None:
    found = [log_line(f"/{day}/{hour}/{minute}", at=at(f"{hour:02d}:{minute:02d}", day))
             for day in (1, 2) for hour in range(24) for minute in (0, 20, 40)]  # fmt: skip
    world.put("access.log", text(*found))
    world.load()
    assert world.rows(
        "SELECT dateDiff('minute', min(timestamp), max(timestamp)) FROM events GROUP BY session_id ORDER BY 1"
    ) == [(24 * 60 - 20,), (24 * 60 - 20,)]


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a"), ("ab",)])
def test_a_visit_continues_across_objects_in_any_order_of_loading(world: World, order: tuple[str, ...]) -> None:
    keys = {
        "a": world.put("a.log", text(log_line("/1", at=at("10:50")), log_line("/2", at=at("10:59")))),
        "b": world.put("b.log", text(log_line("/3", at=at("11:05")), log_line("/4", at=at("12:00")))),
    }
    for step in order:
        world.load(*(keys[name] for name in step))
    visits: dict[str, str] = dict(world.rows("SELECT pathname, session_id FROM events"))
    assert visits["/1"] == visits["/2"] == visits["/3"] != visits["/4"]


def test_visitors_of_two_teams_do_not_share_a_visit(world: World) -> None:
    for team in (1, 2):
        world.put("a.log", text(log_line("/1"), log_line("/2")), team=team)
    world.load()
    assert world.rows("SELECT uniqExact(session_id), count() FROM events") == [(2, 4)]


def test_the_old_lines_of_a_log_that_has_grown_keep_their_uuid_and_visit(world: World) -> None:
    found = [log_line(f"/{number}", at=at(f"10:{number:02d}")) for number in range(5)]
    world.put("access.log", text(*found[:3]))
    world.load()
    before = world.rows("SELECT uuid, pathname, session_id FROM events ORDER BY pathname")
    world.put("access.log", text(*found))
    world.load()
    after = world.rows("SELECT uuid, pathname, session_id FROM events ORDER BY pathname")
    assert after[:3] == before
    assert len(after) == 5
    assert sorted(world.states().values()) == ["loaded", "replaced"]
