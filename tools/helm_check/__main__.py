"""Render the official chart with the values of each region, and check the result with the manifests.

Exits with 1 when a rule is broken, or when --require-chart is given and there is no chart.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tools.helm_check.checks import problems_of
from tools.helm_check.programs import CACHE, CHART_VARIABLE, ROOT, chart_version, find_chart, find_programs

RELEASE = NAMESPACE = "dagster"
HELM_VALUES = ROOT / "deploy" / "helm"
RENDER_SECONDS = 120


def main() -> int:
    """Check every region; return the exit code."""
    parser = argparse.ArgumentParser(prog="make helm-check", description=__doc__)
    parser.add_argument("--require-chart", action="store_true", help="fail when there is no chart, as in CI")
    required: bool = parser.parse_args().require_chart
    programs = find_programs()
    if programs is None:
        return _skip("helm and kubectl are neither on the path nor in a package of the index.", required=required)
    print(f"helm: {programs.helm}, {_output([str(programs.helm), 'version', '--short'])}")
    chart = find_chart(programs.helm)
    if chart is None:
        missing = (
            f"the chart was not rendered. Version {chart_version()} is not in {CACHE}, its repository cannot be "
            f"reached, and {CHART_VARIABLE} is not set."
        )
        return _skip(missing, required=required)
    problems = []
    for region in regions():
        objects = [*render(programs.helm, chart, region), *manifests()]
        found = problems_of(objects, pages())
        print(f"{region}: {len(objects)} objects, {len(found)} problems")
        problems += [f"{region}: {problem}" for problem in found]
    print("\n".join(problems))
    return 1 if problems else 0


def regions() -> list[str]:
    """Return the regions that have values."""
    return sorted(path.stem.removeprefix("values-") for path in HELM_VALUES.glob("values-*.yaml"))


def render(helm: Path, chart: Path, region: str) -> list[dict[str, Any]]:
    """Return what the chart renders for a region. Raises SystemExit with the message of helm."""
    values = ["-f", str(HELM_VALUES / "values.yaml"), "-f", str(HELM_VALUES / f"values-{region}.yaml")]
    text = _output([str(helm), "template", RELEASE, str(chart), "--namespace", NAMESPACE, "--skip-tests", *values])
    return [one for one in yaml.safe_load_all(text) if one]


def manifests() -> list[dict[str, Any]]:
    """Return the objects of deploy/manifests."""
    paths = sorted((ROOT / "deploy" / "manifests").glob("*.yaml"))
    return [one for path in paths for one in yaml.safe_load_all(path.read_text())]


def pages() -> str:
    """Return the text of the pages for operators."""
    docs = ROOT / "docs"
    return "\n".join(path.read_text() for path in [docs / "deploy.md", *sorted((docs / "runbooks").glob("*.md"))])


def _skip(reason: str, *, required: bool) -> int:
    print(f"helm-check: {reason}", file=sys.stderr)
    return 1 if required else 0


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=RENDER_SECONDS)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
