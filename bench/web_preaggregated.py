"""Computing the web tables, compared with the bare engine.

Run: `python bench/web_preaggregated.py` (some minutes; `--events 1000000` for a smaller one). In one run,
on events of three days (20 teams, 5 events per session, loaded in 12 parts) and on twice as many, it measures:

- the middle day of `web_sessions`: the call of the asset, with staging, checks, swap and the numbers of the day. It
  reads all three days: the day before, for sessions that started there, and the 24 hours after. The session ids of the
  day itself are read first, so that only its sessions are built;
- the floor: the bare engine reads the same columns of the same three days once, into a Null table, and copies the
  finished partition into an empty table;
- the peak memory of any statement, and the most rows that one statement read, compared with the events of the days;
- 30 days of fewer events as one Dagster run of the asset, with the share of Dagster in it, compared with one call per
  day.

Each time is the best of three, with floor and middle day in turns. The output ends with one line per figure: `name
value unit aim AIM ok|short`.
"""

import argparse
import datetime as dt
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from clickhouse_driver import Client
from measuring import Figures, node, seconds_of

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.query import Query
from dags.common.clickhouse.schema import apply_schema
from dags.tests.resources import clickhouse_resource
from dags.web_preaggregated.aggregate import AggregationOutcome, pre_aggregate
from dags.web_preaggregated.assets import SESSIONS_DAILY, web_sessions_daily

EVENTS = 5_000_000
BACKFILL_DAYS = 30
BACKFILL_EVENTS = 3_000_000
ROUNDS = 3
PARTS = 12
TEAMS = 20
FIRST = dt.date(2026, 3, 1)
COLUMNS = (
    "team_id, session_id, timestamp, uuid, event, distinct_id, person_id, host, pathname, referring_domain, browser, "
    "os, device_type, viewport_width, viewport_height, utm_source, utm_medium, utm_campaign, utm_term, utm_content, "
    "country_code"
)
DAGSTER_RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")

# Sessions s start at random times and have 5 events within some minutes, about 4 of them pageviews.
GENERATE = """
INSERT INTO events (
    uuid, event, team_id, distinct_id, person_id, session_id, timestamp, host, pathname, referring_domain, browser, os,
    device_type, viewport_width, viewport_height, utm_source, utm_medium, utm_campaign, utm_term, utm_content,
    country_code
)
WITH
    intDiv(number, 5) AS s, number % 5 AS i, cityHash64(s, 1) AS hash, cityHash64(number, 2) AS event_hash,
    hash % {visitors} AS visitor, cityHash64(visitor, 3) AS visitor_hash,
    toUInt64({seconds} * 1000000 * (hash % 1000003) / 1000003.) AS session_start
SELECT
    reinterpretAsUUID(concat(reinterpretAsString(event_hash), reinterpretAsString(cityHash64(number, 4)))),
    multiIf(i = 4 AND event_hash % 3 = 0, '$pageleave', i = 3 AND event_hash % 4 = 0, 'signed_up', '$pageview'),
    1 + visitor % {teams}, concat('visitor-', toString(visitor)),
    reinterpretAsUUID(concat(reinterpretAsString(visitor_hash), reinterpretAsString(visitor))),
    toString(reinterpretAsUUID(concat(reinterpretAsString(hash), reinterpretAsString(s)))),
    toDateTime64('{first} 00:00:00', 6, 'UTC')
        + toIntervalMicrosecond(least(session_start + i * (15000000 + hash % 400000000), {seconds} * 1000000 - 1)),
    ['www.example.com', 'app.example.com', 'docs.example.com'][1 + (hash % 10 > 6) + (hash % 10 > 8)],
    concat('/', ['blog', 'docs', 'pricing', 'product', 'p'][1 + event_hash % 5], '/',
        toString(toUInt64(pow(event_hash % 1000 / 1000., 3) * 400))),
    ['$direct', 'google.com', 'bing.com', 't.co', 'news.example.org'][1 + toUInt64(pow(hash % 97 / 97., 2) * 5)],
    ['Chrome', 'Safari', 'Firefox', 'Edge'][1 + toUInt64(pow(visitor_hash % 89 / 89., 2) * 4)],
    ['Windows', 'Mac OS X', 'iOS', 'Android', 'Linux'][1 + visitor_hash % 5],
    ['Desktop', 'Mobile', 'Tablet'][1 + (visitor_hash % 10 > 5) + (visitor_hash % 10 > 8)],
    [1920, 1440, 1366, 390, 412, 768][1 + visitor_hash % 6], [1080, 900, 768, 844, 915, 1024][1 + visitor_hash % 6],
    if(hash % 5 = 0, ['google', 'newsletter', 'x'][1 + hash % 3], ''),
    if(hash % 5 = 0, ['cpc', 'email', 'social'][1 + hash % 3], ''),
    if(hash % 5 = 0, concat('campaign-', toString(hash % 40)), ''), '', '',
    ['US', 'DE', 'GB', 'FR', 'IN', 'BR', 'JP'][1 + toUInt64(pow(visitor_hash % 83 / 83., 2) * 7)]
FROM numbers({number}, {count})
"""


@dataclass(frozen=True)
class Middle:
    """The figures of the middle day of three."""

    seconds: float
    floor_seconds: float
    memory_mebibytes: float
    rows_ratio: float


@contextmanager
def database(port: int) -> Iterator[tuple[ClickhouseCluster, Client]]:
    """Create a database with the schema; drop it after the block."""
    name = f"bench_{uuid.uuid4().hex}"
    with Client("127.0.0.1", port=port) as outside:
        outside.execute(f"CREATE DATABASE {name}")
    with (
        ClickhouseCluster([Host("127.0.0.1", port)], Access(database=name)) as cluster,
        Client("127.0.0.1", port=port, database=name, send_receive_timeout=3600) as client,
    ):
        apply_schema(cluster, clustered=False)
        yield cluster, client
        client.execute(f"DROP DATABASE {name} SYNC")


def fill(client: Client, events: int, days: int, teams: int = TEAMS) -> None:
    """Insert events of some days and teams in parts, and wait for the merges."""
    part = events // PARTS
    for n in range(PARTS):
        client.execute(
            GENERATE.format(
                visitors=events // 12, teams=teams, seconds=days * 86_400, first=FIRST, number=n * part, count=part
            ),
            settings={"max_insert_threads": 1, "min_insert_block_size_rows": 500_000},
        )
    wait_for_merges(client)


def wait_for_merges(client: Client) -> None:
    """Merge all parts and wait, because merges distort measurements on two cores."""
    client.execute("OPTIMIZE TABLE events FINAL")
    while client.execute("SELECT count() FROM system.merges WHERE database = currentDatabase()") != [(0,)]:
        client.execute("SELECT sleep(0.2)")


def floor(client: Client, first: dt.date, last: dt.date, partition: dt.date) -> float:
    """Return the seconds of one scan of the window into a Null table, and of a copy of the finished partition."""
    condition = f"timestamp >= '{first} 00:00:00' AND timestamp <= '{last} 23:59:59.999999'"
    client.execute("CREATE TABLE IF NOT EXISTS discarded AS events ENGINE = Null")
    scan = f"INSERT INTO discarded ({COLUMNS}) SELECT {COLUMNS} FROM events WHERE {condition}"
    seconds = seconds_of(lambda: client.execute(scan))
    client.execute("CREATE OR REPLACE TABLE copy_of_web_sessions AS web_sessions")
    copy = f"INSERT INTO copy_of_web_sessions SELECT * FROM web_sessions WHERE toDate(started_at) = '{partition}'"
    seconds += seconds_of(lambda: client.execute(copy))
    client.execute("DROP TABLE copy_of_web_sessions SYNC")
    return seconds


def compute(cluster: ClickhouseCluster, *days: dt.date) -> AggregationOutcome:
    """Compute days as the asset does, without Dagster."""
    return pre_aggregate(cluster, days, run_id=str(uuid.uuid4()))


def middle_day(port: int, events: int) -> Middle:
    """Measure the middle day of three."""
    first, middle, last = (FIRST + dt.timedelta(days=n) for n in range(3))
    with database(port) as (cluster, client):
        fill(client, events, 3)
        ((window,),) = client.execute("SELECT count() FROM events")
        times, floors, memories = [], [], []
        for _ in range(ROUNDS):
            outcomes: list[AggregationOutcome] = []
            times.append(seconds_of(lambda found=outcomes: found.append(compute(cluster, middle))))
            memories.append(outcomes[0].peak_memory_bytes / 2**20)
            floors.append(floor(client, first, last, middle))
        client.execute("SYSTEM FLUSH LOGS")
        ((most,),) = client.execute(
            "SELECT max(read_rows) FROM system.query_log WHERE current_database = currentDatabase() "
            "AND type = 'QueryFinish' AND query LIKE '%staging_web_%' AND query NOT LIKE '%query_log%'"
        )
    return Middle(min(times), min(floors), max(memories), most / window)


def backfill(port: int, events: int) -> tuple[float, float, float]:
    """Return the seconds of 30 days in one Dagster run, of its statements, and of 30 calls of one day each."""
    days = [FIRST + dt.timedelta(days=n) for n in range(BACKFILL_DAYS)]
    with database(port) as (cluster, client), dg.DagsterInstance.ephemeral() as instance:
        fill(client, events, BACKFILL_DAYS)
        job = dg.define_asset_job("backfill", "*")
        definitions = dg.Definitions(
            assets=[web_sessions_daily(BACKFILL_DAYS)],
            jobs=[job],
            resources={"clickhouse": clickhouse_resource(cluster)},
        ).resolve_job_def("backfill")
        tags = dict(zip(DAGSTER_RANGE, (str(days[0]), str(days[-1])), strict=True))
        quiet = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}
        run = seconds_of(lambda: definitions.execute_in_process(instance=instance, tags=tags, run_config=quiet))
        # From the metadata of the same run: another call would add the noise between two measurements.
        event = instance.get_latest_materialization_event(SESSIONS_DAILY)
        assert event is not None
        assert event.asset_materialization is not None
        alone = float(event.asset_materialization.metadata["seconds_of_run"].value)  # type: ignore[arg-type]
        ((stored,),) = cluster.any_host(Query("SELECT uniqExact(toDate(started_at)) FROM web_sessions")).result()
        assert stored == BACKFILL_DAYS, stored
        bare = sum(seconds_of(lambda day=day: compute(cluster, day)) for day in days)
    print(f"  30 days in one run: {run:.2f} s; its statements {alone:.2f} s; day by day {bare:.2f} s", flush=True)
    return run, alone, bare


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=EVENTS, help="events over three days, and then twice as many")
    parser.add_argument("--backfill-events", type=int, default=BACKFILL_EVENTS, help="events over the 30 days")
    arguments = parser.parse_args()
    figures = Figures()
    figure = figures.add
    measured: list[Middle] = []
    with tempfile.TemporaryDirectory() as directory, node(Path(directory) / "node") as (port, _):
        for events in (arguments.events, 2 * arguments.events):
            print(f"{events:,} events over three days, the middle one", flush=True)
            found = middle_day(port, events)
            measured.append(found)
            label = f"{events / 1e6:g}m"
            ratio = found.seconds / found.floor_seconds
            figure(f"middle_day_{label}", found.seconds, "s")
            figure(f"floor_{label}", found.floor_seconds, "s")
            figure(f"middle_day_over_floor_{label}", ratio, "times", at_most=2.2)
            figure(f"peak_memory_{label}", found.memory_mebibytes, "MiB", at_most=400 if events == EVENTS else None)
            figure(f"rows_read_over_window_{label}", found.rows_ratio, "times", at_most=1.4)
        small, large = measured
        for name, growth in (
            ("time_growth_when_data_double", large.seconds / small.seconds),
            ("memory_growth_when_data_double", large.memory_mebibytes / small.memory_mebibytes),
        ):
            figure(name, growth, "times", at_most=2.1)
        print(f"{BACKFILL_DAYS} days", flush=True)
        run, alone, bare = backfill(port, arguments.backfill_events)
        share = 100 * (run - alone) / run
        figure("backfill_30_days_one_run", run, "s")
        figure("backfill_30_days_statements_alone", alone, "s")
        figure("backfill_30_bare_statements", bare, "s")
        figure("dagster_share", share, "percent", at_most=15)
        figure("one_run_over_30_bare", run / bare, "times")
    figures.print_all()


if __name__ == "__main__":
    main()
