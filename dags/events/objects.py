"""Objects of events in the bucket: key, version, team and format, and how to list them.

    <bucket>/events/team=<team id>/…/<name>.<format>

| suffix | format |
|---|---|
| .jsonl .ndjson .json | JSON lines of product-analytics events |
| .parquet, also with the compression inside it: .gz .zst .sz .br .lz4 | the same fields as columns |
| .log _log, also rotated: .log.1 _log-20240305 | access log of Apache or nginx |

JSON lines and logs may be compressed: .gz .zst .br .xz .bz2 .lz4. `docs/events.md` describes the formats.

What has been loaded is in `manifest.py`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

EVENTS_PREFIX = "events/"
TEAM_PATTERN = r"/team=(\d{1,18})/"
# Other characters have a meaning in a list of keys (`{a,b}`, `*`, `?`) or in a URL (`#`, `%`, space).
KEY = re.compile(r"[A-Za-z0-9/_.=:@+-]+")
TEAM = re.compile(TEAM_PATTERN)
COMPRESSED = r"(?:\.(?:gz|zst|br|xz|bz2|lz4))?"
# A rotated log ends in a number or a date, which may have a second number.
ROTATED = r"(?:[.-](?:\d{1,4}|\d{4}-?\d{2}-?\d{2}(?:-\d+)?))?"
MAX_PAGE_OBJECTS = 1000


class Format(StrEnum):
    """The format of an object's content."""

    JSON_LINES = "json lines"
    PARQUET = "parquet"
    ACCESS_LOG = "access log"


SUFFIXES = {
    Format.JSON_LINES: re.compile(rf"\.(?:jsonl|ndjson|json){COMPRESSED}$"),
    Format.PARQUET: re.compile(r"\.parquet(?:\.(?:gz|zst|sz|br|lz4))?$"),
    Format.ACCESS_LOG: re.compile(rf"[._]log{ROTATED}{COMPRESSED}$"),
}


@dataclass(frozen=True, order=True)
class ObjectVersion:
    """One content of one key. The etag changes with the content, and has no quotes here."""

    key: str
    etag: str
    size_bytes: int = 0

    @property
    def identity(self) -> tuple[str, str]:
        """Key and etag: one load each."""
        return self.key, self.etag

    @property
    def format(self) -> Format:
        """The format by the suffix. Raises ValueError with the problem of a key that cannot be loaded."""
        problem = problem_of(self.key)
        if problem is not None:
            raise ValueError(problem)
        return next(kind for kind, suffix in SUFFIXES.items() if suffix.search(self.key))


@dataclass(frozen=True)
class ObjectProblem:
    """Why an object was not loaded.

    `is_unreadable` is whether it is at fault, so that trying again is useless. `is_not_found` is whether ClickHouse
    does not find it.
    """

    key: str
    reason: str
    is_unreadable: bool
    is_not_found: bool = False


def problem_of(key: str) -> str | None:
    """Return why an object with this key cannot be loaded, with the remedy; None when it can."""
    if not KEY.fullmatch(key):
        return f"{key!r} has characters other than A-Z a-z 0-9 / _ . = : @ + -: rename the object without them"
    if not TEAM.search(key):
        return f"{key} names no team: put it under {EVENTS_PREFIX}team=<team id>/"
    if not any(suffix.search(key) for suffix in SUFFIXES.values()):
        return (
            f"{key} has no known suffix: use .jsonl, .ndjson, .json, .parquet or .log, such as access.log-20240305.gz; "
            "docs/events.md lists all"
        )
    return None


def team_of(key: str) -> int:
    """Return the team id in the key. Raises ValueError when there is none."""
    found = TEAM.search(key)
    if found is None:
        raise ValueError(problem_of(key))
    return int(found[1])


def is_folder_marker(key: str) -> bool:
    """Return whether the object only exists to show a folder in a bucket browser."""
    return key.endswith("/")


def list_page(s3: "S3Client", bucket: str, prefix: str, after: str) -> tuple[list[ObjectVersion], bool]:
    """Return at most MAX_PAGE_OBJECTS objects in the order of their keys, and whether there are more.

    The page starts behind the key `after`, or at the beginning if that is empty.
    """
    response = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, StartAfter=after, MaxKeys=MAX_PAGE_OBJECTS)
    versions = [
        ObjectVersion(entry["Key"], entry["ETag"].strip('"'), entry["Size"]) for entry in response.get("Contents", [])
    ]
    return versions, bool(response["IsTruncated"])


def list_all(s3: "S3Client", bucket: str, prefix: str) -> Iterator[ObjectVersion]:
    """Yield every object under a prefix, in the order of their keys."""
    after, more = "", True
    while more:
        page, more = list_page(s3, bucket, prefix, after)
        yield from page
        after = page[-1].key if page else after


def current_versions(s3: "S3Client", bucket: str, keys: Sequence[str]) -> dict[str, ObjectVersion]:
    """Return the current versions of the keys, without the keys that do not exist.

    Keys that are adjacent in the bucket cost one request per 1,000; a key far from the others costs one of its own.
    """
    wanted = sorted(set(keys))
    found: dict[str, ObjectVersion] = {}
    position = 0
    while position < len(wanted):
        # The key without its last character sorts just before the key, with hardly any key between them.
        page, more = list_page(s3, bucket, "", wanted[position][:-1])
        listed = {version.key: version for version in page}
        last = page[-1].key if page and more else wanted[-1]
        if wanted[position] > last:
            # More than a page of other keys is between them after all.
            page, more = list_page(s3, bucket, wanted[position], "")
            listed = {version.key: version for version in page}
            last = wanted[position]
        while position < len(wanted) and wanted[position] <= last:
            if wanted[position] in listed:
                found[wanted[position]] = listed[wanted[position]]
            position += 1
    return found
