import datetime as dt
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
import requests
from pydantic import SecretStr

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.object_storage import OBJECT, ObjectQuery, ObjectStorage
from dags.common.clickhouse.query import Query, Rows
from dags.common.clickhouse.schema import apply_schema
from dags.common.clickhouse.tables import WEB_SESSIONS
from dags.common.metadata import PARTITION_ROW_COUNT, URI
from dags.common.settings import get_settings
from dags.tests.resources import clickhouse_resource, s3_resource
from dags.web_preaggregated.exports import (
    REPORT_EXPORT,
    SESSIONS_EXPORT,
    Export,
    ExportedDay,
    ExportError,
    counts_in_table,
    export_days,
    web_exports,
)
from dags.web_preaggregated.teams import select_teams

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

FIRST, SECOND, THIRD = (dt.date(2026, 10, day) for day in (1, 2, 3))
SECRET = SecretStr("secret-of-the-bucket")


@pytest.fixture
def cluster(clickhouse_port: int, clickhouse_database: str) -> Iterator[ClickhouseCluster]:
    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)], Access(database=clickhouse_database)) as connected:
        apply_schema(connected, clustered=False)
        yield connected


@pytest.fixture
def storage(s3_endpoint: str, s3_bucket: str) -> ObjectStorage:
    return ObjectStorage(s3_bucket, f"{s3_endpoint}/{s3_bucket}", "key-of-the-bucket", SECRET)


def query_rows(cluster: ClickhouseCluster, statement: str, **parameters: Any) -> Rows:
    return cluster.any_host(Query(statement, parameters)).result()


def add_visits(cluster: ClickhouseCluster, day: dt.date, *team_ids: int, visits: int = 20) -> None:
    """Insert sessions of 2 pages by 7 visitors of each team."""
    for team_id in team_ids:
        query_rows(
            cluster,
            """
            INSERT INTO web_sessions (team_id, session_id, person_id, started_at, duration_seconds, pageviews, pages)
            SELECT %(team_id)s, concat('session ', toString(number)),
                UUIDNumToString(toFixedString(toString(modulo(number, 7)), 16))::UUID,
                toDateTime64(toDate(%(day)s), 6, 'UTC') AS at, 30, 2,
                [('example.com', '/', at), ('example.com', '/größe', at)]
            FROM numbers(%(visits)s)
            """,
            day=day,
            team_id=team_id,
            visits=visits,
        )


def run_export(
    cluster: ClickhouseCluster, s3: "S3Client", storage: ObjectStorage, export: Export, *days: dt.date
) -> dict[dt.date, ExportedDay]:
    return export_days(cluster, s3, storage, export, counts_in_table(cluster, export, days))


def etags(s3: "S3Client", storage: ObjectStorage) -> dict[str, str]:
    return {item["Key"]: item["ETag"] for item in s3.list_objects_v2(Bucket=storage.bucket).get("Contents", [])}


def read(cluster: ClickhouseCluster, storage: ObjectStorage, key: str, columns: str) -> Rows:
    statement = f"SELECT {columns} FROM s3({OBJECT}, 'Parquet') ORDER BY ALL"  # noqa: S608 - constants
    return cluster.any_host(ObjectQuery(statement, storage, key)).result()


def test_each_team_and_day_has_an_object_of_finished_numbers(
    cluster: ClickhouseCluster, s3_client: "S3Client", storage: ObjectStorage
) -> None:
    add_visits(cluster, FIRST, 1, 2)
    add_visits(cluster, SECOND, 2, visits=3)
    exported = run_export(cluster, s3_client, storage, REPORT_EXPORT, FIRST, SECOND, THIRD)
    first = "exports/web_report_daily/team=1/day=2026-10-01.parquet"
    assert set(etags(s3_client, storage)) == {
        first,
        "exports/web_report_daily/team=2/day=2026-10-01.parquet",
        "exports/web_report_daily/team=2/day=2026-10-02.parquet",
    }
    columns = "team_id, day, host, pathname, visitors, sessions, pageviews, entries, exits"
    assert read(cluster, storage, first, columns) == [
        (1, FIRST, "example.com", "/", 7, 20, 20, 20, 0),
        (1, FIRST, "example.com", "/größe", 7, 20, 20, 0, 20),
    ]
    counts = {
        day: (one.objects, one.objects_removed, one.rows, one.pageviews, one.size_bytes > 0)
        for day, one in exported.items()
    }
    assert counts == {
        FIRST: (2, 0, 4, 80, True),
        SECOND: (1, 0, 2, 6, True),
        THIRD: (0, 0, 0, 0, False),
    }


def test_sessions_are_exported_with_every_column_of_their_table(
    cluster: ClickhouseCluster, s3_client: "S3Client", storage: ObjectStorage
) -> None:
    add_visits(cluster, FIRST, 1)
    run_export(cluster, s3_client, storage, SESSIONS_EXPORT, FIRST)
    key = "exports/web_sessions/team=1/day=2026-10-01.parquet"
    assert read(cluster, storage, key, "count(), sum(pageviews), sum(duration_seconds)") == [(20, 40, 600)]
    statement = f"DESCRIBE s3({OBJECT}, 'Parquet') SETTINGS use_hive_partitioning = 0"
    names = [name for name, *_ in cluster.any_host(ObjectQuery(statement, storage, key)).result()]
    assert names == [column.name for column in WEB_SESSIONS.columns]


def test_the_same_rows_give_the_same_bytes_before_and_after_merges(
    cluster: ClickhouseCluster, s3_client: "S3Client", storage: ObjectStorage
) -> None:
    add_visits(cluster, FIRST, 1, 2)
    run_export(cluster, s3_client, storage, REPORT_EXPORT, FIRST)
    before = etags(s3_client, storage)
    query_rows(cluster, "OPTIMIZE TABLE web_sessions FINAL")
    run_export(cluster, s3_client, storage, REPORT_EXPORT, FIRST)
    assert etags(s3_client, storage) == before


def test_the_objects_of_an_empty_day_and_of_a_removed_team_are_removed_and_others_stay(
    cluster: ClickhouseCluster, s3_client: "S3Client", storage: ObjectStorage
) -> None:
    add_visits(cluster, FIRST, 1, 2)
    add_visits(cluster, SECOND, 1, 2)
    add_visits(cluster, THIRD, 1, 2)
    run_export(cluster, s3_client, storage, REPORT_EXPORT, FIRST, SECOND, THIRD)
    neighbour = "exports/web_report_daily/team=1/day=2026-10-02.parquet.md5"
    s3_client.put_object(Bucket=storage.bucket, Key=neighbour, Body=b"of somebody else")
    query_rows(cluster, "TRUNCATE TABLE web_sessions")
    add_visits(cluster, FIRST, 2)
    exported = run_export(cluster, s3_client, storage, REPORT_EXPORT, FIRST, SECOND)
    assert (exported[FIRST].objects_removed, exported[SECOND].objects_removed) == (1, 2)
    assert set(etags(s3_client, storage)) == {
        "exports/web_report_daily/team=2/day=2026-10-01.parquet",
        "exports/web_report_daily/team=1/day=2026-10-03.parquet",
        "exports/web_report_daily/team=2/day=2026-10-03.parquet",
        neighbour,
    }


def test_an_object_that_differs_from_the_table_is_named_with_both_numbers(
    cluster: ClickhouseCluster, s3_client: "S3Client", storage: ObjectStorage
) -> None:
    add_visits(cluster, FIRST, 1, 2)
    expected = counts_in_table(cluster, REPORT_EXPORT, [FIRST])
    add_visits(cluster, FIRST, 2, visits=1)
    with pytest.raises(ExportError) as caught:
        export_days(cluster, s3_client, storage, REPORT_EXPORT, expected)
    text = str(caught.value)
    assert "1 of 2 objects of web_report_daily" in text
    assert "team=2/day=2026-10-01.parquet: 42 pageviews read back, 40 in the table" in text
    assert "team=1" not in text


@pytest.fixture
def refusing_storage(storage: ObjectStorage, s3_endpoint: str) -> Iterator[ObjectStorage]:
    """The same bucket behind a proxy that denies writes of the objects of team 2."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.command == "PUT" and "team%3D2/" in self.path.replace("=", "%3D"):
                status, headers, content = 403, {}, b"<Error><Code>AccessDenied</Code></Error>"
            else:
                answer = requests.request(
                    self.command,
                    s3_endpoint + self.path,
                    headers=dict(self.headers),
                    data=body,
                    timeout=30,
                    stream=True,
                )
                status, content = answer.status_code, answer.raw.read()
                headers = {name: answer.headers[name] for name in ("ETag", "Content-Range") if name in answer.headers}
                if self.command == "HEAD":
                    headers["Content-Length"] = answer.headers["Content-Length"]
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = forward  # noqa: N815 - names of http.server

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{storage.bucket}"
        yield ObjectStorage(storage.bucket, address, storage.access_key_id, SECRET)
        server.shutdown()


def test_an_object_that_cannot_be_written_fails_the_export_by_name_and_the_others_are_written(
    cluster: ClickhouseCluster, s3_client: "S3Client", storage: ObjectStorage, refusing_storage: ObjectStorage
) -> None:
    add_visits(cluster, FIRST, 1, 2, 3)
    add_visits(cluster, SECOND, 3)
    with pytest.raises(ExportError) as caught:
        run_export(cluster, s3_client, refusing_storage, REPORT_EXPORT, FIRST, SECOND)
    text = str(caught.value)
    assert "1 of 4 objects of web_report_daily" in text
    assert "- exports/web_report_daily/team=2/day=2026-10-01.parquet: " in text
    assert "team=1" not in text
    assert SECRET.get_secret_value() not in text
    assert len(etags(s3_client, storage)) == 3
    exported = run_export(cluster, s3_client, storage, REPORT_EXPORT, FIRST, SECOND)
    assert (exported[FIRST].objects, exported[SECOND].objects) == (3, 1)
    assert len(etags(s3_client, storage)) == 4


def test_no_statement_in_the_log_has_the_secret(
    cluster: ClickhouseCluster, s3_client: "S3Client", storage: ObjectStorage
) -> None:
    add_visits(cluster, FIRST, 1)
    run_export(cluster, s3_client, storage, REPORT_EXPORT, FIRST)
    query_rows(cluster, "SYSTEM FLUSH LOGS")
    key = REPORT_EXPORT.key(1, FIRST)
    texts = query_rows(
        cluster,
        "SELECT query, exception FROM system.query_log WHERE has(databases, currentDatabase()) OR query LIKE %(key)s",
        key=f"%{key}%",
    )
    assert any(key in query and "[HIDDEN]" in query for query, _ in texts)
    assert not [text for row in texts for text in row if SECRET.get_secret_value() in text]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


@pytest.fixture
def settings(storage: ObjectStorage, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set the environment to the bucket of this test."""
    monkeypatch.setenv("DEBUG", "1")
    monkeypatch.setenv("OBJECT_STORAGE_ENDPOINT", s3_endpoint)
    monkeypatch.setenv("OBJECT_STORAGE_BUCKET", storage.bucket)
    monkeypatch.setenv("OBJECT_STORAGE_SECRET_ACCESS_KEY", SECRET.get_secret_value())
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def materialize_report(
    instance: dg.DagsterInstance, cluster: ClickhouseCluster, s3: "S3Client", first: dt.date, last: dt.date
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        web_exports(14),
        selection=["web_report_export"],
        instance=instance,
        resources={
            "clickhouse": clickhouse_resource(cluster),
            "s3": s3_resource(s3),
        },
        tags={"dagster/asset_partition_range_start": str(first), "dagster/asset_partition_range_end": str(last)},
        raise_on_error=False,
    )


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    (failure,) = [event.step_failure_data.user_failure_data for event in result.all_events if event.is_step_failure]
    assert failure is not None
    return failure.description or ""


@pytest.mark.usefixtures("settings")
def test_each_day_of_a_run_has_numbers_and_a_location_in_its_metadata(
    cluster: ClickhouseCluster, s3_client: "S3Client", storage: ObjectStorage, instance: dg.DagsterInstance
) -> None:
    add_visits(cluster, FIRST, 1, 2)
    add_visits(cluster, SECOND, 1)
    result = materialize_report(instance, cluster, s3_client, FIRST, SECOND)
    assert result.success
    key = dg.AssetKey("web_report_export")
    found = {one.partition: one.metadata for one in result.asset_materializations_for_node(key.to_user_string())}
    numbers = ("objects", PARTITION_ROW_COUNT, "pageviews")
    assert {day: tuple(one[name].value for name in numbers) for day, one in found.items()} == {
        "2026-10-01": (2, 4, 80),
        "2026-10-02": (1, 2, 40),
    }
    place = f"s3://{storage.bucket}/exports/web_report_daily/team=*/day=2026-10-01.parquet"
    assert found["2026-10-01"][URI].value == place
    query_rows(cluster, "SYSTEM FLUSH LOGS")
    ((owners, steps),) = query_rows(
        cluster,
        """
        SELECT groupUniqArray(JSONExtractString(log_comment, 'owner')),
            groupUniqArray(JSONExtractString(log_comment, 'step'))
        FROM system.query_log WHERE JSONExtractString(log_comment, 'run_id') = %(run_id)s AND is_initial_query
        """,
        run_id=result.run_id,
    )
    assert (owners, steps) == (["team-web-analytics"], ["web_report_export"])


@pytest.mark.usefixtures("settings")
def test_an_empty_day_that_was_never_computed_keeps_its_objects_and_fails_with_the_remedy(
    cluster: ClickhouseCluster, s3_client: "S3Client", storage: ObjectStorage, instance: dg.DagsterInstance
) -> None:
    add_visits(cluster, FIRST, 1)
    assert materialize_report(instance, cluster, s3_client, FIRST, FIRST).success
    query_rows(cluster, "TRUNCATE TABLE web_sessions")
    result = materialize_report(instance, cluster, s3_client, FIRST, SECOND)
    description = failure_of(result)
    assert "web_report_daily has no rows of 2026-10-01, 2026-10-02" in description
    assert "Materialize web_sessions_daily" in description
    assert len(etags(s3_client, storage)) == 1
    query_rows(
        cluster, "INSERT INTO web_session_days (day) VALUES (%(first)s), (%(second)s)", first=FIRST, second=SECOND
    )
    assert materialize_report(instance, cluster, s3_client, FIRST, SECOND).success
    assert etags(s3_client, storage) == {}


@pytest.mark.usefixtures("settings")
def test_the_next_export_of_any_day_removes_every_object_of_a_team_that_is_no_longer_selected(
    cluster: ClickhouseCluster, s3_client: "S3Client", storage: ObjectStorage, instance: dg.DagsterInstance
) -> None:
    for day in (FIRST, SECOND, THIRD):
        add_visits(cluster, day, 1, 2, 11)
    assert materialize_report(instance, cluster, s3_client, FIRST, THIRD).success
    foreign = "exports/web_report_daily/team=2/README.md"
    s3_client.put_object(Bucket=storage.bucket, Key=foreign, Body=b"not an export")
    select_teams(cluster, [1])
    assert materialize_report(instance, cluster, s3_client, SECOND, SECOND).success
    kept = [f"exports/web_report_daily/team=1/day={day}.parquet" for day in (FIRST, SECOND, THIRD)]
    assert sorted(etags(s3_client, storage)) == [*kept, foreign]


@pytest.mark.usefixtures("settings")
def test_a_permanent_failure_of_an_object_fails_the_run_without_retries(
    cluster: ClickhouseCluster,
    s3_client: "S3Client",
    storage: ObjectStorage,
    refusing_storage: ObjectStorage,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_visits(cluster, FIRST, 1, 2)
    monkeypatch.setenv("OBJECT_STORAGE_ENDPOINT", refusing_storage.bucket_url.removesuffix(f"/{storage.bucket}"))
    get_settings.cache_clear()
    result = materialize_report(instance, cluster, s3_client, FIRST, FIRST)
    assert "- exports/web_report_daily/team=2/day=2026-10-01.parquet" in failure_of(result)
    assert not [event for event in result.all_events if event.event_type is dg.DagsterEventType.STEP_UP_FOR_RETRY]
    logged = [str(entry) for entry in instance.all_logs(result.run_id)]
    assert logged
    assert not [entry for entry in logged if SECRET.get_secret_value() in entry]
