#!/bin/sh
# Run by nginx's own image at start: reloads nginx when the addresses behind the name `api` have changed, as
# `--scale` and restarts make them. (The parameter `resolve` of `server` does it too, from nginx 1.27.3 on.)
set -eu

addresses() { getent ahostsv4 api | cut -d ' ' -f 1 | sort -u | tr '\n' ' '; }

follow() {
  known=$(addresses)
  while sleep 1; do
    found=$(addresses)
    if [ -n "$found" ] && [ "$found" != "$known" ]; then
      known=$found
      nginx -s reload && echo "nginx reloaded: api is at $found" >&2
    fi
  done
}

follow &
