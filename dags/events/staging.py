"""Reading a batch of objects into its staging table, without touching any other table."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import SecretStr

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.errors import one_line
from dags.common.clickhouse.object_storage import OBJECT, ObjectQuery, ObjectStorage
from dags.common.clickhouse.query import Insert, Query, Rows, quoted
from dags.common.clickhouse.retry import SERVER_ERRORS, is_transient
from dags.events import access_logs, product_events, staging_table
from dags.events.access_logs import LogRules
from dags.events.manifest import LONG_STATEMENT
from dags.events.objects import Format, ObjectProblem, ObjectVersion
from dags.events.user_agents import parse_user_agents

if TYPE_CHECKING:
    from clickhouse_driver import errors

logger = logging.getLogger(__name__)

STATEMENT_TIMEOUT_SECONDS = 4 * 3600.0
MAX_AGENTS_PER_INSERT = 50_000

# Server errors about one object: its bytes are not what the suffix promises, or it needs too much memory or time.
UNREADABLE_CODES = {
    6: "CANNOT_PARSE_TEXT",
    8: "THERE_IS_NO_COLUMN",
    15: "DUPLICATE_COLUMN",
    27: "CANNOT_PARSE_INPUT_ASSERTION_FAILED",
    32: "ATTEMPT_TO_READ_AFTER_EOF",
    33: "CANNOT_READ_ALL_DATA",
    53: "TYPE_MISMATCH",
    70: "CANNOT_CONVERT_TYPE",
    117: "INCORRECT_DATA",
    158: "TOO_MANY_ROWS",
    159: "TIMEOUT_EXCEEDED",
    160: "TOO_SLOW",
    241: "MEMORY_LIMIT_EXCEEDED",
    271: "CANNOT_DECOMPRESS",
    307: "TOO_MANY_BYTES",
    354: "ZLIB_INFLATE_FAILED",
    561: "ZSTD_DECODER_FAILED",
    636: "CANNOT_EXTRACT_TABLE_STRUCTURE",
    1001: "STD_EXCEPTION",
}
# S3_ERROR: the object was removed or access is denied. Its content is not at fault.
STORAGE_CODE = 499
NOT_FOUND_TEXTS = ("HTTP response code: 404", "NoSuchKey", "does not exist")
MEMORY_CODE = 241
# Errors of the server, its schema or its disks, which every other statement meets as well. Any other code may be the
# fault of one object.
OUTAGE_CODES = SERVER_ERRORS.keys() - UNREADABLE_CODES.keys() - {STORAGE_CODE}

# An object that takes longer, by its size as stored, is no honest object: a decompression bomb. The server's limits on
# bytes and rows do not hold for the table function s3.
MIN_READING_SECONDS = 900
MIN_STORED_BYTES_PER_SECOND = 200_000

# A column of a Parquet file cannot be read as text, such as a struct. Its columns say how to.
COLUMN_TYPE_CODES = {53: "TYPE_MISMATCH", 70: "CANNOT_CONVERT_TYPE"}

# Bounded memory for an object of any size: small blocks, sorting on disk, and few open files.
SETTINGS: Mapping[str, object] = {
    **LONG_STATEMENT,
    "max_memory_usage": 3 * 1024**3,
    "max_bytes_before_external_sort": 256 * 1024**2,
    "max_bytes_before_external_group_by": 256 * 1024**2,
    "join_algorithm": "hash",
    "min_insert_block_size_bytes": 64 * 1024**2,
    "min_insert_block_size_rows": 262_144,
    "max_insert_block_size": 65_536,
    # Events of ten years legitimately fill 120 partitions.
    "throw_on_max_partitions_per_insert_block": 0,
    "output_format_json_escape_forward_slashes": 0,
    # Merged expressions repair every line instead of the few that need it, which takes twice as long.
    "query_plan_merge_expressions": 0,
    "max_execution_time": int(STATEMENT_TIMEOUT_SECONDS),
}


@dataclass
class StagedBatch:
    """The staging tables of one attempt to load a batch.

    They exist on one host, which runs every statement that reads them. `attempt_id` is a UUID in hex.
    """

    host: ClickhouseCluster
    attempt_id: str
    # The condition of the lines to stage, with its parameters.
    only: str = "1"
    only_parameters: Mapping[str, object] = field(default_factory=dict)
    log_rules: LogRules = field(default_factory=LogRules)
    chunks: int = 0
    # Access logs are in this chunk and the later ones; None without access logs.
    first_log_chunk: int | None = None
    # Answers of the server that may be about an object or about all: they decide only after all objects were tried.
    unknown_errors: "list[errors.ServerException]" = field(default_factory=list)

    @property
    def table(self) -> str:
        """The name of the table of lines."""
        return f"{staging_table.PREFIX}{self.attempt_id}"

    @property
    def agents(self) -> str:
        """The name of the table of user agents, which exists when access logs are staged."""
        return f"{self.table}_agents"

    @property
    def deleted(self) -> str:
        """The name of the table of completed deletion requests, which may not exist."""
        return f"{self.table}_deleted"

    @property
    def lost(self) -> str:
        """The name of the table of events that are lost with removed objects, which may not exist."""
        return f"{self.table}_lost"

    def read(
        self, versions: Sequence[ObjectVersion], storage: ObjectStorage, visitor_hash_key: SecretStr
    ) -> list[ObjectProblem]:
        """Create the tables, read the objects into them, and return those that cannot be read.

        Raises what ClickHouse raises when it is not about single objects: an outage.
        """
        self.run(staging_table.create_statement(self.table))
        by_format = {kind: [version for version in versions if version.format is kind] for kind in Format}
        problems: list[ObjectProblem] = []
        for kind in (Format.JSON_LINES, Format.PARQUET):
            problems += self._read_format(kind, by_format[kind], storage, visitor_hash_key)
        first_log_chunk = self.chunks + 1
        problems += self._read_format(Format.ACCESS_LOG, by_format[Format.ACCESS_LOG], storage, visitor_hash_key)
        if len(versions) > 1 and len(self.unknown_errors) == len(versions):
            # No object could be read, all for a reason that no object is known to cause.
            raise self.unknown_errors[0]
        if self.chunks >= first_log_chunk:
            self.first_log_chunk = first_log_chunk
            self._parse_agents()
        return problems

    def drop(self) -> None:
        """Drop the tables. What cannot be dropped now is dropped by the next load."""
        for name in (self.table, self.agents, self.deleted, self.lost):
            try:
                self.run(f"DROP TABLE IF EXISTS {quoted(name)}", retryable=True)
            except Exception as error:  # noqa: BLE001 - it must not replace the error of the load itself
                logger.warning("%s was not dropped. The next load drops it. %s", name, one_line(error))

    def run(
        self,
        statement: str,
        parameters: Mapping[str, object] | None = None,
        *,
        settings: Mapping[str, object] | None = None,
        retryable: bool | None = None,
    ) -> None:
        """Run a statement on the host of the tables."""
        query = Query(statement, parameters, settings or {}, retryable)
        self.host.any_host(query, timeout_seconds=STATEMENT_TIMEOUT_SECONDS).result()

    def rows(self, statement: str, parameters: Mapping[str, object] | None = None) -> Rows:
        """Return the rows of a SELECT from the tables."""
        query = Query(statement, parameters, SETTINGS)
        return self.host.any_host(query, timeout_seconds=STATEMENT_TIMEOUT_SECONDS).result()

    def _read_format(
        self,
        kind: Format,
        versions: Sequence[ObjectVersion],
        storage: ObjectStorage,
        visitor_hash_key: SecretStr,
        columns: Mapping[str, str] | None = None,
    ) -> list[ObjectProblem]:
        """Read objects of one format with one statement. If it fails, halve them until the bad object is alone.

        `columns` are those of one Parquet file that cannot be read as text.
        """
        from clickhouse_driver import errors

        if not versions:
            return []
        self.chunks += 1
        chunk = self.chunks
        is_log = kind is Format.ACCESS_LOG
        rows = access_logs.rows_statement() if is_log else product_events.rows_statement(kind, columns)
        keys = [version.key for version in versions]
        if self.only != "1":
            rows = f"SELECT * FROM ({rows}) WHERE {self.only}"  # noqa: S608 - conditions from code
        query = ObjectQuery(
            staging_table.stage_statement(self.table, rows),
            storage,
            keys[0] if len(keys) == 1 else "{" + ",".join(keys) + "}",
            {
                "chunk": chunk,
                "bucket": storage.bucket,
                **access_logs.parameters(self.log_rules),
                **self.only_parameters,
            },
            {**SETTINGS, "max_execution_time": _max_reading_seconds(versions)},
            external_tables=[access_logs.visitor_key_table(visitor_hash_key)] if is_log else (),
        )
        try:
            self.host.any_host(query, timeout_seconds=STATEMENT_TIMEOUT_SECONDS).result()
        except errors.ServerException as error:
            if error.code in OUTAGE_CODES:
                raise
            self.run(f"ALTER TABLE {quoted(self.table)} DROP PARTITION %(chunk)s", {"chunk": chunk})
            if len(versions) == 1 and error.code in COLUMN_TYPE_CODES and kind is Format.PARQUET and columns is None:
                found = self._parquet_columns(keys[0], storage)
                return self._read_format(kind, versions, storage, visitor_hash_key, columns=found)
            if len(versions) == 1:
                return [self._problem(keys[0], error)]
            half = len(versions) // 2
            return [
                problem
                for part in (versions[:half], versions[half:])
                for problem in self._read_format(kind, part, storage, visitor_hash_key)
            ]
        return []

    def _parquet_columns(self, key: str, storage: ObjectStorage) -> dict[str, str]:
        """Return the columns of a Parquet file and their types."""
        statement = f"DESCRIBE TABLE s3({OBJECT}, 'Parquet', 'auto', 'none')"
        query = ObjectQuery(statement, storage, key, {}, SETTINGS)
        return {name: kind for name, kind, *_ in self.host.any_host(query).result()}

    def _problem(self, key: str, error: "errors.ServerException") -> ObjectProblem:
        """Return the problem of an object that fails alone."""
        if error.code == STORAGE_CODE:
            is_missing = any(text in error.message for text in NOT_FOUND_TEXTS)
            if is_missing:
                self.unknown_errors.append(error)
            return ObjectProblem(key, one_line(error), is_unreadable=False, is_not_found=is_missing)
        if error.code not in UNREADABLE_CODES:
            self.unknown_errors.append(error)
        # A server that is short of memory as a whole may have enough for this object later.
        is_short_of_memory = error.code == MEMORY_CODE and is_transient(error)
        return ObjectProblem(key, one_line(error), is_unreadable=not is_short_of_memory)

    def _parse_agents(self) -> None:
        """Create and fill the table of the distinct user agents of the staged lines."""
        self.run(
            f"CREATE TABLE {quoted(self.agents)} (agent String, browser String, os String, device_type String, "
            "is_bot Bool) ENGINE = MergeTree ORDER BY agent"
        )
        statement = (
            f"SELECT DISTINCT agent FROM {quoted(self.table)} WHERE {staging_table.IS_EVENT} "  # noqa: S608 - names from code
            "AND chunk >= %(first_log_chunk)s AND (agent > %(after)s OR %(is_first)s) "
            f"ORDER BY agent LIMIT {MAX_AGENTS_PER_INSERT}"
        )
        columns = ("agent", "browser", "os", "device_type", "is_bot")
        agents: list[str] = []
        is_first = True
        while is_first or len(agents) == MAX_AGENTS_PER_INSERT:
            parameters = {
                "first_log_chunk": self.first_log_chunk,
                "after": agents[-1] if agents else "",
                "is_first": int(is_first),
            }
            agents = [agent for (agent,) in self.rows(statement, parameters)]
            rows = [
                (agent, parsed.browser, parsed.os, parsed.device_type, parsed.is_bot)
                for agent, parsed in parse_user_agents(agents)
            ]
            if rows:
                self.host.any_host(Insert(self.agents, columns, rows)).result()
            is_first = False


def _max_reading_seconds(versions: Sequence[ObjectVersion]) -> int:
    stored_bytes = sum(version.size_bytes for version in versions)
    seconds = MIN_READING_SECONDS + stored_bytes // MIN_STORED_BYTES_PER_SECOND
    # The server's error, which says what took so long, comes before this process gives up.
    return min(seconds, int(STATEMENT_TIMEOUT_SECONDS) - 60)
