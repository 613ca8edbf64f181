"""Wrong answers to lesson 05, and what the learner must be told of each."""

import re

import torch
from transformers import GenerationMixin

from course.making.answers import reference, wrong

INF = float("inf")
eos_token_ids = reference("eos_token_ids")
is_finished = reference("is_finished")
top_k_filter = reference("top_k_filter")
decode_batch = reference("decode_batch")

# --- eos_token_ids --------------------------------------------------------------------

SEVERAL = "test_one_id_several_or_none"


@wrong("eos_token_ids", SEVERAL, "should give [2], not 2")
def a_bare_int(model):
    """Hands out what is configured, a list or not."""
    found = model.generation_config.eos_token_id
    return [] if found is None else found


@wrong("eos_token_ids", SEVERAL, "should give [2], not [[2")
def a_list_in_a_list(model):
    """Wraps a list once more."""
    found = model.generation_config.eos_token_id
    found = found if isinstance(found, list) else found and [found]
    return [] if found is None else [found]


@wrong("eos_token_ids", SEVERAL, "should give [], not [None]")
def none_is_an_id(model):
    """A model without EOS gets the id None."""
    found = model.generation_config.eos_token_id
    return found[:] if isinstance(found, list) else [found]


@wrong("eos_token_ids", SEVERAL, "should give [2, 7], not [2]")
def the_first_of_several(model):
    """A chat model may end a turn with one of several ids."""
    return eos_token_ids(model)[:1]


@wrong("eos_token_ids", "test_id_0_is_an_id", "0 counts as false")
def zero_is_false(model):
    """`if not found` takes the id 0 for "none"."""
    found = model.generation_config.eos_token_id
    if not found:
        return []
    return [found] if isinstance(found, int) else list(found)


@wrong(
    "eos_token_ids",
    SEVERAL,
    "9 is the one in model.config: ask model.generation_config",
)
def from_the_config(model):
    """model.config describes the architecture; generation_config is what counts."""
    found = model.config.eos_token_id
    return [] if found is None else [found] if isinstance(found, int) else list(found)


@wrong("eos_token_ids", "test_the_list_of_the_model_is_not_handed_out", "copy it")
def the_list_itself(model):
    """Appending to the result changes the model."""
    found = model.generation_config.eos_token_id
    return [] if found is None else [found] if isinstance(found, int) else found


# --- is_finished ----------------------------------------------------------------------

ROWS = "test_an_eos_among_the_new_tokens_of_each_row"


@wrong("is_finished", ROWS, "One answer for each row: any(dim=-1)")
def any_row(new_tokens, eos_ids):
    """any() without dim: one row that ends stops them all."""
    return torch.isin(new_tokens, torch.tensor(eos_ids, dtype=torch.long)).any()


@wrong("is_finished", ROWS, "should have shape (3,), not (3, 1)")
def each_token(new_tokens, eos_ids):
    """An answer for each token, not for each row."""
    return torch.isin(new_tokens, torch.tensor(eos_ids, dtype=torch.long))


@wrong("is_finished", ROWS, "should be [True, False], not [False, False]")
def last_column_only(new_tokens, eos_ids):
    """Looks at the last token; the EOS came before."""
    return is_finished(new_tokens[:, -1:], eos_ids)


@wrong("is_finished", ROWS, "should be [False, True, True]")
def first_id_only(new_tokens, eos_ids):
    """Knows one EOS of several."""
    return is_finished(new_tokens, eos_ids[:1])


@wrong("is_finished", ROWS, "not [False, False, False]")
def all_of_them(new_tokens, eos_ids):
    """all() for any(): no token is two EOS at once."""
    found = [(new_tokens == eos).any(-1) for eos in eos_ids]
    none = torch.zeros(len(new_tokens), dtype=torch.bool)
    return torch.stack(found).all(0) if found else none


@wrong("is_finished", ROWS, "should be [True, False], not [False, False]")
def every_token(new_tokens, eos_ids):
    """Finished only if the whole row is EOS."""
    return torch.isin(new_tokens, torch.tensor(eos_ids, dtype=torch.long)).all(-1)


@wrong("is_finished", ROWS, "should return a Tensor, not a list")
def a_python_list(new_tokens, eos_ids):
    """A list, where the loop needs a tensor."""
    return is_finished(new_tokens, eos_ids).tolist()


@wrong("is_finished", ROWS, "should be torch.bool")
def a_count(new_tokens, eos_ids):
    """How many EOS there are."""
    eos = torch.tensor(eos_ids, dtype=torch.long)
    return torch.isin(new_tokens, eos).sum(-1)


# --- suppress_eos ---------------------------------------------------------------------

HAND = "test_suppression_worked_by_hand"


@wrong("suppress_eos", HAND, "With 4 so far the minimum is reached")
def one_step_too_long(logits, eos_ids, new_so_far, min_new_tokens):
    """`<=` for `<`."""
    logits = logits.clone()
    if new_so_far <= min_new_tokens:
        logits[:, eos_ids] = -INF
    return logits


@wrong("suppress_eos", HAND, "new_so_far=3, min_new_tokens=4) should be")
def one_step_too_short(logits, eos_ids, new_so_far, min_new_tokens):
    """Counts the token that is about to come."""
    logits = logits.clone()
    if new_so_far + 1 < min_new_tokens:
        logits[:, eos_ids] = -INF
    return logits


@wrong("suppress_eos", HAND, "should be [[1, 2, -inf]], not [[1, 2, -10000]]")
def minus_ten_thousand(logits, eos_ids, new_so_far, min_new_tokens):
    """-1e4 is not never."""
    logits = logits.clone()
    if new_so_far < min_new_tokens:
        logits[:, eos_ids] = -1e4
    return logits


@wrong("suppress_eos", HAND, "should be [[1, 2, -inf]], not [[1, 2, 0]]")
def logit_zero(logits, eos_ids, new_so_far, min_new_tokens):
    """0 is a probability's nothing, not a logit's."""
    logits = logits.clone()
    if new_so_far < min_new_tokens:
        logits[:, eos_ids] = 0
    return logits


@wrong("suppress_eos", "test_suppresses_every_eos_in_every_row", "suppress_eos(ones")
def suppresses_one_id(logits, eos_ids, new_so_far, min_new_tokens):
    """The first EOS id alone."""
    logits = logits.clone()
    if new_so_far < min_new_tokens and eos_ids:
        logits[:, eos_ids[0]] = -INF
    return logits


@wrong("suppress_eos", "test_suppresses_every_eos_in_every_row", "suppress_eos(ones")
def suppresses_in_row_0(logits, eos_ids, new_so_far, min_new_tokens):
    """logits[0, ...] is the first row of the batch."""
    logits = logits.clone()
    if new_so_far < min_new_tokens:
        logits[0, eos_ids] = -INF
    return logits


@wrong(
    "suppress_eos", "test_suppression_leaves_its_input_alone", "`logits` was changed"
)
def suppresses_in_place(logits, eos_ids, new_so_far, min_new_tokens):
    """Writes into the caller's logits."""
    if new_so_far < min_new_tokens:
        logits[:, eos_ids] = -INF
        return logits.clone()
    return logits.clone()


@wrong(
    "suppress_eos",
    "test_suppression_leaves_its_input_alone",
    "with 9 new tokens so far and a minimum of 4",
)
def nothing_to_do_no_copy(logits, eos_ids, new_so_far, min_new_tokens):
    """Past the minimum it hands back the argument."""
    if new_so_far >= min_new_tokens:
        return logits
    return logits.index_fill(1, torch.tensor(eos_ids, dtype=torch.long), -INF)


@wrong("suppress_eos", "test_suppression_keeps_the_dtype", "should be torch.float16")
def suppressed_in_float32(logits, eos_ids, new_so_far, min_new_tokens):
    """Goes to float32 and does not come back."""
    logits = logits.float().clone()
    if new_so_far < min_new_tokens:
        logits[:, eos_ids] = -INF
    return logits


@wrong("decode_batch", "test_no_new_tokens_is_the_prompt", "for nothing")
def looks_before_it_counts(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id):
    """Runs the prompt before it asks how many tokens are wanted."""
    with torch.no_grad():
        model(ids, attention_mask=mask, position_ids=counted(mask))
    return decode_batch(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id)


# --- decode_batch ---------------------------------------------------------------------

STOPS = "test_finished_rows_are_padded_and_the_batch_stops"
FOLLOW = "test_what_the_model_is_given_at_each_step"


def counted(mask):
    return (mask.cumsum(-1) - 1).clamp(min=0)


def base(
    model,
    ids,
    mask,
    max_new_tokens,
    pick,
    eos_ids,
    pad_id,
    positions=counted,
    extend=lambda mask, token, finished: torch.ones_like(token),
    fill=lambda token, finished, pad: torch.where(finished[:, None], pad, token),
    ended=lambda token, out, prompt, eos: is_finished(token, eos),
    stop=lambda finished: bool(finished.all()),
    dtype=torch.float32,
    grad=False,
):
    """The reference loop, with its decisions as arguments."""
    prompt, out = ids, ids
    finished = torch.zeros(ids.shape[0], dtype=torch.bool)
    for _ in range(max_new_tokens):
        fed = {"attention_mask": mask} if mask is not None else {}
        if positions is not None:
            fed["position_ids"] = positions(mask)
        with torch.set_grad_enabled(grad):
            logits = model(out, **fed).logits[:, -1].to(dtype or model.dtype)
        token = fill(pick(logits), finished, pad_id)
        out = torch.cat([out, token], dim=-1)
        if mask is not None:
            mask = torch.cat([mask, extend(mask, token, finished)], dim=-1)
        finished = finished | ended(token, out, prompt, eos_ids)
        if stop(finished):
            break
    return out


@wrong("decode_batch", STOPS, "A row that has finished goes on talking")
def talks_after_the_end(*arguments):
    """Tokens of finished rows are kept."""
    return base(*arguments, fill=lambda token, finished, pad: token)


@wrong("decode_batch", STOPS, "EOS itself belongs to its text")
def eos_padded_away(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id):
    """The EOS itself becomes padding."""

    def fill(token, finished, pad):
        ends = finished | is_finished(token, eos_ids)
        said.append(ends)
        return torch.where(ends[:, None], pad, token)

    said = []
    return base(
        *(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id),
        fill=fill,
        ended=lambda *_: said[-1],
    )


@wrong("decode_batch", STOPS, "All rows had finished after 3 steps")
def never_stops_early(*arguments):
    """Runs to the limit though nobody is left."""
    return base(*arguments, stop=lambda finished: False)


@wrong("decode_batch", STOPS, "stops too early")
def first_end_stops_all(*arguments):
    """any() for all(): the shortest answer cuts the others."""
    return base(*arguments, stop=lambda finished: bool(finished.any()))


@wrong("decode_batch", "test_padding_that_is_also_eos", "pad_id = EOS = 2")
def pads_with_zero(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id):
    """Pads with 0, whatever pad_id says."""
    return base(model, ids, mask, max_new_tokens, pick, eos_ids, 0)


@wrong("decode_batch", STOPS, "All rows had finished after 3 steps")
def finished_is_forgotten(*arguments):
    """Only the last token decides: a row that is padded counts as running again."""

    def fill(token, finished, pad):
        return torch.where(finished[:, None], pad, token)

    model, ids, mask, n, pick, eos_ids, pad_id = arguments
    finished, out = torch.zeros(len(ids), dtype=torch.bool), ids
    for _ in range(n):
        with torch.no_grad():
            logits = model(out, attention_mask=mask, position_ids=counted(mask)).logits
        token = fill(pick(logits[:, -1].float()), finished, pad_id)
        out = torch.cat([out, token], dim=-1)
        mask = torch.cat([mask, torch.ones_like(token)], dim=-1)
        finished = is_finished(token, eos_ids)
        if finished.all():
            break
    return out


@wrong("decode_batch", FOLLOW, "the model was given no position_ids")
def without_positions(*arguments):
    """Leaves the positions to the model, which counts padding."""
    return base(*arguments, positions=None)


@wrong("decode_batch", FOLLOW, "Count the ones of the mask")
def positions_from_zero(*arguments):
    """0, 1, 2, ... for every row, padding included."""
    return base(
        *arguments,
        positions=lambda mask: torch.arange(mask.shape[1]).expand(mask.shape),
    )


@wrong("decode_batch", FOLLOW, "Count the ones of the mask")
def positions_from_one(*arguments):
    """cumsum without the - 1."""
    return base(*arguments, positions=lambda mask: mask.cumsum(-1))


@wrong("decode_batch", FOLLOW, "a position is negative")
def positions_not_clamped(*arguments):
    """Padding gets the position -1, which no embedding table has."""
    return base(*arguments, positions=lambda mask: mask.cumsum(-1) - 1)


@wrong("decode_batch", FOLLOW, "each new token adds a 1")
def mask_says_zero_for_new(*arguments):
    """New tokens are masked out."""
    zero = {"extend": lambda mask, token, finished: torch.zeros_like(token)}
    return base(*arguments, **zero)


@wrong("decode_batch", FOLLOW, "a prompt may hold pad_id as a real token")
def mask_from_the_pad_id(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id):
    """ids != pad_id is no mask: a prompt may hold that id as a real token."""
    return base(
        model, ids, (ids != pad_id).long(), max_new_tokens, pick, eos_ids, pad_id
    )


@wrong("decode_batch", FOLLOW, "outside torch.no_grad()")
def gradients_recorded(*arguments):
    """Records gradients at each step."""
    return base(*arguments, grad=True)


@wrong("decode_batch", "test_an_eos_in_the_prompt_stops_nothing", "new tokens only")
def eos_anywhere(*arguments):
    """Looks for EOS in prompt and text."""
    return base(*arguments, ended=lambda token, out, prompt, eos: is_finished(out, eos))


@wrong("decode_batch", "test_pick_gets_float32_logits", "make them float32")
def logits_in_bfloat16(*arguments):
    """Hands on the model's own dtype."""
    return base(*arguments, dtype=None)


@wrong(
    "decode_batch",
    "test_stops_at_max_new_tokens_without_an_eos",
    "should have shape (1, 4), not (1, 5)",
)
def one_step_more(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id):
    """Off by one."""
    return base(model, ids, mask, max_new_tokens + 1, pick, eos_ids, pad_id)


@wrong("decode_batch", "test_prompt_and_mask_are_left_alone", "`mask` was changed")
def mask_in_place(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id):
    """Extends the caller's own mask."""
    out = base(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id)
    mask.resize_(out.shape).fill_(1)
    return out


# --- stream_tokens --------------------------------------------------------------------

PIECES = "test_pieces_worked_by_hand"


def text_of(tokenizer, ids):
    return tokenizer.decode(list(ids), skip_special_tokens=True)


@wrong("stream_tokens", PIECES, "A piece holds half a character")
def each_token_alone(tokenizer, token_ids):
    """A token may be half a character."""
    for token in token_ids:
        if piece := text_of(tokenizer, [token]):
            yield piece


@wrong("stream_tokens", PIECES, "Empty pieces help nobody")
def empty_pieces(tokenizer, token_ids):
    """Yields "" while it waits for the rest of a character."""
    ids, sent = [], ""
    for token in token_ids:
        ids.append(token)
        text = text_of(tokenizer, ids)
        done = text[: len(text) - text.endswith("\ufffd")]
        yield done[len(sent) :]
        sent = done
    if text_of(tokenizer, ids)[len(sent) :]:
        yield text_of(tokenizer, ids)[len(sent) :]


@wrong("stream_tokens", PIECES, "should be ['h', 'i', '!'], not ['h', 'hi', 'hi!']")
def all_of_it_each_time(tokenizer, token_ids):
    """Yields the text so far, not what is new."""
    ids = []
    for token in token_ids:
        ids.append(token)
        text = text_of(tokenizer, ids)
        if not text.endswith("\ufffd"):
            yield text


@wrong("stream_tokens", "test_what_is_left_at_the_end_comes_out", "hand out the rest")
def the_rest_is_lost(tokenizer, token_ids):
    """Half a character at the end is never handed out."""
    ids, sent = [], 0
    for token in token_ids:
        ids.append(token)
        text = text_of(tokenizer, ids)
        if len(text) > sent and not text.endswith("\ufffd"):
            yield text[sent:]
            sent = len(text)


@wrong(
    "stream_tokens",
    "test_special_tokens_give_no_text",
    "Special tokens are not for users: skip_special_tokens=True",
)
def special_tokens_shown(tokenizer, token_ids):
    """Users see </s>."""
    ids, sent = [], 0
    for token in token_ids:
        ids.append(token)
        text = tokenizer.decode(ids)
        if len(text) > sent and not text.endswith("\ufffd"):
            yield text[sent:]
            sent = len(text)
    if tokenizer.decode(ids)[sent:]:
        yield tokenizer.decode(ids)[sent:]


def streamed(tokenizer, token_ids, ready, cut=lambda text: text):
    ids, sent = [], 0
    for token in token_ids:
        ids.append(token)
        text = text_of(tokenizer, ids)
        if len(text) > sent and ready(text[sent:], text):
            yield cut(text[sent:])
            sent = len(text)
    text = text_of(tokenizer, ids)
    if len(text) > sent:
        yield cut(text[sent:])


@wrong(
    "stream_tokens",
    "test_bytes_that_are_no_text_do_not_block_the_rest",
    "only one at the end can become a character",
)
def any_replacement_waits(tokenizer, token_ids):
    """Waits while there is a replacement sign anywhere, for ever perhaps."""
    return streamed(tokenizer, token_ids, lambda new, text: "\ufffd" not in text)


@wrong("stream_tokens", "test_pieces_join_to_the_decoded_text", "the joined pieces of")
def strips_each_piece(tokenizer, token_ids):
    """strip() takes the spaces between words."""
    pieces = streamed(
        tokenizer,
        token_ids,
        lambda new, text: not text.endswith("\ufffd"),
        str.strip,
    )
    return (piece for piece in pieces if piece)


@wrong(
    "stream_tokens", "test_half_a_character_before_a_whole_one", "then 'éa', should be"
)
def whatever_is_new(tokenizer, token_ids):
    """Where a sign is final and the next is not, it hands out both."""
    ids, sent = [], 0
    for token in token_ids:
        ids.append(token)
        text = text_of(tokenizer, ids)
        ready = len(text) - text.endswith("\ufffd")
        if ready > sent:
            yield text[sent:]
            sent = ready
    if text_of(tokenizer, ids)[sent:]:
        yield text_of(tokenizer, ids)[sent:]


@wrong("stream_tokens", "test_asks_for_a_token_only_when_it_needs_one", "Yield inside")
def collects_first(tokenizer, token_ids):
    """Waits for the whole text."""
    ids = list(token_ids)
    return streamed(tokenizer, ids, lambda new, text: not text.endswith("\ufffd"))


@wrong("stream_tokens", PIECES, "should be ['h', 'i', '!'], not ['hi!']")
def word_by_word(tokenizer, token_ids):
    """Waits for a space, as a streamer for words does."""
    return streamed(tokenizer, token_ids, lambda new, text: text.endswith(" "))


# --- stop_at --------------------------------------------------------------------------

BY_HAND = "test_stops_worked_by_hand"


def refused(stop_strings):
    if "" in stop_strings:
        raise ValueError("a stop string must not be empty")


@wrong("stop_at", BY_HAND, "came out early, though it may begin a stop string")
def piece_by_piece(pieces, stop_strings):
    """A stop string that two pieces share is not found."""
    refused(stop_strings)
    for piece in pieces:
        if any(stop in piece for stop in stop_strings):
            first = min(piece.find(s) for s in stop_strings if s in piece)
            if piece[:first]:
                yield piece[:first]
            return
        yield piece


@wrong("stop_at", BY_HAND, "came out late: hold back only what may begin")
def all_at_once(pieces, stop_strings):
    """Joins everything first."""
    refused(stop_strings)
    text = "".join(pieces)
    ends = [text.find(stop) for stop in stop_strings if stop in text]
    if text[: min(ends, default=len(text))]:
        yield text[: min(ends, default=len(text))]


def held_back(pieces, stop_strings, hold, at_the_end=True, keep_stop=False, find=None):
    """Holds back `hold(held)` characters of what it has."""
    refused(stop_strings)
    held = ""
    for piece in pieces:
        held += piece
        found = [(held.find(s) + len(s), -len(s)) for s in stop_strings if s in held]
        if find is not None:
            found = find(held)
        if found:
            end, length = min(found)
            text = held[: end if keep_stop else end + length]
            if text:
                yield text
            return
        safe = len(held) - hold(held)
        if safe > 0:
            yield held[:safe]
            held = held[safe:]
    if held and at_the_end:
        yield held


def could_begin(held, stop_strings):
    for start in range(len(held)):
        if any(stop.startswith(held[start:]) for stop in stop_strings):
            return len(held) - start
    return 0


@wrong("stop_at", BY_HAND, "The stop string is in the output")
def stop_string_included(pieces, stop_strings):
    """The stop string itself is shown."""
    begin = lambda held: could_begin(held, stop_strings)  # noqa: E731
    return held_back(pieces, stop_strings, begin, keep_stop=True)


@wrong("stop_at", BY_HAND, "hand out what is held back when the pieces end")
def the_end_is_lost(pieces, stop_strings):
    """What was held back when the pieces end is dropped."""
    begin = lambda held: could_begin(held, stop_strings)  # noqa: E731
    return held_back(pieces, stop_strings, begin, at_the_end=False)


@wrong("stop_at", BY_HAND, "came out late: hold back only what may begin")
def a_fixed_number_held_back(pieces, stop_strings):
    """Always holds back the longest stop string less one."""
    longest = max(map(len, stop_strings), default=1) - 1
    return held_back(pieces, stop_strings, lambda held: min(longest, len(held)))


@wrong(
    "stop_at",
    "test_holds_back_no_more_than_needed",
    "the second piece should be 'd', not 'dENx'. Only 'EN' may",
)
def the_rest_of_the_piece_too(pieces, stop_strings):
    """Holds back the whole text while its end could begin a stop string."""
    return held_back(
        pieces,
        stop_strings,
        lambda held: len(held) if could_begin(held, stop_strings) else 0,
    )


@wrong(
    "stop_at",
    "test_the_result_does_not_depend_on_how_the_text_is_cut",
    "complete first counts",
)
def first_in_the_list(pieces, stop_strings):
    """The first stop string of the list wins, wherever it is."""

    def find(held):
        return [(held.find(s) + len(s), -len(s)) for s in stop_strings if s in held][:1]

    begin = lambda held: could_begin(held, stop_strings)  # noqa: E731
    return held_back(pieces, stop_strings, begin, find=find)


@wrong("stop_at", "test_asks_for_nothing_after_a_stop", "another piece was asked for")
def reads_to_the_end(pieces, stop_strings):
    """Goes on reading what nobody will see."""
    begin = lambda held: could_begin(held, stop_strings)  # noqa: E731
    yield from held_back(pieces, stop_strings, begin)
    for _ in pieces:
        pass


@wrong("stop_at", BY_HAND, "Of two stop strings that end together the longer counts")
def the_first_of_those_that_end_together(pieces, stop_strings):
    """Of two stop strings that end at the same character the list's first is cut."""

    def find(held):
        ends = [(held.find(s) + len(s), -len(s)) for s in stop_strings if s in held]
        return [min(ends, key=lambda found: found[0])] if ends else []

    begin = lambda held: could_begin(held, stop_strings)  # noqa: E731
    return held_back(pieces, stop_strings, begin, find=find)


@wrong("stop_at", "test_an_empty_stop_string_is_refused", "should raise ValueError")
def empty_stops_at_once(pieces, stop_strings):
    """An empty stop string is skipped in silence."""
    stops = [stop for stop in stop_strings if stop]
    return held_back(pieces, stops, lambda held: could_begin(held, stops))


# --- CustomDecoder --------------------------------------------------------------------


class Base:
    """The reference, with its decisions as attributes."""

    eos_of = staticmethod(eos_token_ids)
    ids_of_padding = staticmethod(
        lambda model, eos: (
            model.generation_config.pad_token_id
            if model.generation_config.pad_token_id is not None
            else (eos or [0])[0]
        )
    )
    loop = staticmethod(decode_batch)

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    def mask(self, input_ids):
        return torch.ones_like(input_ids)

    def refuse(self, input_ids, new, do_sample, temperature, top_k):
        if input_ids.dim() != 2:
            raise ValueError("input_ids should be (batch, seq)")
        if new < 1:
            raise ValueError("max_new_tokens must be 1 or more")
        if do_sample and (not temperature > 0 or top_k < 0):
            raise ValueError("temperature above 0, top_k 0 or more")

    def draw(self, logits, temperature, top_k):
        filtered = top_k_filter(logits / temperature, top_k)
        return torch.multinomial(filtered.softmax(-1), 1)

    def generate(
        self,
        input_ids,
        attention_mask=None,
        max_new_tokens=20,
        do_sample=False,
        temperature=1.0,
        top_k=50,
    ):
        self.refuse(input_ids, max_new_tokens, do_sample, temperature, top_k)
        eos_ids = self.eos_of(self.model)
        pad_id = self.ids_of_padding(self.model, eos_ids)
        if attention_mask is None:
            attention_mask = self.mask(input_ids)

        def pick(logits):
            if not do_sample:
                return logits.argmax(-1, keepdim=True)
            return self.draw(logits, temperature, top_k)

        prompt = (self.model, input_ids, attention_mask, max_new_tokens)
        return self.loop(*prompt, pick, eos_ids, pad_id)


@wrong("CustomDecoder", "test_a_text_that_ends_with_eos", "goes on for too long")
class NoEnd(Base):
    """Knows no EOS."""

    eos_of = staticmethod(lambda model: [])


@wrong("CustomDecoder", "test_the_eos_ids_are_those_of_the_model", "may hold a list")
class FirstEos(Base):
    """Knows the first EOS id only."""

    eos_of = staticmethod(lambda model: eos_token_ids(model)[:1])


@wrong("CustomDecoder", "test_the_eos_ids_are_those_of_the_model", "not the tokenizer")
class EosOfTheTokenizer(Base):
    """The tokenizer's EOS is not always the model's."""

    def generate(self, *arguments, **options):
        self.eos_of = lambda model: [self.tokenizer.eos_token_id]
        return super().generate(*arguments, **options)


@wrong(
    "CustomDecoder",
    "test_max_new_tokens_counts_new_tokens",
    "0 new tokens after a prompt of 4. Does it count the prompt?",
)
class CountsThePrompt(Base):
    """max_length under the name of max_new_tokens."""

    def generate(self, input_ids, attention_mask=None, max_new_tokens=20, **options):
        new = max(max_new_tokens - input_ids.shape[1], 0)
        if new == 0:
            return input_ids
        return super().generate(input_ids, attention_mask, new, **options)


@wrong(
    "CustomDecoder",
    "test_max_new_tokens_counts_new_tokens",
    "Was it swallowed by **kwargs?",
)
class MaxLengthSwallows(Base):
    """Has max_length; max_new_tokens vanishes in **kwargs."""

    def generate(self, input_ids, attention_mask=None, max_length=50, **kwargs):
        return super().generate(input_ids, attention_mask, max_length)


@wrong("CustomDecoder", "test_the_defaults_are_those_of_generate", "greedy, 20 new")
class SamplesByDefault(Base):
    """do_sample=True by default."""

    def generate(self, input_ids, attention_mask=None, **options):
        options = {"do_sample": True, **options}
        return super().generate(input_ids, attention_mask, **options)


@wrong("CustomDecoder", "test_greedy_on_a_left_padded_batch", "Rows need their mask")
class MaskDropped(Base):
    """The mask does not reach the loop."""

    def generate(self, input_ids, attention_mask=None, **options):
        return super().generate(input_ids, None, **options)


@wrong(
    "CustomDecoder", "test_without_a_mask_all_tokens_are_real", "nobody but the caller"
)
class MaskFromThePadId(Base):
    """Without a mask it takes the pad id for padding."""

    def mask(self, input_ids):
        pad = self.model.generation_config.pad_token_id
        return (input_ids != pad).long()


@wrong("CustomDecoder", "test_sampling_with_top_k", "Temperature, top-k, softmax")
class FilterAfterSoftmax(Base):
    """Filters probabilities: what is removed is -inf, and softmax comes twice."""

    def draw(self, logits, temperature, top_k):
        filtered = top_k_filter((logits / temperature).softmax(-1), top_k)
        return torch.multinomial(filtered.softmax(-1), 1)


@wrong("CustomDecoder", "test_sampling_with_top_k", "Temperature, top-k, softmax")
class TopKUnused(Base):
    """Draws from all tokens."""

    def draw(self, logits, temperature, top_k):
        return torch.multinomial((logits / temperature).softmax(-1), 1)


@wrong(
    "CustomDecoder",
    "test_sampling_with_top_k",
    "Each row gets a draw of its own: torch.multinomial on",
)
class OneDrawForTheBatch(Base):
    """A token drawn for row 0 serves all rows: right for one prompt alone."""

    def draw(self, logits, temperature, top_k):
        filtered = top_k_filter(logits / temperature, top_k).softmax(-1)
        return torch.multinomial(filtered[:1], 1).expand(len(logits), 1)


@wrong("CustomDecoder", "test_sampling_with_top_k", "(batch, vocab), and no other draw")
class AnotherDraw(Base):
    """A number drawn for something else moves all later draws."""

    def draw(self, logits, temperature, top_k):
        filtered = top_k_filter(logits / temperature, top_k).softmax(-1)
        torch.rand(1)
        return torch.multinomial(filtered, 1)


@wrong(
    "CustomDecoder", "test_sampling_with_the_default_top_k", "default of generate is 50"
)
class NoTopKByDefault(Base):
    """top_k=0 by default."""

    def generate(self, input_ids, attention_mask=None, **options):
        return super().generate(input_ids, attention_mask, **{"top_k": 0, **options})


@wrong(
    "CustomDecoder", "test_a_model_without_a_pad_token_pads_with_eos", "no pad_token_id"
)
class PadsWithZero(Base):
    """0 where the model has no padding of its own."""

    ids_of_padding = staticmethod(
        lambda model, eos: model.generation_config.pad_token_id or 0
    )


@wrong(
    "CustomDecoder",
    "test_greedy_on_a_left_padded_batch",
    "0 counts as false, so ask `is None`",
)
class PadZeroIsFalse(Base):
    """`pad or eos[0]` takes the pad id 0 for none."""

    ids_of_padding = staticmethod(
        lambda model, eos: model.generation_config.pad_token_id or eos[0]
    )


@wrong(
    "CustomDecoder",
    "test_greedy_asks_for_no_temperature_and_no_top_k",
    "Greedy uses neither temperature nor top_k",
)
class RefusesWhatIsNotUsed(Base):
    """Refuses temperature=0 when nothing is sampled."""

    def refuse(self, input_ids, new, do_sample, temperature, top_k):
        super().refuse(input_ids, new, True, temperature, top_k)


@wrong(
    "CustomDecoder",
    "test_values_that_make_no_sense_are_refused",
    "raised ValueError only after the model was called: check temperature",
)
class RefusesTooLate(Base):
    """Finds the wrong value when the first token is picked."""

    def refuse(self, input_ids, new, do_sample, temperature, top_k):
        super().refuse(input_ids, new, False, temperature, top_k)

    def draw(self, logits, temperature, top_k):
        if temperature <= 0:
            raise ValueError("temperature")
        return super().draw(logits, temperature, top_k)


@wrong("CustomDecoder", "test_an_unknown_argument_is_an_error", "a misspelling")
class SwallowsArguments(Base):
    """**kwargs swallows a misspelling."""

    def generate(self, input_ids, max_new_tokens=20, **kwargs):
        known = ("attention_mask", "do_sample", "temperature", "top_k")
        kept = {k: v for k, v in kwargs.items() if k in known}
        return super().generate(input_ids, max_new_tokens=max_new_tokens, **kept)


@wrong(
    "CustomDecoder",
    "test_a_vocabulary_smaller_than_top_k",
    "above the 40 tokens of this model, and keeps all",
)
class TopKNotClamped(Base):
    """topk(50) of 40 tokens."""

    def draw(self, logits, temperature, top_k):
        scaled = logits / temperature
        if top_k:
            lowest = scaled.topk(top_k).values[:, -1:]
            scaled = scaled.masked_fill(scaled < lowest, -INF)
        return torch.multinomial(scaled.softmax(-1), 1)


@wrong(
    "CustomDecoder",
    "test_a_text_that_ends_with_eos",
    "The model has it: self.model.generation_config",
)
class TheTutorials(GenerationMixin):
    """Inherits from GenerationMixin and hopes for its generate."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer


# --- what only rare data show ---------------------------------------------------------

stream_tokens = reference("stream_tokens")


@wrong("eos_token_ids", SEVERAL, "should give [7, 0, 2], not [7, 2]")
def zero_filtered_from_the_list(model):
    """0 counts as false, in a list, too."""
    found = model.generation_config.eos_token_id
    if found is None:
        return []
    return [found] if isinstance(found, int) else [token for token in found if token]


@wrong("eos_token_ids", SEVERAL, "should give [7, 0, 2], not [0, 2, 7]")
def sorted_ids(model):
    """The first id serves as padding, so their order counts."""
    return sorted(eos_token_ids(model))


@wrong("is_finished", ROWS, "True, True, False], not [True, False, True")
def compared_place_by_place(new_tokens, eos_ids):
    """Right for one new token or one EOS id only."""
    if not eos_ids:
        return torch.zeros(len(new_tokens), dtype=torch.bool)
    return (new_tokens == torch.tensor(eos_ids)).any(-1)


@wrong(
    "is_finished", ROWS, "one row of 70 fours, EOS [2], should be [False], not [True]"
)
def product_of_differences(new_tokens, eos_ids):
    """64 even factors overflow to 0, too."""
    result = torch.zeros(len(new_tokens), dtype=torch.bool)
    for eos in eos_ids:
        result |= (new_tokens - eos).prod(-1) == 0
    return result


@wrong("is_finished", ROWS, "False], not [True, True, False")
def exactly_one_eos(new_tokens, eos_ids):
    """A row with two of them is finished as well."""
    return torch.isin(new_tokens, torch.tensor(eos_ids).long()).sum(-1) == 1


@wrong("suppress_eos", "test_a_model_without_eos_is_left_as_it_is", "Return a copy")
def the_argument_without_eos(logits, eos_ids, new_so_far, min_new_tokens):
    """Hands the caller's logits back where there is nothing to suppress."""
    if not eos_ids:
        return logits
    result = logits.clone()
    if new_so_far < min_new_tokens:
        result[:, eos_ids] = -INF
    return result


@wrong("decode_batch", FOLLOW, "that of a finished row, too")
def zeros_for_finished_rows(*arguments):
    """The mask gets zeros for the padding of finished rows."""
    extend = lambda mask, token, finished: (~finished)[:, None].to(mask.dtype)  # noqa: E731
    return base(*arguments, extend=extend)


@wrong("decode_batch", "test_padding_is_not_left_to_pick", "the row gets pad_id")
def padding_left_to_pick(model, ids, mask, max_new_tokens, pick, eos_ids, pad_id):
    """Makes pad the likeliest token of finished rows and hopes that pick looks."""

    def steered(logits):
        if texts:
            over = is_finished(torch.cat(texts, dim=-1), eos_ids)
            logits = logits.clone()
            logits[over] = -INF
            logits[over, pad_id] = 0.0
        texts.append(pick(logits))
        return texts[-1]

    texts = []
    as_it_is = lambda token, finished, pad: token  # noqa: E731
    arguments = (model, ids, mask, max_new_tokens, steered, eos_ids, pad_id)
    return base(*arguments, fill=as_it_is)


@wrong("stream_tokens", "test_token_0_may_be_text", "the pieces of tokens 0, 1, 0")
def token_0_is_skipped(tokenizer, token_ids):
    """`if token` is false for token 0."""
    yield from stream_tokens(tokenizer, (token for token in token_ids if token))


@wrong(
    "stream_tokens",
    "test_what_is_left_at_the_end_comes_out",
    "it can be read only once, so keep the tokens",
)
def reads_the_tokens_twice(tokenizer, token_ids):
    """A generator is empty when it is read a second time."""
    ids, sent = [], 0
    for token in token_ids:
        ids.append(token)
        text = text_of(tokenizer, ids).removesuffix("\ufffd")
        if len(text) > sent:
            yield text[sent:]
            sent = len(text)
    if rest := text_of(tokenizer, token_ids)[sent:]:
        yield rest


@wrong("stop_at", BY_HAND, "not a regular expression")
def stops_are_expressions(pieces, stop_strings):
    """'.' stops at every character."""

    def find(held):
        hits = [hit for stop in stop_strings if (hit := re.search(stop, held))]
        return [(hit.end(), hit.start() - hit.end()) for hit in hits]

    begin = lambda held: could_begin(held, stop_strings)  # noqa: E731
    yield from held_back(pieces, stop_strings, begin, find=find)


@wrong("stop_at", BY_HAND, "came out late: hold back only what may begin")
def held_from_the_first_character(pieces, stop_strings):
    """Holds back from where the first character of a stop string stands."""

    def hold(held):
        starts = [held.find(s[0], max(0, len(held) - len(s) + 1)) for s in stop_strings]
        return max((len(held) - start for start in starts if start >= 0), default=0)

    yield from held_back(pieces, stop_strings, hold)


@wrong("stop_at", "test_an_empty_stop_string_is_refused", "stop_at([], ['a', ''])")
def refused_with_the_first_piece(pieces, stop_strings):
    """Looks at the stop strings only once a piece has come."""

    def checked():
        for piece in pieces:
            refused(stop_strings)
            yield piece

    stops = [stop for stop in stop_strings if stop]
    yield from held_back(checked(), stops, lambda held: could_begin(held, stops))


@wrong("CustomDecoder", "test_tied_tokens_are_all_sampled", "Ties with the k-th")
class TiesDropped(Base):
    """Exactly top_k tokens, where generate keeps all that tie."""

    def draw(self, logits, temperature, top_k):
        kept = reference("top_k_exact")(logits, top_k)
        return super().draw(kept, temperature, 0)


@wrong(
    "CustomDecoder", "test_values_that_make_no_sense_are_refused", "of shape (1, 1, 2)"
)
class ThreeDimensionsPass(Base):
    """Refuses too few dimensions, not too many."""

    def refuse(self, input_ids, *others):
        if input_ids.dim() < 2:
            raise ValueError("input_ids should be (batch, seq)")
        super().refuse(input_ids.reshape(1, -1), *others)


@wrong(
    "CustomDecoder",
    "test_greedy_asks_for_no_temperature_and_no_top_k",
    "do_sample=False, temperature=-1.0): row 0 differs first",
)
class GreedyWithTemperature(Base):
    """Divides by a negative temperature: the least likely token becomes the first."""

    def generate(self, input_ids, *arguments, temperature=1.0, **options):
        sign = -1.0 if temperature < 0 and not options.get("do_sample") else 1.0

        def loop(model, ids, mask, new, pick, *ends):
            return decode_batch(model, ids, mask, new, lambda x: pick(x * sign), *ends)

        self.loop = loop
        options["temperature"] = temperature
        return super().generate(input_ids, *arguments, **options)


@wrong("CustomDecoder", "test_greedy_on_one_prompt", "one prompt with padding")
class NoMaskForOnePrompt(Base):
    """One prompt may be padded, too."""

    def generate(self, input_ids, attention_mask=None, *arguments, **options):
        if len(input_ids) == 1:
            attention_mask = None
        return super().generate(input_ids, attention_mask, *arguments, **options)


@wrong(
    "CustomDecoder",
    "test_a_second_call_goes_on_where_the_first_ended",
    "where the draws leave it",
)
class GeneratorPutBack(Base):
    """fork_rng puts the generator back: every call draws the same."""

    def generate(self, *arguments, **options):
        with torch.random.fork_rng():
            return super().generate(*arguments, **options)


@wrong("CustomDecoder", "test_values_that_make_no_sense_are_refused", "temperature=nan")
class NotANumberPasses(Base):
    """NaN is neither below 0 nor 0."""

    def refuse(self, input_ids, new, do_sample, temperature, top_k):
        if do_sample and temperature <= 0:
            raise ValueError("temperature must be above 0")
        super().refuse(input_ids, new, do_sample, 1.0, top_k)
