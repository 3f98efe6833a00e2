import datetime as dt

import dagster as dg
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from dags.common.backfills import partitions_in_backfills

DAYS = dg.DailyPartitionsDefinition("2026-03-01")


@dg.asset(partitions_def=DAYS)
def daily() -> None: ...


@dg.asset
def unpartitioned() -> None: ...


def backfill(status: BulkActionStatus, *partitions: str) -> PartitionBackfill:
    graph = dg.Definitions(assets=[daily, unpartitioned]).resolve_asset_graph()
    one: PartitionBackfill = PartitionBackfill.from_asset_partitions(
        backfill_id=f"{status.value}{partitions}",
        asset_graph=graph,
        partition_names=list(partitions),
        asset_selection=[daily.key],
        backfill_timestamp=dt.datetime(2026, 3, 20, tzinfo=dt.UTC).timestamp(),
        tags={},
        dynamic_partitions_store=dg.DagsterInstance.ephemeral(),
        all_partitions=False,
        title=None,
        description=None,
        run_config=None,
    )
    return one._replace(status=status)


def test_the_partitions_of_unfinished_backfills_of_an_asset_are_found() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert partitions_in_backfills(instance, [daily.key]) == set()
        instance.add_backfill(backfill(BulkActionStatus.REQUESTED, "2026-03-02", "2026-03-03"))
        instance.add_backfill(backfill(BulkActionStatus.CANCELING, "2026-03-04"))
        instance.add_backfill(backfill(BulkActionStatus.COMPLETED_SUCCESS, "2026-03-05"))
        assert partitions_in_backfills(instance, [daily.key]) == {"2026-03-02", "2026-03-03", "2026-03-04"}
        assert partitions_in_backfills(instance, [unpartitioned.key]) == set()
