"""The error messages of a failed run."""

import dagster as dg


def failure_text(result: dg.ExecuteInProcessResult) -> str:
    """Return the error messages of the failed steps, including causes."""
    texts = []
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            while error is not None:
                texts.append(error.message)
                error = error.cause
            failure = event.step_failure_data.user_failure_data
            texts.append(failure.description or "" if failure else "")
    return "\n".join(texts)
