#!/bin/sh
# Finding: `claude --json-schema` refuses ordinary JSON Schemas. It compiles draft 7 in a strict mode: a schema that
# names the current dialect (2020-12), a tuple by `prefixItems`, and the keyword `example` or `discriminator` of OpenAPI
# each end the run before it asks the model. JSON Schema says that a validator should ignore unknown keywords.
# Who meets it: programs that pass on schemas made by other tools, such as pydantic, zod or an OpenAPI document.
# Versions: claude 2.1.332 (claude-agent-sdk 0.2.189).
# Steadyhand: it sends the part that the CLI and the model's API both take, and checks the answer against the caller's
# own schema: src/steadyhand/json_schema/agent_form.py, tests/blackbox/test_structured_output.py.
set -eu
. "$(dirname "$0")/setup.inc"
{
    install_claude
    one_of='"oneOf": [{"properties": {"kind": {"const": "city"}}, "required": ["kind"]}]'
    for extra in \
        '"title": "City"' \
        '"$schema": "http://json-schema.org/draft-07/schema#"' \
        '"$schema": "https://json-schema.org/draft/2020-12/schema"' \
        '"example": {"city": "Oslo"}' \
        '"properties": {"place": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}]}}' \
        "$one_of, \"discriminator\": {\"propertyName\": \"kind\"}"; do
        ask_claude '[{"tool": "StructuredOutput", "input": {"city": "Oslo"}}]' \
            --json-schema "{\"type\": \"object\", $extra}" "Which city?"
        echo "$extra"
        echo "  exit $status, $calls calls of the model"
        sed 's/^/  /' "$run/err"
    done
} >"$folder/seen"
compare <<'EXPECTED'
2.1.332 (Claude Code)
"title": "City"
  exit 0, 1 calls of the model
"$schema": "http://json-schema.org/draft-07/schema#"
  exit 0, 1 calls of the model
"$schema": "https://json-schema.org/draft/2020-12/schema"
  exit 1, 0 calls of the model
  Error: --json-schema is not a valid JSON Schema: no schema with key or ref "https://json-schema.org/draft/2020-12/schema"
"example": {"city": "Oslo"}
  exit 1, 0 calls of the model
  Error: --json-schema is not a valid JSON Schema: strict mode: unknown keyword: "example"
"properties": {"place": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}]}}
  exit 1, 0 calls of the model
  Error: --json-schema is not a valid JSON Schema: strict mode: unknown keyword: "prefixItems"
"oneOf": [{"properties": {"kind": {"const": "city"}}, "required": ["kind"]}], "discriminator": {"propertyName": "kind"}
  exit 1, 0 calls of the model
  Error: --json-schema is not a valid JSON Schema: strict mode: unknown keyword: "discriminator"
EXPECTED
