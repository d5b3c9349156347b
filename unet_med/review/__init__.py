"""Looking back at experiments."""
