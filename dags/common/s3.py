"""The S3 client that pipelines share. The Dagster resource that makes one is in `resources.py`."""

from typing import TYPE_CHECKING

from dags.common.settings import Settings

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

CONNECT_TIMEOUT_SECONDS = 10
READ_TIMEOUT_SECONDS = 60
MAX_ATTEMPTS = 4


def make_s3(settings: Settings) -> "S3Client":
    """Return a boto3 client for the object storage of the settings, with timeouts and retries, without connecting."""
    import boto3
    from botocore.config import Config

    secret = settings.object_storage_secret_access_key
    return boto3.client(
        "s3",
        endpoint_url=settings.object_storage_endpoint,
        region_name=settings.object_storage_region,
        aws_access_key_id=settings.object_storage_access_key_id,
        aws_secret_access_key=None if secret is None else secret.get_secret_value(),
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=READ_TIMEOUT_SECONDS,
            retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
            # A store at a bare address has no host name for each bucket.
            s3={"addressing_style": "path" if settings.object_storage_endpoint else "auto"},
        ),
    )
