"""How fast events are loaded, against the engine itself reading the same lines from a local file.

    PYTHONPATH=. .venv/bin/python bench/ingest.py [thousand lines]     # 1000 by default

The floor is one INSERT … SELECT with the same expressions, in the engine without a server, from a plain file, into a
table of the same form. The load has all that the floor has not: object storage, the server, staging, the manifest, the
lock, the checks. Prints `name value unit aim ok|short`.
"""

import functools
import json
import random
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from pydantic import SecretStr

from dags.common.clickhouse.cluster import Access, ClickhouseCluster, Host
from dags.common.clickhouse.ddl import Form
from dags.common.clickhouse.object_storage import OBJECT, ObjectStorage
from dags.common.clickhouse.query import Query
from dags.common.clickhouse.schema import apply_schema
from dags.common.clickhouse.tables import EVENTS
from dags.common.locks import exclusive
from dags.common.resources import Postgres
from dags.events import access_logs, product_events, staging
from dags.events.loading import READING_SETTINGS, Loader, load_batch, lock_name
from dags.events.objects import Format, current_versions
from dags.events.user_agents import parse_user_agents
from dags.local import ports, services

AIM = 1.3
ROUNDS = 3
KEY = SecretStr("the key of the benchmark")
AGENTS = [
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{major}.0.{minor}.0 "
    "Safari/537.36"
    for major in range(90, 130)
    for minor in range(20)
]


def clock(number: int) -> str:
    """A time of day, a second later for each number."""
    return f"{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}"


def json_line(number: int) -> str:
    """An event as a browser sends it."""
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
    """A line of an access log: about half of them are page views."""
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
    """A statement with its parameters in it, for the engine without a server."""
    from clickhouse_driver.util.escape import escape_params

    class Server:
        server_info = None

    return statement % escape_params(parameters, Server())


def floor_seconds(kind: Format, file: Path, directory: Path) -> tuple[float, int]:
    """The shortest of a few INSERT … SELECT from a local file in the bare engine, and the rows that it inserts."""
    from chdb.state.sqlitelike import connect

    settings = ", ".join(f"{name} = {value}" for name, value in READING_SETTINGS.items() if isinstance(value, int))
    rows = access_logs.rows_statement() if kind is Format.ACCESS_LOG else product_events.rows_statement(kind)
    source = rows.replace(f"s3({OBJECT}, ", f"file('{file}', ").replace("_etag AS quoted_etag", "'' AS quoted_etag")
    select = bound(source, {"chunk": 1, "bucket": "", **access_logs.patterns()})
    names = ", ".join(staging.EVENT_NAMES)
    engine: Any = connect(str(directory))
    engine.query(EVENTS.create_statement(Form("default"), "events"))
    if kind is Format.ACCESS_LOG:
        halves = access_logs.visitor_key_table(KEY)["data"][0]
        low, high = halves["low"], halves["high"]
        engine.query(
            f"CREATE TABLE visitor_hash_key ENGINE = Memory AS SELECT {low}::UInt64 AS low, {high}::UInt64 AS high"
        )
        columns = "agent String, browser String, os String, device_type String, is_bot Bool"
        engine.query(f"CREATE TABLE agents ({columns}) ENGINE = Memory")
        values = ", ".join(
            f"('{agent}', '{told.browser}', '{told.os}', '{told.device_type}', {int(told.is_bot)})"
            for agent, told in parse_user_agents(AGENTS)
        )
        engine.query(f"INSERT INTO agents VALUES {values}")
        # The same visits of the same lines, without a table in between and without events that are there already.
        views = access_logs.page_views_statement("STAGED", "agents").replace("object IN %(objects)s", "1")
        head, _, rest = views.partition("UNION ALL")
        views = f"{head}), starts AS ({rest.partition('starts AS (')[2]}"
        select = bound(views, {"first_log_chunk": 0}).replace("`STAGED`", f"({select})")
    else:
        select = f"SELECT {names} FROM ({select}) WHERE {staging.IS_EVENT}"
    statement = f"INSERT INTO events ({names}) {select} SETTINGS {settings}"
    seconds = []
    for _ in range(ROUNDS):
        engine.query("TRUNCATE TABLE events")
        start = perf_counter()
        engine.query(statement)
        seconds.append(perf_counter() - start)
    found = int(str(engine.query("SELECT count() FROM events")).strip())
    engine.close()
    return min(seconds), found


@contextmanager
def stack(directory: Path) -> Iterator[tuple[ClickhouseCluster, Postgres, Any, ObjectStorage]]:
    """The services on free ports, with the schema applied."""
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


def load_seconds(name: str, file: Path, directory: Path) -> tuple[float, int, float]:
    """The shortest of a few loads of the file as one object, the rows in `events`, and the highest memory in MiB."""
    key = f"events/team=1/{name}"
    seconds = []
    with stack(directory) as (cluster, postgres, s3, storage):
        for number in range(ROUNDS):
            for table in ("events", "ingested_objects"):
                cluster.any_host(Query(f"TRUNCATE TABLE {table}")).result()
            s3.upload_file(str(file), storage.bucket, key)
            loader = Loader(
                cluster,
                storage,
                KEY,
                functools.partial(current_versions, s3, storage.bucket),
                f"{number}",
                Form("default"),
            )
            start = perf_counter()
            with exclusive(postgres, lock_name(cluster), 60) as lock:
                result = load_batch(loader, [key], lock)
            seconds.append(perf_counter() - start)
            assert not result.problems, result.problems
        found = cluster.any_host(Query("SELECT count() FROM events")).result()[0][0]
        cluster.any_host(Query("SYSTEM FLUSH LOGS")).result()
        memory = "SELECT max(memory_usage) / 1048576 FROM system.query_log WHERE query LIKE '%events_load_%'"
        return min(seconds), found, cluster.any_host(Query(memory)).result()[0][0]


def main() -> None:
    """Measure and print."""
    lines = int(sys.argv[1]) * 1000 if len(sys.argv) > 1 else 1_000_000
    kinds: list[tuple[str, Format, str, Callable[[int], str]]] = [
        ("json_lines", Format.JSON_LINES, "a.jsonl", json_line),
        ("access_log", Format.ACCESS_LOG, "a.log", log_line),
    ]
    with tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        for name, kind, file_name, make in kinds:
            file = directory / file_name
            with file.open("w") as opened:
                opened.writelines(f"{make(number)}\n" for number in range(lines))
            loaded, rows, memory = load_seconds(file_name, file, directory / f"{name}-stack")
            floor, floor_rows = floor_seconds(kind, file, directory / f"{name}-engine")
            assert rows == floor_rows, (rows, floor_rows)
            ratio = loaded / floor
            print(f"{name}_lines {lines} lines aim -")
            print(f"{name}_size {file.stat().st_size / 2**20:.0f} MiB aim -")
            print(f"{name}_rows {rows} rows aim -")
            print(f"{name}_load {lines / loaded:.0f} lines/s aim -")
            print(f"{name}_floor {lines / floor:.0f} lines/s aim -")
            print(f"{name}_memory {memory:.0f} MiB aim -")
            print(f"{name}_over_floor {ratio:.2f} times aim <={AIM} {'ok' if ratio <= AIM else 'short'}", flush=True)


if __name__ == "__main__":
    main()
