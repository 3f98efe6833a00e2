from typing import TYPE_CHECKING

import pytest
from clickhouse_driver import errors
from pydantic import SecretStr

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.errors import one_line
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.object_storage import (
    OBJECT,
    NoObjectStorageKeysError,
    ObjectQuery,
    ObjectStorage,
    object_storage_from_settings,
)
from dags.common.clickhouse.query import Query
from dags.common.settings import Settings

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

# With characters that are escaped in a statement.
SECRET = "s3cr3t'with\\quotes"  # noqa: S105 - the local S3 takes any


@pytest.fixture
def storage(s3_endpoint: str, s3_bucket: str) -> ObjectStorage:
    """The local S3, which accepts any keys."""
    return ObjectStorage(s3_bucket, f"{s3_endpoint}/{s3_bucket}", "some-key-id", SecretStr(SECRET))


@pytest.fixture
def cluster(clickhouse_port: int, clickhouse_database: str) -> ClickhouseCluster:
    return ClickhouseCluster([Host("127.0.0.1", clickhouse_port)], Access(database=clickhouse_database))


def write(storage: ObjectStorage, key: str) -> ObjectQuery:
    statement = f"INSERT INTO FUNCTION s3({OBJECT}, 'JSONEachRow') SELECT number, %(word)s AS word FROM numbers(2)"  # noqa: S608 - a constant
    return ObjectQuery(statement, storage, key, {"word": "it's"})


def test_an_object_is_written_and_read_at_its_key(
    cluster: ClickhouseCluster, storage: ObjectStorage, s3_client: "S3Client"
) -> None:
    key = "exports/table=1/day=2026-10-01.jsonl"
    with cluster:
        cluster.any_host(write(storage, key)).result()
        read = ObjectQuery(f"SELECT * FROM s3({OBJECT}, 'JSONEachRow', 'number UInt8, word String')", storage, key)  # noqa: S608 - a constant
        assert cluster.any_host(read).result() == [(0, "it's"), (1, "it's")]
    assert s3_client.get_object(Bucket=storage.bucket, Key=key)["Body"].read().count(b"\n") == 2


@pytest.mark.parametrize(
    "statement", ["SELEC 1 FROM s3({OBJECT})", "SELECT nothing FROM s3({OBJECT}, 'CSV', 'a UInt8')"]
)
def test_no_error_and_no_log_of_the_server_has_the_secret(
    cluster: ClickhouseCluster, storage: ObjectStorage, statement: str
) -> None:
    query = ObjectQuery(statement.replace("{OBJECT}", OBJECT), storage, "a")
    with cluster:
        with pytest.raises(errors.ServerException) as caught:
            cluster.any_host(query).result()
        cluster.any_host(write(storage, "a")).result()
        cluster.any_host(Query("SYSTEM FLUSH LOGS")).result()
        logged = cluster.any_host(Query("SELECT query, exception FROM system.query_log WHERE query LIKE '%s3(%'"))
        texts = [text for row in logged.result() for text in row]
    assert any("[HIDDEN]" in text for text in texts)
    for text in [*texts, str(caught.value), repr(caught.value), one_line(caught.value), repr(query)]:
        assert "s3cr3t" not in text


def test_a_statement_that_writes_is_not_retryable_by_default() -> None:
    storage = ObjectStorage("b", "http://127.0.0.1:1/b", "", SecretStr(""))
    query = ObjectQuery(f"INSERT INTO FUNCTION s3({OBJECT}) SELECT 1", storage, "a")
    assert not query.retryable


def test_the_bucket_is_at_the_endpoint_or_else_at_amazon() -> None:
    local = object_storage_from_settings(Settings(debug=True, object_storage_endpoint="http://127.0.0.1:1/"))
    assert local.parameters("events/a")["object_url"] == "http://127.0.0.1:1/analytics/events/a"
    amazon = object_storage_from_settings(
        Settings(
            object_storage_access_key_id="id",
            object_storage_secret_access_key=SecretStr("secret"),
            object_storage_region="eu-central-1",
        )
    )
    assert amazon.parameters("a")["object_url"] == "https://analytics.s3.eu-central-1.amazonaws.com/a"


def test_missing_keys_are_named() -> None:
    with pytest.raises(NoObjectStorageKeysError, match="OBJECT_STORAGE_ACCESS_KEY_ID"):
        object_storage_from_settings(Settings())
