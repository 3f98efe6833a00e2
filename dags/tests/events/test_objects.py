from typing import TYPE_CHECKING

import pytest

from dags.events.batches import BatchLimits, batch_hash, batches_of
from dags.events.objects import Format, ObjectVersion, current_versions, list_all, problem_of, team_of

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", Format.JSON_LINES),
        ("a.ndjson.gz", Format.JSON_LINES),
        ("a.json.zst", Format.JSON_LINES),
        ("a.parquet", Format.PARQUET),
        ("access.log", Format.ACCESS_LOG),
        ("www.access.log.gz", Format.ACCESS_LOG),
        ("access.log.1", Format.ACCESS_LOG),
        ("access.log.2.gz", Format.ACCESS_LOG),
        ("access_log", Format.ACCESS_LOG),
        ("access_log-20240305.gz", Format.ACCESS_LOG),
        ("access_log-20240305-1709596800.zst", Format.ACCESS_LOG),
        ("access.log-2024-03-05.bz2", Format.ACCESS_LOG),
        ("access.log.20240305.xz", Format.ACCESS_LOG),
        ("export.jsonl.br", Format.JSON_LINES),
        ("export.parquet.zst", Format.PARQUET),
        ("export.parquet.gz", Format.PARQUET),
        ("export.parquet.sz", Format.PARQUET),
    ],
)
def test_the_suffix_names_the_format(name: str, kind: Format) -> None:
    assert ObjectVersion(f"events/team=7/2026/{name}", "e").format is kind


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("events/a.jsonl", "names no team"),
        ("events/team=x/a.jsonl", "names no team"),
        ("events/team=1/a.csv", "no known suffix"),
        ("events/team=1/catalog", "no known suffix"),
        ("events/team=1/a.log.old", "no known suffix"),
        ("events/team=1/a.jsonl.1", "no known suffix"),
        ("events/team=1/a,b.jsonl", "has characters other than"),
        ("events/team=1/{a}.jsonl", "has characters other than"),
        ("events/team=1/a b.jsonl", "has characters other than"),
        ("events/team=1/a*.jsonl", "has characters other than"),
    ],
)
def test_a_key_that_cannot_be_loaded_has_a_reason(key: str, problem: str) -> None:
    assert problem in str(problem_of(key))
    with pytest.raises(ValueError, match="events"):
        _ = ObjectVersion(key, "e").format


def test_the_team_is_in_the_key() -> None:
    assert team_of("events/team=42/day=1/a.jsonl") == 42


def test_batches_are_bounded_by_number_and_bytes_and_a_large_object_is_its_own_batch() -> None:
    versions = [ObjectVersion(f"{number}", "e", size) for number, size in enumerate((10, 10, 10, 500, 10, 90, 10))]
    batches = list(batches_of(versions, BatchLimits(max_objects=2, max_bytes=100)))
    assert [[version.key for version in batch] for batch in batches] == [["0", "1"], ["2"], ["3"], ["4", "5"], ["6"]]


def test_the_hash_of_a_batch_depends_on_its_contents_and_not_on_their_order() -> None:
    one, two = ObjectVersion("a", "1", 5), ObjectVersion("b", "2", 6)
    assert batch_hash([one, two]) == batch_hash([two, one])
    assert batch_hash([one, two]) != batch_hash([one, ObjectVersion("b", "3", 6)])
    assert batch_hash([one, two]) != batch_hash([one])


def test_current_versions_of_adjacent_and_scattered_keys_are_found_without_missing_keys(
    s3_client: "S3Client", s3_bucket: str
) -> None:
    keys = [f"events/team={team}/{number:03d}.jsonl" for team in (1, 2, 10) for number in range(4)]
    for key in keys:
        s3_client.put_object(Bucket=s3_bucket, Key=key, Body=key.encode())
    everything = {version.key: version for version in list_all(s3_client, s3_bucket, "events/")}
    assert sorted(everything) == sorted(keys)
    assert current_versions(s3_client, s3_bucket, keys) == everything
    assert current_versions(s3_client, s3_bucket, [keys[3], keys[11], "events/gone", "a", "z"]) == {
        keys[3]: everything[keys[3]],
        keys[11]: everything[keys[11]],
    }
