"""The worker side of travelrec: take, generate, store, signal."""
