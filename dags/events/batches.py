"""Which objects are loaded together: bounded in number and bytes, so that a run is neither tiny nor endless."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dags.events.objects import ObjectVersion


@dataclass(frozen=True)
class BatchLimits:
    """A batch has at most so many objects and bytes (as stored); an object above the bytes is a batch by itself."""

    objects: int = 1000
    size_bytes: int = 2 * 1024**3


def batches_of(versions: Iterable[ObjectVersion], limits: BatchLimits) -> Iterator[list[ObjectVersion]]:
    """The objects in their order, cut into batches."""
    batch: list[ObjectVersion] = []
    size_bytes = 0
    for version in versions:
        if batch and (len(batch) >= limits.objects or size_bytes + version.size_bytes > limits.size_bytes):
            yield batch
            batch, size_bytes = [], 0
        batch.append(version)
        size_bytes += version.size_bytes
    if batch:
        yield batch


def batch_hash(batch: Sequence[ObjectVersion]) -> str:
    """A hash of the keys and etags, whatever their order: other content is other work."""
    digest = hashlib.sha256()
    for version in sorted(batch):
        digest.update(f"{version.key}\0{version.etag}\0".encode())
    return digest.hexdigest()[:32]
