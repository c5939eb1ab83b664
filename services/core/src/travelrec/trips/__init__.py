"""Trips: made-up ones on three streams, and the join that makes one record of each trip's three."""
