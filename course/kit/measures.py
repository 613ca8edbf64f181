"""Texts that people wrote, surprisal, and clusters: what lesson 08 measures with."""

from pathlib import Path

import torch

TEXTS = Path(__file__).with_name("human_texts.txt")


def human_texts() -> list[str]:
    """Eight paragraphs, each on one line, by eight authors who died before 1911.

    They come with the course, so that they are the same with every Python and library.
    """
    authors = TEXTS.read_text(encoding="utf-8").strip().split("\n\n")
    return [" ".join(text.splitlines()[1:]) for text in authors]


class Surprisal:
    """Notes -ln p of each token that is chosen while a text is written.

    Call it at each step with the text so far, ids (batch, seq), and the logits
    (batch, vocab) of what comes next, as `generate` calls a logits processor.
    """

    def __init__(self):
        self._logprobs, self._noted = None, []

    def __call__(self, ids: torch.Tensor, logits: torch.Tensor):
        self._note(ids)
        self._logprobs = logits.float().log_softmax(-1)

    def _note(self, ids):
        if self._logprobs is not None:
            self._noted.append(-self._logprobs.gather(-1, ids[:, -1:]))

    def of(self, ids: torch.Tensor) -> torch.Tensor:
        """(batch, new) float32, with the last token of the finished text `ids`.

        Of what beam search writes it tells nothing: there rows change places.
        """
        self._note(ids)
        self._logprobs = None
        return torch.cat(self._noted, -1)


def clusters(features: torch.Tensor, k: int) -> torch.Tensor:
    """k-means: the cluster of each feature, (n,) int64 below k.

    features: (n, d) float. The same input gives the same result.
    Starts with k-means++ (Arthur and Vassilvitskii, 2007).
    """
    features = features.double()
    generator = torch.Generator().manual_seed(0)
    centres = features[:1]
    while len(centres) < k:  # the next one is likely to be far from those there are
        squares = torch.cdist(features, centres).amin(-1) ** 2
        if squares.sum() == 0:  # fewer different features than clusters
            squares = torch.ones_like(squares)
        place = torch.multinomial(squares.cpu(), 1, generator=generator)
        centres = torch.cat([centres, features[place.to(features.device)]])
    for _ in range(30):
        labels = torch.cdist(features, centres).argmin(-1)
        for cluster in labels.unique():
            centres[cluster] = features[labels == cluster].mean(0)
    return torch.cdist(features, centres).argmin(-1)
