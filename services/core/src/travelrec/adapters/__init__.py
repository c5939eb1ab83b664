"""The world outside, behind the ports; an URL's scheme picks the module (see `travelrec.connect`)."""
