import json
import logging
import re
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
import pytest
from clickhouse_driver import Client
from pydantic import SecretStr

from dags.common.clickhouse.query import Query
from dags.common.clickhouse.query_tags import QueryTags
from dags.common.json_io_manager import (
    JsonObjectIOManager,
    MissingAssetValueError,
    UnstorableAssetValueError,
    object_key,
)
from dags.common.owners import JobOwners, owned_by, owner_tags
from dags.common.postgres import Postgres, make_postgres
from dags.common.resources import (
    ClickhouseResource,
    PostgresResource,
    S3Resource,
    StepContext,
    query_tags,
)
from dags.common.s3 import make_s3
from dags.common.settings import Settings, get_settings
from dags.locations import resources
from dags.slack_alerts import client_for
from dags.tests.resources import s3_resource

SECRET = "hunter2-secret"  # noqa: S105 - a test value
DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-01-05")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as value:
        yield value


def storage_settings(endpoint: str, bucket: str) -> Settings:
    return Settings(
        object_storage_endpoint=endpoint,
        object_storage_access_key_id="local",
        object_storage_secret_access_key=SecretStr("local-secret"),
        object_storage_bucket=bucket,
    )


def message(error: dg.DagsterEvent) -> str:
    """Return everything in the event log about a failed step."""
    return json.dumps(error.event_specific_data, default=str) + str(error.step_failure_data.error)


# Object storage and the IO manager


@pytest.fixture
def io_manager(s3_endpoint: str, s3_bucket: str) -> JsonObjectIOManager:
    client = make_s3(storage_settings(s3_endpoint, s3_bucket))
    return JsonObjectIOManager(s3=s3_resource(client), bucket=s3_bucket)


@dg.asset
def source() -> dict[str, Any]:
    return {"rates": [1.5, None], "name": "naïve ✓"}


@dg.asset
def reader(source: dict[str, Any]) -> str:
    return str(source["name"])


@dg.asset(partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
def daily_source(context: dg.AssetExecutionContext) -> Any:
    values = {day: f"value of {day}" for day in context.partition_keys}
    return values if len(values) > 1 else next(iter(values.values()))


@dg.asset(partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
def daily_reader(daily_source: Any) -> None:
    SEEN.append(daily_source)


SEEN: list[object] = []


def materialize(
    assets: Sequence[dg.AssetsDefinition],
    io_manager: JsonObjectIOManager,
    instance: dg.DagsterInstance,
    **arguments: Any,
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        assets, resources={"io_manager": io_manager}, instance=instance, raise_on_error=False, **arguments
    )


def test_a_value_is_stored_as_one_json_object_and_read_back(
    io_manager: JsonObjectIOManager, instance: dg.DagsterInstance, s3_client: Any, s3_bucket: str
) -> None:
    assert materialize([source, reader], io_manager, instance).success
    stored = s3_client.get_object(Bucket=s3_bucket, Key="assets/source.json")
    assert json.loads(stored["Body"].read()) == {"rates": [1.5, None], "name": "naïve ✓"}
    assert stored["ContentType"] == "application/json"
    event = instance.get_latest_materialization_event(dg.AssetKey("source"))
    assert event is not None
    assert event.asset_materialization is not None
    for name in ("first_object", "dagster/uri"):
        assert event.asset_materialization.metadata[name].value == f"s3://{s3_bucket}/assets/source.json"


def test_storing_again_replaces_the_object(
    io_manager: JsonObjectIOManager, instance: dg.DagsterInstance, s3_client: Any, s3_bucket: str
) -> None:
    for _ in range(2):
        assert materialize([source], io_manager, instance).success
    assert s3_client.list_objects_v2(Bucket=s3_bucket)["KeyCount"] == 1


def test_each_partition_has_its_own_object(
    io_manager: JsonObjectIOManager, instance: dg.DagsterInstance, s3_client: Any, s3_bucket: str
) -> None:
    SEEN.clear()
    assert materialize([daily_source, daily_reader], io_manager, instance, partition_key="2024-01-02").success
    (found,) = s3_client.list_objects_v2(Bucket=s3_bucket)["Contents"]
    assert found["Key"] == "assets/daily_source/2024-01-02.json"
    assert SEEN == ["value of 2024-01-02"]


def test_a_run_of_several_partitions_returns_and_receives_a_dict(
    io_manager: JsonObjectIOManager, instance: dg.DagsterInstance, s3_client: Any, s3_bucket: str
) -> None:
    SEEN.clear()
    partition_range = {
        "dagster/asset_partition_range_start": "2024-01-01",
        "dagster/asset_partition_range_end": "2024-01-03",
    }
    assert materialize([daily_source, daily_reader], io_manager, instance, tags=partition_range).success
    days = ["2024-01-01", "2024-01-02", "2024-01-03"]
    keys = [found["Key"] for found in s3_client.list_objects_v2(Bucket=s3_bucket)["Contents"]]
    assert keys == [f"assets/daily_source/{day}.json" for day in days]
    assert [{day: f"value of {day}" for day in days}] == SEEN


def test_every_partition_of_a_run_needs_a_value(io_manager: JsonObjectIOManager, instance: dg.DagsterInstance) -> None:
    @dg.asset(partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
    def incomplete() -> dict[str, int]:
        return {"2024-01-01": 1}

    partition_range = {
        "dagster/asset_partition_range_start": "2024-01-01",
        "dagster/asset_partition_range_end": "2024-01-02",
    }
    (failure,) = materialize([incomplete], io_manager, instance, tags=partition_range).get_step_failure_events()
    assert UnstorableAssetValueError.__name__ in message(failure)
    assert "asset 'incomplete' ran for 2 partitions and returned the keys ['2024-01-01']" in message(failure)
    assert "2024-01-01, 2024-01-02" in message(failure)


@pytest.mark.parametrize("partition", [None, "2024-01-02"])
def test_a_missing_value_is_named_with_the_remedy(
    io_manager: JsonObjectIOManager, instance: dg.DagsterInstance, s3_bucket: str, partition: str | None
) -> None:
    assets = [source, reader] if partition is None else [daily_source, daily_reader]
    selected = assets[1].key.to_user_string()
    result = materialize(assets, io_manager, instance, selection=selected, partition_key=partition)
    (failure,) = result.get_step_failure_events()
    text = message(failure)
    assert MissingAssetValueError.__name__ in text
    name = f"asset '{assets[0].key.to_user_string()}'" + (f", partition '{partition}'," if partition else "")
    assert f"{name} has no stored value: s3://{s3_bucket}/{object_key(assets[0].key, partition)}" in text
    assert f"Materialize {name} first." in text


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), b"bytes", object()])
def test_a_value_that_json_cannot_hold_is_rejected(
    io_manager: JsonObjectIOManager, instance: dg.DagsterInstance, value: object
) -> None:
    @dg.asset
    def odd() -> Any:
        return value

    (failure,) = materialize([odd], io_manager, instance).get_step_failure_events()
    assert "asset 'odd' returned a value that JSON cannot hold" in message(failure)


def test_a_slash_in_a_partition_key_is_escaped() -> None:
    key = dg.AssetKey(["team", "rates"])
    assert object_key(key, None) == "assets/team/rates.json"
    assert object_key(key, "2024-01-01-00:00") == "assets/team/rates/2024-01-01-00:00.json"
    assert object_key(key, "a/../b") == "assets/team/rates/a%2F..%2Fb.json"


# Postgres


def test_postgres_commits_at_the_end_and_rolls_back_after_an_error(postgres_dsn: str) -> None:
    postgres = postgres_of(postgres_dsn)
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t (a int)")
    with pytest.raises(LookupError):
        insert_and_fail(postgres)
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*), current_setting('statement_timeout') FROM t")
        assert cursor.fetchone() == (0, "5min")
    assert connection.closed


def insert_and_fail(postgres: Postgres) -> None:
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (1)")
        raise LookupError


def postgres_of(dsn: str) -> Postgres:
    from psycopg2.extensions import parse_dsn

    parts = parse_dsn(dsn)
    return make_postgres(
        Settings(
            postgres_host=parts["host"],
            postgres_port=int(parts["port"]),
            postgres_user=parts["user"],
            postgres_database=parts["dbname"],
        )
    )


def test_the_repr_of_postgres_has_no_password() -> None:
    assert SECRET not in repr(make_postgres(Settings(postgres_password=SecretStr(SECRET))))


# Slack


def production(**more: Any) -> Settings:
    return Settings(
        cloud_deployment="DEV",
        slack_token=SecretStr(SECRET),
        clickhouse_password=SecretStr(SECRET),
        object_storage_access_key_id="id",
        object_storage_secret_access_key=SecretStr(SECRET),
        visitor_hash_key=SecretStr(f"{SECRET} and more"),
        postgres_password=SecretStr(SECRET),
        **more,
    )


def test_slack_only_logs_messages_on_a_laptop(caplog: pytest.LogCaptureFixture) -> None:
    client = client_for(Settings(debug=True, slack_token=SecretStr(SECRET)))
    # Nothing listens at this address, so sending would fail.
    client.base_url = "http://127.0.0.1:1/"
    with caplog.at_level(logging.INFO):
        answer = client.chat_postMessage(channel="#alerts-clickhouse", text="A job failed.")
    assert answer["ok"]
    assert "Not sent: chat.postMessage to #alerts-clickhouse: A job failed." in caplog.text
    assert SECRET not in caplog.text


def test_slack_is_the_real_client_in_production() -> None:
    from slack_sdk import WebClient

    client = client_for(production())
    assert type(client) is WebClient
    assert client.token == SECRET


def test_slack_sends_nothing_without_a_region_even_with_a_token() -> None:
    assert client_for(Settings(slack_token=SecretStr(SECRET))).token is None


# Query tags


def tags_of(context: StepContext) -> None:
    TAGS.append(query_tags(context))


TAGS: list[QueryTags] = []


def test_tags_of_an_op_name_run_job_op_and_owner(instance: dg.DagsterInstance) -> None:
    @dg.op(tags=owner_tags(JobOwners.TEAM_INGESTION))
    def owned_op(context: dg.OpExecutionContext) -> None:
        tags_of(context)

    @dg.op
    def plain_op(context: dg.OpExecutionContext) -> None:
        tags_of(context)

    @dg.job(**owned_by(JobOwners.TEAM_CLICKHOUSE))
    def some_job() -> None:
        owned_op()
        plain_op()

    TAGS.clear()
    result = some_job.execute_in_process(instance=instance)
    assert sorted(TAGS, key=lambda tags: str(tags.step)) == [
        QueryTags(result.run_id, "some_job", "owned_op", "team-ingestion"),
        QueryTags(result.run_id, "some_job", "plain_op", "team-clickhouse"),
    ]


def test_tags_of_an_asset_name_the_asset_and_its_own_owner_in_any_run(instance: dg.DagsterInstance) -> None:
    @dg.asset(key_prefix="web", **owned_by(JobOwners.TEAM_WEB_ANALYTICS))
    def visits(context: dg.AssetExecutionContext) -> None:
        tags_of(context)

    TAGS.clear()
    result = dg.materialize([visits], instance=instance)
    (tags,) = TAGS
    assert (tags.run_id, tags.step, tags.owner) == (result.run_id, "web/visits", "team-web-analytics")
    assert tags.job


def test_tags_of_several_assets_at_once_name_them_all(instance: dg.DagsterInstance) -> None:
    @dg.multi_asset(specs=[dg.AssetSpec(name, **owned_by(JobOwners.TEAM_INGESTION)) for name in ("b", "a")])
    def several(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        tags_of(context)
        for name in ("a", "b"):
            yield dg.MaterializeResult(asset_key=name)

    TAGS.clear()
    dg.materialize([several], instance=instance)
    (tags,) = TAGS
    assert (tags.step, tags.owner) == ("a,b", "team-ingestion")


# All resources in one run


SERVICES = ("clickhouse", "s3", "postgres")


def test_the_shared_resources_work_in_a_run_and_show_no_secret(
    monkeypatch: pytest.MonkeyPatch,
    instance: dg.DagsterInstance,
    clickhouse_port: int,
    s3_endpoint: str,
    s3_bucket: str,
    postgres_dsn: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from psycopg2.extensions import parse_dsn

    parts = parse_dsn(postgres_dsn)
    secret_key = f"{SECRET}-storage"
    environment = {
        "CLICKHOUSE_HOST": "127.0.0.1",
        "CLICKHOUSE_PORT": str(clickhouse_port),
        "OBJECT_STORAGE_ENDPOINT": s3_endpoint,
        "OBJECT_STORAGE_ACCESS_KEY_ID": "local",
        "OBJECT_STORAGE_SECRET_ACCESS_KEY": secret_key,
        "OBJECT_STORAGE_BUCKET": s3_bucket,
        "POSTGRES_HOST": parts["host"],
        "POSTGRES_PORT": parts["port"],
        "POSTGRES_USER": parts["user"],
        "POSTGRES_PASSWORD": SECRET,
        "POSTGRES_DATABASE": parts["dbname"],
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    used: list[str] = []

    @dg.asset(io_manager_key="json_io_manager")
    def uses_everything(
        context: dg.AssetExecutionContext,
        clickhouse: ClickhouseResource,
        s3: S3Resource,
        postgres: PostgresResource,
    ) -> dict[str, int]:
        clickhouse.cluster(context).any_host(Query("SELECT 1")).result()
        used.append("clickhouse")
        s3.client().head_bucket(Bucket=s3_bucket)
        used.append("s3")
        with postgres.client().connection() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        used.append("postgres")
        context.log.info(f"{clickhouse!r} {s3!r} {postgres!r} {postgres.client()!r}")
        return {"one": 1}

    result = dg.materialize([uses_everything], resources=resources, instance=instance)
    assert used == list(SERVICES)
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    output = capfd.readouterr()
    shown = [str(run.run_config), str(run.tags), output.out, output.err]
    shown += [str(record) for record in instance.all_logs(result.run_id)]
    assert len(shown) > 10
    assert not [text for text in shown if SECRET in text]


def test_no_shared_resource_has_a_secret_or_a_value_in_its_configuration() -> None:
    assert set(resources) == {"clickhouse", "json_io_manager", "postgres", "s3", "slack"}
    # Whole words: a database is no database key.
    secret_words = {"password", "secret", "key", "token"}
    fields = [
        (f"{name}.{field}", info.default)
        for name, resource in resources.items()
        for field, info in type(resource).model_fields.items()
        if not isinstance(getattr(resource, field), dg.ConfigurableResource)
    ]
    assert len(fields) > 10
    for field, default in fields:
        assert secret_words.isdisjoint(re.split(r"[._]", field)), f"{field} would be shown in the UI: use the settings"
        assert default is None, f"{field} has a value of its own: let it come from the settings"


def test_a_field_overrides_the_setting_of_its_name_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_HOST", "from-the-environment")
    monkeypatch.setenv("POSTGRES_USER", "reader")
    get_settings.cache_clear()
    postgres = PostgresResource(host="other-host", port=5432).client()
    assert (postgres.host, postgres.port, postgres.user) == ("other-host", 5432, "reader")
    client = S3Resource(endpoint="http://127.0.0.1:9", region="eu-central-1").client()
    assert (client.meta.endpoint_url, client.meta.region_name) == ("http://127.0.0.1:9", "eu-central-1")


def test_clickhouse_is_connected_by_its_fields(
    monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance, clickhouse_port: int, clickhouse_database: str
) -> None:
    monkeypatch.setenv("CLICKHOUSE_PORT", "1")
    found: list[str] = []

    @dg.asset
    def asks(context: dg.AssetExecutionContext, clickhouse: ClickhouseResource) -> None:
        query = Query("SELECT currentDatabase(), getSetting('log_comment')")
        found.extend(clickhouse.cluster(context).any_host(query).result()[0])

    resource = ClickhouseResource(port=clickhouse_port, database=clickhouse_database)
    run_id = dg.materialize([asks], resources={"clickhouse": resource}, instance=instance).run_id
    assert found[0] == clickhouse_database
    assert json.loads(found[1])["run_id"] == run_id


def test_clickhouse_outside_a_run_says_that_it_is_not_connected() -> None:
    with pytest.raises(RuntimeError, match="Dagster connects it when a run starts"):
        ClickhouseResource().tagged(QueryTags())


def test_a_run_closes_the_connections_of_its_cluster(
    monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance, clickhouse_port: int
) -> None:
    monkeypatch.setenv("CLICKHOUSE_PORT", str(clickhouse_port))
    kept: list[Client] = []

    @dg.asset
    def keeps_its_client(context: dg.AssetExecutionContext, clickhouse: ClickhouseResource) -> None:
        clickhouse.cluster(context).any_host(kept.append).result()

    dg.materialize([keeps_its_client], resources={"clickhouse": resources["clickhouse"]}, instance=instance)
    assert not kept[0].connection.connected


def test_a_run_with_an_invalid_environment_fails_with_every_problem(
    monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> None:
    monkeypatch.setenv("CLICKHOUSE_PORT", "x")
    monkeypatch.setenv("POSTGRES_PORT", uuid.uuid4().hex)

    @dg.asset
    def needs_postgres(postgres: PostgresResource) -> None:
        del postgres

    result = dg.materialize(
        [needs_postgres], resources={"postgres": resources["postgres"]}, instance=instance, raise_on_error=False
    )
    assert not result.success
    logged = "".join(str(record) for record in instance.all_logs(result.run_id))
    assert "CLICKHOUSE_PORT is not a whole number" in logged
    assert "POSTGRES_PORT is not a whole number" in logged
