"""The speed of loading events, compared with the bare engine reading the same lines from a local file.

Run: `python bench/ingest.py` (some minutes, 6 GB of disk; `--lines 100000 --large-lines 300000 --objects 200` for a
smaller one). It measures:

- a million lines of each format as one object, against the floor: one INSERT … SELECT with the same expressions, in the
  engine without a server, from a plain file into a table with the same columns and keys. The load also has object
  storage, the server, staging, the manifest, the lock and the checks;
- one object of 2 GB, and ten thousand of 100 KB in the sensor's batches: time, statements, and the peak memory of any
  statement. That of the large object is compared with that of the million lines.

Times of the first are the best of three. The output ends with one line per figure: `name value unit aim AIM ok|short`.
"""

import argparse
import functools
import json
import random
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring import Figures, seconds_of
from pydantic import SecretStr

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import SchemaForm
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.object_storage import OBJECT, ObjectStorage
from dags.common.clickhouse.query import Query
from dags.common.clickhouse.schema import apply_schema
from dags.common.clickhouse.tables import EVENTS
from dags.common.locks import exclusive
from dags.common.postgres import Postgres
from dags.events import access_logs, product_events
from dags.events.access_logs import LogRules
from dags.events.batches import BatchLimits, batches_of
from dags.events.loading import Loader, load_batch, lock_name
from dags.events.objects import Format, current_versions
from dags.events.staging import SETTINGS
from dags.events.staging_table import EVENT_NAMES, IS_EVENT
from dags.events.user_agents import parse_user_agents
from dags.local import ports, services

AIM = 1.3
ROUNDS = 3
LINES = 1_000_000
# Of about 690 bytes each: 2 GB in one object, and 100 KB in each of many.
LARGE_LINES = 3_000_000
OBJECTS, LINES_OF_OBJECT = 10_000, 150
KEY = SecretStr("the key of the benchmark")
AGENTS = [
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{major}.0.{minor}.0 "
    "Safari/537.36"
    for major in range(90, 130)
    for minor in range(20)
]


def clock(number: int) -> str:
    """Return a time of day, one second later for each number."""
    return f"{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}"


def json_line(number: int) -> str:
    """Return an event as a browser sends it."""
    dice = random.Random(number)  # noqa: S311 - not for secrets
    properties = {
        "$session_id": f"0190a1b2-0000-7000-8000-{number // 9:012d}",
        "$pathname": f"/page/{dice.randrange(400)}",
        "$host": "www.example.com",
        "$current_url": f"https://www.example.com/page/{dice.randrange(400)}?utm_source=mail",
        "$browser": dice.choice(("Chrome", "Safari", "Firefox")),
        "$browser_version": 129,
        "$os": dice.choice(("Windows", "Mac OS X", "iOS", "Android")),
        "$device_type": dice.choice(("Desktop", "Mobile")),
        "$viewport_width": 1280,
        "$viewport_height": 720,
        "$referring_domain": "www.google.com",
        "$lib": "web",
        "$lib_version": "1.170.1",
        "$insert_id": f"{number:016x}",
        "utm_source": "mail",
        "$geoip_country_code": "DE",
        "title": "A page with a title of some length",
    }
    event = {
        "uuid": str(uuid.UUID(int=number + 1)),
        "event": "$pageview",
        "distinct_id": f"visitor-{number // 20}",
        "timestamp": f"2026-10-{1 + number % 28:02d}T{clock(number)}.123Z",
        "properties": properties,
    }
    return json.dumps(event)


def log_line(number: int) -> str:
    """Return a line of an access log. About half of the lines are page views."""
    dice = random.Random(number)  # noqa: S311 - not for secrets
    visitor = number // 12 % 50_000
    target = f"/page/{dice.randrange(400)}" if dice.random() < 0.5 else f"/static/{dice.randrange(400)}.png"
    day = 1 + number * 28 // 5_000_000 % 28
    address = f"10.{visitor >> 16}.{visitor >> 8 & 255}.{visitor & 255}"
    agent = AGENTS[visitor % len(AGENTS)]
    return (
        f'{address} - - [{day:02d}/Oct/2026:{clock(number)} +0000] "GET {target} HTTP/1.1" 200 5120 '
        f'"https://www.example.com/" "{agent}"'
    )


def bound(statement: str, parameters: dict[str, Any]) -> str:
    """Return a statement with its parameters inserted, for the engine without a server."""
    from clickhouse_driver.util.escape import escape_params

    class Server:
        server_info = None

    return statement % escape_params(parameters, Server())


def floor_seconds(kind: Format, file: Path, directory: Path) -> tuple[float, int]:
    """Return the shortest time of an INSERT … SELECT from a local file in the bare engine, and the inserted rows."""
    from chdb.state.sqlitelike import connect

    settings = ", ".join(f"{name} = {value}" for name, value in SETTINGS.items() if isinstance(value, int))
    rows = access_logs.rows_statement() if kind is Format.ACCESS_LOG else product_events.rows_statement(kind)
    source = rows.replace(f"s3({OBJECT}, ", f"file('{file}', ").replace("_etag AS quoted_etag", "'' AS quoted_etag")
    select = bound(source, {"chunk": 1, "bucket": "", **access_logs.parameters(LogRules())})
    names = ", ".join(EVENT_NAMES)
    engine: Any = connect(str(directory))
    engine.query(EVENTS.create_statement(SchemaForm("default"), "events"))
    if kind is Format.ACCESS_LOG:
        halves = access_logs.visitor_key_table(KEY)["data"][0]
        low, high = halves["low"], halves["high"]
        engine.query(
            f"CREATE TABLE visitor_hash_key ENGINE = Memory AS SELECT {low}::UInt64 AS low, {high}::UInt64 AS high"
        )
        columns = "agent String, browser String, os String, device_type String, is_bot Bool"
        engine.query(f"CREATE TABLE agents ({columns}) ENGINE = Memory")
        values = ", ".join(
            f"('{agent}', '{parsed.browser}', '{parsed.os}', '{parsed.device_type}', {int(parsed.is_bot)})"
            for agent, parsed in parse_user_agents(AGENTS)
        )
        engine.query(f"INSERT INTO agents VALUES {values}")
        # The same visits of the same lines, without a staging table and without already loaded events.
        views = access_logs.page_views_statement("STAGED", "agents").replace("object IN %(objects)s", "1")
        head, _, rest = views.partition("UNION ALL")
        views = f"{head}), starts AS ({rest.partition('starts AS (')[2]}"
        select = bound(views, {"first_log_chunk": 0}).replace("`STAGED`", f"({select})")
    else:
        select = f"SELECT {names} FROM ({select}) WHERE {IS_EVENT}"
    statement = f"INSERT INTO events ({names}) {select} SETTINGS {settings}"
    seconds = []
    for _ in range(ROUNDS):
        engine.query("TRUNCATE TABLE events")
        seconds.append(seconds_of(lambda: engine.query(statement)))
    found = int(str(engine.query("SELECT count() FROM events")).strip())
    engine.close()
    return min(seconds), found


@contextmanager
def stack(directory: Path) -> Iterator[tuple[ClickhouseCluster, Postgres, Any, ObjectStorage]]:
    """Run the services on free ports, with the schema applied."""
    credentials = services.Credentials()
    chosen = [ports.free_port() for _ in range(3)]
    with services.Lifeline.opened() as lifeline:
        wanted = [
            services.s3(directory, chosen[0], credentials),
            services.postgres(directory, chosen[1], credentials),
            *services.clickhouse_nodes(directory, (chosen[2],)),
        ]
        started = [services.start(service, lifeline, directory / "logs") for service in wanted]
        try:
            for one in started:
                services.wait_until_healthy(one, credentials)
            bucket = credentials.s3_bucket
            storage = ObjectStorage(
                bucket,
                f"http://127.0.0.1:{chosen[0]}/{bucket}",
                credentials.s3_access_key_id,
                SecretStr(credentials.s3_secret_access_key),
            )
            postgres = Postgres("127.0.0.1", chosen[1], credentials.postgres_user, SecretStr(""), "postgres")
            with ClickhouseCluster([Host("127.0.0.1", chosen[2])], Access()) as cluster:
                apply_schema(cluster, clustered=False)
                yield cluster, postgres, services.s3_client(chosen[0], credentials), storage
        finally:
            for one in reversed(started):
                services.stop(one)


def write_lines(file: Path, make: Callable[[int], str], numbers: range) -> None:
    """Write the lines of these numbers to a file."""
    with file.open("w") as opened:
        opened.writelines(f"{make(number)}\n" for number in numbers)


def load(cluster: ClickhouseCluster, postgres: Postgres, s3: Any, storage: ObjectStorage, keys: Sequence[str]) -> None:
    """Load these objects as a run does."""
    list_versions = functools.partial(current_versions, s3, storage.bucket)
    loader = Loader(cluster, postgres, storage, KEY, list_versions, str(uuid.uuid4()), SchemaForm("default"))
    with exclusive(postgres, lock_name(cluster), 60) as lock:
        result = load_batch(loader, keys, lock)
    assert not result.problems, result.problems


def cost(cluster: ClickhouseCluster) -> tuple[float, int]:
    """Return the peak memory of any statement of a load in MiB, and the number of statements."""
    cluster.any_host(Query("SYSTEM FLUSH LOGS")).result()
    found = Query(
        "SELECT max(memory_usage) / 1048576, count() FROM system.query_log "
        "WHERE type = 'QueryFinish' AND (query LIKE '%events_load_%' OR query LIKE '%ingested_objects%')"
    )
    return cluster.any_host(found).result()[0]


def stored_rows(cluster: ClickhouseCluster) -> int:
    """Return the number of rows of `events`, including duplicates."""
    return cluster.any_host(Query("SELECT count() FROM events")).result()[0][0]


def load_seconds(name: str, file: Path, directory: Path) -> tuple[float, int, float]:
    """Return the shortest time of loading the file as one object, the rows in `events`, and the peak memory in MiB."""
    key = f"events/team=1/{name}"
    seconds = []
    with stack(directory) as services_of_load:
        cluster, _, s3, storage = services_of_load
        for _ in range(ROUNDS):
            for table in ("events", "ingested_objects"):
                cluster.any_host(Query(f"TRUNCATE TABLE {table}")).result()
            s3.upload_file(str(file), storage.bucket, key)
            seconds.append(seconds_of(lambda: load(*services_of_load, [key])))
        return min(seconds), stored_rows(cluster), cost(cluster)[0]


def measure_format(figures: Figures, name: str, kind: Format, file: Path, lines: int) -> float:
    """Measure a file of one format against the floor; return the peak memory in MiB."""
    loaded, rows, memory = load_seconds(file.name, file, file.parent / f"{name}-stack")
    floor, floor_rows = floor_seconds(kind, file, file.parent / f"{name}-engine")
    assert rows == floor_rows, (rows, floor_rows)
    figures.add(f"{name}_lines", lines, "lines")
    figures.add(f"{name}_size", file.stat().st_size / 2**20, "MiB")
    figures.add(f"{name}_rows", rows, "rows")
    figures.add(f"{name}_load", lines / loaded, "lines/s")
    figures.add(f"{name}_floor", lines / floor, "lines/s")
    figures.add(f"{name}_memory", memory, "MiB")
    figures.add(f"{name}_over_floor", loaded / floor, "times", at_most=AIM)
    return memory


def measure_large_object(figures: Figures, directory: Path, lines: int, memory_of_less: float) -> None:
    """Measure one large object. Its peak memory must not grow with the object."""
    file = directory / "large.jsonl"
    write_lines(file, json_line, range(lines))
    with stack(directory / "large-stack") as services_of_load:
        cluster, _, s3, storage = services_of_load
        key = "events/team=1/large.jsonl"
        s3.upload_file(str(file), storage.bucket, key)
        seconds = seconds_of(lambda: load(*services_of_load, [key]))
        assert stored_rows(cluster) == lines
        memory, statements = cost(cluster)
    figures.add("large_object_size", file.stat().st_size / 2**20, "MiB")
    figures.add("large_object_load", lines / seconds, "lines/s")
    figures.add("large_object_statements", statements, "statements")
    figures.add("large_object_memory", memory, "MiB")
    figures.add("large_object_memory_growth", memory / memory_of_less, "times", at_most=1.2)


def measure_many_objects(figures: Figures, directory: Path, objects: int) -> None:
    """Measure many small objects of several teams, in the batches of the sensor."""
    with stack(directory / "many-stack") as services_of_load:
        cluster, _, s3, storage = services_of_load
        keys = [f"events/team={1 + number % 7}/{number:05d}.jsonl" for number in range(objects)]
        size = 0
        for number, key in enumerate(keys):
            numbers = range(number * LINES_OF_OBJECT, (number + 1) * LINES_OF_OBJECT)
            body = "".join(f"{json_line(line)}\n" for line in numbers).encode()
            s3.put_object(Bucket=storage.bucket, Key=key, Body=body)
            size += len(body)
        batches = list(batches_of(sorted(current_versions(s3, storage.bucket, keys).values()), BatchLimits()))

        def load_all() -> None:
            for batch in batches:
                load(*services_of_load, [version.key for version in batch])

        seconds = seconds_of(load_all)
        assert stored_rows(cluster) == objects * LINES_OF_OBJECT
        memory, statements = cost(cluster)
    figures.add("many_objects", objects, "objects")
    figures.add("many_objects_size", size / 2**20, "MiB")
    figures.add("many_objects_load", objects / seconds, "objects/s")
    figures.add("many_objects_statements_per_batch", statements / len(batches), "statements")
    figures.add("many_objects_memory", memory, "MiB")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=LINES, help="lines of each format against the floor")
    parser.add_argument("--large-lines", type=int, default=LARGE_LINES, help="JSON lines of the large object")
    parser.add_argument("--objects", type=int, default=OBJECTS, help="small objects")
    arguments = parser.parse_args()
    figures = Figures()
    kinds: list[tuple[str, Format, str, Callable[[int], str]]] = [
        ("access_log", Format.ACCESS_LOG, "a.log", log_line),
        ("json_lines", Format.JSON_LINES, "a.jsonl", json_line),
    ]
    with tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        memory = 0.0
        for name, kind, file_name, make in kinds:
            print(f"{arguments.lines:,} lines, {name}", flush=True)
            write_lines(directory / file_name, make, range(arguments.lines))
            memory = measure_format(figures, name, kind, directory / file_name, arguments.lines)
        print(f"one object of {arguments.large_lines:,} lines", flush=True)
        measure_large_object(figures, directory, arguments.large_lines, memory)
        print(f"{arguments.objects:,} objects", flush=True)
        measure_many_objects(figures, directory, arguments.objects)
    figures.print_all()


if __name__ == "__main__":
    main()
