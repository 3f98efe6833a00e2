"""Start a run from outside the platform, once for each key. Needs only `requests`. See docs/start-a-run.md.

DAGSTER_URL is the address of the authenticating proxy, DAGSTER_TOKEN a token that it accepts.
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
    """A run that could not be started; the message says why."""


def start_run(
    url: str, token: str, location: str, job: str, key: str, run_config: dict[str, Any] | None = None
) -> dict[str, str]:
    """Start a run of a job, or find the run that was started with this key; return its `runId` and `status`.

    If the answer is lost, call it again with the same key. Two concurrent calls with one key leave one run: each looks
    again after its start, and the later one terminates its run. Raises StartError when Dagster refuses, and
    requests.RequestException when Dagster cannot be reached or the proxy refuses the token.
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
        # Newest first: the last one is the first that was started, and stays.
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
        # A proxy that does not know the token redirects to its login page.
        allow_redirects=False,
    )
    response.raise_for_status()
    if response.is_redirect:
        raise StartError(f"{url} redirects to a login page: the token is missing or unknown to the proxy.")
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
    """Start a run and print its id; return the exit code."""
    parser = argparse.ArgumentParser(description="Start a run, once for each key.")
    parser.add_argument("--location", required=True, help="code location, such as shared")
    parser.add_argument("--job", required=True)
    parser.add_argument("--key", required=True, help="identifies what must happen once, such as invoices-2026-11-21")
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
