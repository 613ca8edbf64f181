"""Texts that people wrote, and clusters: what lesson 08 measures with."""

import re

import torch

# Of each of these topics of Python's language reference the longest paragraph is taken.
# The reference comes with every Python, in `pydoc_data`; its words differ a little from
# version to version.
TOPICS = (
    *("assert", "atom-identifiers", "binary", "class"),
    *("execmodel", "in", "naming", "objects"),
)


def human_texts() -> list[str]:
    """Eight paragraphs of Python's language reference, each on one line."""
    from pydoc_data.topics import topics

    return [_longest_paragraph(topics[name]) for name in TOPICS]


def _longest_paragraph(text: str) -> str:
    paragraphs = [
        " ".join(re.sub(r"[*“”\"]", "", paragraph).split())
        for paragraph in re.split(r"\n\s*\n", text)
    ]
    prose = [p for p in paragraphs if "::" not in p and ">>>" not in p]
    return max(prose, key=len)


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
