"""ClickHouse's native protocol in front of the embedded engine (chdb): one process is one node.

`wire` reads and writes primitive values, `packets` the protocol's messages, `columns` finds the end of a block of data,
`statements` analyzes SQL text, `engine` calls chdb, `server` combines them, `configuration` writes the engine's
configuration file.
"""
