"""The local S3: what it keeps over restarts and kills, and that ClickHouse's own S3 client works with it."""

import contextlib
import os
import signal
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clickhouse_driver import Client

from dags.local import ports, services
from dags.local.s3.application import range_of
from dags.tests.conftest import CREDENTIALS

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

PART_BYTES = 5 * 1024**2
BUCKET = CREDENTIALS.s3_bucket


class Server:
    """An S3 server that a test may kill and restart on the same directory and port."""

    def __init__(self, directory: Path, lifeline: services.Lifeline) -> None:
        self.directory = directory
        self.lifeline = lifeline
        self.service = services.s3(directory, ports.free_port(), CREDENTIALS)
        self.client = services.s3_client(self.service.port, CREDENTIALS)
        self.start()

    def start(self) -> None:
        self.started = services.start(self.service, self.lifeline, self.directory / "logs")
        services.wait_until_healthy(self.started, CREDENTIALS)

    def restart(self, number: signal.Signals) -> None:
        self.started.process.send_signal(number)
        self.started.process.wait(30)
        self.start()

    def stop(self) -> None:
        services.stop(self.started)
        self.client.close()

    def content_files(self) -> list[Path]:
        return [path for path in self.directory.glob("s3/objects/*/*/*") if path.suffix != ".json"]


@pytest.fixture
def server(tmp_path: Path, lifeline: services.Lifeline) -> Iterator[Server]:
    server = Server(tmp_path, lifeline)
    yield server
    server.stop()


def content(client: "S3Client", key: str, bucket: str = BUCKET) -> bytes:
    return client.get_object(Bucket=bucket, Key=key)["Body"].read()


def upload_in_parts(client: "S3Client", key: str, parts: list[bytes]) -> None:
    upload = client.create_multipart_upload(Bucket=BUCKET, Key=key, Metadata={"origin": "parts"})["UploadId"]
    done = []
    for number, body in enumerate(parts, start=1):
        answer = client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=number, Body=body)
        done.append({"PartNumber": number, "ETag": answer["ETag"]})
    client.complete_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload, MultipartUpload={"Parts": done})  # type: ignore[typeddict-item]  # plain dictionaries of the right shape


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_objects_are_the_same_after_a_restart_in_everything_a_client_sees(
    server: Server, number: signal.Signals
) -> None:
    client = server.client
    client.put_object(
        Bucket=BUCKET,
        Key="reports/süß & sour+1 %2F.csv",
        Body=b"1,2\n",
        ContentType="text/csv",
        ContentEncoding="identity",
        CacheControl="no-cache",
        Metadata={"source": "test"},
        Tagging="team=data&kind=report",
    )
    client.put_object(Bucket=BUCKET, Key="empty", Body=b"")
    client.put_object(Bucket=BUCKET, Key="folder//twice/", Body=b"slashes")
    upload_in_parts(client, "large", [b"a" * PART_BYTES, b"b" * 10])
    client.copy_object(Bucket=BUCKET, Key="copy", CopySource={"Bucket": BUCKET, "Key": "large"})
    client.create_bucket(Bucket="another-bucket")
    client.put_object(Bucket="another-bucket", Key="empty", Body=b"not here")

    def seen() -> list[object]:
        found: list[object] = [[bucket["Name"] for bucket in client.list_buckets()["Buckets"]]]
        for bucket in (BUCKET, "another-bucket"):
            for one in client.list_objects_v2(Bucket=bucket)["Contents"]:
                answer = client.get_object(Bucket=bucket, Key=one["Key"])
                head = client.head_object(Bucket=bucket, Key=one["Key"])
                tags = client.get_object_tagging(Bucket=bucket, Key=one["Key"])["TagSet"]
                body = answer["Body"].read()
                described = [
                    {name: value for name, value in headers.items() if name not in {"Body", "ResponseMetadata"}}
                    for headers in (answer, head)
                ]
                found.append((one, described, tags, body))
        return found

    before = seen()
    assert len(before) == 7
    server.restart(number)
    assert seen() == before
    large = client.head_object(Bucket=BUCKET, Key="large")
    assert large["ETag"].endswith('-2"')
    assert large["Metadata"] == {"origin": "parts"}


def test_a_kill_during_uploads_loses_no_acknowledged_object_and_leaves_no_partial_one(server: Server) -> None:
    acknowledged: dict[str, bytes] = {}
    for round_number in range(3):
        stop = threading.Event()

        def upload(worker: int, round_number: int = round_number, stop: threading.Event = stop) -> None:
            client = services.s3_client(server.service.port, CREDENTIALS)
            with contextlib.closing(client), contextlib.suppress(Exception):
                for number in range(10_000):
                    if stop.is_set():
                        return
                    # Every tenth key is overwritten again and again.
                    key = f"{round_number}/{worker}/{number if number % 10 else 'same'}"
                    body = uuid.uuid4().bytes * (1 + number * 97 % 5000)
                    client.put_object(Bucket=BUCKET, Key=key, Body=body, Metadata={"length": str(len(body))})
                    acknowledged[key] = body

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(upload, worker) for worker in range(4)]
            begun = len(acknowledged)
            deadline = 60.0
            while len(acknowledged) < begun + 100:
                assert deadline > 0
                assert not all(one.done() for one in running)
                deadline -= 0.05
                stop.wait(0.05)
            server.restart(signal.SIGKILL)
            stop.set()
    client = server.client
    keys = [
        one["Key"]
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        for one in page["Contents"]
    ]
    assert set(acknowledged) <= set(keys)
    # A key that was being overwritten may have the next body, but never a partial one.
    for key in keys:
        answer = client.get_object(Bucket=BUCKET, Key=key)
        body = answer["Body"].read()
        assert len(body) == int(answer["Metadata"]["length"])
        if key in acknowledged and not key.endswith("same"):
            assert body == acknowledged[key]
    assert len(server.content_files()) == len(keys)


def test_deleted_and_overwritten_objects_stay_deleted_and_take_no_space(server: Server) -> None:
    client = server.client
    for key in ("a", "b", "c", "d", "kept"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"old " + key.encode())
    client.delete_object(Bucket=BUCKET, Key="a")
    client.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "b"}, {"Key": "c"}, {"Key": "never there"}]})
    client.put_object(Bucket=BUCKET, Key="kept", Body=b"new")
    client.delete_object_tagging(Bucket=BUCKET, Key="d")
    assert len(server.content_files()) == 2
    server.restart(signal.SIGKILL)
    assert [one["Key"] for one in client.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["d", "kept"]
    assert content(client, "kept") == b"new"
    client.delete_object(Bucket=BUCKET, Key="kept")
    client.delete_object(Bucket=BUCKET, Key="d")
    assert server.content_files() == []


def test_a_deleted_bucket_stays_deleted(server: Server) -> None:
    server.client.create_bucket(Bucket="short-lived")
    server.client.delete_bucket(Bucket="short-lived")
    server.restart(signal.SIGKILL)
    assert [bucket["Name"] for bucket in server.client.list_buckets()["Buckets"]] == [BUCKET]


def test_an_unfinished_multipart_upload_leaves_nothing(server: Server) -> None:
    client = server.client
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="never")["UploadId"]
    client.upload_part(Bucket=BUCKET, Key="never", UploadId=upload, PartNumber=1, Body=b"x" * PART_BYTES * 2)
    server.restart(signal.SIGKILL)
    assert client.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0
    assert [path for path in server.directory.glob("s3/**/*") if path.is_file()] == [
        server.directory / "s3" / "buckets" / f"{BUCKET}.json"
    ]


def test_changes_that_cannot_be_kept_are_rejected(server: Server) -> None:
    client = server.client
    with pytest.raises(client.exceptions.ClientError, match="does not keep versioning"):
        client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    client.put_object(Bucket=BUCKET, Key="a", Body=b"")
    with pytest.raises(client.exceptions.ClientError, match="does not keep acl"):
        client.put_object_acl(Bucket=BUCKET, Key="a", ACL="public-read")


def test_an_object_that_cannot_be_written_is_not_acknowledged_and_keeps_the_old_one(server: Server) -> None:
    client = server.client
    client.put_object(Bucket=BUCKET, Key="a", Body=b"old")
    (record,) = server.directory.glob("s3/objects/*/*/*.json")
    # Blocks the new record; permissions would not, because root can write to any directory.
    record.with_suffix(".new").mkdir()
    with pytest.raises(client.exceptions.ClientError, match="Could not be written to disk"):
        client.put_object(Bucket=BUCKET, Key="a", Body=b"new")
    assert content(client, "a") == b"old"
    record.with_suffix(".new").rmdir()
    server.restart(signal.SIGKILL)
    assert content(client, "a") == b"old"


def test_a_directory_in_use_is_rejected(server: Server, lifeline: services.Lifeline) -> None:
    other = services.s3(server.directory, ports.free_port(), CREDENTIALS)
    started = services.start(other, lifeline, server.directory / "other-logs")
    assert started.process.wait(30) == 1
    assert "is in use by another S3 process" in started.log.read_text()


def test_ranges_and_conditions_behave_as_in_s3(s3_client: "S3Client", s3_bucket: str) -> None:
    body = bytes(range(256)) * 40
    etag = s3_client.put_object(Bucket=s3_bucket, Key="a", Body=body)["ETag"]

    def part(text: str, **conditions: str) -> tuple[bytes, str]:
        answer = s3_client.get_object(Bucket=s3_bucket, Key="a", Range=text, **conditions)  # type: ignore[arg-type]  # names of conditions
        return answer["Body"].read(), answer["ContentRange"]

    assert part("bytes=0-0") == (body[:1], f"bytes 0-0/{len(body)}")
    assert part("bytes=100-199", IfMatch=etag) == (body[100:200], f"bytes 100-199/{len(body)}")
    assert part("bytes=10000-") == (body[10000:], f"bytes 10000-10239/{len(body)}")
    assert part("bytes=-5") == (body[-5:], f"bytes 10235-10239/{len(body)}")
    assert part("bytes=10-999999")[0] == body[10:]
    for conditions, code in (
        ({"Range": "bytes=999999-"}, "InvalidRange"),
        ({"IfMatch": '"0"'}, "PreconditionFailed"),
        ({"IfNoneMatch": etag}, "304"),
    ):
        with pytest.raises(s3_client.exceptions.ClientError) as caught:
            s3_client.get_object(Bucket=s3_bucket, Key="a", **conditions)  # type: ignore[arg-type]  # as above
        assert caught.value.response["Error"]["Code"] == code


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-9", (0, 9)),
        ("bytes=5-", (5, 99)),
        ("bytes=-7", (93, 99)),
        ("bytes=-1000", (0, 99)),
        ("bytes=90-1000", (90, 99)),
        ("bytes=100-", None),
        ("bytes=9-0", None),
        ("bytes=-0", None),
        ("bytes=-", None),
        ("bytes=0-1,4-5", None),
        ("lines=0-9", None),
    ],
)
def test_a_range_header_is_parsed_or_left_to_moto(header: str, expected: tuple[int, int] | None) -> None:
    assert range_of(header, 100) == expected


def test_readers_see_whole_objects_while_they_are_overwritten_and_deleted(s3_port: int, s3_bucket: str) -> None:
    bodies = [bytes([letter]) * 300_000 for letter in b"abcdefgh"]
    stop = threading.Event()

    def write() -> None:
        client = services.s3_client(s3_port, CREDENTIALS)
        with contextlib.closing(client):
            for number in range(150):
                client.put_object(Bucket=s3_bucket, Key="hot", Body=bodies[number % len(bodies)])
                if number % 5 == 0:
                    client.delete_object(Bucket=s3_bucket, Key="hot")
        stop.set()

    def read() -> int:
        client = services.s3_client(s3_port, CREDENTIALS)
        found = 0
        with contextlib.closing(client):
            while not stop.is_set():
                try:
                    body = content(client, "hot", s3_bucket)
                except client.exceptions.NoSuchKey:
                    continue
                assert body in bodies
                found += 1
        return found

    with ThreadPoolExecutor(4) as pool:
        writer = pool.submit(write)
        readers = [pool.submit(read) for _ in range(3)]
        writer.result(120)
        assert sum(reader.result(120) for reader in readers) > 0


def test_a_large_object_is_read_without_being_kept_in_memory(server: Server) -> None:
    import psutil

    body = os.urandom(1024**2) * 100
    server.client.put_object(Bucket=BUCKET, Key="large", Body=body)
    process = psutil.Process(server.started.process.pid)
    assert process.memory_info().rss < len(body) * 1.5
    assert content(server.client, "large") == body


def test_requests_of_web_pages_are_rejected(s3_endpoint: str) -> None:
    request = urllib.request.Request(f"{s3_endpoint}/", headers={"Origin": "https://example.com"})  # noqa: S310 - loopback
    with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(request, timeout=10):  # noqa: S310 - loopback
        pass
    assert caught.value.code == 403
    caught.value.close()


def test_clickhouse_reads_writes_backs_up_and_restores(
    clickhouse_client: Client, clickhouse_database: str, s3_endpoint: str, s3_client: "S3Client", s3_bucket: str
) -> None:
    place = f"{s3_endpoint}/{s3_bucket}"
    keys = f"'{CREDENTIALS.s3_access_key_id}', '{CREDENTIALS.s3_secret_access_key}'"
    # S3 locations are part of the syntax and cannot be query parameters.
    execute = clickhouse_client.execute
    s3_client.put_object(Bucket=s3_bucket, Key="in.csv", Body=b"1,a\n2,b\n")
    assert execute(f"SELECT * FROM s3('{place}/in.csv', {keys}, 'CSV')") == [(1, "a"), (2, "b")]  # noqa: S608 - as above

    execute("CREATE TABLE numbers (n UInt64, s String) ENGINE = MergeTree ORDER BY n PARTITION BY n % 5")
    execute("INSERT INTO numbers SELECT number, randomString(100) FROM numbers(300000)")
    execute(f"INSERT INTO FUNCTION s3('{place}/out.parquet', {keys}, 'Parquet') SELECT * FROM numbers")  # noqa: S608 - as above
    checksum = "SELECT count(), sum(cityHash64(n, s)) FROM"
    expected = execute(f"{checksum} numbers")
    assert execute(f"{checksum} s3('{place}/*.parquet', {keys}, 'Parquet')") == expected

    execute(f"BACKUP TABLE {clickhouse_database}.numbers TO S3('{place}/backup', {keys})")
    execute(
        f"RESTORE TABLE {clickhouse_database}.numbers AS {clickhouse_database}.back FROM S3('{place}/backup', {keys})"
    )
    assert execute(f"{checksum} back") == expected
