import dagster as dg
from dagster._core.definitions.metadata.metadata_set import TableMetadataSet

from dags.common import metadata
from dags.common.clickhouse.tables import ANALYTICS_DIGEST_DAILY, EXCHANGE_RATE
from dags.common.metadata import table_metadata


def test_dagster_reads_the_names_as_those_of_a_table() -> None:
    values = {
        **table_metadata(EXCHANGE_RATE),
        metadata.ROW_COUNT: dg.MetadataValue.int(12),
        metadata.PARTITION_ROW_COUNT: dg.MetadataValue.int(3),
    }
    found = TableMetadataSet.extract(values)
    assert (found.table_name, found.row_count, found.partition_row_count) == ("exchange_rate", 12, 3)
    assert found.column_schema is not None
    assert [column.name for column in found.column_schema.columns] == ["currency", "date", "rate", "version"]


def test_a_column_has_its_type_its_comment_and_whether_it_may_be_null() -> None:
    schema = table_metadata(ANALYTICS_DIGEST_DAILY)[metadata.COLUMN_SCHEMA].value
    assert isinstance(schema, dg.TableSchema)
    columns = {column.name: column for column in schema.columns}
    assert not columns["team_id"].constraints.nullable
    assert columns["revenue_usd"].constraints.nullable
    assert columns["revenue_usd"].type.startswith("Nullable(Decimal")
    assert columns["revenue_usd"].description


def test_an_asset_shows_the_schema_of_its_table() -> None:
    spec = dg.AssetSpec("rates", metadata=table_metadata(EXCHANGE_RATE))
    assert TableMetadataSet.extract(spec.metadata).table_name == "exchange_rate"
