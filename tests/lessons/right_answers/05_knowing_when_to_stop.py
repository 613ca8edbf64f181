"""Right answers to lesson 05 in another style: each must pass all checks."""

import codecs
import re

import torch

from course.making.answers import reference, right

INF = float("inf")
eos_token_ids = reference("eos_token_ids")
is_finished = reference("is_finished")
top_k_filter = reference("top_k_filter")
decode_batch = reference("decode_batch")


@right("eos_token_ids")
def by_list_type(model):
    """Asks for the list first."""
    found = model.generation_config.eos_token_id
    if isinstance(found, (list, tuple)):
        return [*found]
    return [] if found is None else [found]


@right("eos_token_ids")
def through_a_tensor(model):
    """torch makes one dimension of all."""
    found = model.generation_config.eos_token_id
    if found is None:
        return []
    return torch.atleast_1d(torch.tensor(found)).tolist()


@right("eos_token_ids")
def by_trying(model):
    """list() fails for an int and for None."""
    found = model.generation_config.eos_token_id
    try:
        return list(found)
    except TypeError:
        return [found for _ in [0] if found is not None]


@right("is_finished")
def one_comparison_for_each_id(new_tokens, eos_ids):
    """Compares with one id after another."""
    finished = torch.zeros(new_tokens.shape[0], dtype=torch.bool)
    for eos in eos_ids:
        finished |= (new_tokens == eos).any(dim=1)
    return finished


@right("is_finished")
def by_broadcasting(new_tokens, eos_ids):
    """(batch, n, 1) against (ids,)."""
    eos = torch.tensor(eos_ids, dtype=new_tokens.dtype)
    return (new_tokens.unsqueeze(-1) == eos).flatten(1).any(1)


@right("is_finished")
def with_python_sets(new_tokens, eos_ids):
    """A set for each row."""
    return torch.tensor([bool({*row} & {*eos_ids}) for row in new_tokens.tolist()])


@right("suppress_eos")
def by_index_fill(logits, eos_ids, new_so_far, min_new_tokens):
    """index_fill returns a new tensor."""
    places = torch.tensor(eos_ids if new_so_far < min_new_tokens else [])
    return logits.index_fill(-1, places.long(), -INF)


@right("suppress_eos")
def by_a_mask_over_the_vocabulary(logits, eos_ids, new_so_far, min_new_tokens):
    """A boolean row for the vocabulary."""
    if new_so_far >= min_new_tokens:
        return logits + 0
    row = torch.isin(torch.arange(logits.shape[-1]), torch.tensor(eos_ids).long())
    return torch.where(row, torch.tensor(-INF, dtype=logits.dtype), logits)


@right("suppress_eos")
def in_a_loop_on_a_clone(logits, eos_ids, new_so_far, min_new_tokens):
    """One id after another."""
    out = torch.clone(logits)
    for eos in eos_ids:
        if min_new_tokens > new_so_far:
            out[..., eos] = -INF
    return out


@right("decode_batch")
def positions_counted_on(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id):
    """Positions are made once and grow by one; masked_fill pads."""
    positions = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 1)
    done = torch.zeros(len(ids), 1, dtype=torch.bool)
    while max_new_tokens > 0 and not done.all():
        max_new_tokens -= 1
        with torch.inference_mode():
            logits = model(ids, attention_mask=mask, position_ids=positions).logits
        token = pick(logits[:, -1, :].float()).masked_fill(done, pad_id)
        done = done | is_finished(token, eos_ids)[:, None]
        ids = torch.hstack([ids, token])
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        positions = torch.hstack([positions, positions[:, -1:] + 1])
    return ids.clone()


@right("decode_batch")
def padded_at_the_end(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id):
    """Collects new tokens, and pads what follows the first EOS when all is done."""
    new = ids[:, :0]
    for _ in range(max_new_tokens):
        ones = torch.ones_like(new)
        seen = torch.cat([mask, ones], 1)
        with torch.no_grad():
            output = model(
                torch.cat([ids, new], 1),
                attention_mask=seen,
                position_ids=torch.clamp(torch.cumsum(seen, 1) - 1, 0),
            )
        new = torch.cat([new, pick(output.logits[:, -1].float())], 1)
        ends = torch.isin(new, torch.tensor(eos_ids, dtype=torch.long))
        if ends.any(1).all():
            break
        new = torch.where(ends.cumsum(1) - ends.long() > 0, pad_id, new)
    ends = torch.isin(new, torch.tensor(eos_ids, dtype=torch.long))
    new = torch.where(ends.long().cumsum(1) - ends.long() > 0, pad_id, new)
    return torch.cat([ids, new], 1)


@right("decode_batch")
def rows_in_python(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id):
    """The rows are lists; a tensor is made for each call."""
    rows, masks = ids.tolist(), mask.tolist()
    live = [True] * len(rows)
    for _ in range(max_new_tokens):
        seen = torch.tensor(masks)
        places = [[max(sum(m[: n + 1]) - 1, 0) for n in range(len(m))] for m in masks]
        with torch.no_grad():
            logits = model(
                torch.tensor(rows),
                attention_mask=seen,
                position_ids=torch.tensor(places),
            ).logits[:, -1]
        for n, token in enumerate(pick(logits.float())[:, 0].tolist()):
            rows[n].append(token if live[n] else pad_id)
            masks[n].append(1)
            live[n] = live[n] and token not in eos_ids
        if not any(live):
            break
    return torch.tensor(rows)


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True)


@right("stream_tokens")
def by_removing_what_was_sent(tokenizer, token_ids):
    """Keeps the text that was handed out and removes it from the front."""
    ids, sent = [], ""
    for token in token_ids:
        ids += [token]
        text = text_of(tokenizer, ids)
        if text != sent and text[-1:] != "\ufffd":
            yield text.removeprefix(sent)
            sent = text
    rest = text_of(tokenizer, ids).removeprefix(sent)
    if rest:
        yield rest


@right("stream_tokens")
def from_the_last_good_place(tokenizer, token_ids):
    """Decodes from the last clean cut: as good for a byte-level tokenizer."""
    waiting = []
    for token in token_ids:
        waiting.append(int(token))
        text = text_of(tokenizer, waiting)
        if text and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text
            waiting = []
    text = text_of(tokenizer, waiting)
    if text:
        yield text


@right("stream_tokens")
def one_character_at_a_time_from_bytes(tokenizer, token_ids):
    """For a byte-level tokenizer: Python's own incremental decoder."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in token_ids:
        if int(token) in tokenizer.all_special_ids:
            continue
        byte = _byte_of(tokenizer, int(token))
        if piece := decoder.decode(byte):
            yield piece
    if piece := decoder.decode(b"", final=True):
        yield piece


def _byte_of(tokenizer, token):
    sign = tokenizer.convert_ids_to_tokens(token)
    return bytes(_BYTES[letter] for letter in sign)


def _bytes_to_signs():
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in kept]
    return {chr(b): b for b in kept} | {chr(256 + n): b for n, b in enumerate(rest)}


_BYTES = _bytes_to_signs()


def refused(stop_strings):
    if any(not stop for stop in stop_strings):
        raise ValueError("a stop string must not be empty")


@right("stop_at")
def by_prefixes(pieces, stop_strings):
    """A set of all prefixes of all stop strings."""
    refused(stop_strings)
    prefixes = {s[:n] for s in stop_strings for n in range(1, len(s))}
    longest = max(map(len, prefixes), default=0)
    held = ""
    for piece in pieces:
        out = ""
        for letter in piece:
            held += letter
            found = [s for s in stop_strings if held.endswith(s)]
            if found:
                out += held[: len(held) - max(map(len, found))]
                if out:
                    yield out
                return
        tails = (held[-n:] for n in range(min(longest, len(held)), 0, -1))
        keep = next((len(tail) for tail in tails if tail in prefixes), 0)
        out += held[: len(held) - keep]
        held = held[len(held) - keep :]
        if out:
            yield out
    if held:
        yield held


@right("stop_at")
def by_searching_ends(pieces, stop_strings):
    """Finds where each stop string ends; the first end counts, the longest there. Says
    what is wrong in a language of its own."""
    if "" in stop_strings:
        raise ValueError("停止串不能为空")
    buffer = ""
    for piece in pieces:
        buffer += piece
        ends = [
            (buffer.index(stop) + len(stop), -len(stop))
            for stop in stop_strings
            if stop in buffer
        ]
        if ends:
            end, minus = min(ends)
            yield from filter(None, [buffer[: end + minus]])
            return
        hold = max(
            (
                n
                for stop in stop_strings
                for n in range(1, len(stop))
                if buffer.endswith(stop[:n])
            ),
            default=0,
        )
        yield from filter(None, [buffer[: len(buffer) - hold]])
        buffer = buffer[len(buffer) - hold :]
    yield from filter(None, [buffer])


@right("stop_at")
def by_regular_expression(pieces, stop_strings):
    """A pattern for a beginning of a stop string at the end of the text."""
    refused(stop_strings)
    begins = [re.escape(s[:n]) for s in stop_strings for n in range(len(s) - 1, 0, -1)]
    begins.sort(key=len, reverse=True)
    tail = re.compile(f"(?:{'|'.join(begins)})$") if begins else None
    text = ""
    for piece in pieces:
        text += piece
        complete = [(text.find(s) + len(s), -len(s)) for s in stop_strings if s in text]
        if complete:
            end, minus = sorted(complete)[0]
            if end + minus:
                yield text[: end + minus]
            return
        found = tail.search(text) if tail else None
        cut = found.start() if found else len(text)
        if cut:
            yield text[:cut]
        text = text[cut:]
    if text:
        yield text


def sensible(input_ids, new, do_sample, temperature, top_k):
    if input_ids.ndim != 2:
        raise ValueError("input_ids should be (batch, seq)")
    if new <= 0:
        raise ValueError("max_new_tokens should be 1 or more")
    if do_sample and not temperature > 0:
        raise ValueError("temperature should be above 0")
    if do_sample and top_k < 0:
        raise ValueError("top_k should be 0 or more")


class Common:
    def __init__(self, model, tokenizer):
        self.model = model
        self.eos_ids = eos_token_ids(model)
        pad = model.generation_config.pad_token_id
        self.pad_id = pad if pad is not None else next(iter(self.eos_ids), 0)


@right("CustomDecoder")
class WithTheRaceInside(Common):
    """Sampling by the race; ids and EOS are read when the decoder is made."""

    def generate(
        self,
        input_ids,
        attention_mask=None,
        max_new_tokens=20,
        do_sample=False,
        temperature=1.0,
        top_k=50,
    ):
        sensible(input_ids, max_new_tokens, do_sample, temperature, top_k)
        mask = input_ids * 0 + 1 if attention_mask is None else attention_mask

        def draw(logits):
            p = top_k_filter(logits / temperature, top_k).softmax(-1)
            return (p / torch.empty_like(p).exponential_()).argmax(-1, keepdim=True)

        pick = draw if do_sample else lambda x: x.topk(1).indices
        return decode_batch(
            *(self.model, input_ids, mask, max_new_tokens),
            *(pick, self.eos_ids, self.pad_id),
        )


@right("CustomDecoder")
class FilterFirst(Common):
    """Top-k before the temperature: the same, since the order of logits stays."""

    def generate(
        self,
        input_ids,
        attention_mask=None,
        max_new_tokens=20,
        do_sample=False,
        temperature=1.0,
        top_k=50,
    ):
        sensible(input_ids, max_new_tokens, do_sample, temperature, top_k)

        def pick(logits):
            if do_sample:
                kept = top_k_filter(logits, top_k) / temperature
                return torch.multinomial(kept.softmax(-1), num_samples=1)
            return logits.max(-1, keepdim=True)[1]

        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return decode_batch(
            self.model,
            input_ids,
            attention_mask,
            max_new_tokens,
            pick,
            self.eos_ids,
            self.pad_id,
        )


@right("CustomDecoder")
class WithACache(Common):
    """Feeds one new token a step and keeps the model's KV cache."""

    def generate(
        self,
        input_ids,
        attention_mask=None,
        max_new_tokens=20,
        do_sample=False,
        temperature=1.0,
        top_k=50,
    ):
        sensible(input_ids, max_new_tokens, do_sample, temperature, top_k)
        mask = attention_mask
        if mask is None:
            mask = torch.ones_like(input_ids)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        done = torch.zeros(len(input_ids), 1, dtype=torch.bool)
        fed, out, cache = input_ids, input_ids, None
        for _ in range(max_new_tokens):
            with torch.no_grad():
                output = self.model(
                    fed,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                )
            cache, logits = output.past_key_values, output.logits[:, -1].float()
            if do_sample:
                p = top_k_filter(logits / temperature, top_k).softmax(-1)
                fed = torch.multinomial(p, 1)
            else:
                fed = logits.argmax(-1, keepdim=True)
            fed = fed.masked_fill(done, self.pad_id)
            out = torch.cat([out, fed], -1)
            mask = torch.cat([mask, torch.ones_like(fed)], -1)
            positions = positions[:, -1:] + 1
            done = done | is_finished(fed, self.eos_ids)[:, None]
            if done.all():
                break
        return out
