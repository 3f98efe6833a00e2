import shutil
from pathlib import Path

import dagster as dg

from dags.local.pools import record_pool_limits

CONFIGURATION = Path(__file__).parents[3] / ".dagster_home" / "dagster.yaml"


def test_a_pool_has_its_limit_before_the_first_run_and_a_chosen_limit_stays(tmp_path: Path) -> None:
    shutil.copy(CONFIGURATION, tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.event_log_storage.get_pool_limits() == []
        record_pool_limits(instance, ["first", "second"])
        instance.event_log_storage.set_concurrency_slots("second", 5)
        record_pool_limits(instance, ["first", "second"])
        limits = {limit.name: limit.limit for limit in instance.event_log_storage.get_pool_limits()}
        assert limits == {"first": 1, "second": 5}
