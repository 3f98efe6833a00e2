"""Objects of moto's S3, mirrored to files."""

import dataclasses
import hashlib
import io
import json
import os
import shutil
import uuid
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moto.s3.models import FakeKey, S3Backend

COPY_CHUNK_BYTES = 1024 * 1024

# Attributes of moto's key that a record keeps besides its times, metadata and tags.
KEPT_ATTRIBUTES = (
    "_etag",
    "_storage_class",
    "encryption",
    "kms_key_id",
    "bucket_key_enabled",
    "checksum_algorithm",
    "checksum_value",
    "checksum_type",
    "checksum_parts",
    "website_redirect_location",
)


class StoreError(Exception):
    """The data directory cannot be used. The message says why and what to do."""


class StoredContent(io.RawIOBase):
    """The content of an object in a file, which moto reads in place of its own buffer. Open only during a read."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to `offset` bytes from the start; moto needs no other kind of seek."""
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("only from the start of the content")
        self.position = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, or the rest."""
        with self.path.open("rb") as file:
            file.seek(self.position)
            content = file.read(size)
        self.position += len(content)
        return content


@dataclasses.dataclass
class Store:
    """The objects of moto's backend, mirrored to files under `path`.

    `buckets/NAME.json` is the record of a bucket. `objects/BUCKET/HH/HASH.json` is the record of an object, where HASH
    is the hash of its key; it names the content file in the same directory. A record is replaced atomically, so a crash
    leaves either the old object or the new one.
    """

    path: Path
    backend: "S3Backend"
    contents: dict[tuple[str, str], Path] = dataclasses.field(default_factory=dict)

    def load(self) -> None:
        """Load every bucket and object into moto, and remove the unfinished files of a killed process."""
        for folder in (self.path / "buckets", self.path / "objects"):
            folder.mkdir(parents=True, exist_ok=True)
        for record_path in sorted((self.path / "buckets").glob("*.json")):
            record = read_record(record_path)
            bucket = self.backend.create_bucket(record["name"], record["region"])
            bucket.creation_date = datetime.fromisoformat(record["created"])
        known = set()
        for record_path in (self.path / "objects").glob("*/*/*.json"):
            known |= {record_path, self.load_object(record_path)}
        for leftover in [*(self.path / "objects").glob("*/*/*"), *(self.path / "buckets").glob("*.new")]:
            if leftover not in known:
                leftover.unlink()

    def load_object(self, record_path: Path) -> Path:
        """Load the object of one record into moto; return its content file."""
        from moto.s3.models import FakeKey

        record = read_record(record_path)
        bucket, name = record["bucket"], record["key"]
        content: Path = record_path.parent / record["content"]
        if not content.exists():
            raise StoreError(f"{content} is missing, so s3://{bucket}/{name} has no content. Remove {record_path} too.")
        key = FakeKey(
            name=name,
            value=b"",
            account_id=self.backend.account_id,
            region_name=self.backend.region_name,
            bucket_name=bucket,
            version_id="null",
        )
        key._value_buffer = StoredContent(content)  # type: ignore[assignment]  # noqa: SLF001 - moto has no other way to content on disk
        key.contentsize = content.stat().st_size
        key.last_modified = datetime.fromisoformat(record["modified"])
        key.metadata.clear()
        key.set_metadata(record["metadata"])
        for attribute in KEPT_ATTRIBUTES:
            setattr(key, attribute, record[attribute])
        self.backend.get_bucket(bucket).keys.setlist(name, [key])
        self.backend.tagger.tag_resource(
            key.arn, [{"Key": tag, "Value": value} for tag, value in record["tags"].items()]
        )
        self.contents[bucket, name] = content
        return content

    def record_path(self, bucket: str, name: str) -> Path:
        """Return the path of an object's record."""
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self.path / "objects" / bucket / digest[:2] / f"{digest}.json"

    def keep_object(self, bucket: str, name: str) -> None:
        """Write or remove the files of one object, so that they match moto."""
        key = self.backend.get_object(bucket, name) if bucket in self.backend.buckets else None
        record_path = self.record_path(bucket, name)
        previous = self.contents.get((bucket, name))
        if key is None:
            if previous is not None:
                record_path.unlink()
                del self.contents[bucket, name]
                previous.unlink()
            return
        content = self.keep_content(key, record_path)
        write_record(
            record_path,
            {
                "bucket": bucket,
                "key": name,
                "content": content.name,
                "modified": key.last_modified.isoformat(),
                "metadata": dict(key.metadata),
                "tags": self.backend.tagger.get_tag_dict_for_resource(key.arn),
                **{attribute: getattr(key, attribute) for attribute in KEPT_ATTRIBUTES},
            },
        )
        self.contents[bucket, name] = content
        if previous is not None and previous != content:
            previous.unlink()

    def keep_content(self, key: "FakeKey", record_path: Path) -> Path:
        """Move the content of a key from moto's buffer to a file beside its record, if needed; return the file."""
        buffer = key._value_buffer  # noqa: SLF001 - moto has no other way to content on disk
        if isinstance(buffer, StoredContent):
            return buffer.path
        record_path.parent.mkdir(parents=True, exist_ok=True)
        content = record_path.with_name(f"{record_path.stem}.{uuid.uuid4().hex}")
        # Computes the etag now; moto would compute it later from the buffer.
        _ = key.etag
        try:
            buffer.seek(0)
            with content.open("wb") as file:
                shutil.copyfileobj(buffer, file, COPY_CHUNK_BYTES)
        except OSError:
            content.unlink(missing_ok=True)
            raise
        buffer.close()
        key._value_buffer = StoredContent(content)  # type: ignore[assignment]  # noqa: SLF001 - as above
        # The parts of an upload are a second copy of its content.
        if key.multipart is not None:
            key.multipart.dispose()
            key.multipart = None
        return content

    def keep_deletions(self, bucket: str) -> None:
        """Remove the files of every object of a bucket that moto no longer has."""
        present = self.backend.get_bucket(bucket).keys
        for name in [name for owner, name in self.contents if owner == bucket and name not in present]:
            self.keep_object(bucket, name)

    def keep_bucket(self, bucket: str) -> None:
        """Write or remove the record of one bucket, so that it matches moto."""
        record_path = self.path / "buckets" / f"{bucket}.json"
        if bucket not in self.backend.buckets:
            record_path.unlink(missing_ok=True)
            shutil.rmtree(self.path / "objects" / bucket, ignore_errors=True)
            return
        held = self.backend.buckets[bucket]
        record = {"name": bucket, "region": held.region_name, "created": held.creation_date.isoformat()}
        write_record(record_path, record)

    def restore(self, bucket: str, name: str) -> None:
        """Reset the object in moto to its files, after a change could not be written."""
        keys = self.backend.get_bucket(bucket).keys
        if (bucket, name) in self.contents:
            self.load_object(self.record_path(bucket, name))
        elif name in keys:
            keys.pop(name)


def read_record(path: Path) -> dict[str, Any]:
    """Return the fields of a record. Raises StoreError, which names the file, when it is damaged."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}). Remove the file; the object is then gone.") from None
    return record


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Replace a record atomically: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".new")
    try:
        unfinished.write_text(json.dumps(record))
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
