#!/usr/bin/env bash
# A plain proxy on Starlette and httpx.AsyncClient with HTTP/2, under uvicorn with one worker.
#
#   starlette.sh setup DIR | version DIR | run DIR PORT UPSTREAM_URL CA_FILE
#
# After uvicorn's "Settings" and "Deployment" (uvicorn[standard] for uvloop and httptools, no access log under load)
# and HTTPX's "Async Support" and "HTTP/2" (one client for the whole process, http2=True; PEER_HTTP2=false turns it
# off). Over HTTP/2, httpcore 1.0 does not reset the stream of an answer that is closed early.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/venv.bash"
verb="${1:?setup, version or run}" dir="$(realpath -m "${2:?a folder}")"

case "$verb" in
setup)
  make_venv "$dir" 'starlette>=1,<2' 'uvicorn[standard]>=0.40,<1' 'httpx[http2]>=0.28,<0.29'
  ;;
version)
  versions "$dir" starlette uvicorn httpx h2
  ;;
run)
  export PEER_UPSTREAM="${4:?an https URL}" PEER_CA="${5:?a PEM file}" PYTHONDONTWRITEBYTECODE=1
  exec "$dir/venv/bin/python" -m uvicorn --app-dir "$here" --host 127.0.0.1 --port "${3:?a port}" --workers 1 \
    --loop uvloop --http httptools --no-access-log --log-level warning --no-server-header \
    --no-date-header starlette_app:app
  ;;
*)
  echo "setup, version or run, not $verb" >&2
  exit 2
  ;;
esac
