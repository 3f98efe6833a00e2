"""What teams share: settings, owners, resources, ClickHouse. Imports no dag and no location."""
