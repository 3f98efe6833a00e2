"""Batches of objects that are loaded together, bounded in number and bytes."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dags.events.objects import ObjectVersion


@dataclass(frozen=True)
class BatchLimits:
    """Limits of a batch, in objects and bytes as stored. A larger object is a batch of its own."""

    max_objects: int = 1000
    max_bytes: int = 2 * 1024**3

    def halved(self, times: int) -> "BatchLimits":
        """Return these limits with the number of objects halved so many times."""
        return BatchLimits(max(self.max_objects >> times, 1), self.max_bytes)


def batches_of(versions: Iterable[ObjectVersion], limits: BatchLimits) -> Iterator[list[ObjectVersion]]:
    """Yield the objects in batches, keeping their order."""
    batch: list[ObjectVersion] = []
    size_bytes = 0
    for version in versions:
        if batch and (len(batch) >= limits.max_objects or size_bytes + version.size_bytes > limits.max_bytes):
            yield batch
            batch, size_bytes = [], 0
        batch.append(version)
        size_bytes += version.size_bytes
    if batch:
        yield batch


def batch_hash(batch: Sequence[ObjectVersion]) -> str:
    """Return a hash of the keys and etags, which does not depend on their order."""
    digest = hashlib.sha256()
    for version in sorted(batch):
        digest.update(f"{version.key}\0{version.etag}\0".encode())
    return digest.hexdigest()[:32]
