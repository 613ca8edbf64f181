"""The bytes of tokens."""

import re

from tokenizers import pre_tokenizers


def token_bytes(tokenizer) -> list[bytes]:
    """What each token adds to a text, by id, as bytes; b"" for special tokens.

    A token may be a part of a character, which `decode` cannot show. Knows the two
    usual kinds of tokenizer: byte level (GPT-2, Llama 3, SmolLM2) and SentencePiece
    with byte tokens (Llama 2, Gemma). Raises ValueError for another kind.
    """
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(i for i, t in added.items() if t.special)}
    ordinary = [n for i, n in enumerate(names) if n and i not in added]
    byte_of = _byte_level()
    if all(set(name) <= byte_of.keys() for name in ordinary):
        spell = lambda name: bytes(byte_of[c] for c in name)  # noqa: E731
    elif any(re.fullmatch("<0x[0-9A-F]{2}>", name) for name in ordinary):
        spell = _sentence_piece
    else:
        raise ValueError("the tokens are neither byte level nor SentencePiece's")
    found = []
    for i, name in enumerate(names):
        if not name or i in special:
            found.append(b"")
        else:
            found.append(name.encode() if i in added else spell(name))
    return found


def _sentence_piece(name: str) -> bytes:
    if re.fullmatch("<0x[0-9A-F]{2}>", name):
        return bytes([int(name[3:5], 16)])
    return name.replace("▁", " ").encode()


def _byte_level() -> dict[str, int]:
    """The character that stands for each byte in the names of byte-level tokens.

    Printable ones of Latin-1 stand for themselves, the others are moved to 256 and up.
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {chr(byte): byte for byte in shown}
    table |= {chr(256 + n): byte for n, byte in enumerate(hidden)}
    assert table.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    return table
