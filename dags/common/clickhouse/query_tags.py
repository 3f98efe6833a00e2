"""The tags that every query carries as `log_comment`, so that system.query_log shows what a job or a team costs."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class QueryTags:
    """The origin of a query: run, job, op or asset, and owning team. None where it is unknown."""

    run_id: str | None = None
    job: str | None = None
    step: str | None = None
    owner: str | None = None

    def to_json(self) -> str:
        """Return the known tags as a JSON object with sorted keys: the value of the setting `log_comment`."""
        return json.dumps({key: value for key, value in asdict(self).items() if value is not None}, sort_keys=True)
