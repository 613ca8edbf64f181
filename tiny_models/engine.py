"""Generation for the server: token ids in, one step at a time, text and logprobs out.

A `Prompt` is read once, for all the answers to it. A `Generation` is one answer in the
making: each call of `step` picks one token and returns the text that has become
certain. Whoever calls `step` decides whose turn it is, so many answers can grow side
by side.

The arithmetic follows `transformers` 5: the same processors in the same order, the
same softmax and multinomial in float32, the same random numbers for the same seed.
"""

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from transformers import (
    LogitsProcessorList,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tiny_models.detokenizer import Detokenizer

# Below this a division by the temperature overflows; what is left is greedy anyway.
GREEDY_BELOW = 1e-5
# A prompt of at most ONE_PASS tokens is read in one pass, a longer one in pieces of
# PIECE tokens, each about half a second of two cores for the course's model.
ONE_PASS, PIECE = 512, 256


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens, and when to stop.

    max_tokens: the most tokens to sample, EOS included.
    temperature: 0 is greedy. top_p: 1 is off. top_k: 0 is off.
    seed: None draws fresh entropy; else the stream of `torch.manual_seed(seed)`.
    stop: the text ends before the first of these strings that becomes complete.
    top_logprobs: None for no logprobs, else how many alternatives to list.
    logit_bias: token id -> number added to its logit.
    frequency_penalty, presence_penalty: as in the OpenAI API, over the new tokens.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


class Prompt:
    """A prompt that the model reads, for one or more answers.

    ids: LongTensor (1, seq), on the model's device. answers: how many will `fork` it.

    Up to ONE_PASS tokens the logits are bit for bit those of `generate`. A longer
    prompt is read in pieces, so that others get their turn in between: bit for bit as
    `generate(..., prefill_chunk_size=PIECE)` does, whose float32 sums are added in
    another order than those of one pass. The logits then differ in the last digits (by
    up to 4e-5 for the course's model), which may once in a long while change a token.
    """

    def __init__(self, model, ids: torch.Tensor, answers: int = 1):
        self.ids = ids
        self.logits: torch.Tensor | None = None  # (1, vocab) float32, once all is read
        self._model, self._cache, self._answers = model, None, answers
        size = ids.shape[1]
        self._pieces = list(ids.split(size if size <= ONE_PASS else PIECE, dim=1))

    @torch.no_grad()
    def step(self) -> None:
        """Read the next piece. The last one sets `logits`."""
        logits, self._cache = forward(self._model, self._pieces.pop(0), self._cache)
        if not self._pieces:
            self.logits = logits

    def fork(self):
        """The cache, for an answer to grow: a copy, but for the last that asks."""
        self._answers -= 1
        return copy.deepcopy(self._cache) if self._answers else self._cache


def forward(model, ids: torch.Tensor, cache) -> tuple[torch.Tensor, object]:
    """ids (1, seq) after what is cached -> the last logits (1, vocab), and the cache"""
    out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out.logits[:, -1].float(), out.past_key_values


class Generation:
    """One answer to one prompt, grown by `step`.

    prompt: has been read.
    finish_reason: None while unfinished; "stop" after EOS or a stop string; "length"
    after max_tokens. completion_tokens counts every sampled token, EOS included.

    Runs in its own random stream and leaves torch's global one alone. Special tokens
    are not part of the text.
    """

    def __init__(self, model, tokenizer, prompt: Prompt, sampling: Sampling):
        self.finish_reason: str | None = None
        self.completion_tokens = 0
        self._model, self._tokenizer, self._sampling = model, tokenizer, sampling
        self._eos_ids = eos_token_ids(model, tokenizer)
        self._processors = logits_processors(sampling)
        self._generator = torch.Generator(prompt.ids.device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

        self._prompt, self._cache = prompt, None
        self._new_ids = prompt.ids[:, :0]  # (1, new)

        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(sampling.stop)
        self._decoded = 0  # characters that the detokenizer has given
        self._released = 0  # characters that the caller has been given
        self._held_logprobs: list[tuple[int, dict]] = []  # (first character, entry)

    @torch.no_grad()
    def step(self) -> tuple[str, list[dict]]:
        """Sample one token. Returns the new text and the logprobs of its tokens.

        Text waits while it may be half a character or the start of a stop string, so
        it may be empty, and a later step may release several tokens' worth. A token's
        logprobs come with its first character. EOS has none, nor has a token of which
        a stop string left nothing.
        """
        if self.finish_reason is not None:
            raise RuntimeError("this generation has finished; look at finish_reason")

        # 1. one forward pass, of the token just sampled; the prompt has had its own
        if self.completion_tokens == 0:
            logits, self._cache = self._prompt.logits, self._prompt.fork()
            self._prompt = None  # the memory is needed elsewhere
        else:
            last = self._new_ids[:, -1:]
            logits, self._cache = forward(self._model, last, self._cache)

        # 2. one token
        token = self._pick(logits)  # (1, 1)
        token_id = token.item()
        self._new_ids = torch.cat([self._new_ids, token], dim=1)
        self.completion_tokens += 1
        ended = token_id in self._eos_ids

        # 3. its text, if that is certain by now
        piece = ""
        if not ended:
            if self._sampling.top_logprobs is not None:
                entry = logprob_entry(
                    self._tokenizer, logits[0], token_id, self._sampling.top_logprobs
                )
                self._held_logprobs.append((self._decoded, entry))
            piece = self._detokenizer.push(token_id)
        finished = ended or self.completion_tokens == self._sampling.max_tokens
        if finished:
            piece += self._detokenizer.flush()
        self._decoded += len(piece)
        text, stopped = self._stops.push(piece)
        if finished and not stopped:
            text += self._stops.flush()
        self._released += len(text)

        # 4. is it over?
        if ended or stopped:
            self.finish_reason = "stop"
        elif finished:
            self.finish_reason = "length"
        if self.finish_reason is not None:
            self._cache = None
        return text, self._release_logprobs(everything=finished and not stopped)

    def _pick(self, logits: torch.Tensor) -> torch.Tensor:
        """logits (1, vocab) float32 -> token (1, 1)"""
        scores = self._processors(self._new_ids, logits)
        if self._sampling.temperature < GREEDY_BELOW:
            return scores.argmax(dim=-1, keepdim=True)
        probs = scores.softmax(dim=-1)
        return torch.multinomial(probs, num_samples=1, generator=self._generator)

    def _release_logprobs(self, everything: bool) -> list[dict]:
        released = [
            (start, entry)
            for start, entry in self._held_logprobs
            if everything or start < self._released
        ]
        del self._held_logprobs[: len(released)]
        return [entry for _, entry in released]


# --- choosing a token ---


def eos_token_ids(model, tokenizer) -> set[int]:
    """The ids that end an answer: the generation config's, else the tokenizer's."""
    ids = model.generation_config.eos_token_id
    if ids is None:
        ids = tokenizer.eos_token_id
    if ids is None:
        return set()
    return set(ids) if isinstance(ids, Iterable) else {ids}


def logits_processors(sampling: Sampling) -> LogitsProcessorList:
    """What stands between the model's logits and the softmax, in transformers' order.

    Call with the new token ids (1, new) and the logits (1, vocab).
    """
    processors = LogitsProcessorList()
    if sampling.logit_bias:
        processors.append(
            SequenceBiasLogitsProcessor(
                {(token,): float(bias) for token, bias in sampling.logit_bias.items()}
            )
        )
    if sampling.frequency_penalty or sampling.presence_penalty:
        processors.append(
            AdditivePenalties(sampling.frequency_penalty, sampling.presence_penalty)
        )
    if sampling.temperature < GREEDY_BELOW:
        return processors  # the rest cannot change which logit is the largest
    if sampling.temperature != 1:
        processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k > 0:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    return processors


class AdditivePenalties:
    """The OpenAI API's penalties: logit - count * frequency - (count > 0) * presence.

    count is how often the token stands in the new tokens. `transformers` has no such
    processor: its repetition_penalty multiplies, and it looks at the prompt as well.
    """

    def __init__(self, frequency: float, presence: float):
        self.frequency, self.presence = frequency, presence

    def __call__(self, new_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """new_ids (1, new), scores (1, vocab) -> (1, vocab)"""
        count = torch.bincount(new_ids[0], minlength=scores.shape[-1])  # (vocab,)
        return scores - count * self.frequency - (count > 0) * self.presence


# --- from ids to text ---


class StopStrings:
    """Cuts a text, given in pieces, before the first stop string to become complete.

    How the text is cut into pieces makes no difference to the result. Nothing is held
    back but what may be the start of a stop string.
    """

    def __init__(self, stops: Iterable[str]):
        self._stops = tuple(stops)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Returns the text that is certain, and whether a stop string was found."""
        text = self._held + piece
        found = [
            (start + len(stop), start)
            for stop in self._stops
            if (start := text.find(stop)) >= 0
        ]
        if found:
            _, start = min(found)
            self._held = ""
            return text[:start], True
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """What was held back, when no more text will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The longest end of text that is a start of stop, in characters."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


# --- logprobs ---


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
