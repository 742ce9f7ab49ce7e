# To be read by the scripts that install by uv, with `python` set: hands on to it what this machine's configuration
# of pip says of where packages come from, of which uv itself reads nothing.
export UV_CACHE_DIR="$PWD/build/uv" UV_NO_CONFIG=1 UV_INDEX_STRATEGY=unsafe-best-match

pip_settings=$("$python" -m pip config list 2>/dev/null || true)
hand_on() { # hand_on VARIABLE NAME [SEPARATOR]: pip's environment comes before its files, and a list has a separator
    value=$(printf '%s\n' "$pip_settings" \
        | sed -n "s/^\(:env:\|install\|global\)\.$2=[\"']\(.*\)[\"']\$/\2/p" | head -n 1 \
        | sed "s/\\\\n/ /g; s/^  *//; s/  */${3:- }/g")
    if [ -n "$value" ]; then export "$1=$value"; fi
}
hand_on UV_DEFAULT_INDEX index-url
hand_on UV_INDEX extra-index-url
hand_on UV_FIND_LINKS find-links ,
hand_on UV_INSECURE_HOST trusted-host
hand_on SSL_CERT_FILE cert
