"""Fixtures: a test cluster with its API server, and a client."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dags.local import services
from dags.tests.kubernetes.cluster import Cluster, Image
from dags.tests.kubernetes.permissions import read_accounts
from dags.tests.kubernetes.server import KubernetesServer, serving
from dags.tests.web_preaggregated.conftest import cluster, web
from dags.tests.webserver import ROOT

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

# Fixtures of another package.
__all__ = ["cluster", "web"]

IMAGE = "analytics-platform:tests"


@pytest.fixture
def image() -> Image:
    """Return this environment as an image: its programs, and the project's directory."""
    programs = Path(sys.executable).parent
    return Image({"PATH": f"{programs}{os.pathsep}{os.defpath}", "PYTHONUNBUFFERED": "1"}, ROOT)


@pytest.fixture
def kubernetes(lifeline: services.Lifeline, tmp_path: Path, image: Image) -> Iterator[KubernetesServer]:
    """Yield a cluster that has the image."""
    logs = tmp_path / "pods"
    logs.mkdir()
    with serving(Cluster(lifeline, logs, {IMAGE: image}, accounts=read_accounts())) as server:
        yield server


@pytest.fixture
def kubeconfig(kubernetes: KubernetesServer, tmp_path: Path) -> Path:
    """Return the kubeconfig of the cluster."""
    return kubernetes.write_kubeconfig(tmp_path / "kubeconfig.yaml")


@pytest.fixture
def api_client(kubeconfig: Path) -> "Iterator[ApiClient]":
    """Yield the real client, connected to the cluster."""
    from kubernetes import config

    with config.new_client_from_config(str(kubeconfig)) as client:
        yield client
