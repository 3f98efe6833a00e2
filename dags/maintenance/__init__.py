"""Jobs of the platform itself: schema, run retention, cleanup after runs that died."""
