"""From ids to text, token by token. Oracle: the tokenizer's own `decode` of all ids."""

import random

import pytest

from tiny_models.detokenizer import Detokenizer
from tiny_models.toy_tokenizer import byte_fallback_tokenizer, toy_tokenizer

BYTE = 3  # the id of byte 0, in both vocabularies


def pieces_of(tokenizer, ids):
    detokenizer = Detokenizer(tokenizer)
    return [*map(detokenizer.push, ids), detokenizer.flush()]


def by_bytes(text):
    """Ids of the byte-level tokenizer, one for each byte of the text."""
    return toy_tokenizer()(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("make", [toy_tokenizer, byte_fallback_tokenizer])
def test_pieces_join_to_decode_whatever_the_tokens(make):
    """Bytes that are no UTF-8, special tokens within a character, spaces, U+FFFD."""
    draw, tokenizer = random.Random(0), make()
    bytes_ = b"\xc3\xa9\xe6\x9d\xb1\xf0\x9f\xa6\x8a\xff\xef\xbf\xbda "
    likely = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    likely = [n for n, t in enumerate(likely) if n < BYTE or n >= BYTE + 256]
    if make is toy_tokenizer:
        likely = [0, 1, 2] + by_bytes("é東🦊\ufffda  b")
    else:
        likely += [BYTE + byte for byte in bytes_]
    for _ in range(2000):
        ids = draw.choices(likely, k=draw.randint(0, 12))
        pieces = pieces_of(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True), ids


@pytest.mark.parametrize("make", [toy_tokenizer, byte_fallback_tokenizer])
def test_a_run_of_real_replacement_signs_comes_out_and_costs_no_more(make):
    tokenizer, lengths = make(), []

    class Spy:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def decode(self, ids, **options):
            lengths.append(len(ids))
            return tokenizer.decode(ids, **options)

    one = by_bytes("\ufffd")
    if make is byte_fallback_tokenizer:
        one = tokenizer.convert_tokens_to_ids(["\ufffd"])
    detokenizer, given = Detokenizer(Spy()), ""
    for number in range(1, 200):
        given += "".join(map(detokenizer.push, one))
        assert given in ("\ufffd" * (number - 1), "\ufffd" * number)
    assert max(lengths) <= 3 * len(one)
    assert given + detokenizer.flush() == "\ufffd" * 199


def test_a_run_of_byte_tokens_waits_for_its_end():
    tokenizer = byte_fallback_tokenizer()
    good = [BYTE + byte for byte in "é東".encode()]
    a = tokenizer.convert_tokens_to_ids("a")
    assert pieces_of(tokenizer, [*good, a, a]) == [*[""] * 5, "é東a", "a", ""]
    # A byte that is no UTF-8 spoils the run, and EOS within it does not end it.
    bad = [*good[:2], 2, BYTE + 0xFF, a]
    assert tokenizer.decode(bad, skip_special_tokens=True) == "\ufffd" * 3 + "a"
    assert pieces_of(tokenizer, bad) == [*[""] * 4, "\ufffd" * 3 + "a", ""]


def test_a_whole_character_never_waits():
    assert pieces_of(toy_tokenizer(), by_bytes("né🦊!")) == [
        *["n", "", "é", "", "", "", "🦊", "!", ""]
    ]


def test_flushed_twice_nothing_comes_twice():
    detokenizer = Detokenizer(toy_tokenizer())
    assert detokenizer.push(by_bytes("é")[0]) == ""
    assert (detokenizer.flush(), detokenizer.flush()) == ("\ufffd", "")
