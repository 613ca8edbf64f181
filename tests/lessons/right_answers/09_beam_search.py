"""Right answers to lesson 09 in another style: each must pass all checks."""

import copy
import heapq
import math

import torch
from transformers import DynamicCache

from course.making.answers import reference, right

INF = float("inf")
position_ids = reference("position_ids")

# --- exact_search ---------------------------------------------------------------------


def few(model, n):
    if model.config.vocab_size**n > 100_000:
        raise ValueError(f"{model.config.vocab_size} ** {n} texts are too many to try")


@right("exact_search")
def grow_all_beginnings(model, ids, max_new_tokens):
    """Step by step, every beginning with every token."""
    few(model, max_new_tokens)
    vocab, scores = model.config.vocab_size, torch.zeros(1)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logprobs = model(ids).logits[:, -1].float().log_softmax(-1)
        scores = (scores[:, None] + logprobs).flatten()
        new = torch.arange(vocab).repeat(len(ids))[:, None]
        ids = torch.cat([ids.repeat_interleave(vocab, 0), new], dim=-1)
    return ids[scores.argmax()].unsqueeze(0), float(scores.max())


@right("exact_search")
def with_cartesian_prod(model, ids, max_new_tokens):
    """torch's own products, one call in inference mode."""
    few(model, max_new_tokens)
    tokens = torch.arange(model.config.vocab_size)
    new = torch.cartesian_prod(*[tokens] * max_new_tokens).view(-1, max_new_tokens)
    texts = torch.cat([ids.repeat(len(new), 1), new], dim=1)
    with torch.inference_mode():
        logits = model(texts).logits[:, -max_new_tokens - 1 : -1]
    picked = logits.gather(-1, new.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    score, place = picked.sum(1).max(0)
    return texts[place : place + 1], score.item()


@right("exact_search")
def depth_first(model, ids, max_new_tokens):
    """Beginnings that are worse than the best text already cannot win."""
    few(model, max_new_tokens)
    best = (-INF, None)
    stack = [(0.0, ids[0].tolist())]
    while stack:
        score, text = stack.pop()
        if score <= best[0] and best[1] is not None:
            continue
        if len(text) == ids.shape[1] + max_new_tokens:
            best = (score, text)
            continue
        with torch.no_grad():
            logprobs = model(torch.tensor([text])).logits[0, -1].log_softmax(-1)
        for token in logprobs.argsort().tolist():
            stack.append((score + logprobs[token].item(), [*text, token]))
    return torch.tensor([best[1]]), best[0]


# --- beam_step ------------------------------------------------------------------------


@right("beam_step")
def with_sort_and_divmod(scores, logprobs, k):
    """A full sort, and torch's own division."""
    sums = (scores.unsqueeze(-1) + logprobs).reshape(len(scores), -1)
    best, places = sums.sort(dim=-1, descending=True)
    places = places[:, :k]
    vocab = logprobs.size(-1)
    beam = torch.div(places, vocab, rounding_mode="floor")
    return best[:, :k], beam, places.remainder(vocab)


@right("beam_step")
def with_unravel_index(scores, logprobs, k):
    """torch.unravel_index takes places apart."""
    batch, beams, vocab = logprobs.shape
    best, places = (logprobs + scores[:, :, None]).view(batch, -1).topk(k)
    beam, token = torch.unravel_index(places, (beams, vocab))
    return best, beam, token


@right("beam_step")
def with_a_heap(scores, logprobs, k):
    """Python's heap, row by row."""
    rows = []
    for score, table in zip(scores.tolist(), logprobs.tolist(), strict=True):
        sums = (
            (s + value, b, t)
            for b, (s, row) in enumerate(zip(score, table, strict=True))
            for t, value in enumerate(row)
        )
        rows.append(list(zip(*heapq.nlargest(k, sums), strict=True)))
    best, beam, token = (list(part) for part in zip(*rows, strict=True))
    return torch.tensor(best), torch.tensor(beam), torch.tensor(token)


# --- counterexample -------------------------------------------------------------------


@right("counterexample")
def with_ten_tokens():
    """More tokens to spread over."""
    table = torch.full((10, 10), 0.1)
    table[0] = torch.zeros(10)
    table[0, 1], table[0, 2] = 0.51, 0.49
    table[1] = torch.tensor([0, 0, 0, 0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    table[2] = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 0.5, 0.5])
    table[3] = torch.eye(10)[0]
    return table


@right("counterexample")
def from_logits():
    """A softmax of what is written down as logarithms, in float64."""
    table = torch.zeros(7, 7, dtype=torch.float64)
    table[0] = torch.tensor([-99, 0.2, 0, -99, -99, -99, -99])
    table[1] = torch.tensor([-99, -99, -99, 0.1, -99, 0, 0])
    table[2] = torch.tensor([-99, -99, -99, -99, 0, -99, 0])
    table[3, 0] = 99
    return table.softmax(-1)


@right("counterexample")
def with_five_tokens():
    """Tokens 0 and 4 double as a dead end."""
    return torch.tensor(
        [
            [0.2, 0.42, 0.38, 0.0, 0.0],
            [0.3, 0.0, 0.0, 0.4, 0.3],
            [0.5, 0.0, 0.0, 0.0, 0.5],
            [0.0, 0.0, 0.0, 1.0, 0.0],
            [0.2, 0.2, 0.2, 0.2, 0.2],
        ]
    )


# --- length_normalise -----------------------------------------------------------------


@right("length_normalise")
def times_a_negative_power(score, length, alpha):
    """score * length ** -alpha."""
    if length <= 0:
        raise ValueError(f"length must be at least 1, got {length}")
    return score * length**-alpha


@right("length_normalise")
def by_exp_and_log(score, length, alpha):
    """exp(-alpha ln length)."""
    if length < 1:
        raise ValueError("no tokens")
    return score * math.exp(-alpha * math.log(length))


@right("length_normalise")
def with_pow(score, length, alpha):
    """pow, and a test of its own."""
    if not length >= 1:
        raise ValueError(length)
    return score / pow(float(length), alpha)


# --- reorder_cache --------------------------------------------------------------------


@right("reorder_cache")
def layer_by_layer(cache, beam):
    """A copy, and its keys and values by index."""
    new = copy.deepcopy(cache)
    for layer in new.layers:
        layer.keys, layer.values = layer.keys[beam], layer.values[beam]
    return new


@right("reorder_cache")
def with_batch_select(cache, beam):
    """transformers' other name for it."""
    new = copy.deepcopy(cache)
    new.batch_select_indices(beam)
    return new


@right("reorder_cache")
def a_new_cache(cache, beam):
    """A new cache, filled with the chosen rows."""
    new = DynamicCache()
    for number, layer in enumerate(cache.layers):
        if layer.keys is not None and layer.keys.numel():
            new.update(layer.keys[beam], layer.values[beam], number)
    return new


# --- beam_search ----------------------------------------------------------------------


def possible(max_new_tokens, early_stopping="never"):
    known = early_stopping is True or early_stopping is False
    if max_new_tokens <= 0 or not (known or early_stopping == "never"):
        raise ValueError(f"got {max_new_tokens}, {early_stopping}")


@right("beam_search")
def prompt_by_prompt(
    model, ids, mask, num_beams, max_new_tokens, length_penalty, early_stopping,
    eos_ids, pad_id,
):  # fmt: skip
    """Each prompt alone, its finished texts in a heap, its cache by index."""
    possible(max_new_tokens, early_stopping)
    found = [
        one_prompt(
            model, ids[i : i + 1], mask[i : i + 1], num_beams, max_new_tokens,
            length_penalty, early_stopping, set(eos_ids),
        )
        for i in range(len(ids))
    ]  # fmt: skip
    width = max(len(text) for _, text in found)
    rows = [[*text, *[pad_id] * (width - len(text))] for _, text in found]
    new = torch.tensor(rows, dtype=torch.long).view(len(ids), width)
    return torch.cat([ids, new], dim=-1), torch.tensor([score for score, _ in found])


def one_prompt(model, ids, mask, k, most, power, early, ends):
    beams, done = [(0.0, [])], []
    fed, attention, cache = ids, mask, None
    wanted = k * max(2, 1 + len(ends))
    for length in range(1, most + 1):
        with torch.no_grad():
            output = model(
                fed,
                attention_mask=attention,
                position_ids=position_ids(attention)[:, -fed.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            )
        logprobs = output.logits[:, -1].float().log_softmax(-1)
        before = torch.tensor([score for score, _ in beams])
        best, places = (
            (before[:, None] + logprobs).flatten().topk(min(wanted, logprobs.numel()))
        )
        grown = []
        for rank, (score, place) in enumerate(
            zip(best.tolist(), places.tolist(), strict=True)
        ):
            beam, token = divmod(place, logprobs.shape[-1])
            text = [*beams[beam][1], token]
            if token in ends or length == most:
                if rank < k:
                    done.append((score / length**power, text))
            elif len(grown) < k:
                grown.append((score, text, beam))
        done = sorted(done, key=lambda found: -found[0])[:k]
        if not grown:
            break
        if len(done) == k:
            far = most if early == "never" and power > 0 else length
            if early is True or grown[0][0] / far**power <= done[-1][0]:
                break
        rows = torch.tensor([beam for _, _, beam in grown])
        cache = copy.deepcopy(output.past_key_values)
        cache.batch_select_indices(rows)
        beams = [(score, text) for score, text, _ in grown]
        fed = torch.tensor([[text[-1]] for _, text in beams])
        attention = torch.cat(
            [attention[rows], torch.ones(len(beams), 1, dtype=torch.long)], dim=-1
        )
    return done[0]


@right("beam_search")
def by_the_library(
    model, ids, mask, num_beams, max_new_tokens, length_penalty, early_stopping,
    eos_ids, pad_id,
):  # fmt: skip
    """generate where the model has it; for the checks' own models as above."""
    possible(max_new_tokens, early_stopping)
    if not hasattr(model, "generate") or num_beams == 1:
        return prompt_by_prompt.value(
            model, ids, mask, num_beams, max_new_tokens, length_penalty,
            early_stopping, eos_ids, pad_id,
        )  # fmt: skip
    out = model.generate(
        ids,
        attention_mask=mask,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        eos_token_id=eos_ids or None,
        pad_token_id=pad_id,
        return_dict_in_generate=True,
        output_scores=True,
    )
    return out.sequences, out.sequences_scores.float()


@right("beam_search")
def copies_continued_at_minus_a_billion(
    model, ids, mask, num_beams, max_new_tokens, length_penalty, early_stopping,
    eos_ids, pad_id,
):  # fmt: skip
    """As in transformers, -1e9 in place of -inf; tensors on the way."""
    possible(max_new_tokens, early_stopping)
    batch, k = len(ids), num_beams
    rows = ids[:, None].expand(-1, k, -1).flatten(0, 1)
    attention = mask[:, None].expand(-1, k, -1).flatten(0, 1)
    scores = torch.tensor([[0.0] + [-1e9] * (k - 1)] * batch)
    offset = (torch.arange(batch) * k).unsqueeze(1)
    done_texts = {i: [] for i in range(batch)}
    running = set(range(batch))
    fed, cache, length = rows, None, 0
    while running and length < max_new_tokens:
        length += 1
        with torch.no_grad():
            output = model(
                input_ids=fed,
                attention_mask=attention,
                position_ids=position_ids(attention)[:, -fed.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            )
        logprobs = torch.log_softmax(output.logits[:, -1].float(), -1)
        vocab = logprobs.shape[-1]
        sums = (scores.reshape(-1, 1) + logprobs).reshape(batch, k * vocab)
        best, places = sums.topk(min(k * max(2, 1 + len(eos_ids)), k * vocab))
        beam, token = places // vocab, places % vocab
        stop = torch.zeros_like(token, dtype=torch.bool)
        for end in eos_ids:
            stop |= token == end
        stop |= length == max_new_tokens
        for i in list(running):
            for j in stop[i, :k].nonzero().flatten().tolist():
                text = rows[i * k + beam[i, j]].tolist() + [token[i, j].item()]
                if best[i, j] < -1e8:
                    continue  # no text at all
                score = best[i, j].item() / length**length_penalty
                done_texts[i].append((score, text))
            done_texts[i].sort(key=lambda found: -found[0])
            del done_texts[i][k:]
        order = (best - 1e9 * stop).topk(k).indices
        scores = (best - 1e9 * stop).gather(1, order)
        token, source = (
            token.gather(1, order),
            (offset + beam.gather(1, order)).view(-1),
        )
        fed = token.view(-1, 1)
        rows = torch.cat([rows[source], fed], 1)
        attention = torch.cat([attention[source], torch.ones_like(fed)], 1)
        cache = copy.deepcopy(output.past_key_values)
        cache.reorder_cache(source)
        horizon = length
        if early_stopping == "never" and length_penalty > 0:
            horizon = max_new_tokens
        for i in list(running):
            if len(done_texts[i]) == k:
                hope = scores[i, 0].item() / horizon**length_penalty
                if early_stopping is True or hope <= done_texts[i][-1][0]:
                    running.discard(i)
    texts = [done_texts[i][0][1] for i in range(batch)]
    width = max(map(len, texts))
    out = torch.full((batch, width), pad_id)
    for i, text in enumerate(texts):
        out[i, : len(text)] = torch.tensor(text)
    return out, torch.tensor([done_texts[i][0][0] for i in range(batch)])


# --- find_bugs ------------------------------------------------------------------------


@right("find_bugs")
def as_a_frozenset():
    """Any set will do."""
    return frozenset("ACEJ")


@right("find_bugs")
def by_taking_away():
    """All lines but those that are right."""
    return set("ABCDEFGHIJ") - set("BDFGHI")


@right("find_bugs")
def one_by_one():
    """Added as they are found."""
    found = set()
    for line in ("J", "E", "C", "A"):
        found.add(line)
    return found


# --- diverse_beam_search --------------------------------------------------------------


def equal_groups(num_beams, num_groups):
    if num_groups < 1 or num_beams % num_groups != 0:
        raise ValueError(f"{num_groups} groups of {num_beams} beams")
    return num_beams // num_groups


@right("diverse_beam_search")
def with_a_dict_of_counts(model, ids, num_beams, num_groups, diversity, max_new_tokens):
    """Lists of (score, text), candidates sorted in Python."""
    size = equal_groups(num_beams, num_groups)
    possible(max_new_tokens)
    groups = [[(0.0, ids[0].tolist())] for _ in range(num_groups)]
    for _ in range(max_new_tokens):
        taken = {}
        for g, beams in enumerate(groups):
            with torch.no_grad():
                logits = model(torch.tensor([text for _, text in beams])).logits[:, -1]
            tables = logits.float().log_softmax(-1).tolist()
            candidates = [
                (score + p - diversity * taken.get(token, 0), score + p, [*text, token])
                for (score, text), table in zip(beams, tables, strict=True)
                for token, p in enumerate(table)
            ]
            best = heapq.nlargest(size, candidates, key=lambda c: c[0])
            groups[g] = [(score, text) for _, score, text in best]
            for _, text in groups[g]:
                taken[text[-1]] = taken.get(text[-1], 0) + 1
    beams = [beam for group in groups for beam in group]
    return torch.tensor([text for _, text in beams]), torch.tensor(
        [score for score, _ in beams]
    )


@right("diverse_beam_search")
@torch.no_grad()
def all_groups_in_one_call(
    model, ids, num_beams, num_groups, diversity, max_new_tokens
):
    """The model runs once a step for all groups."""
    size = equal_groups(num_beams, num_groups)
    possible(max_new_tokens)
    texts = ids.expand(num_beams, -1)
    scores = torch.full((num_groups, size), -INF)
    scores[:, 0] = 0
    for _ in range(max_new_tokens):
        logprobs = model(texts).logits[:, -1].float().log_softmax(-1)
        logprobs = logprobs.view(num_groups, size, -1)
        vocab = logprobs.shape[-1]
        counts, rows, tokens, kept = torch.zeros(vocab), [], [], []
        for g in range(num_groups):
            pure = (scores[g][:, None] + logprobs[g]).flatten()
            places = (pure - diversity * counts.repeat(size)).topk(size).indices
            kept.append(pure[places])
            rows.append(g * size + places // vocab)
            tokens.append(places % vocab)
            counts.index_add_(0, places % vocab, torch.ones(size))
        scores = torch.stack(kept)
        new = torch.cat(tokens).unsqueeze(1)
        texts = torch.cat([texts[torch.cat(rows)], new], dim=1)
    return texts, scores.flatten()


@right("diverse_beam_search")
def with_one_hot_counts(model, ids, num_beams, num_groups, diversity, max_new_tokens):
    """Counts as sums of one-hot rows."""
    size = equal_groups(num_beams, num_groups)
    possible(max_new_tokens)
    texts, scores = [ids] * num_groups, [torch.zeros(1)] * num_groups
    for _ in range(max_new_tokens):
        chosen = torch.zeros(0, dtype=torch.long)
        for g in range(num_groups):
            with torch.inference_mode():
                p = model(texts[g]).logits[:, -1].log_softmax(-1)
            taken = torch.nn.functional.one_hot(chosen, p.shape[-1]).sum(0)
            sums = scores[g][:, None] + p
            seen = (sums - diversity * taken).flatten()  # fewer than size at first
            places = seen.topk(min(size, len(seen))).indices
            rows, tokens = places // p.shape[-1], places % p.shape[-1]
            scores[g] = sums[rows, tokens]
            texts[g] = torch.cat([texts[g][rows], tokens[:, None]], dim=1)
            chosen = torch.cat([chosen, tokens])
    return torch.cat(texts), torch.cat(scores)
