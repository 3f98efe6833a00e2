"""Start a run from outside of the platform, once for each key: docs/start-a-run.md. Needs `requests` and nothing else.

DAGSTER_URL is where the authenticating proxy answers, DAGSTER_TOKEN what it lets in.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

import requests

KEY_TAG = "start/idempotency_key"
REPOSITORY = "__repository__"
TIMEOUT_SECONDS = 60

FIND = """
query($filter: RunsFilter!) {
  runsOrError(filter: $filter) {
    __typename
    ... on Runs { results { runId status } }
    ... on Error { message }
  }
}
"""
LAUNCH = """
mutation($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId status } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on Error { message }
  }
}
"""
TERMINATE = """
mutation($runId: String!) {
  terminateRun(runId: $runId) { __typename ... on Error { message } }
}
"""


class StartError(Exception):
    """The run could not be started; the message says why."""


def start_run(
    url: str, token: str, location: str, job: str, key: str, run_config: dict[str, Any] | None = None
) -> dict[str, str]:
    """Start a run of a job, or find the one that was started with this key before; return its `runId` and `status`.

    After a lost answer, call it again with the same key. Two calls at the same time with one key leave one run: each
    looks again after its own start, and the one that came second ends its run. Raises StartError when Dagster refuses,
    and requests.RequestException when it cannot be reached or the proxy refuses the token.
    """
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {token}"
        earlier = _runs(session, url, job, key)
        if earlier:
            return earlier[-1]
        params = {
            "selector": {"repositoryLocationName": location, "repositoryName": REPOSITORY, "jobName": job},
            "runConfigData": run_config or {},
            "executionMetadata": {"tags": [{"key": KEY_TAG, "value": key}]},
        }
        started = _ask(session, url, LAUNCH, "LaunchRunSuccess", params=params)["run"]
        # Newest first, so the last one is the one that stays.
        first = _runs(session, url, job, key)[-1]
        if first["runId"] != started["runId"]:
            _ask(session, url, TERMINATE, "TerminateRunSuccess", runId=started["runId"])
        return first


def _runs(session: requests.Session, url: str, job: str, key: str) -> list[dict[str, str]]:
    wanted = {"pipelineName": job, "tags": [{"key": KEY_TAG, "value": key}]}
    found: list[dict[str, str]] = _ask(session, url, FIND, "Runs", filter=wanted)["results"]
    return found


def _ask(session: requests.Session, url: str, query: str, expected: str, **variables: Any) -> dict[str, Any]:
    response = session.post(
        f"{url.rstrip('/')}/graphql",
        json={"query": query, "variables": variables},
        timeout=TIMEOUT_SECONDS,
        # A proxy that does not know the token sends to its page for people.
        allow_redirects=False,
    )
    response.raise_for_status()
    if response.is_redirect:
        raise StartError(f"{url} sends to a page for signing in: the token is missing or not known to the proxy.")
    answer = response.json()
    if "errors" in answer:
        raise StartError("; ".join(error["message"] for error in answer["errors"]))
    (field,) = answer["data"].values()
    if field["__typename"] != expected:
        reasons = [error["message"] for error in field.get("errors", [])] or [field.get("message", "no reason given")]
        raise StartError(f"{field['__typename']}: {'; '.join(reasons)}")
    result: dict[str, Any] = field
    return result


def main() -> int:
    """Start a run and print its id; returns the exit code."""
    parser = argparse.ArgumentParser(description="Start a run, once for each key.")
    parser.add_argument("--location", required=True, help="code location, such as shared")
    parser.add_argument("--job", required=True)
    parser.add_argument(
        "--key", required=True, help="what makes this start one of its kind, such as invoices-2026-11-21"
    )
    parser.add_argument("--config", type=json.loads, default={}, help="run config, as JSON")
    given = parser.parse_args()
    try:
        run = start_run(
            os.environ["DAGSTER_URL"], os.environ["DAGSTER_TOKEN"], given.location, given.job, given.key, given.config
        )
    except KeyError as error:
        print(f"{error} is not set", file=sys.stderr)
        return 2
    except (StartError, requests.RequestException) as error:
        print(error, file=sys.stderr)
        return 1
    print(run["runId"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
