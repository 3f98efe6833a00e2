"""The daily digest: of each team and day, its visitors, sessions, top pages, and its revenue in US dollars.

`digest.py` is how a digest is read, added up and written; `assets.py` is what Dagster runs. It is small on purpose: one
asset, one check, one job, one schedule, to copy from.
"""
