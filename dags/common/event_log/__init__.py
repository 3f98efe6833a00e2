"""Reading Dagster's event log in bulk: events after a position, and the runs behind them."""
