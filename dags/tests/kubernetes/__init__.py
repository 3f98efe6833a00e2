"""A loopback Kubernetes API server for the tests, and Dagster that runs its work through it."""
