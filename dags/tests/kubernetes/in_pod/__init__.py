"""What Python loads in the pods of the loopback cluster."""
