#!/usr/bin/env bash
# Portkey's open-source gateway on Node.js, one process.
#
#   portkey.sh setup DIR | version DIR | run DIR PORT UPSTREAM_URL CA_FILE
#
# After its "Installation and deployments" (a Node.js server: node build/start-server.js). Callers name the provider
# and its address in headers. Node's fetch speaks HTTP/1.1 to the upstream. @hono/node-server is kept at 1.14.2, the
# last one with which its issue 1389 reports streams to work; those of /v1/messages end in "TypeError: immutable" with
# that one too (compare its issue 1550), as of 1.15.2.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
verb="${1:?setup, version or run}" dir="$(realpath -m "${2:?a folder}")"

case "$verb" in
setup)
  mkdir -p "$dir"
  cat >"$dir/wanted.json" <<'JSON'
{
  "private": true,
  "dependencies": { "@portkey-ai/gateway": "^1.15.2" },
  "overrides": { "@hono/node-server": "1.14.2" }
}
JSON
  if ! cmp -s "$dir/wanted.json" "$dir/package.json"; then
    rm -rf "$dir/node_modules" "$dir/package-lock.json" "$dir/package.json"
    (cd "$dir" && cp wanted.json package.json &&
      npm install --no-audit --no-fund --loglevel=error >&2) || { rm -f "$dir/package.json"; exit 1; }
  fi
  ;;
version)
  cd "$dir"
  echo "Portkey $(node -p 'require("./node_modules/@portkey-ai/gateway/package.json").version'), Node.js $(node -p process.versions.node)"
  ;;
run)
  port="${3:?a port}"
  : "${4:?an https URL}" # callers name it
  export NODE_ENV=production NODE_EXTRA_CA_CERTS="${5:?a PEM file}"
  exec node --require "$here/loopback.cjs" "$dir/node_modules/@portkey-ai/gateway/build/start-server.js" \
    --headless "--port=$port"
  ;;
*)
  echo "setup, version or run, not $verb" >&2
  exit 2
  ;;
esac
