"""ClickHouse's native protocol in front of the embedded engine (chdb): one process is one node.

What belongs here: everything between a TCP connection and a chdb connection. What does not: starting several nodes
beside the other services (`dags.local.stack`), and anything that only a client needs (`dags.common.clickhouse`).

`wire` reads and writes primitive values, `packets` the protocol's messages, `columns` finds where a block of data ends,
`statements` looks at SQL text, `engine` talks to chdb, `server` puts them together, `configuration` writes the engine's
configuration file.
"""
