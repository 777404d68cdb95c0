#!/usr/bin/env bash
# LiteLLM's proxy server with one worker, on its native /v1/messages.
#
#   litellm.sh setup DIR | version DIR | run DIR PORT UPSTREAM_URL CA_FILE
#
# After LiteLLM's "Production Best Practices" (docs/proxy/prod: a master key, LITELLM_LOG=ERROR,
# LITELLM_MODE=PRODUCTION, set_verbose off, request_timeout 600, one uvicorn worker per pod), "Server Tuning"
# (uvicorn is recommended for almost all deployments) and "SSL security settings" (SSL_CERT_FILE). Without a database:
# no spend is written, no keys but the master key are known, which is the cheapest way it runs.
# It speaks HTTP/1.1 to the upstream over aiohttp, its default; LITELLM_HTTP2 would replace that by httpx.
# The models get prices, as the page "Custom LLM Pricing" shows: for one that it cannot price it writes a traceback to
# its log for each request, and that is not what is to be measured.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/venv.bash"
verb="${1:?setup, version or run}" dir="$(realpath -m "${2:?a folder}")"

case "$verb" in
setup)
  make_venv "$dir" 'litellm[proxy]>=1.100,<2'
  ;;
version)
  versions "$dir" litellm uvicorn aiohttp
  ;;
run)
  port="${3:?a port}"
  home="$dir/run-$port"
  mkdir -p "$home"
  cat >"$home/config.yaml" <<CONF
model_list:
  - model_name: "*"
    litellm_params:
      model: "anthropic/*"
      api_base: "${4:?an https URL}"
      api_key: "sk-upstream"
      input_cost_per_token: 0.000003
      output_cost_per_token: 0.000015
litellm_settings:
  request_timeout: 600
  set_verbose: false
general_settings:
  master_key: "${PEER_KEY:-sk-bench}"
CONF
  export SSL_CERT_FILE="${5:?a PEM file}" LITELLM_LOG=ERROR LITELLM_MODE=PRODUCTION
  export LITELLM_LOCAL_MODEL_COST_MAP=True # the bundled prices: nothing is fetched from elsewhere
  cd "$home"
  exec "$dir/venv/bin/litellm" --config "$home/config.yaml" --host 127.0.0.1 --port "$port" --num_workers 1
  ;;
*)
  echo "setup, version or run, not $verb" >&2
  exit 2
  ;;
esac
