"""What `make demo` shows: the jobs of the teams, run for real on the local stack, and what they left behind.

`__main__.py` has the order of the show, and one module has each team's part. What does not belong here: the jobs, and
starting the services (`python -m dags.local up -- python -m dags.local.demo`).
"""
