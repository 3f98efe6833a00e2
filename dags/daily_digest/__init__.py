"""The daily digest: visitors, sessions, top pages and revenue in US dollars of each team and day.

It is small on purpose, to copy from: one asset, one check, one job, one schedule. `digest.py` computes and writes a
digest, `report.py` shows it.
"""
