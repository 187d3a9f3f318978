"""Read weights without running code; load them leniently, strictly or for the backbone only."""
