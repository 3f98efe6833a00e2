"""What no single product team owns. team-data-platform."""

from dags.locations import build_definitions

defs = build_definitions()
