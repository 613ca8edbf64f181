"""Tokens to text, as soon as the text is certain."""

import re

HALF_CHARACTER = "\ufffd"  # what an incomplete UTF-8 sequence decodes to


class Detokenizer:
    """Token ids to text, token by token, never half a character.

    The pieces join to `tokenizer.decode(ids, skip_special_tokens=True)`. A piece is
    what the text grows by when its token is decoded together with the few before it:
    the first token of a decoded text may lose its space, so a token cannot be decoded
    alone. The window keeps the cost of a token constant. This is the method of TGI and
    vLLM (prefix_offset, read_offset).

    What waits is what may still change: the last U+FFFD, which may be half a character
    (those before it are final), and a run of SentencePiece's byte tokens, <0xC3>. Such
    a run is decoded as a whole, and one byte that is no UTF-8 makes U+FFFD of all of
    its bytes, so none of them is certain before the run ends.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._special_ids = _special_ids(tokenizer)
        self._ids: list[int] = []  # the window: the last piece's tokens, then the new
        self._old = 0  # how many of them are the last piece's
        self._given = 0  # how many characters of their text are given

    def push(self, token_id: int) -> str:
        """The text that is certain now; "" while a character is incomplete."""
        if token_id in self._special_ids:
            return ""  # no text, and no end of a run of byte tokens either
        self._ids.append(token_id)
        if _is_byte_token(self._tokenizer, token_id):
            return ""
        text = self._decode()
        waiting = int(text.endswith(HALF_CHARACTER))
        piece = text[self._given : len(text) - waiting]
        if piece:
            del self._ids[: self._old]
            self._old = len(self._ids)
            self._given = len(self._decode()) - waiting
        return piece

    def flush(self) -> str:
        """The rest, with U+FFFD for a character that will not be completed."""
        text = self._decode()
        rest, self._given = text[self._given :], max(len(text), self._given)
        return rest

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=True)


def _special_ids(tokenizer) -> set[int]:
    """The ids that `decode` skips with skip_special_tokens=True."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    named = getattr(tokenizer, "all_special_ids", ())
    return {*named, *(i for i, token in added.items() if token.special)}


def _is_byte_token(tokenizer, token_id: int) -> bool:
    """Whether it is one of SentencePiece's for a single byte, <0x00> to <0xFF>."""
    name_of = getattr(tokenizer, "convert_ids_to_tokens", lambda token_id: "")
    return re.fullmatch("<0x[0-9A-F]{2}>", name_of(token_id) or "") is not None
