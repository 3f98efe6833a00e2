"""The deployment files, compared with the code and with what Kubernetes and Dagster accept."""
