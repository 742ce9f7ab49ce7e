#!/bin/sh
# Takes the browser's files of the operations page from their released packages;
# src/steadyhand/web/static/vendor/VENDORED.md has their versions and digests.
# Run it after a change of a version here, and look at what changed.
set -eu
cd "$(dirname "$0")/.."
into=src/steadyhand/web/static/vendor
page=src/steadyhand/web/static/vendor/VENDORED.md
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

take() { # take PACKAGE VERSION LICENSE_FILE FILE..: files of a package, and its license
    package=$1 version=$2 license=$3
    shift 3
    (cd "$work" && npm pack --silent "$package@$version" >/dev/null && tar xzf "$package-$version.tgz")
    cp "$work/package/LICENSE" "$into/$license"
    for file; do
        cp "$work/package/$file" "$into/"
        name=$(basename "$file")
        sum=$(sha256sum "$into/$name" | cut -d' ' -f1)
        echo "| $name | $package | $version | $license | $sum |" >>"$work/rows"
    done
    rm -rf "$work/package"
}

take htmx.org 4.0.1 htmx.LICENSE.txt dist/htmx.min.js dist/ext/hx-csp.min.js dist/ext/hx-sse.min.js
{
    printf '# Vendored files\n\n'
    printf 'Released files of other projects, unchanged. `tools/vendor.sh` takes them from their npm packages.\n\n'
    printf '| file | package | version | license | sha256 |\n|---|---|---|---|---|\n'
    cat "$work/rows"
} >"$page"
