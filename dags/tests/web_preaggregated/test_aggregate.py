import datetime as dt
import uuid

import pytest

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query
from dags.common.clickhouse.staging import STAGING_PREFIX, drop_leftovers, staging_name
from dags.common.clickhouse.tables import WEB_SESSIONS
from dags.tests.web_preaggregated.events import (
    DAY,
    Event,
    Numbers,
    Override,
    Web,
    at,
    modelled_accounting,
    modelled_entries,
    modelled_pages,
    modelled_rows,
    person,
    sessions_of,
)
from dags.web_preaggregated.aggregate import pre_aggregate
from dags.web_preaggregated.raw import SUBJECTS, compare_with_raw
from dags.web_preaggregated.statements import AFTER_24_HOURS, NO_SESSION_ID, TEAM_NOT_SELECTED

BEFORE, AFTER = DAY - dt.timedelta(days=1), DAY + dt.timedelta(days=1)


def staging_tables(web: Web) -> list[str]:
    rows = web.rows("SELECT name FROM system.tables WHERE database = currentDatabase() AND name LIKE 'staging%%'", x=1)
    return [name for (name,) in rows]


def test_a_session_over_midnight_belongs_to_the_day_of_its_start(web: Web) -> None:
    web.add(Event(at("23:50:00"), pathname="/in"), Event(at("00:10:00", day=1), pathname="/out"))
    web.compute(BEFORE, DAY, AFTER)
    assert web.totals() == Numbers(pageviews=2, sessions=1, visitors=1, bounces=0, seconds=1200)
    assert web.totals(AFTER) == web.totals(BEFORE) == Numbers()


def test_days_computed_one_by_one_equal_days_computed_together(web: Web) -> None:
    web.add(Event(at("23:50:00", day=-1)), Event(at("00:10:00")), Event(at("09:00:00"), "other"))
    web.compute(BEFORE, DAY, AFTER)
    together = web.sessions(), web.accounting()
    for day in (AFTER, BEFORE, DAY):
        web.compute(day)
    assert (web.sessions(), web.accounting()) == together


def test_an_event_24_hours_after_the_start_is_in_the_session_and_a_later_one_is_not(web: Web) -> None:
    web.add(Event(at("12:00:00")), Event(at("12:00:00", day=1), pathname="/in"), Event(at("12:00:00.000001", day=1)))
    web.compute(DAY, AFTER)
    assert web.totals() == Numbers(pageviews=2, sessions=1, visitors=1, bounces=0, seconds=86_400)
    assert web.totals(AFTER) == Numbers()


def test_a_session_id_used_again_after_a_pause_of_more_than_24_hours_is_another_session(web: Web) -> None:
    web.add(Event(at("00:00:00", day=-1)), Event(at("00:00:00.000001")), Event(at("00:30:00"), event="custom"))
    web.compute(BEFORE, DAY)
    assert web.totals(BEFORE) == Numbers(pageviews=1, sessions=1, visitors=1, bounces=1, seconds=0)
    assert web.totals() == Numbers(pageviews=1, sessions=1, visitors=1, bounces=1, seconds=1800)


def test_events_without_a_session_are_in_no_table_and_their_pageviews_are_counted(web: Web) -> None:
    web.add(Event(at("10:00:00"), session_id=""), Event(at("10:00:00"), session_id="", event="custom"))
    outcome = web.compute()
    assert web.totals() == Numbers()
    assert outcome.days[DAY].left_out == {NO_SESSION_ID: 1}
    assert web.accounting() == {DAY: {NO_SESSION_ID: 1}}


def test_a_session_without_a_pageview_is_in_no_table(web: Web) -> None:
    web.add(Event(at("10:00:00"), event="custom"))
    web.compute()
    assert web.totals() == Numbers()


def test_a_duplicate_that_is_not_merged_counts_once_and_the_newest_row_counts(web: Web) -> None:
    web.rows("SYSTEM STOP MERGES events")
    first = uuid.uuid4()
    web.add(Event(at("10:00:00"), uuid=first, pathname="/old"))
    web.add(Event(at("10:00:00"), uuid=first, pathname="/new", inserted_at=dt.datetime(2026, 4, 2, tzinfo=dt.UTC)))
    assert web.rows("SELECT count() FROM events") == [(2,)]
    web.compute()
    assert web.totals() == Numbers(pageviews=1, sessions=1, visitors=1, bounces=1, seconds=0)
    assert [key[-1] for key in web.pages()] == ["/new"]


def test_a_duplicate_that_moved_to_another_session_counts_there_alone(web: Web) -> None:
    web.rows("SYSTEM STOP MERGES events")
    first = uuid.uuid4()
    web.add(Event(at("10:00:00"), "old", uuid=first))
    web.add(Event(at("10:00:00"), "new", uuid=first, inserted_at=dt.datetime(2026, 4, 2, tzinfo=dt.UTC)))
    web.compute()
    assert web.totals() == Numbers(pageviews=1, sessions=1, visitors=1, bounces=1, seconds=0)


def test_an_override_applies_to_its_team_only(web: Web) -> None:
    for team in (1, 2):
        web.add(
            *(Event(at("10:00:00"), f"s{n}", distinct_id=f"d{n}", person_id=person(n), team_id=team) for n in (1, 2))
        )
    web.override(Override("d1", person(9)), Override("d2", person(9)))
    web.compute()
    assert web.totals(team_id=1).visitors == 1
    assert web.totals(team_id=2).visitors == 2


def test_the_newest_version_of_an_override_counts_and_a_deleted_one_restores_the_person_of_the_event(web: Web) -> None:
    web.add(*(Event(at("10:00:00"), f"s{n}", distinct_id=f"d{n}", person_id=person(n)) for n in (1, 2, 3)))
    web.override(Override("d1", person(3), version=2), Override("d2", person(3), version=1))
    web.override(Override("d1", person(8), version=1), Override("d2", person(3), version=2, is_deleted=1))
    web.compute()
    # d1 is person 3 now, d2 is person 2 again, d3 is person 3.
    assert web.totals().visitors == 2


def test_dimensions_are_those_of_the_first_pageview_whatever_characters_they_have(web: Web) -> None:
    odd = "a\0b\x01c\x01z\x01e\0"
    web.add(
        Event(at("09:00:00"), event="custom", host="nowhere", browser="none"),
        Event(at("10:00:00"), host=odd, browser="Safari", utm_source="\0", pathname="/p\0", distinct_id="d\0\x01"),
        Event(at("11:00:00"), host="later", pathname="/end"),
    )
    web.override(Override("d\0\x01", person(5)))
    web.compute()
    assert list(web.entries()) == [(1, DAY, odd, "/p\0", "later", "/end", "Safari", "\0", 0, "", 0)]


def test_the_rows_of_a_day_without_events_are_removed(web: Web) -> None:
    web.add(Event(at("10:00:00")))
    web.compute()
    assert web.totals().pageviews == 1
    web.rows("TRUNCATE TABLE events")
    outcome = web.compute()
    assert web.totals() == Numbers()
    assert outcome.days[DAY].sessions == 0


def test_a_team_that_is_not_selected_loses_its_rows(web: Web) -> None:
    web.add(Event(at("10:00:00")), Event(at("10:00:00"), team_id=2))
    web.compute()
    web.compute(team_ids=[2])
    assert web.totals(team_id=1) == Numbers()
    assert web.accounting() == {DAY: {TEAM_NOT_SELECTED: 1, "": 1}}
    assert web.totals(team_id=2).pageviews == 1
    web.compute(team_ids=[7])
    assert web.pages() == {}


def test_the_host_of_a_page_is_that_of_the_pageview(web: Web) -> None:
    web.add(
        Event(at("10:00:00"), host="www.example.com"), Event(at("10:01:00"), host="docs.example.com", pathname="/a")
    )
    web.compute()
    assert {key[-2:] for key in web.pages()} == {("www.example.com", "/"), ("docs.example.com", "/a")}
    ((pages, entry, exit_host),) = web.rows("SELECT pages, entry_host, exit_host FROM web_sessions")
    assert pages == [("www.example.com", "/", at("10:00:00")), ("docs.example.com", "/a", at("10:01:00"))]
    assert (entry, exit_host) == ("www.example.com", "docs.example.com")


def test_pageviews_beyond_the_24_hours_of_a_session_are_left_out_on_their_own_day(web: Web) -> None:
    web.add(*(Event(at("12:00:00", day=day), pathname=f"/{day}") for day in (-2, -1, 0, 1)))
    # Each day alone: whether an event is in a session depends on events two days before.
    for day in (BEFORE, DAY, AFTER):
        web.compute(day)
    assert web.accounting() == {BEFORE: {"": 1}, DAY: {AFTER_24_HOURS: 1}, AFTER: {AFTER_24_HOURS: 1}}
    assert [len(pages) for (pages,) in web.rows("SELECT pages FROM web_sessions")] == []
    web.compute(BEFORE - dt.timedelta(days=1))
    assert [len(pages) for (pages,) in web.rows("SELECT pages FROM web_sessions")] == [2]


def test_a_day_is_recorded_after_it_was_swapped_in_and_again_by_the_next_run(web: Web) -> None:
    web.add(Event(at("23:50:00")), Event(at("00:10:00", day=1)))
    web.compute(DAY, AFTER)
    web.compute(DAY)
    rows = web.rows("SELECT day, sessions, pageviews, raw_pageviews, left_out FROM web_session_days FINAL ORDER BY day")
    assert rows == [(DAY, 1, 2, 1, {}), (AFTER, 0, 0, 1, {})]


def test_the_outcome_has_the_numbers_and_the_cost(web: Web) -> None:
    web.add(Event(at("10:00:00"), pathname="/a"), Event(at("10:00:30"), pathname="/a"), Event(at("10:00:00"), "bounce"))
    outcome = web.compute(DAY, AFTER)
    day = outcome.days[DAY]
    assert (day.sessions, day.pageviews, day.visitors, day.bounces, day.session_seconds) == (2, 3, 1, 1, 30)
    assert [(page.pathname, page.pageviews, page.visitors) for page in day.top_pages] == [("/a", 2, 1), ("/", 1, 1)]
    assert outcome.days[AFTER].sessions == 0
    assert outcome.rows_read >= 3
    assert outcome.bytes_read > 0
    assert outcome.peak_memory_bytes > 0
    assert outcome.seconds > 0


def test_days_with_a_gap_are_computed_and_the_days_between_stay(web: Web) -> None:
    web.add(*(Event(at("10:00:00", day=day), f"s{day}") for day in (-1, 0, 1)))
    web.compute(BEFORE, DAY, AFTER)
    web.rows("TRUNCATE TABLE events")
    web.compute(BEFORE, AFTER)
    assert (web.totals(BEFORE).pageviews, web.totals().pageviews, web.totals(AFTER).pageviews) == (0, 1, 0)


def test_no_staging_table_is_left(web: Web) -> None:
    web.add(Event(at("10:00:00")))
    web.compute()
    assert staging_tables(web) == []


def test_a_table_of_another_form_is_rejected_with_the_difference_and_stays_unchanged(web: Web) -> None:
    web.add(Event(at("10:00:00")))
    web.compute()
    web.rows("ALTER TABLE web_sessions ADD COLUMN strange UInt8")
    web.add(Event(at("10:00:00"), "second"))
    with pytest.raises(Exception, match="strange: UInt8 in the table, none in the source"):
        web.compute()
    assert web.rows("SELECT sum(pageviews) FROM web_sessions") == [(1,)]
    assert staging_tables(web) == []


def test_staging_tables_of_finished_runs_are_dropped_and_others_stay(web: Web, cluster: ClickhouseCluster) -> None:
    finished, running = str(uuid.uuid4()), str(uuid.uuid4())
    names = {run: staging_name(WEB_SESSIONS, run) for run in (finished, running, "unknown")}
    for name in names.values():
        cluster.any_host(Query(f"CREATE TABLE {name} (x UInt8) ENGINE = MergeTree ORDER BY x")).result()
    known = {finished: True, running: False}
    assert drop_leftovers(cluster, known.get) == [names[finished]]
    assert sorted(staging_tables(web)) == sorted([names[running], names["unknown"]])
    assert all(name.startswith(STAGING_PREFIX) for name in names.values())


def test_an_empty_list_of_days_is_an_error(cluster: ClickhouseCluster) -> None:
    with pytest.raises(ValueError, match="give at least one"):
        pre_aggregate(cluster, [], run_id="run")


def test_only_the_events_of_the_window_are_read(web: Web) -> None:
    web.rows(
        "INSERT INTO events (uuid, event, team_id, distinct_id, session_id, timestamp, pathname) "
        "SELECT generateUUIDv4(), '$pageview', 1, toString(number), toString(number), "
        "toDateTime64('2026-03-07 00:00:00', 6, 'UTC') + number * 3, '/' FROM numbers(259200)",
        x=1,
    )
    outcome = web.compute()
    ((window,),) = web.rows(
        "SELECT count() FROM events WHERE timestamp >= '2026-03-10 00:00:00' AND timestamp < '2026-03-13 00:00:00'"
    )
    ((most,),) = web.rows(
        "SELECT max(read_rows) FROM system.query_log WHERE current_database = currentDatabase() "
        "AND type = 'QueryFinish' AND query LIKE 'INSERT INTO%%staging%%' SETTINGS log_queries = 0",
        x=1,
    )
    assert outcome.days[DAY].pageviews == 28_800
    # The ids of the day itself are read first, so four days are read of nine, in whole granules.
    assert window <= most <= 1.6 * window, "a window of three days among nine reads far more than itself"


def test_the_model_agrees_on_a_small_case(web: Web, cluster: ClickhouseCluster) -> None:
    events = [Event(at("10:00:00")), Event(at("10:05:00"), pathname="/b"), Event(at("23:00:00"), "x", team_id=3)]
    web.add(*events)
    web.compute()
    sessions = sessions_of(events, [])
    assert web.sessions() == modelled_rows(sessions)
    assert web.accounting() == modelled_accounting(events, [])
    assert web.pages() == modelled_pages(sessions)
    assert web.entries() == modelled_entries(sessions)
    for subject in SUBJECTS:
        comparison = compare_with_raw(cluster, subject, DAY, DAY)
        assert comparison.compared >= (1 if subject == "accounting" else 4)
        assert comparison.different == 0, "\n".join(map(str, comparison.listed))
