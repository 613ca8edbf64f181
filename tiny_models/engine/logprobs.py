"""What a token is called in the API's logprobs."""

import json

import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode


def logprob_entry(tokenizer, logits: torch.Tensor, token_id: int, top: int) -> dict:
    """One item of the API's `logprobs.content`.

    logits: FloatTensor (vocab,), as the model gave them: before bias, penalties,
    temperature and filters. Logprobs are natural logarithms.
    """
    logprobs = logits.log_softmax(dim=-1)  # (vocab,)
    best = logprobs.topk(min(top, len(logprobs))).indices.tolist()

    def describe(i: int) -> dict:
        raw = token_bytes(tokenizer, i)
        # JSON has no -inf; the OpenAI API writes -9999 too.
        value = max(logprobs[i].item(), -9999.0)
        return {"token": printable(raw), "logprob": value, "bytes": list(raw)}

    return {**describe(token_id), "top_logprobs": [describe(i) for i in best]}


_BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}


def token_bytes(tokenizer, token_id: int) -> bytes:
    """The bytes that a token stands for: of a byte-level token its true bytes, even if
    they are half a character; of a special token its name."""
    piece = tokenizer.convert_ids_to_tokens(token_id)
    if piece is None:  # the model's vocabulary is padded beyond the tokenizer's
        return b""
    if token_id in tokenizer.added_tokens_decoder:
        return piece.encode()
    decoder = _decoder_types(tokenizer)
    if "ByteLevel" in decoder:
        if all(character in _BYTE_OF for character in piece):
            return bytes(_BYTE_OF[character] for character in piece)
        return piece.encode()
    if "ByteFallback" in decoder:  # SentencePiece
        if piece.startswith("<0x") and piece.endswith(">") and len(piece) == 6:
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()
    return tokenizer.decode([token_id]).encode()


def _decoder_types(tokenizer) -> set[str]:
    """The names of the steps that the tokenizer decodes with."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return set()
    state = json.loads(backend.decoder.__getstate__())
    return {step["type"] for step in state.get("decoders", [state])}


def printable(raw: bytes) -> str:
    r"""A token's bytes as text, or as \xf0\x9f when they are half a character."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in raw)
