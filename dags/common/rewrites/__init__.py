"""Rewrites of ClickHouse tables in place: mutations in rounds, until no row on any host matches their condition."""
