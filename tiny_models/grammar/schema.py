"""JSON schemas as regexes, for a part of the language.

The text is written as json.dumps(value, ensure_ascii=False) writes it. All properties
of an object are written, in their order, and no others.
"""

import json
import re

from tiny_models.grammar.pattern import MOST, parse
from tiny_models.grammar.regex import EMPTY, Regex, either, many, repeat, then

DEPTH = 4  # of arrays and objects in a JSON object without a schema
INTEGER = "-?(0|[1-9][0-9]*)"
SIMPLE = {
    "null": parse("null"),
    "boolean": parse("true|false"),
    "integer": parse(INTEGER),
    "number": parse(INTEGER + r"(\.[0-9]+)?([eE][-+]?[0-9]+)?"),
}
CHARACTER = parse(r'[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u00[01][0-9a-f]')
QUOTE, COMMA, COLON = parse('"'), parse(", "), parse(": ")
KEYWORDS = {"const", "enum", "anyOf", "type", "properties", "items"}
KEYWORDS |= {"minLength", "maxLength", "minItems", "maxItems"}
KEYWORDS |= {"required", "additionalProperties"}
KEYWORDS |= {"title", "description", "default", "examples", "$schema"}


def regex_of_schema(schema: dict) -> Regex:
    """The JSON texts of a schema.

    Raises ValueError for what is not supported, and for what no text can fulfil.
    """
    if not isinstance(schema, dict):
        raise ValueError(f"a schema must be an object, not {json.dumps(schema)[:80]}")
    for keyword in schema:
        if keyword not in KEYWORDS:
            raise ValueError(f"the keyword {json.dumps(keyword)} is not supported")
    if "const" in schema:
        return _value(schema["const"])
    kind, options = schema.get("type"), None
    if "enum" in schema:
        options = [{"const": value} for value in _list(schema, "enum")]
    elif "anyOf" in schema:
        options = _list(schema, "anyOf")
    elif isinstance(kind, list):
        options = [{**schema, "type": one} for one in _list(schema, "type")]
    if options is not None:
        return either(*map(regex_of_schema, options))
    if kind == "string":
        return then(QUOTE, repeat(CHARACTER, *_limits(schema, "Length")), QUOTE)
    if kind == "array":
        if "items" not in schema:
            raise ValueError('an array needs "items"')
        item = regex_of_schema(schema["items"])
        return _array(item, *_limits(schema, "Items"))
    if kind == "object":
        return _object(schema)
    if isinstance(kind, str) and kind in SIMPLE:
        return SIMPLE[kind]
    raise ValueError(f'"type" must name a type of JSON, not {json.dumps(kind)}')


def any_object() -> Regex:
    """Any JSON object in which arrays and objects are nested at most DEPTH deep."""
    text = then(QUOTE, many(CHARACTER), QUOTE)
    value = simple = either(text, SIMPLE["null"], SIMPLE["boolean"], SIMPLE["number"])
    for _ in range(DEPTH):
        inner = value
        value = either(
            simple, _array(inner, 0, None), _members(then(text, COLON, inner))
        )
    return _members(then(text, COLON, inner))


def _members(member: Regex) -> Regex:
    more = then(member, many(then(COMMA, member)))
    return then(parse(r"\{"), either(EMPTY, more), parse(r"\}"))


def _value(value) -> Regex:
    return parse(re.escape(json.dumps(value, ensure_ascii=False)))


def _list(schema, keyword) -> list:
    if not isinstance(schema[keyword], list) or not schema[keyword]:
        raise ValueError(f'"{keyword}" must be a list with at least one item')
    return schema[keyword]


def _limits(schema, what) -> tuple[int, int | None]:
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}")
    for number in (least, 0 if most is None else most):
        if type(number) is not int or not 0 <= number <= MOST:
            raise ValueError(f'"min{what}" and "max{what}" must be from 0 to {MOST}')
    if most is not None and most < least:
        raise ValueError(f'"min{what}" is above "max{what}"')
    return least, most


def _array(item: Regex, least: int, most: int | None) -> Regex:
    items = EMPTY
    if most != 0:
        more = repeat(then(COMMA, item), max(least - 1, 0), most and most - 1)
        items = then(item, more)
    if least == 0:
        items = either(EMPTY, items)
    return then(parse(r"\["), items, parse(r"\]"))


def _object(schema) -> Regex:
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        raise ValueError('"properties" must be an object')
    required = schema.get("required", [])
    if not isinstance(required, list):
        raise ValueError('"required" must be a list')
    for name in required:
        if name not in properties:
            raise ValueError(f'{json.dumps(name)} is required, but not in "properties"')
    parts = []
    for name, inner in properties.items():
        parts += [COMMA] if parts else []
        parts += [_value(name), COLON, regex_of_schema(inner)]
    return then(parse(r"\{"), *parts, parse(r"\}"))
