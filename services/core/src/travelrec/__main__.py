"""`python -m travelrec` is the command `travelrec`."""

from travelrec.cli import main

main()
