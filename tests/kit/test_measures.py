"""The texts that lesson 08 measures with are there, long enough and different, whatever
Python and whatever libraries: they are a file of the course. And what measures them."""

import ast
import math
from pathlib import Path

import torch

from course.kit import measures
from course.paths import SOLUTIONS

NEEDED = 88  # tokens: a prompt of 24 and 64 behind it


def test_there_are_eight_different_texts():
    texts = measures.human_texts()
    assert len(set(texts)) == len({text[:40] for text in texts}) == 8


def test_each_text_has_enough_tokens_for_the_lesson():
    source = (SOLUTIONS / "08_degeneration.py").read_text(encoding="utf-8")
    assert "PROMPT, NEW = 24, 64\n" in source, "the lesson takes other lengths"
    for text in measures.human_texts():
        # A tokenizer joins no words, so that there are at least as many tokens.
        assert len(text.split()) >= NEEDED, text[:40]


def test_the_texts_are_plain():
    for text in measures.human_texts():
        assert text.isascii()
        assert text == " ".join(text.split())
        assert not text.startswith("#")


def test_no_text_comes_from_the_interpreter_or_a_library():
    source = Path(measures.__file__).read_text(encoding="utf-8")
    found = [n for n in ast.walk(ast.parse(source)) if hasattr(n, "names")]
    names = {getattr(n, "module", None) or n.names[0].name for n in found}
    assert names == {"pathlib", "torch"}
    assert measures.TEXTS.parent == Path(measures.__file__).parent


def test_surprisal_is_minus_ln_p_of_each_token_that_was_chosen():
    watch = measures.Surprisal()
    ids = torch.tensor([[9], [9]])  # a prompt, of which nothing is noted
    steps = [([[0.5, 0.5], [0.25, 0.75]], [0, 1]), ([[0.125, 0.875], [0, 1]], [0, 1])]
    for probabilities, chosen in steps:
        watch(ids, torch.tensor(probabilities).log())
        ids = torch.cat([ids, torch.tensor(chosen)[:, None]], -1)
    expected = [[math.log(2), math.log(8)], [math.log(4 / 3), 0]]
    torch.testing.assert_close(watch.of(ids), torch.tensor(expected))
