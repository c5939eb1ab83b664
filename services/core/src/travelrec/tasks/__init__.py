"""Tasks: kept for their caller, submitted to a third party at a limited rate, and followed by asking it."""
