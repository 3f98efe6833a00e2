"""Adding a team, or a dag to a team, as one command: `make new-team`, `make new-dag`, `make check-team`.

`names.py` is what may be a name; `edits.py` and `deployment.py` put one entry into a text; `project.py` is which files
change, computed as a whole before the first is written; `team_checks.py` is what is run for one team; `templates/` is
what a new dag looks like. Nothing imports it, and it imports nothing of the project: it works on files, also where they
do not load.
"""
