"""The local S3: moto's S3 behind a production WSGI server, with every object kept in files.

    python -m dags.local.s3 --port 19100 --path .local/s3 --bucket analytics

Moto answers the requests and keeps buckets and object metadata in memory. This package adds durability: each object is
written to disk before its request is answered, read back at start, and streamed from its file.

A restart and a kill -9 keep buckets, and of each object the content, metadata, etag, checksum, tags and time. As with
ClickHouse's defaults, a power failure can lose the last seconds. Multipart uploads that were not completed are lost.
Changes that cannot be kept (versions, policies, ACLs, ...) are rejected.
"""
