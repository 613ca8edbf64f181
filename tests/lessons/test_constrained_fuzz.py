"""Texts of five hundred random schemas: each that ended by itself parses and is valid.

Takes more than a minute, so it is a part of `test --all`; the lesson's checks try some.
"""

import json
import random

import pytest
import torch
from jsonschema import Draft202012Validator

from course.making.answers import reference
from tests.lessons.test_12_constrained_decoding import random_schema
from tiny_models import random_llama
from tiny_models.grammar import token_bytes
from tiny_models.toy_tokenizer import toy_tokenizer

# Tokens of a few bytes that cross the borders of JSON's parts, beside all single bytes.
PIECES = (b'"}', b'": ', b'", "', b"null", b"tru", b"[]", b"}]", b'{"', b"e, ", b"0]")


def sample(logits):
    return torch.multinomial(logits.softmax(-1), 1)


@pytest.mark.parametrize("part", range(10))
def test_what_ended_by_itself_is_valid(part):
    vocabulary = [*token_bytes(toy_tokenizer()), *PIECES]
    eos_id, ended = 2, 0
    for seed in range(50 * part, 50 * part + 50):
        schema = random_schema(random.Random(1000 + seed))
        automaton = reference("Automaton")(reference("schema_to_regex")(schema))
        model = random_llama(len(vocabulary), seed=seed)
        prompt = torch.tensor([[5, 9, 40]])
        torch.manual_seed(seed)
        ids, finished = reference("constrained_decode")(
            model, prompt, automaton, vocabulary, 120, sample, eos_id
        )
        text = b"".join(vocabulary[i] for i in ids[0, 3:])
        if not finished:
            continue
        ended += 1
        value = json.loads(text.decode())
        errors = list(Draft202012Validator(schema).iter_errors(value))
        assert not errors, (schema, text, errors[0].message)
    assert ended >= 25, f"only {ended} of 50 texts ended"
