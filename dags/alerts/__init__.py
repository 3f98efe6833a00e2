"""The alert engine: turns what breaks on a Dagster instance into as few Slack messages as tell each owning team.

Belongs here: how failures are read, judged, worded and delivered, for any set of teams. Not here: who the teams are,
their channels and their thresholds (`dags/slack_alerts.py`).
"""
