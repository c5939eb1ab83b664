"""The real accepter, engine, lease and sweeper code among simulated neighbours, in virtual time: a seed is a history.

`task sim` runs thousands of seeds; `task sim -- --seed N --trace` runs one and tells it.
"""
