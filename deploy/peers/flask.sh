#!/usr/bin/env bash
# A plain proxy on Flask and requests, under gunicorn with one gevent worker.
#
#   flask.sh setup DIR | version DIR | run DIR PORT UPSTREAM_URL CA_FILE
#
# After Flask's "Deploying to Production", "gunicorn" (-k gevent for streaming and many slow requests), gunicorn's
# "Settings" (a longer keepalive behind a balancer) and requests' "Advanced Usage" (one Session, a pool as large as the
# concurrency, stream=True). requests speaks HTTP/1.1 only.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/venv.bash"
verb="${1:?setup, version or run}" dir="$(realpath -m "${2:?a folder}")"

case "$verb" in
setup)
  make_venv "$dir" 'flask>=3.1,<4' 'gunicorn[gevent]>=25,<28' 'requests>=2.32,<3'
  ;;
version)
  versions "$dir" flask requests gunicorn gevent
  ;;
run)
  export PEER_UPSTREAM="${4:?an https URL}" PEER_CA="${5:?a PEM file}" PYTHONDONTWRITEBYTECODE=1
  cd "$here" # gunicorn reads gunicorn.conf.py of the folder it is started in: not Penstock's
  exec "$dir/venv/bin/python" -m gunicorn --bind "127.0.0.1:${3:?a port}" --workers 1 --worker-class gevent \
    --worker-connections 1000 --keep-alive 65 --worker-tmp-dir /dev/shm --no-control-socket \
    --log-level warning flask_app:app
  ;;
*)
  echo "setup, version or run, not $verb" >&2
  exit 2
  ;;
esac
