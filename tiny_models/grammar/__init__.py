"""What forces a format: regular expressions over bytes, and the bytes of tokens."""

from tiny_models.grammar.pattern import parse
from tiny_models.grammar.regex import (
    EMPTY,
    NOTHING,
    Either,
    Empty,
    Many,
    Nothing,
    OneOf,
    Regex,
    Then,
    either,
    many,
    show,
    then,
)
from tiny_models.grammar.vocabulary import token_bytes

__all__ = [
    "EMPTY",
    "NOTHING",
    "Either",
    "Empty",
    "Many",
    "Nothing",
    "OneOf",
    "Regex",
    "Then",
    "either",
    "many",
    "parse",
    "show",
    "then",
    "token_bytes",
]
