"""The data platform as one Dagster repository: locations -> dags -> common, and never the other way."""

import warnings

# Dagster is pinned, so what is beta in it changes only with the pin; each use would print a warning at each load.
warnings.filterwarnings("ignore", message=".* is currently in beta")
