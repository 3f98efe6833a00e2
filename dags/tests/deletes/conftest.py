"""The fixture `world`: the tables on two nodes, and the requests in a Postgres."""

from dags.tests.rewriting import world

__all__ = ["world"]
