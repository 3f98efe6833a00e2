"""What an object of events is: its key, its version, its team and its format, and how objects are listed.

    <bucket>/events/team=<team id>/…/<name>.<format>

| suffix | format |
|---|---|
| .jsonl .ndjson .json, plain or with .gz or .zst | JSON lines of product-analytics events |
| .parquet | the same fields as columns |
| .log .access.log, plain or with .gz or .zst | access log in the combined format of Apache and nginx |

Not here: what has been loaded (`manifest.py`).
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
# Other characters mean something in a list of keys (`{a,b}`, `*`, `?`) or in an address (`#`, `%`, space).
KEY = re.compile(r"[A-Za-z0-9/_.=:@+-]+")
TEAM = re.compile(TEAM_PATTERN)
SUFFIX = re.compile(r"\.(jsonl|ndjson|json|parquet|log)(?:\.(gz|zst))?$")
PAGE_OBJECTS = 1000


class Format(StrEnum):
    """How the bytes of an object are read."""

    JSON_LINES = "json lines"
    PARQUET = "parquet"
    ACCESS_LOG = "access log"


FORMATS = {
    "jsonl": Format.JSON_LINES,
    "ndjson": Format.JSON_LINES,
    "json": Format.JSON_LINES,
    "parquet": Format.PARQUET,
    "log": Format.ACCESS_LOG,
}


@dataclass(frozen=True, order=True)
class ObjectVersion:
    """One content of one key: the etag changes with the content. Without the quotes that S3 puts round etags."""

    key: str
    etag: str
    size_bytes: int = 0

    @property
    def identity(self) -> tuple[str, str]:
        """What an object is loaded once by."""
        return self.key, self.etag

    @property
    def format(self) -> Format:
        """The format that the suffix names. Raises ValueError when `problem_of` has something to say."""
        problem = problem_of(self.key)
        if problem is not None:
            raise ValueError(problem)
        return FORMATS[SUFFIX.search(self.key)[1]]  # type: ignore[index]


def problem_of(key: str) -> str | None:
    """Why an object of that key cannot be loaded, with the remedy, or None when it can."""
    if not KEY.fullmatch(key):
        return f"{key!r} has characters other than A-Z a-z 0-9 / _ . = : @ + -: name the object without them"
    if not TEAM.search(key):
        return f"{key} names no team: put it under {EVENTS_PREFIX}team=<team id>/"
    suffix = SUFFIX.search(key)
    if suffix is None:
        return f"{key} has no known suffix: use .jsonl, .ndjson, .json, .parquet or .log, with .gz or .zst"
    if suffix[1] == "parquet" and suffix[2]:
        return f"{key} is compressed twice: a Parquet file needs no .{suffix[2]}"
    return None


def team_of(key: str) -> int:
    """The team that the key names. Raises ValueError when it names none."""
    found = TEAM.search(key)
    if found is None:
        raise ValueError(problem_of(key))
    return int(found[1])


def is_folder_mark(key: str) -> bool:
    """Whether the object only makes a folder show in a browser of buckets."""
    return key.endswith("/")


def list_page(s3: "S3Client", bucket: str, prefix: str, after: str) -> tuple[list[ObjectVersion], bool]:
    """At most PAGE_OBJECTS objects in the order of their keys, and whether there are more.

    `after` is the key before the first, or empty.
    """
    answer = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, StartAfter=after, MaxKeys=PAGE_OBJECTS)
    versions = [
        ObjectVersion(entry["Key"], entry["ETag"].strip('"'), entry["Size"]) for entry in answer.get("Contents", [])
    ]
    return versions, bool(answer["IsTruncated"])


def list_all(s3: "S3Client", bucket: str, prefix: str) -> Iterator[ObjectVersion]:
    """Every object under a prefix, in the order of their keys."""
    after, more = "", True
    while more:
        page, more = list_page(s3, bucket, prefix, after)
        yield from page
        after = page[-1].key if page else after


def current_versions(s3: "S3Client", bucket: str, keys: Sequence[str]) -> dict[str, ObjectVersion]:
    """The versions that the keys have now; a key that is gone is missing.

    A listing tells of 1,000 keys in one request where they lie together, and of one where they are strewn.
    """
    wanted = sorted(set(keys))
    found: dict[str, ObjectVersion] = {}
    position = 0
    while position < len(wanted):
        # The key without its last character comes before the key, and nearly nothing lies between.
        page, more = list_page(s3, bucket, "", wanted[position][:-1])
        listed = {version.key: version for version in page}
        last = page[-1].key if page and more else wanted[-1]
        if wanted[position] > last:
            # More than a page lies between after all.
            page, more = list_page(s3, bucket, wanted[position], "")
            listed = {version.key: version for version in page}
            last = wanted[position]
        while position < len(wanted) and wanted[position] <= last:
            if wanted[position] in listed:
                found[wanted[position]] = listed[wanted[position]]
            position += 1
    return found
