"""Deleting what somebody has asked to be deleted: persons, teams, events by name, single events.

`registry.py` says what a request must reach, `delete.py` does it, `job.py` runs it, and `python -m dags.deletes` asks
for it. The requests are in `dags/common/deletion_requests.py`; what "deleted" means is in docs/deletes.md.
"""
