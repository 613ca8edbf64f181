"""Our beam search equals `generate` over several hundred configurations, id for id and
score for score: random Llama and GPT-2, EOS lists, padding, and all ways to stop."""

import pytest
import torch

from course.making.answers import reference
from tiny_models import random_gpt2, random_llama

PAD = 1  # not 0: generate takes a pad id of 0 for none, and pads with EOS


def configuration(seed):
    generator = torch.Generator().manual_seed(seed)

    def between(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    eos = (torch.randperm(28, generator=generator)[: between(0, 6)] + 2).tolist()
    how = {
        "num_beams": between(2, 5),
        "max_new_tokens": between(1, 9),
        "length_penalty": (-1.0, 0.0, 0.5, 1.0, 2.0)[between(0, 5)],
        "early_stopping": (True, False, "never")[between(0, 3)],
    }
    batch, length = between(1, 4), between(1, 6)
    ids = torch.randint(2, 30, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(batch):
        padding = between(0, length)
        ids[row, :padding], mask[row, :padding] = PAD, 0
    return ids, mask, eos, how


def text_of(row):
    """The ids of a row, without the padding behind it."""
    text = row.tolist()
    while text[-1] == PAD:
        text.pop()
    return text


@pytest.mark.parametrize("make", [random_llama, random_gpt2])
def test_beam_search_equals_generate(make):
    beam_search = reference("beam_search")
    padded = ties = 0
    for seed in range(160):
        model = make(vocab_size=30, seed=seed % 5)
        ids, mask, eos, how = configuration(seed)
        oracle = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            eos_token_id=eos or None,
            pad_token_id=PAD,
            num_return_sequences=2,
            return_dict_in_generate=True,
            output_scores=True,
            **how,
        )
        found, scores = beam_search(model, ids, mask, eos_ids=eos, pad_id=PAD, **how)
        best = oracle.sequences_scores.view(-1, 2)
        torch.testing.assert_close(scores, best[:, 0], rtol=0, atol=1e-4)
        for row, (first, second) in enumerate(oracle.sequences.split(2)):
            wanted = [text_of(first)]
            if best[row, 0] - best[row, 1] < 1e-5:  # a tie, up to rounding
                wanted.append(text_of(second))
                ties += 1
            assert text_of(found[row]) in wanted, (seed, how, eos)
        padded += bool((mask == 0).any())
    assert padded > 40, "the fuzz should try padding"
    assert ties < 10, "most comparisons should be exact"


def test_more_beams_than_tokens_equal_generate():
    """Small vocabularies, many beams, many EOS: some candidates do not exist."""
    beam_search = reference("beam_search")
    tried = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(1000 + seed)
        vocab, beams = (4, 5, 6)[seed % 3], (2, 5, 8, 12)[seed % 4]
        eos = (torch.randperm(vocab, generator=generator)[: seed % 4]).tolist()
        how = {
            "num_beams": beams,
            "max_new_tokens": 2 + seed % 5,
            "length_penalty": (-1.0, 0.0, 1.0, 2.0)[seed // 2 % 4],
            "early_stopping": (True, False, "never")[seed // 3 % 3],
        }
        model, ids = random_llama(vocab, seed=seed), torch.tensor([[1, 2]])
        oracle = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            eos_token_id=eos or None,
            pad_token_id=PAD,
            return_dict_in_generate=True,
            output_scores=True,
            **how,
        )
        mask = torch.ones_like(ids)
        _, scores = beam_search(model, ids, mask, eos_ids=eos, pad_id=PAD, **how)
        tried += beams > vocab
        assert abs(scores[0] - oracle.sequences_scores[0]) < 1e-4, (seed, how, eos)
    assert tried > 25, "most configurations should have more beams than tokens"
