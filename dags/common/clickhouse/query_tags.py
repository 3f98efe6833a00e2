"""The tags that every query carries as `log_comment`, so that system.query_log tells what a job or a team cost.

How they are made from a Dagster context is in `dags/common/resources.py`.
"""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class QueryTags:
    """Who asks: the run, the job, the op or asset in it, and the owning team. What is not known is None."""

    run_id: str | None = None
    job: str | None = None
    step: str | None = None
    owner: str | None = None

    def to_json(self) -> str:
        """The known tags as a JSON object with sorted keys: the value of the setting `log_comment`."""
        return json.dumps({key: value for key, value in asdict(self).items() if value is not None}, sort_keys=True)
