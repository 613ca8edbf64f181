"""Prompt lookup on top of the decoder: guess that a text goes on as it did before.

The same tokens as without guesses: a guess counts only if the model, asked for several
positions in one call, would have picked it. How many are made depends on how often such
guesses were right and on what a wider call costs. That changes the time, not the text.
"""

from tiny_models.kernels.decoder import Decoder

# What a call of 1, 2, ... 8 tokens costs, in calls of one. Measured with 4-bit blocks
# on two cores; other machines differ a little.
COSTS = (0, 1.0, 1.2, 1.8, 1.8, 2.9, 2.9, 2.9, 2.9)
MOST = 7  # guesses: with the last token before them 8 rows, as many as are done at once
# Runs of this many tokens are looked up, the longest first; and how often a guess is
# right that follows one, as long as nothing is known of this text.
FIRST_RATES = {5: 0.9, 4: 0.8, 3: 0.7, 2: 0.5}
WEIGHT = 4  # the first rate counts as much as so many guesses


class Lookup:
    """A text, and where each run of a few tokens was last seen in it."""

    def __init__(self, ids=()):
        self._text, self._after = [], {}
        self._right = {n: WEIGHT * rate for n, rate in FIRST_RATES.items()}
        self._tried = dict.fromkeys(FIRST_RATES, float(WEIGHT))
        self._run, self._followed = None, []
        self.extend(ids)

    def extend(self, ids: list[int]):
        """The text goes on with ids: what `guess` found is compared with them, so that
        the next guess is longer or shorter."""
        self._learn(ids)
        for token in ids:
            for n in FIRST_RATES:  # the run that ends before this token
                if len(self._text) >= n:
                    self._after[tuple(self._text[-n:])] = len(self._text)
            self._text.append(token)

    def guess(self, most: int = MOST) -> list[int]:
        """Up to `most` tokens that followed the last ones when these were last seen.

        As many as promise the most tokens for the time that a call takes: often none.
        """
        for n in FIRST_RATES:
            at = self._after.get(tuple(self._text[-n:]))
            if at is not None:
                self._run, self._followed = n, self._text[at : at + min(most, MOST)]
                rate = self._right[n] / self._tried[n]
                return self._followed[: best_length(rate, len(self._followed))]
        return []

    def _learn(self, ids):
        """How many tokens were as they followed before, guessed or not: looking costs
        nothing. Those after the first that differs say nothing."""
        pairs = list(zip(self._followed, ids, strict=False))
        right = 0
        while right < len(pairs) and pairs[right][0] == pairs[right][1]:
            right += 1
        if pairs:
            # What is long past counts less: a text changes its kind
            self._right[self._run] = 0.9 * self._right[self._run] + right
            tried = min(right + 1, len(pairs))
            self._tried[self._run] = 0.9 * self._tried[self._run] + tried
        self._followed = []


def best_length(rate: float, most: int) -> int:
    """How many guesses, 0 to `most` (at most 7), give the most tokens for the time.

    rate: how often a guess is right where all before it are.
    """
    best, best_gain, tokens, chance = 0, 1.0, 1.0, 1.0
    for k in range(1, most + 1):
        chance *= rate
        tokens += chance
        if tokens / COSTS[k + 1] > best_gain:
            best, best_gain = k, tokens / COSTS[k + 1]
    return best


def generate_with_lookup(
    decoder: Decoder, ids, max_new_tokens: int, eos_ids=()
) -> tuple[list[int], int]:
    """The greedy continuation of a prompt (a list of ids), by prompt lookup.

    Returns the new ids, those of `decoder.generate`, and the number of calls of the
    model after the prompt. The decoder needs room for a call of 8 tokens.
    """
    if decoder.tokens <= MOST:
        raise ValueError(
            f"a decoder with room for {MOST + 1} tokens in a call is needed"
        )
    ids = [int(token) for token in ids]
    if max_new_tokens < 1:
        return [], 0
    text = Lookup(ids)
    new, calls = [decoder.prefill(ids)], 0
    text.extend(new)
    while len(new) < max_new_tokens and new[-1] not in eos_ids:
        # 1. The last token and guesses through the model, as far as there is room
        left = max_new_tokens - len(new)
        guess = text.guess(left - 1)
        place = len(ids) + len(new) - 1
        picked = decoder([new[-1], *guess], range(place, place + 1 + len(guess)))
        picked, calls = picked.tolist(), calls + 1
        # 2. The guesses that it would have picked, and one token more
        right = 0
        while right < len(guess) and guess[right] == picked[right]:
            right += 1
        came = picked[: right + 1]
        # 3. Up to an EOS token among them
        ends = [n for n, token in enumerate(came) if token in eos_ids]
        came = came[: ends[0] + 1] if ends else came
        new += came
        text.extend(came)
    return new, calls
