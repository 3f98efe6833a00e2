"""Tests. The folders mirror `dags/`; fixtures that several share are in conftest.py."""
