"""Asks this container's own health; exits 1 where it is not ready: `python healthcheck.py SETTING DEFAULT [PATH]`.

The setting is the one that names the port. (There is no curl here, and the command `travelrec` takes longer to start.)
"""

import http.client
import os
import sys

setting, default, path = [*sys.argv[1:], "/readyz"][:3]
connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get(setting) or default), timeout=3)
connection.request("GET", path)
sys.exit(connection.getresponse().status != http.HTTPStatus.OK)
