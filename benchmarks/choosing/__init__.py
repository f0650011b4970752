"""Which solver and grid give the best samples for a number of network calls: docs/choosing.md."""
