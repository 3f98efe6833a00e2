import datetime as dt

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query
from dags.tests.web_preaggregated.events import DAY, Event, Override, Web, at, person
from dags.web_preaggregated.override_days import record_override_days, unrecorded_groups
from dags.web_preaggregated.stale_days import fingerprints_query

TODAY = DAY + dt.timedelta(days=10)
NEXT = DAY + dt.timedelta(days=1)
BEFORE = DAY - dt.timedelta(days=1)


def fingerprints(cluster: ClickhouseCluster) -> dict[dt.date, int]:
    return dict(cluster.any_host(fingerprints_query(None, TODAY)).result())


def test_a_new_override_makes_the_days_of_its_events_stale_once(web: Web) -> None:
    web.add(Event(at("10:00"), distinct_id="a"), Event(at("10:00", day=5), distinct_id="b"))
    web.add(Event(at("10:00"), distinct_id="a", team_id=2))
    web.override(Override("a", person(7)))
    assert record_override_days(web.cluster, "run") == [DAY]
    assert sorted(fingerprints(web.cluster)) == [BEFORE, DAY, NEXT]
    assert record_override_days(web.cluster, "run") == []
    before = fingerprints(web.cluster)
    web.override(Override("a", person(8), version=2))
    assert record_override_days(web.cluster, "run") == [DAY]
    assert fingerprints(web.cluster)[DAY] != before[DAY]


def test_an_override_that_holds_no_more_makes_its_days_stale(web: Web) -> None:
    web.add(Event(at("10:00"), distinct_id="a"))
    web.override(Override("a", person(7)))
    record_override_days(web.cluster, "run")
    before = fingerprints(web.cluster)
    web.override(Override("a", person(7), version=2, is_deleted=1))
    assert record_override_days(web.cluster, "run") == [DAY]
    assert fingerprints(web.cluster)[DAY] != before[DAY]


def test_other_days_of_a_group_that_changed_stay_as_they_are(web: Web) -> None:
    web.add(Event(at("10:00"), distinct_id="a"), Event(at("10:00", day=-5), distinct_id="b"))
    web.override(Override("a", person(7)), Override("b", person(8)))
    record_override_days(web.cluster, "run")
    before = fingerprints(web.cluster)
    web.override(Override("a", person(9), version=2))
    record_override_days(web.cluster, "run")
    after = fingerprints(web.cluster)
    assert {day for day in before if before[day] != after[day]} == {BEFORE, DAY, NEXT}


def test_a_run_that_dies_before_the_last_row_looks_its_groups_up_again(web: Web) -> None:
    web.add(Event(at("10:00"), distinct_id="a"))
    web.override(Override("a", person(7)))
    assert len(unrecorded_groups(web.cluster)) == 1
    record_override_days(web.cluster, "run")
    assert unrecorded_groups(web.cluster) == []
    before = fingerprints(web.cluster)
    web.cluster.any_host(
        Query("DELETE FROM event_day_changes WHERE day = toDate('1970-01-01')", retryable=True)
    ).result()
    assert record_override_days(web.cluster, "another run") == [DAY]
    assert fingerprints(web.cluster) == before
