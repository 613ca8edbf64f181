"""Our regexes equal `re`, and our masks those of llguidance, bit for bit."""

import json
import random
import re

import pytest
import torch

from course.making.answers import reference
from tests.lessons.test_12_constrained_decoding import random_schema
from tiny_models import load
from tiny_models.grammar import parse, token_bytes
from tiny_models.toy_tokenizer import byte_fallback_tokenizer, toy_tokenizer

ATOMS = [
    "a",
    "b",
    "ab",
    "é",
    "日",
    "😀",
    ".",
    "[ab]",
    "[^a]",
    "[a-cé]",
    r"\d",
    r"\w",
    r"\.",
]
ATOMS += ["[^é日]", r"[^\n\x00-a]", r"\S", r"\u00e9", "[-a]", "[]b]", "[^]b]", "[α-ω€]"]
SUFFIXES = ["*", "+", "?", "{2}", "{0,2}", "{1,3}", "{2,}", "{,1}"]
LETTERS = "aabbcé日😀1.x\n]-ω€"


def random_pattern(r, depth=3):
    kind = r.random() if depth else 0
    if kind < 0.25:
        return r.choice(ATOMS)
    if kind < 0.5:
        return random_pattern(r, depth - 1) + random_pattern(r, depth - 1)
    if kind < 0.7:
        return f"({random_pattern(r, depth - 1)}|{random_pattern(r, depth - 1)})"
    if kind < 0.75:
        return f"(?:{random_pattern(r, depth - 1)}|)"
    return f"({random_pattern(r, depth - 1)}){r.choice(SUFFIXES)}"


def accepts(automaton, text) -> bool:
    state = automaton.start
    for byte in text.encode():
        state = automaton.step(state, byte)
        if state is None:
            return False
    return automaton.accepting(state)


def test_re_accepts_the_same_texts_as_thousand_random_patterns():
    r, accepted, automaton_of = random.Random(0), 0, reference("Automaton")
    for _ in range(1000):
        pattern = random_pattern(r)
        automaton = automaton_of(pattern)
        for _ in range(12):
            text = "".join(r.choice(LETTERS) for _ in range(r.randrange(6)))
            wanted = re.fullmatch(pattern, text, re.ASCII) is not None
            assert accepts(automaton, text) == wanted, (pattern, text)
            accepted += wanted
    assert accepted > 1000, "many texts should match"


@pytest.mark.parametrize(
    "odd", ["a{", "a{x}", "a{}", "}", "]", "a{1", "x{1,2,3}", "a,}"]
)
def test_other_braces_are_characters_as_for_re(odd):
    accepted = [t for t in ("a", odd) if re.fullmatch(odd, t)]
    assert [
        t for t in ("a", odd) if accepts(reference("Automaton")(odd), t)
    ] == accepted


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "a**",
            "a+?",
            "a*+",
            "*a",
            "?",
            "+",
            "{2}a",
            "(",
            ")",
            "a)",
            "(a",
            "[",
            "[a",
            "[^",
        ),
        *("(?=a)", "(?!a)", "(?P<n>a)", "(?i)a", "^a", "a$", "\\", r"\b", r"\1", r"\A"),
        *(
            "a{3,2}",
            "a{1001}",
            "a{0,1001}",
            "[b-a]",
            r"[\d-z]",
            r"\x4",
            r"\xzz",
            r"\u12",
        ),
        *("a|*", "(|*)", "a{2}{3}", "\ud800", "[^\ud800a"),
    ],
)
def test_what_the_parser_does_not_know_it_refuses(pattern):
    with pytest.raises(ValueError, match="pattern"):
        parse(pattern)


def test_every_character_is_its_own_bytes():
    """At the borders of the lengths of UTF-8, and around the surrogates."""
    borders = (0, 0x7F, 0x80, 0x7FF, 0x800, 0xFFF, 0xD7FF, 0xE000, 0xFFFF, 0x10000)
    borders += (0x3FFFF, 0x40000, 0xFFFFF, 0x100000, 0x10FFFF)
    automaton_of = reference("Automaton")
    for low, high in zip(borders, borders[1:], strict=False):
        pattern = f"[{re.escape(chr(low))}-{re.escape(chr(high))}]"
        automaton, others = automaton_of(pattern), automaton_of(f"[^{pattern[1:]}")
        for code in {*borders, low + 1, high - 1, (low + high) // 2}:
            if 0xD800 <= code <= 0xDFFF:
                continue
            wanted = low <= code <= high
            assert accepts(automaton, chr(code)) == wanted, (low, high, code)
            assert accepts(others, chr(code)) != wanted, (low, high, code)


def test_no_character_is_half_a_surrogate_pair_or_no_utf_8():
    automaton = reference("Automaton")("[^a]")
    for bad in (
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\xf4\x90\x80\x80",
        b"\x80",
        b"\xe0\x80\x80",
    ):
        state = automaton.start
        for byte in bad:
            state = None if state is None else automaton.step(state, byte)
        assert state is None, bad


# --- the bytes of tokens --------------------------------------------------------------


def test_the_bytes_of_tokens_join_to_the_text():
    _, real = load()
    text = 'Héllo wörld 日本 😀 {"a": 1}\n\n  x\ttab'
    for tokenizer in (real, toy_tokenizer(), toy_tokenizer(specials_last=True)):
        vocabulary = token_bytes(tokenizer)
        assert len(vocabulary) == len(tokenizer)
        ids = tokenizer(text).input_ids
        assert b"".join(vocabulary[i] for i in ids) == text.encode()
        assert all(vocabulary[i] == b"" for i in tokenizer.all_special_ids)


def test_sentence_piece_tokens_are_bytes_and_spaces():
    tokenizer = byte_fallback_tokenizer()
    vocabulary = token_bytes(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["▁bad", "<0xC3>", "<0xA9>", "é", "</s>"])
    assert [vocabulary[i] for i in ids] == [
        b" bad",
        b"\xc3",
        b"\xa9",
        "é".encode(),
        b"",
    ]


# --- llguidance -----------------------------------------------------------------------


def theirs(matcher, size) -> torch.Tensor:
    words = torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=torch.uint8)
    bits = (words[:, None] >> torch.arange(8)) & 1
    return bits.flatten()[:size].bool()


@pytest.fixture(scope="module")
def real():
    llguidance = pytest.importorskip(
        "llguidance", reason="needs requirements-teach.txt"
    )
    from llguidance.hf import from_tokenizer

    _, tokenizer = load()
    vocabulary = token_bytes(tokenizer)
    trie = reference("TokenTrie")(vocabulary)
    return llguidance, from_tokenizer(tokenizer), tokenizer, vocabulary, trie


PATTERNS = [
    *(r"[0-9]+\.[0-9][0-9] €", "(yes|no|yesterday)", "[a-c]*d{2,5}", "(é|日本|😀)+!?"),
    *(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?", "(19|20)[0-9]{2}(-[01][0-9])?", r"[^\n]{3}"),
]
SCHEMAS = [random_schema(random.Random(seed)) for seed in range(12)]


@pytest.mark.parametrize("pattern", [*PATTERNS, *map(json.dumps, SCHEMAS)])
def test_the_masks_are_those_of_llguidance_bit_for_bit(real, pattern):
    """But where bytes are forced: there it allows one token, the usual one for them."""
    llguidance, their_tokenizer, tokenizer, vocabulary, trie = real
    if pattern.startswith("{"):
        pattern = reference("schema_to_regex")(json.loads(pattern))
    eos_id, r = tokenizer.eos_token_id, random.Random(pattern)
    automaton = reference("Automaton")(pattern)
    grammar = llguidance.LLMatcher.grammar_from_regex(pattern)
    for _ in range(3):
        matcher = llguidance.LLMatcher(their_tokenizer, grammar)
        assert not matcher.is_error(), matcher.get_error()
        state = automaton.start
        for _ in range(8):
            ours = trie.mask(automaton, state)
            ours[eos_id] = automaton.accepting(state)
            other = theirs(matcher, len(vocabulary))
            forced = reference("forced_bytes")(automaton, state)
            assert forced == matcher.compute_ff_bytes()
            differ = (ours != other).nonzero()[:, 0].tolist()
            if forced and differ:
                [only] = other.nonzero()[:, 0].tolist()
                assert ours[only]
                assert forced.startswith(vocabulary[only])
            else:
                assert not differ, [
                    (i, vocabulary[i], bool(ours[i])) for i in differ[:9]
                ]
            choices = [i for i in ours.nonzero()[:, 0].tolist() if i != eos_id]
            if not choices:
                break
            token = r.choice(choices)
            assert matcher.consume_token(token)
            for byte in vocabulary[token]:
                state = automaton.step(state, byte)
