"""`travelrec chaos`: a real deployment under load and faults, and a check of everything that was seen of it."""
