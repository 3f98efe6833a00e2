"""Squashes and deletes compared with the bare engine.

Run: `python bench/rewrite.py` (some minutes; `--events 1000000` is faster). All on one machine, on events of 20 teams
over 12 monthly partitions, with a tenth as many visitors, who each come for a few days:

- squash: every visitor has an override; 1 % at random, so that every part has a match; 0.01 %, the latest visitors, as
  merges are of people who have just signed in; and 0.01 % at random, for information.
- delete: 1 % and 0.01 % of the persons, chosen in the same ways.

The bare engine has its dictionary loaded before. It runs the mutation of the full table, which rewrites every part, and
the mutation with its condition, which the engine evaluates for every row to skip parts. A job is measured as a whole:
snapshot, dictionary with checksums, counting, mutations, counting what is left, and removal of the overrides or marking
of the requests. The results are compared. Each time is the best of ROUNDS. Ends with one line per figure:
`name value unit aim AIM ok|short`.
"""

import argparse
import contextlib
import datetime as dt
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from clickhouse_driver import Client
from cluster_calls import measure_calls
from measuring import Figures, node, seconds_of
from pydantic import SecretStr

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.schema import apply_schema
from dags.common.deletion_requests import apply_migrations
from dags.common.postgres import Postgres
from dags.common.rewrites.rewrite import Rewrite
from dags.deletes.delete import process_requests
from dags.local import ports, services
from dags.person_overrides.squash import squash

EVENTS = 10_000_000
EVENTS_PER_VISITOR = 10
PARTS = 12
ROUNDS = 2
CUTOFF = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
MAX_RATIO = 1.2
MIN_RATIO = 5

# Visitor v arrives at the fraction v/visitors of the year, and stays for three days.
GENERATE = """
INSERT INTO events (
    uuid, event, team_id, distinct_id, person_id, session_id, timestamp, properties, host, pathname, browser
)
WITH
    number % {visitors} AS visitor, intDiv(number, {visitors}) AS nth, cityHash64(number) AS hash,
    reinterpretAsUUID(concat(reinterpretAsString(cityHash64(visitor, 3)), reinterpretAsString(visitor))) AS person
SELECT
    reinterpretAsUUID(concat(reinterpretAsString(hash), reinterpretAsString(cityHash64(number, 4)))),
    ['$pageview', '$pageview', '$pageleave', 'signed_up'][1 + hash % 4], 1 + visitor % 20,
    concat('visitor-', toString(visitor)), person, toString(cityHash64(visitor, intDiv(nth, 5))),
    toDateTime64('2025-01-01 00:00:00', 6, 'UTC')
        + toIntervalSecond(intDiv(visitor * 362 * 86400, {visitors}) + hash % (3 * 86400)),
    concat('{{"$lib":"web","$current_url":"https://www.example.com/', toString(hash % 400), '?ref=', hex(hash),
        '","$device_id":"', hex(cityHash64(visitor, 6)), hex(cityHash64(visitor, 7)), '","$insert_id":"',
        hex(cityHash64(number, 8)), hex(cityHash64(number, 9)), '","plan":"', ['free', 'team', 'scale'][1 + hash % 3],
        '","amount":', toString(hash % 9973), '}}'),
    'www.example.com', concat('/', toString(hash % 400)), ['Chrome', 'Safari', 'Firefox'][1 + visitor % 3]
FROM numbers({begin}, {count})
"""
OVERRIDES = """
INSERT INTO person_distinct_id_overrides (team_id, distinct_id, person_id, version, is_deleted, _timestamp)
SELECT 1 + number % 20, concat('visitor-', toString(number)),
    reinterpretAsUUID(concat(reinterpretAsString(cityHash64(number, 5)), reinterpretAsString(number))), 1, 0,
    toDateTime64('2026-01-01 00:00:00', 6, 'UTC')
FROM numbers({visitors}) WHERE {chosen}
"""
PERSONS = """
SELECT 1 + number % 20,
    toString(reinterpretAsUUID(concat(reinterpretAsString(cityHash64(number, 3)), reinterpretAsString(number))))
FROM numbers({visitors}) WHERE {chosen}
"""
SUM = "SELECT count(), sum(cityHash64(uuid, person_id)) FROM {table}"
REQUEST = """
INSERT INTO deletion_requests (kind, team_id, key, requested_by, requested_at)
SELECT 'person', team_id, key, 'bench', '2026-02-01Z' FROM unnest(%s::bigint[], %s::text[]) AS requested (team_id, key)
"""


@dataclass(frozen=True)
class Scenario:
    """The visitors that a measurement covers, and the aims of its ratios."""

    name: str
    chosen: str
    at_most: float | None = None
    at_least: float | None = None


def scenarios(visitors: int, *, whole: bool) -> list[Scenario]:
    """Return the scenarios, from many visitors to few."""
    first = [Scenario("all persons", "1", at_most=MAX_RATIO)] if whole else []
    return [
        *first,
        Scenario("1 % of persons", "cityHash64(number, 7) % 100 = 0", at_most=None if whole else MAX_RATIO),
        Scenario("0.01 % of persons", f"number >= {visitors - max(visitors // 10_000, 1)}", at_least=MIN_RATIO),
        Scenario("0.01 % of persons at random", "cityHash64(number, 7) % 10000 = 0"),
    ]


@contextlib.contextmanager
def postgres_server(directory: Path) -> Iterator[Postgres]:
    """Start a Postgres on a free port, with the table of requests."""
    credentials = services.Credentials()
    with services.Lifeline.opened() as lifeline:
        port = ports.free_port()
        started = services.start(services.postgres(directory, port, credentials), lifeline, directory / "logs")
        try:
            services.wait_until_healthy(started, credentials)
            postgres = Postgres(ports.LOOPBACK, port, credentials.postgres_user, SecretStr(""), "postgres")
            apply_migrations(postgres)
            yield postgres
        finally:
            services.stop(started)


def fill(client: Client, events: int) -> None:
    """Load events in parts, merge them, and keep a copy of the table as it is."""
    part = events // PARTS
    for n in range(PARTS):
        client.execute(GENERATE.format(visitors=events // EVENTS_PER_VISITOR, begin=n * part, count=part))
    client.execute("OPTIMIZE TABLE events FINAL")
    for name in ("pristine", "bare"):
        client.execute(f"CREATE TABLE {name} AS events")
    copy(client, "events", "pristine")


def copy(client: Client, source: str, target: str) -> None:
    """Replace the rows of a table by those of another; the files are shared, so it takes no time."""
    client.execute(f"TRUNCATE TABLE {target} SYNC")
    for (partition,) in client.execute(f"SELECT DISTINCT _partition_id FROM {source}"):
        client.execute(f"ALTER TABLE {target} ATTACH PARTITION ID '{partition}' FROM {source}")


def start_rewrite(cluster: ClickhouseCluster) -> Rewrite:
    """Start a rewrite without a lock and without reports."""
    return Rewrite.start(
        cluster, str(uuid.uuid4()), deadline_seconds=3600, report=lambda _: None, assert_lock_held=lambda: None
    )


def mutate(client: Client, command: str) -> float:
    """Return the seconds of a mutation of the bare table, from its pristine state."""
    copy(client, "pristine", "bare")
    return seconds_of(lambda: client.execute(f"ALTER TABLE bare {command} SETTINGS mutations_sync = 1"))


def bare_dictionary(client: Client, key: str, value: str, query: str) -> None:
    """Create and load the dictionary of the bare mutations."""
    client.execute("DROP DICTIONARY IF EXISTS bare_dict")
    names = ", ".join(part.split()[0] for part in key.split(", "))
    client.execute(
        f"CREATE DICTIONARY bare_dict ({key}, {value}) PRIMARY KEY {names} "
        f"SOURCE(CLICKHOUSE(QUERY '{query}')) LAYOUT(COMPLEX_KEY_HASHED()) LIFETIME(0)"
    )
    client.execute("SYSTEM RELOAD DICTIONARY bare_dict")


def measured(figures: Figures, name: str, scenario: Scenario, times: dict[str, list[float]]) -> None:
    """Print the figures of one scenario."""
    best = {what: min(seconds) for what, seconds in times.items()}
    for what, seconds in best.items():
        figures.add(f"{name}, {scenario.name}: {what}", seconds, "s")
    if scenario.at_most is not None:
        figures.add(
            f"{name}, {scenario.name}: job / full-table mutation",
            best["job"] / best["full-table mutation"],
            "times",
            at_most=scenario.at_most,
        )
    figures.add(
        f"{name}, {scenario.name}: full-table mutation / job",
        best["full-table mutation"] / best["job"],
        "times",
        at_least=scenario.at_least,
    )


def squashes(figures: Figures, cluster: ClickhouseCluster, client: Client, visitors: int) -> None:
    """Measure squashes and the bare engine's updates."""
    database = cluster.database
    for scenario in scenarios(visitors, whole=True):
        times: dict[str, list[float]] = {"job": [], "full-table mutation": [], "mutation with the condition": []}
        for _ in range(ROUNDS):
            client.execute("TRUNCATE TABLE person_distinct_id_overrides SYNC")
            client.execute(OVERRIDES.format(visitors=visitors, chosen=scenario.chosen))
            bare_dictionary(
                client,
                "team_id Int64, distinct_id String",
                "person_id UUID",
                f"SELECT team_id, distinct_id, person_id FROM {database}.person_distinct_id_overrides",
            )
            copy(client, "pristine", "events")
            times["job"].append(
                seconds_of(lambda: squash(start_rewrite(cluster), cutoff=CUTOFF, hold_back={}, dry_run=False))
            )
            new = f"dictGetOrDefault('{database}.bare_dict', 'person_id', (team_id, distinct_id), person_id)"
            times["full-table mutation"].append(mutate(client, f"UPDATE person_id = {new} WHERE 1"))
            assert client.execute(SUM.format(table="events")) == client.execute(SUM.format(table="bare"))
            has = f"dictHas('{database}.bare_dict', (team_id, distinct_id))"
            times["mutation with the condition"].append(mutate(client, f"UPDATE person_id = {new} WHERE {has}"))
        measured(figures, "squash", scenario, times)


def deletes(figures: Figures, cluster: ClickhouseCluster, client: Client, postgres: Postgres, visitors: int) -> None:
    """Measure deletes of persons and the bare engine's deletes."""
    database = cluster.database
    client.execute("CREATE TABLE persons (team_id Int64, key UUID, one UInt8 DEFAULT 1) ENGINE = Memory")
    for scenario in scenarios(visitors, whole=False):
        times: dict[str, list[float]] = {"job": [], "full-table mutation": [], "mutation with the condition": []}
        persons = client.execute(PERSONS.format(visitors=visitors, chosen=scenario.chosen))
        client.execute("TRUNCATE TABLE persons")
        client.execute("INSERT INTO persons (team_id, key) VALUES", persons)
        bare_dictionary(
            client, "team_id Int64, key UUID", "one UInt8", f"SELECT team_id, key, one FROM {database}.persons"
        )
        for _ in range(ROUNDS):
            with postgres.connection() as connection, connection.cursor() as cursor:
                cursor.execute("TRUNCATE deletion_requests")
                cursor.execute(REQUEST, ([team for team, _ in persons], [key for _, key in persons]))
            copy(client, "pristine", "events")
            times["job"].append(
                seconds_of(lambda: process_requests(start_rewrite(cluster), postgres, lambda days: days, dry_run=False))
            )
            has = f"dictHas('{database}.bare_dict', (team_id, person_id))"
            times["full-table mutation"].append(mutate(client, f"DELETE WHERE {has}, UPDATE browser = browser WHERE 1"))
            assert client.execute(SUM.format(table="events")) == client.execute(SUM.format(table="bare"))
            times["mutation with the condition"].append(mutate(client, f"DELETE WHERE {has}"))
        measured(figures, "delete", scenario, times)


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=EVENTS)
    events = parser.parse_args().events
    figures = Figures()
    measure_calls(figures)
    with (
        tempfile.TemporaryDirectory(prefix="bench-rewrite-") as name,
        node(Path(name) / "node") as (port, _),
        postgres_server(Path(name)) as postgres,
        Client(ports.LOOPBACK, port=port, send_receive_timeout=3600) as client,
        ClickhouseCluster([Host(ports.LOOPBACK, port)], Access()) as cluster,
    ):
        apply_schema(cluster, clustered=False)
        fill(client, events)
        squashes(figures, cluster, client, events // EVENTS_PER_VISITOR)
        client.execute("TRUNCATE TABLE person_distinct_id_overrides SYNC")
        deletes(figures, cluster, client, postgres, events // EVENTS_PER_VISITOR)
    figures.print_all()


if __name__ == "__main__":
    main()
