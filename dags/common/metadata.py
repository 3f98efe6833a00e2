"""Asset metadata under the names that the Dagster UI shows in a place of their own."""

import dagster as dg

from dags.common.clickhouse.ddl import Dictionary, Table

# Of a whole table, and of the partition that was materialized. The UI plots them and shows them beside the asset.
ROW_COUNT = "dagster/row_count"
PARTITION_ROW_COUNT = "dagster/partition_row_count"
TABLE_NAME = "dagster/table_name"
COLUMN_SCHEMA = "dagster/column_schema"
URI = "dagster/uri"


def table_metadata(table: Table | Dictionary) -> dict[str, dg.MetadataValue]:
    """Return the metadata of an asset that is a ClickHouse table: its name, and its columns as the schema has them."""
    columns = [
        dg.TableColumn(
            column.name,
            column.type,
            description=column.comment,
            constraints=dg.TableColumnConstraints(nullable="Nullable(" in column.type),
        )
        for column in table.columns
    ]
    return {
        TABLE_NAME: dg.MetadataValue.text(table.name),
        COLUMN_SCHEMA: dg.MetadataValue.table_schema(dg.TableSchema(columns)),
    }
