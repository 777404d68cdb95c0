#!/usr/bin/env bash
# The plain proxy on Starlette and httpx with HTTP/1.1 to the upstream; for the rest see starlette.sh.
#
#   starlette_h1.sh setup DIR | version DIR | run DIR PORT UPSTREAM_URL CA_FILE
set -euo pipefail

export PEER_HTTP2=false
exec "$(dirname "${BASH_SOURCE[0]}")/starlette.sh" "$@"
