"""The bytes of tokens."""

import re

from transformers.convert_slow_tokenizer import bytes_to_unicode

# The byte for which each character stands in the names of byte-level tokens
BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}


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
    if all(set(name) <= BYTE_OF.keys() for name in ordinary):
        spell = byte_level
    elif any(re.fullmatch("<0x[0-9A-F]{2}>", name) for name in ordinary):
        spell = sentence_piece
    else:
        raise ValueError("the tokens are neither byte level nor SentencePiece's")
    found = []
    for i, name in enumerate(names):
        if not name or i in special:
            found.append(b"")
        else:
            found.append(name.encode() if i in added else spell(name))
    return found


def byte_level(name: str) -> bytes:
    """The bytes of a byte-level token of this name."""
    return bytes(BYTE_OF[character] for character in name)


def sentence_piece(name: str) -> bytes:
    """The bytes of a SentencePiece token of this name."""
    if re.fullmatch("<0x[0-9A-F]{2}>", name):
        return bytes([int(name[3:5], 16)])
    return name.replace("▁", " ").encode()
