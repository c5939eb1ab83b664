"""The HTTP side of travelrec: accept, answer, stream."""
