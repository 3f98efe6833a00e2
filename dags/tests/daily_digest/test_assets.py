import base64
import datetime as dt
import json
from decimal import Decimal
from xml.etree import ElementTree as ET

import dagster as dg

from dags.daily_digest.digest import Digest, Page, Totals
from dags.daily_digest.report import digest_markdown, plot_markdown
from dags.tests.daily_digest.platform import NOTHING, Order, Platform
from dags.tests.failures import failure_text
from dags.tests.web_preaggregated.events import DAY, Event, at, person

AFTER = DAY + dt.timedelta(days=1)


def evaluation(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    (found,) = result.get_asset_check_evaluations()
    return found


def test_a_day_is_counted_by_team_with_its_top_pages_and_its_revenue_in_dollars(platform: Platform) -> None:
    platform.web.add(
        Event(at("10:00:00")),
        Event(at("10:01:00"), pathname="/cart"),
        Event(at("11:00:00"), "b", pathname="/cart"),
        Event(at("11:00:00"), "c", team_id=2, person_id=person(1)),
    )
    platform.web.compute(DAY)
    platform.rates({"USD": "1", "EUR": "0.8"})
    platform.order(Order("10.10"), Order("8", "EUR"), Order("-0.05"), Order("99", timestamp=at("00:00:00", day=1)))
    result = platform.run(DAY)
    assert result.success, failure_text(result)
    assert platform.digests() == {
        (1, DAY): Digest(
            1,
            DAY,
            1,
            2,
            3,
            (Page("example.com", "/cart", 2), Page("example.com", "/", 1)),
            3,
            3,
            0,
            0,
            (),
            Decimal("20.05"),
        ),
        (2, DAY): Digest(2, DAY, 1, 1, 1, (Page("example.com", "/", 1),), 0, 0, 0, 0, (), Decimal(0)),
    }
    assert evaluation(result).passed
    metadata = platform.metadata()
    assert (metadata["teams"], metadata["visitors"], metadata["sessions"], metadata["pageviews"]) == (2, 2, 3, 4)
    assert metadata["dagster/partition_row_count"] == 2
    assert metadata["revenue_usd"] == 20.05
    assert "| 1 | 1 | 2 | 3 | 20.05 |" in metadata["digest"]
    assert "| 1 | `example.com/cart` | 2 |" in metadata["digest"]


def test_what_cannot_be_converted_is_counted_and_shown_and_is_not_zero(platform: Platform) -> None:
    platform.web_tables_of(DAY)
    platform.rates({"USD": "1"})
    platform.order(
        *(Order("5", currency) for currency in ("XYZ", "JPY", NOTHING, "not a currency", 7)),
        *(Order(amount) for amount in ("1,5", "", "e5", "NaN", "1e400", True, None, NOTHING, [1])),
        Order("5", team_id=2),
        Order("oops", team_id=2),
    )
    result = platform.run(DAY)
    assert result.success, failure_text(result)
    first, second = platform.digests()[1, DAY], platform.digests()[2, DAY]
    assert (first.revenue_events, first.revenue_events_without_rate, first.revenue_events_without_amount) == (14, 5, 9)
    assert first.currencies_without_rate == ("", "JPY", "XYZ")
    assert first.revenue_usd is None
    assert first.visitors is None
    assert (second.revenue_events, second.revenue_events_converted, second.revenue_usd) == (2, 1, Decimal(5))
    shown = platform.metadata()["digest"]
    assert "| 1 | unknown | unknown | unknown | unknown |" in shown
    assert "- Team 1: 14 revenue events, 5 without a rate (no currency, `JPY`, `XYZ`), 9 without an amount" in shown
    assert platform.metadata()["revenue_usd"] == 5


def test_dollars_need_no_rate(platform: Platform) -> None:
    platform.web_tables_of(DAY)
    platform.order(Order("5"))
    assert platform.run(DAY).success
    assert platform.digests()[1, DAY].revenue_usd == Decimal(5)


def test_a_day_without_any_known_revenue_has_no_sum_in_its_metadata(platform: Platform) -> None:
    platform.web_tables_of(DAY)
    platform.order(Order(currency="EUR"))
    assert platform.run(DAY).success
    assert "revenue_usd" not in platform.metadata()


def test_running_a_day_again_replaces_it_and_leaves_other_days_alone(platform: Platform) -> None:
    platform.web_tables_of(DAY, AFTER)
    platform.rates({"USD": "1"})
    platform.order(Order("1"), Order("2", timestamp=at("12:00:00", day=1)))
    assert platform.run(DAY, AFTER).success
    before = platform.digests()
    assert {key[1]: one.revenue_usd for key, one in before.items()} == {DAY: Decimal(1), AFTER: Decimal(2)}
    assert platform.run(DAY, AFTER).success
    assert platform.digests() == before
    platform.rows("TRUNCATE TABLE events")
    assert platform.run(DAY).success
    assert list(platform.digests()) == [(1, AFTER)], "a day that has no events any more is cleared"
    assert platform.metadata()["digest"] == "No visits and no revenue events."
    assert (
        platform.rows(
            "SELECT name FROM system.tables WHERE name LIKE 'staging%%' AND database = currentDatabase()", x=1
        )
        == []
    )


def test_a_day_whose_web_tables_were_never_computed_is_an_error_that_names_the_remedy(platform: Platform) -> None:
    platform.web_tables_of(DAY)
    platform.order(Order())
    result = platform.run(DAY, AFTER)
    assert not result.success
    assert f"The web tables of {AFTER} were never computed: run web_analytics_daily_job" in failure_text(result)
    assert not any(event.is_step_up_for_retry for event in result.all_events)
    assert platform.digests() == {}


def test_a_table_that_does_not_match_the_schema_fails_the_run_and_is_not_changed(platform: Platform) -> None:
    platform.web_tables_of(DAY)
    platform.order(Order())
    assert platform.run(DAY).success
    before = platform.digests()
    platform.rows("ALTER TABLE analytics_digest_daily ADD COLUMN strange UInt8")
    platform.order(Order())
    result = platform.run(DAY)
    assert "strange: UInt8 in the table, none in the source" in failure_text(result)
    assert not any(event.is_step_up_for_retry for event in result.all_events)
    assert platform.digests() == before


def test_every_query_carries_run_job_asset_and_owner(platform: Platform) -> None:
    platform.web_tables_of(DAY)
    run_id = platform.run(DAY).run_id
    platform.rows("SYSTEM FLUSH LOGS")
    comments = platform.rows(
        "SELECT DISTINCT log_comment FROM system.query_log WHERE current_database = currentDatabase() "
        "AND JSONExtractString(log_comment, 'run_id') = %(run_id)s AND query LIKE '%%order_placed%%'",
        run_id=run_id,
    )
    (comment,) = (json.loads(one) for (one,) in comments)
    assert (comment["job"], comment["step"]) == ("analytics_digest_daily_job", "analytics_digest_daily")
    assert comment["owner"] == "team-analytics-platform"


def test_recomputed_web_tables_fail_the_check_with_the_days_to_materialize(platform: Platform) -> None:
    platform.web.add(Event(at("10:00:00")))
    platform.web.compute(DAY)
    assert evaluation(platform.run(DAY)).passed
    platform.web.add(Event(at("10:00:00"), "late", person_id=person(1)))
    platform.web.compute(DAY)
    found = evaluation(platform.run(job_name="checks_job"))
    assert not found.passed
    assert found.description == f"The web tables were recomputed after the digest: materialize {DAY} again."
    assert evaluation(platform.run(DAY)).passed


def test_an_empty_table_fails_the_check(platform: Platform) -> None:
    found = evaluation(platform.run(job_name="checks_job"))
    assert not found.passed
    assert "run analytics_digest_daily_job" in (found.description or "")


def test_only_the_busiest_teams_are_shown_and_the_others_are_counted() -> None:
    digests = [Digest(team, DAY, 1, 1, team, (), 0, 0, 0, 0, (), Decimal(0)) for team in range(1, 24)]
    shown = digest_markdown(digests)
    assert "| 23 | 1 | 1 | 23 |" in shown
    assert "| 3 | 1 | 1 | 3 |" not in shown
    assert "and 3 more teams" in shown


def svg_of(markdown: str) -> str:
    head, _, encoded = markdown.partition("(data:image/svg+xml;base64,")
    assert head.startswith("![")
    return base64.b64decode(encoded.removesuffix(")")).decode()


def test_the_plot_has_a_bar_for_each_day_with_a_known_number_and_none_for_the_others() -> None:
    totals = {DAY: Totals(1000, 5.5), DAY - dt.timedelta(days=1): Totals(500, None), AFTER: Totals(9999, 1.0)}
    markdown = plot_markdown(totals, DAY)
    root = ET.fromstring(svg_of(markdown))  # noqa: S314 - our own
    namespace = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{namespace}text")]
    assert texts[:2] == ["Pageviews (highest 1,000)", "Revenue, US dollars (highest 5.5)"]
    heights = [element.get("height") for element in root.iter(f"{namespace}rect")][1:]
    assert heights == ["35", "70", "70"]
    assert len(markdown) < 10_000


def test_the_plot_of_days_without_numbers_says_so() -> None:
    assert "Pageviews (none)" in svg_of(plot_markdown({DAY: Totals(0, None)}, DAY))


def test_the_plot_of_a_day_shows_the_stored_days_before_it(platform: Platform) -> None:
    platform.web_tables_of(DAY, AFTER)
    platform.order(Order("1"), Order("2", timestamp=at("12:00:00", day=1)))
    assert platform.run(DAY).success
    assert platform.run(AFTER).success
    assert svg_of(platform.metadata(AFTER)["plot"]).count('fill="#4f43dd"') == 2
    assert svg_of(platform.metadata(DAY)["plot"]).count('fill="#4f43dd"') == 1


def test_a_long_path_is_cut_to_fit_the_pane() -> None:
    page = Page("example.com", "/" + "a" * 500, 1)
    shown = digest_markdown([Digest(1, DAY, 1, 1, 1, (page,), 0, 0, 0, 0, (), Decimal(0))])
    assert max(map(len, shown.splitlines())) < 100
    assert "…` | 1 |" in shown
