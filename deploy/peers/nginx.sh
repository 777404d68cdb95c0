#!/usr/bin/env bash
# nginx as a reverse proxy, one worker process: the physical limit of a proxy that understands nothing.
#
#   nginx.sh setup DIR | version DIR | run DIR PORT UPSTREAM_URL CA_FILE
#
# After nginx's own pages: "Module ngx_http_upstream_module", keepalive (HTTP/1.1 and an empty Connection towards the
# upstream); "Module ngx_http_proxy_module", proxy_buffering off so that events leave at once, proxy_ssl_verify; and
# F5's "Tuning NGINX for Performance": access_log off, a high keepalive_requests under load generators.
# nginx before 1.29.4 speaks HTTP/1.1 to its upstreams, so this one does.
set -euo pipefail

verb="${1:?setup, version or run}" dir="$(realpath -m "${2:?a folder}")"

binary() {
  command -v nginx || PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v nginx ||
    { echo "nginx is not installed: apt-get install nginx-light" >&2; exit 1; }
}

case "$verb" in
setup)
  binary >/dev/null
  mkdir -p "$dir"
  ;;
version)
  "$(binary)" -v 2>&1 | sed 's|.*nginx/|nginx |; s| (.*||'
  ;;
run)
  port="${3:?a port}" upstream="${4:?an https URL}" ca="${5:?a PEM file}"
  home="$dir/run-$port"
  mkdir -p "$home"
  authority="${upstream#https://}"
  authority="${authority%%/*}"
  cat >"$home/nginx.conf" <<CONF
daemon off;
worker_processes 1;
worker_rlimit_nofile 8192;
pid $home/nginx.pid;
error_log stderr warn;

events { worker_connections 4096; }

http {
    access_log off;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_max_body_size 64m;
    client_body_temp_path $home/body;
    proxy_temp_path $home/proxy;
    fastcgi_temp_path $home/fastcgi;
    uwsgi_temp_path $home/uwsgi;
    scgi_temp_path $home/scgi;

    upstream provider {
        server $authority;
        keepalive 256;
        keepalive_requests 1000000;
    }

    server {
        listen 127.0.0.1:$port backlog=1024;

        location / {
            proxy_pass https://provider;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $authority;
            proxy_buffering off;
            proxy_read_timeout 600s;
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate $ca;
            proxy_ssl_name ${authority%%:*};
            proxy_ssl_server_name on;
            proxy_ssl_protocols TLSv1.2 TLSv1.3;
        }
    }
}
CONF
  exec "$(binary)" -e stderr -p "$home" -c "$home/nginx.conf"
  ;;
*)
  echo "setup, version or run, not $verb" >&2
  exit 2
  ;;
esac
