"""What a token is called in the API's logprobs."""

import json

import torch

from tiny_models.grammar.vocabulary import BYTE_OF, byte_level, sentence_piece


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
        spelt = set(piece) <= BYTE_OF.keys()
        return byte_level(piece) if spelt else piece.encode()
    if "ByteFallback" in decoder:  # SentencePiece
        return sentence_piece(piece)
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
