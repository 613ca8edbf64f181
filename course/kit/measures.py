"""Texts that people wrote, and clusters: what lesson 08 measures with."""

from pathlib import Path

import torch

TEXTS = Path(__file__).with_name("human_texts.txt")


def human_texts() -> list[str]:
    """Eight paragraphs, each on one line, by eight authors who died before 1911.

    They come with the course, so that they are the same with every Python and library.
    """
    authors = TEXTS.read_text(encoding="utf-8").strip().split("\n\n")
    return [" ".join(text.splitlines()[1:]) for text in authors]


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
