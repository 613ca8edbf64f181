"""What a request asks for, and how its next token is chosen.

The arithmetic follows `transformers` 5: the same processors in the same order, the
same softmax and multinomial in float32, the same random numbers for the same seed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tiny_models.grammar.regex import Regex

# Below this a division by the temperature overflows; what is left is greedy anyway.
GREEDY_BELOW = 1e-5


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens, and when to stop.

    max_tokens: the most tokens to sample, EOS included.
    temperature: 0 is greedy. top_p: 1 is off. top_k: 0 is off. min_p: 0 is off.
    seed: None draws fresh entropy; else the stream of `torch.manual_seed(seed)`.
    stop: the text ends before the first of these strings that becomes complete.
    top_logprobs: None for no logprobs, else how many alternatives to list.
    logit_bias: token id -> number added to its logit.
    frequency_penalty, presence_penalty: as in the OpenAI API, over the new tokens.
    n: how many answers; answer i has the seed + i.
    format: what the text must match when it ends by itself; None is any.
    guesses: the most tokens to guess in a step, from what stood behind the same ones
    before (lesson 13). They change when tokens come, not which.
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
    min_p: float = 0.0
    n: int = 1
    format: Regex | None = None
    guesses: int = 0


class Sampler:
    """Picks one answer's tokens, in a random stream of its own.

    choice: which of the request's n answers. torch's global generator is left alone.
    constraint: a processor that comes before all others, for the sampling's format.
    """

    def __init__(
        self, sampling: Sampling, choice: int, device: torch.device, constraint=None
    ):
        self._greedy = sampling.temperature < GREEDY_BELOW
        self._processors = logits_processors(sampling)
        if constraint is not None:
            self._processors.insert(0, constraint)
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed + choice)

    def pick(self, new_ids: list[int], logits: torch.Tensor) -> int:
        """new_ids: what the answer holds. logits: (1, vocab) float32."""
        if self._greedy and not self._processors:
            return _argmax(logits)
        new = torch.tensor([new_ids], dtype=torch.long, device=logits.device)
        scores = self._processors(new, logits)
        if self._greedy:
            return _argmax(scores)
        probs = scores.softmax(dim=-1)
        return torch.multinomial(probs, 1, generator=self._generator).item()


def _argmax(scores: torch.Tensor) -> int:
    # numpy is faster for one row, and wakes no threads.
    on_cpu = scores.device.type == "cpu"
    return int(scores.numpy().argmax() if on_cpu else scores.argmax())


def eos_token_ids(model, tokenizer) -> set[int]:
    """The ids that end an answer: the generation config's, else the tokenizer's. One
    beyond the model's vocabulary is none: it can never be sampled."""
    ids = model.generation_config.eos_token_id
    if ids is None:
        ids = tokenizer.eos_token_id
    if ids is None:
        return set()
    ids = set(ids) if isinstance(ids, Iterable) else {ids}
    return {token for token in ids if token < model.config.get_text_config().vocab_size}


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
    if sampling.min_p > 0:
        processors.append(MinPLogitsWarper(sampling.min_p))
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
