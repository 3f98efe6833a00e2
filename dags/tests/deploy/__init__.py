"""What is written down for production, compared with the code and with what Kubernetes and Dagster accept."""
