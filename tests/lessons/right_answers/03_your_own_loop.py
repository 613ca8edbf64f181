"""Right answers to lesson 03 in another style: each must pass all checks."""

import torch

from course.making.answers import right


@right("next_token_logits")
def in_inference_mode(model, ids):
    """inference_mode in place of no_grad."""
    with torch.inference_mode():
        output = model(input_ids=ids)
    return output.logits[:, -1, :].to(torch.float32)


@right("next_token_logits")
@torch.no_grad()
def as_a_decorator(model, ids):
    """no_grad as a decorator."""
    return model(ids).logits.float().select(1, -1)


@right("next_token_logits")
def with_a_mask_and_one_position(model, ids):
    """Says the mask, and unpacks the output as a tuple."""
    with torch.no_grad():
        logits = model(ids, attention_mask=torch.ones_like(ids))[0]
    return logits[:, ids.shape[1] - 1].float()


@right("pick_greedy")
def by_topk(logits):
    """The one best of topk."""
    return logits.topk(1, dim=-1).indices


@right("pick_greedy")
def by_max_and_unsqueeze(logits):
    """max without keepdim, the dimension put back."""
    return torch.max(logits, dim=1)[1].unsqueeze(1)


@right("pick_greedy")
def in_a_python_loop(logits):
    """A list for each row."""
    rows = [row.tolist() for row in logits]
    return torch.tensor([[row.index(max(row))] for row in rows])


@right("decode")
def from_a_list(model, ids, max_new_tokens, pick):
    """Collects columns and joins them at the end."""
    columns = [ids]
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(torch.cat(columns, dim=1)).logits[:, -1].float()
        columns.append(pick(logits))
    return torch.cat(columns, dim=1)


@right("decode")
def into_a_tensor_of_full_length(model, ids, max_new_tokens, pick):
    """Room for all tokens is made once."""
    batch, start = ids.shape
    out = torch.zeros(batch, start + max_new_tokens, dtype=ids.dtype)
    out[:, :start] = ids
    with torch.inference_mode():
        for end in range(start, start + max_new_tokens):
            out[:, end] = pick(model(out[:, :end].clone()).logits[:, -1])[:, 0]
    return out


@right("decode")
def by_recursion(model, ids, max_new_tokens, pick):
    """One token, then the rest."""
    if max_new_tokens == 0:
        return ids
    with torch.no_grad():
        token = pick(model(ids).logits[:, -1].float())
    longer = torch.hstack([ids, token])
    return by_recursion.value(model, longer, max_new_tokens - 1, pick)


@right("decode")
def with_a_while(model, ids, max_new_tokens, pick):
    """Counts up to the wanted length."""
    wanted = ids.shape[-1] + max_new_tokens
    while ids.shape[-1] < wanted:
        with torch.no_grad():
            ids = torch.cat((ids, pick(model(ids).logits[:, -1])), dim=-1)
    return ids


def positive(temperature):
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return temperature


@right("pick_sample")
def weights_that_do_not_sum_to_1(logits, temperature=1.0):
    """multinomial rescales weights; the maximum is taken off against overflow."""
    scaled = logits / positive(temperature)
    return (scaled - scaled.amax(-1, keepdim=True)).exp().multinomial(1)


@right("pick_sample")
def the_race(logits, temperature=1.0):
    """The exponential race uses the random numbers as multinomial does."""
    probabilities = torch.softmax(logits / positive(temperature), dim=-1)
    noise = torch.empty_like(probabilities).exponential_(1)
    return probabilities.div(noise).argmax(dim=-1, keepdim=True)


@right("pick_sample")
def times_the_inverse(logits, temperature=1.0):
    """beta = 1 / T, as in physics."""
    beta = 1 / positive(temperature)
    return torch.multinomial(torch.softmax(beta * logits, -1), 1, replacement=True)


@right("multinomial_from_scratch")
def first_to_finish(probs):
    """The times E/p themselves; a probability of 0 takes for ever."""
    times = torch.empty_like(probs).exponential_() / probs
    return times.argmin(dim=-1, keepdim=True)


@right("multinomial_from_scratch")
def in_logarithms(probs):
    """log p - log E has its maximum at the same place."""
    noise = torch.empty_like(probs).exponential_()
    return (probs.log() - noise.log()).argmax(-1, keepdim=True)


@right("multinomial_from_scratch")
def by_topk_of_the_race(probs):
    """zeros_like as the place to draw into, topk as the maximum."""
    noise = torch.zeros_like(probs)
    noise.exponential_()
    return (probs / noise).topk(1).indices
