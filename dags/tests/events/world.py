"""The environment of the loading tests: a bucket, a database with the schema, a lock, and a loader."""

import functools
import gzip
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import SchemaForm
from dags.common.clickhouse.object_storage import ObjectStorage
from dags.common.clickhouse.query import Query, Rows
from dags.common.locks import exclusive
from dags.common.postgres import Postgres
from dags.events.loading import BatchResult, Loader, load_batch, lock_name
from dags.events.objects import current_versions, list_all

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

VISITOR_HASH_KEY = SecretStr("a key that only the tests use")
CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 Safari/537.36"
)
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.5 Mobile/15E148 Safari/604.1"
)


def event(number: int = 0, **changes: Any) -> dict[str, Any]:
    """Return an event in which `changes` replace fields, and None removes one."""
    found: dict[str, Any] = {
        "uuid": str(uuid.UUID(int=number + 1)),
        "event": "$pageview",
        "distinct_id": f"visitor-{number % 7}",
        "timestamp": f"2026-10-{1 + number % 28:02d}T10:00:00.123456Z",
        "properties": {"$pathname": f"/{number}", "$session_id": f"session-{number % 11}"},
    }
    found.update(changes)
    return {name: value for name, value in found.items() if value is not None}


def lines(events: Sequence[Mapping[str, Any] | str]) -> bytes:
    """Return the events as JSON lines. A string is a line as it is."""
    return "".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in events).encode()


def log_line(
    target: str = "/",
    *,
    address: str = "203.0.113.7",
    at: str = "01/Oct/2026:10:00:00 +0000",
    request: str | None = None,
    status: int = 200,
    referrer: str = "-",
    agent: str = CHROME,
) -> str:
    """Return a line of an access log."""
    request = f"GET {target} HTTP/1.1" if request is None else request
    return f'{address} - - [{at}] "{request}" {status} 512 "{referrer}" "{agent}"'


@dataclass(frozen=True)
class World:
    """A bucket and a database."""

    cluster: ClickhouseCluster
    postgres: Postgres
    s3: "S3Client"
    storage: ObjectStorage

    def put(self, name: str, body: bytes, *, team: int = 1) -> str:
        """Upload an object, compressed when its name ends in .gz; return its key."""
        key = f"events/team={team}/{name}"
        is_compressed = name.endswith(".gz") and not name.endswith(".parquet.gz")
        content = gzip.compress(body, mtime=0) if is_compressed else body
        self.s3.put_object(Bucket=self.storage.bucket, Key=key, Body=content)
        return key

    def loader(self, run_id: str = "run", **changes: Any) -> Loader:
        given: dict[str, Any] = {
            "cluster": self.cluster,
            "postgres": self.postgres,
            "storage": self.storage,
            "visitor_hash_key": VISITOR_HASH_KEY,
            "list_versions": functools.partial(current_versions, self.s3, self.storage.bucket),
            "run_id": run_id,
            "form": SchemaForm(self.cluster.database),
        }
        return Loader(**{**given, **changes})

    def load(self, *keys: str, retry_unreadable: bool = False, **changes: Any) -> BatchResult:
        """Load the keys, or every object in the bucket."""
        wanted = keys or tuple(version.key for version in list_all(self.s3, self.storage.bucket, "events/"))
        with exclusive(self.postgres, lock_name(self.cluster), 60) as lock:
            return load_batch(self.loader(**changes), wanted, lock, retry_unreadable=retry_unreadable)

    def rows(self, statement: str, **parameters: Any) -> Rows:
        return self.cluster.any_host(Query(statement, parameters)).result()

    def column(self, expression: str, **parameters: Any) -> list[Any]:
        """Return one value of each event, in the order of the values."""
        return [
            value
            for (value,) in self.rows(f"SELECT {expression} AS value FROM events ORDER BY value", **parameters)  # noqa: S608 - names from code
        ]

    def states(self) -> dict[str, str]:
        """Return the state of each object in the manifest, by key and etag."""
        found = self.rows("SELECT object, etag, state FROM ingested_objects FINAL ORDER BY object, updated_at")
        return {f"{key} {etag}": state for key, etag, state in found}

    def tables(self) -> list[str]:
        return [name for (name,) in self.rows("SHOW TABLES LIKE 'events_load_%%'")]
