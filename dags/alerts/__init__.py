"""The alert router: turns failures on a Dagster instance into few Slack messages to the teams that own them.

The teams' channels and thresholds are in `dags/slack_alerts.py`.
"""
