"""What the parts of the demo share: the services, the runs so far, and how a job is run and reported."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.settings import Settings
from dags.local.text import table

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client


class DemoError(Exception):
    """The demo failed. The message is the reason."""


@dataclass
class Stage:
    """The services that the demo uses, and its runs so far. `say` prints a line of progress."""

    settings: Settings
    cluster: ClickhouseCluster
    s3: "S3Client"
    instance: dg.DagsterInstance
    say: Callable[[str], None]
    runs: list[list[str]] = field(default_factory=list)
    checks: list[dg.AssetCheckEvaluation] = field(default_factory=list)

    def run(
        self,
        definitions: dg.Definitions,
        job_name: str,
        *,
        tags: Mapping[str, str] | None = None,
        run_config: Mapping[str, Any] | None = None,
        selection: list[str] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Run a job of a location as one run of the instance. Raises DemoError when the job or a check fails.

        A check that only warns is reported, and is not a failure.
        """
        started = time.monotonic()
        result = definitions.resolve_job_def(job_name).execute_in_process(
            instance=self.instance,
            tags=dict(tags or {}),
            run_config={**(run_config or {}), "loggers": {"console": {"config": {"log_level": "WARNING"}}}},
            asset_selection=[dg.AssetKey(key) for key in selection] if selection else None,
            raise_on_error=False,
        )
        self.runs.append([job_name, result.run_id, f"{time.monotonic() - started:.1f}"])
        if not result.success:
            raise DemoError(f"run {result.run_id} of {job_name} failed: {_reasons(result)}")
        evaluations = result.get_asset_check_evaluations()
        self.checks.extend(evaluations)
        for check in evaluations:
            if not check.passed and check.severity is dg.AssetCheckSeverity.ERROR:
                raise DemoError(f"check {check.check_name} of {check.asset_key.to_user_string()}: {check.description}")
        return result

    def show_runs_and_checks(self) -> None:
        """Print the runs and the results of the checks."""
        print(f"\nRuns, stored in {self.instance.root_directory} and shown by `make dev`")
        print(table(["job", "run", "seconds"], self.runs))
        print("\nChecks")
        rows = [
            [
                check.asset_key.to_user_string(),
                check.check_name,
                "passed" if check.passed else f"{check.severity.value}: {check.description}",
            ]
            for check in self.checks
        ]
        print(table(["asset", "check", ""], rows))


def _reasons(result: dg.ExecuteInProcessResult) -> str:
    """Return the errors of the failed steps."""
    reasons = []
    for event in result.all_events:
        if event.is_step_failure:
            failure = event.step_failure_data
            error = failure.error
            while error is not None and error.cause is not None:
                error = error.cause
            description = failure.user_failure_data.description if failure.user_failure_data else None
            reasons.append(f"{event.step_key}: {description or (error.message if error else event.message)}".strip())
    return "; ".join(reasons) or "no step failed; see the run's log"
