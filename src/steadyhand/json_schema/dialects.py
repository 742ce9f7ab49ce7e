"""JSON Schemas of draft 4 and newer as schemas of draft 2020-12. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

SCHEMA_KEYWORDS = frozenset(
    {
        "additionalItems",
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
SCHEMA_LIST_KEYWORDS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
SCHEMA_MAP_KEYWORDS = frozenset(
    {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}
)
DIALECTS = frozenset(
    {
        "draft-04/schema",
        "draft-06/schema",
        "draft-07/schema",
        "draft/2019-09/schema",
        "draft/2020-12/schema",
        "schema",
    }
)
_LEGACY_DIALECTS = frozenset({"draft-04/schema", "draft-06/schema", "draft-07/schema"})
_IDENTIFIERS = frozenset(
    {"$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary"}
)
_SIBLINGS_OF_REFERENCES = frozenset(
    {"$ref", "$defs", "definitions", "$schema", "$id", "title", "description", "default"}
)
"""The keywords that count beside a reference in draft 7 and older."""


def dialect_of(schema: Mapping[str, Any]) -> str | None:
    """Return the dialect that a schema names, `draft-07/schema` for example; None if it names an unknown one.

    Without a name it is of the newest dialect.
    """
    uri = schema.get("$schema", "schema")
    if not isinstance(uri, str):
        return None
    name = uri.rstrip("#").removeprefix("https://").removeprefix("http://").removeprefix("json-schema.org/")
    return name if name in DIALECTS else None


def resolve_pointer(root: Any, reference: str) -> Any:
    """Return the target of a reference `#` or `#/..`, or None."""
    node = root
    for key in split_pointer(reference):
        if isinstance(node, Sequence) and not isinstance(node, str) and key.isdecimal():
            node = node[int(key)] if int(key[:9]) < len(node) else None
        else:
            node = node.get(key) if isinstance(node, Mapping) else None
        if node is None:
            return None
    return node


def split_pointer(reference: str) -> list[str]:
    """Return the keys of a reference `#` or `#/..`."""
    return [
        unquote(part).replace("~1", "/").replace("~0", "~")
        for part in reference[2:].split("/")
        if len(reference) > 1
    ]


def find_anchors(root: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the schemas with a name of their own, such as `#name`, by it. The first one of a name counts."""
    anchors: dict[str, Mapping[str, Any]] = {}
    pending: list[Any] = [root]
    while pending:
        schema = pending.pop()
        if not isinstance(schema, Mapping):
            continue
        names = [f"#{schema.get('$anchor')}", schema.get("$id"), schema.get("id")]
        for name in names:
            if isinstance(name, str) and name.startswith("#") and len(name) > 1:
                anchors.setdefault(name, schema)
        pending += subschemas(schema)
    return anchors


def subschemas(schema: Mapping[str, Any]) -> Iterable[Any]:
    """Yield the direct subschemas of a schema."""
    for key, value in schema.items():
        if key in SCHEMA_KEYWORDS or (key == "items" and not isinstance(value, list)):
            yield value
        elif key in SCHEMA_LIST_KEYWORDS or key == "items":
            yield from value if isinstance(value, list) else ()
        elif key in SCHEMA_MAP_KEYWORDS or key == "dependencies":
            yield from value.values() if isinstance(value, Mapping) else ()


# --- every dialect as draft 2020-12 ----------------------------------------------------------------


def modernize(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checked schema (`json_schema.check_schema`) in draft 2020-12, without its name and its dialect."""
    return _Modernizer(schema).result()


class _Modernizer:
    """Converts one schema. A target of a reference that is at no place for schemas moves into `$defs`."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._ignores_siblings = dialect_of(root) in _LEGACY_DIALECTS
        self._anchors = find_anchors(root)
        self._moved: dict[int, str] = {}
        self._definitions: dict[str, Any] = {}

    def result(self) -> dict[str, Any]:
        converted: dict[str, Any] = self._convert(self._root)
        if self._definitions:
            converted["$defs"] = {**converted.get("$defs", {}), **self._definitions}
        return converted

    def _convert(self, schema: Any) -> Any:
        if not isinstance(schema, Mapping):
            return schema
        converted: dict[str, Any] = {}
        for key, value in schema.items():
            if key in _IDENTIFIERS or (
                self._ignores_siblings and "$ref" in schema and key not in _SIBLINGS_OF_REFERENCES
            ):
                continue
            if key == "$ref":
                converted[key] = self._convert_reference(value)
            elif key in SCHEMA_MAP_KEYWORDS:
                converted[key] = {name: self._convert(inner) for name, inner in value.items()}
            elif key in SCHEMA_LIST_KEYWORDS or (key == "items" and isinstance(value, list)):
                converted["prefixItems" if key == "items" else key] = [
                    self._convert(inner) for inner in value
                ]
            elif key == "dependencies":
                _convert_dependencies(
                    converted, {name: self._convert(inner) for name, inner in value.items()}
                )
            elif key in SCHEMA_KEYWORDS or key == "items":
                converted[key] = self._convert(value)
            else:
                converted[key] = value
        _convert_additional_items(converted, is_tuple=isinstance(schema.get("items"), list))
        _convert_exclusive_bounds(converted)
        return converted

    def _convert_reference(self, reference: str) -> str:
        if reference == "#" or (reference.startswith("#/") and self._stays(split_pointer(reference))):
            return reference
        target = (
            resolve_pointer(self._root, reference)
            if reference.startswith("#/")
            else self._anchors.get(unquote(reference))
        )
        if target is self._root:
            return "#"
        if id(target) not in self._moved:
            name = f"reference_{len(self._moved) + 1}"
            while name in self._root.get("$defs", {}):
                name += "_"
            self._moved[id(target)] = name
            self._definitions[name] = self._convert(target)
        return f"#/$defs/{self._moved[id(target)]}"

    def _stays(self, keys: Sequence[str]) -> bool:
        """Return True if a pointer leads through places for schemas that the conversion leaves as they are."""
        node: Any = self._root
        rest = list(keys)
        while rest and isinstance(node, Mapping):
            key = rest.pop(0)
            node = node.get(key)
            if key in SCHEMA_MAP_KEYWORDS or key in SCHEMA_LIST_KEYWORDS:
                if not rest:
                    return False
                node = resolve_pointer(node, f"#/{_escape(rest.pop(0))}")
            elif key not in (SCHEMA_KEYWORDS - {"additionalItems"}) | {"items"} or isinstance(node, list):
                return False
        return not rest


def _escape(key: str) -> str:
    return quote(key.replace("~", "~0").replace("/", "~1"))


def _convert_dependencies(converted: dict[str, Any], dependencies: Mapping[str, Any]) -> None:
    required = {name: each for name, each in dependencies.items() if isinstance(each, list)}
    schemas = {name: each for name, each in dependencies.items() if not isinstance(each, list)}
    for key, part in (("dependentRequired", required), ("dependentSchemas", schemas)):
        if part:
            converted[key] = {**part, **converted.get(key, {})}


def _convert_additional_items(converted: dict[str, Any], *, is_tuple: bool) -> None:
    additional = converted.pop("additionalItems", None)
    if is_tuple and additional is not None:
        converted["items"] = additional


def _convert_exclusive_bounds(converted: dict[str, Any]) -> None:
    """Replace the booleans of draft 4 by numbers."""
    for exclusive, inclusive in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        flag = converted.get(exclusive)
        if isinstance(flag, bool):
            del converted[exclusive]
            if flag and inclusive in converted:
                converted[exclusive] = converted.pop(inclusive)


def rebase_references(schema: Any, base: str) -> Any:
    """Return a schema of draft 2020-12 for the place `base` in another schema, with its references adapted."""
    if not isinstance(schema, Mapping):
        return schema
    copy = dict(schema)
    reference = copy.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        copy["$ref"] = base + reference[1:]
    for name in copy.keys() & {*SCHEMA_KEYWORDS, *SCHEMA_LIST_KEYWORDS, "items"}:
        inner = copy[name]
        copy[name] = (
            [rebase_references(item, base) for item in inner]
            if isinstance(inner, list)
            else rebase_references(inner, base)
        )
    for name in copy.keys() & SCHEMA_MAP_KEYWORDS:
        copy[name] = {key: rebase_references(item, base) for key, item in copy[name].items()}
    return copy
