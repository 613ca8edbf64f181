"""Mutants of the reference answers that compute the same, and why.

exercise -> {change, as `python start.py trust` prints it: reason}
"""
# ruff: noqa: E501

ONE_CHOICE = "there is one choice, since nobody asked for more"
ONE_TOKEN = "one token was asked for, and a second one has no alternatives here"
NULL = "for several answers and nulls, of which tests/lessons/test_our_answers.py asks"
SKIPPED = "special tokens that the tokenizer names are skipped before"
HALF = "float32 for half precision, of which tests/lessons/test_our_answers.py asks"
OURS = "asked of our answer alone, in tests/lessons/test_our_answers.py"
BEFORE_THE_TEMPERATURE = "the API reports log-probabilities before the temperature"
DEFAULT = "return_dict=True is the default since transformers 5"
ONE_ROW = "there is one row"
ON_THE_CPU = "makes a difference on a GPU only, and tests run without one"

USE_CACHE = "use_cache=True is the default of these models"
THE_LAST_IS_THE_DEFAULT = "sort works on the last dimension by default"
TO_THE_LAST_BIT = "differs only where two rounded numbers are equal to the last bit"
FLOAT32 = "float32 is precise enough for the tolerance"
FINE = "any fine grid of mixtures gives the area within the tolerance"
SINGLE = "the models of the checks compute in float32"
LAST = "after the last step no beam runs, so the search is over"
OFF = "0 times a finite cost is 0: only slower"
STORED = "the result is stored as float32"
GROWN = "softmax does not change when all scores grow by the same"
NEGATIVE = "numpy takes any negative size for the one that is left"
ZERO = "then the loop makes no token: only slower"
ONE = "1 to the power of anything is 1"
ONE_LEFT = "that dimension has one place"
FOLLOWS_NOTHING = "the first id of a text follows nothing"
NOT_LOOKED_UP = "counts for suffixes that are never looked up"
NOT_THERE = "looks for suffixes that are never counted"

RANGE_RAISES = "range raises ValueError for a step of 0"
WITH_RAY = "only Ray's workers run this, and their checks are there where Ray is"
ASCII = "json.dumps writes ASCII, which is the same in the usual encodings"
SAME_LENGTH = "both have an entry for each column, or for each row"
ANY_NAME = "any name will do that is gone in the end"
SAME = "the text of the mutant is that of the answer"
AS_LONG = "there are as many logits as rows"
ONE_EACH = "there are as many contexts as rows"
WORDS = "the words of a sentence are the author's; its numbers are checked"

AT_THE_CROSSING = (
    "where the sides are equal, the middle is the answer: both halves end there"
)
HALF_A_PERCENT = "within the half percent that is asked for"
SQUARE = "a map of attention is square"
ALIKE = "all layers have the same shape and device"

EQUIVALENT = {
    "ask": {
        "0].message.content or '' → 0].message.content": NULL,
    },
    "stream_text": {
        ": if choice.index == 0 and choice.delta and choice.delta.content: yield → "
        ": if choice.delta.content: yield": NULL,
    },
    "top_alternatives": {
        "max_completion_tokens=1, temperature=0, logprobs=True, top_logprobs → "
        "max_completion_tokens=1, logprobs=True, top_logprobs": BEFORE_THE_TEMPERATURE,
        "=1, temperature=0, logprobs=True, → =1, temperature=1, logprobs=True,": (
            BEFORE_THE_TEMPERATURE
        ),
        ") first = (response.choices[0].logprobs.content or [])[:1] return → "
        ") first = response.choices[0].logprobs.content[:1] return": NULL,
        "[])[:1] return [( → [])[:] return [(": ONE_TOKEN,
        "[])[:1] return [( → [])[:2] return [(": ONE_TOKEN,
        "(response.choices[0].logprobs.content → (response.choices[-1].logprobs.content": (
            ONE_CHOICE
        ),
    },
    "build_prompt": {
        "return_tensors='pt', return_dict=True) → return_tensors='pt')": DEFAULT,
    },
    "new_text": {
        "new = output_ids[0, input_ids.shape[ → new = output_ids[-1, input_ids.shape[": (
            ONE_ROW
        ),
    },
    "reply_batch": {
        "='pt', return_dict=True, tokenizer_kwargs={'padding_side' → "
        "='pt', tokenizer_kwargs={'padding_side'": DEFAULT,
    },
    "token_logprobs": {
        "[..., 0] → [..., -1]": "the last dimension has size 1",
        "logits[:, :-1].float() → logits[:, :].float()": (
            "gather reads as many positions as there are tokens, and not the last"
        ),
    },
    "attention_map": {
        ".attentions[layer][0] → .attentions[layer][-1]": ONE_ROW,
        "model(ids[:1], output_attentions=True → model(ids[:], output_attentions=True": (
            "row 0 of all rows: the same, with more work"
        ),
        "model(ids[:1], output_attentions=True → model(ids[:2], output_attentions=True": (
            "row 0 of two rows: the same, with more work"
        ),
    },
    "is_finished": {
        ".tensor(eos_ids, dtype=torch.long, device=new_tokens.device) → "
        ".tensor(eos_ids, device=new_tokens.device)": (
            "an empty list makes a float tensor, in which no token is found either"
        ),
        "dtype=torch.long, device=new_tokens.device) return torch. → "
        "dtype=torch.long) return torch.": ON_THE_CPU,
    },
    "decode_cached": {
        "dtype=torch.bool, device=ids.device) fed, cache → dtype=torch.bool) fed, cache": ON_THE_CPU,
        "], past_key_values=cache, use_cache=True) cache = → ], past_key_values=cache) cache =": USE_CACHE,
    },
    "decode_batch": {
        "dtype=torch.bool, device=ids.device) for _ → dtype=torch.bool) for _": (
            ON_THE_CPU
        ),
    },
    "pick_sample": {
        "{temperature}') logits = logits.float() probabilities = torch → "
        "{temperature}') pass probabilities = torch": HALF,
        "logits = logits.float() probabilities = torch → "
        "logits = logits probabilities = torch": HALF,
    },
    "kept_mass": {
        "return (logits.float().softmax(-1) → return (logits.softmax(-1)": HALF,
    },
    "sample_top_k": {
        "= top_k_filter(logits.float() / temperature, → "
        "= top_k_filter(logits / temperature,": HALF,
    },
    "stream_tokens": {
        "token_ids): if token in special: continue ids. → token_ids): if False: "
        "continue ids.": OURS,
        "(token) if str(tokenizer.convert_ids_to_tokens(token)).startswith('<0x'): "
        "continue text → (token) if False: continue text": OURS,
        "tokenizer.decode(ids, skip_special_tokens=True) if len( → "
        "tokenizer.decode(ids) if len(": SKIPPED,
        "in special: continue ids.append(token → in special: pass ids.append(token": (
            OURS
        ),
        "convert_ids_to_tokens(token)).startswith('<0x') → "
        "convert_ids_to_tokens(token)).endswith('<0x')": OURS,
        "<0x'): continue text = tokenizer → <0x'): pass text = tokenizer": OURS,
        "tokenizer.decode(ids, skip_special_tokens=True) ready = → "
        "tokenizer.decode(ids) ready =": SKIPPED,
        ").startswith('<0x'): continue → ).startswith('<0xx'): continue": OURS,
        "(ids, skip_special_tokens=True) if len( → "
        "(ids, skip_special_tokens=False) if len(": SKIPPED,
        "(ids, skip_special_tokens=True) ready = → "
        "(ids, skip_special_tokens=False) ready =": SKIPPED,
    },
    "stop_at": {
        '""" if isinstance(stop_strings, str): raise TypeError( → '
        '""" if False: raise TypeError(': OURS,
        ", str): raise TypeError(f'stop_strings should be a list, as "
        "[{stop_strings!r}]') if '' → , str): pass if ''": OURS,
        "range(len(held)): if any → range(len(held) + 1): if any": (
            "what it finds at the end is the empty text, and holds back nothing"
        ),
    },
    "CustomDecoder": {
        "model = model self.tokenizer = tokenizer def generate(self → "
        "model = model pass def generate(self": (
            "generate does not need it; it is for those who use the decoder"
        ),
        "if eos_ids else 0 if attention_mask is → "
        "if eos_ids else 1 if attention_mask is": (
            "without EOS ids no row finishes, so nothing is padded"
        ),
        "if eos_ids else 0 if attention_mask is → "
        "if eos_ids else -1 if attention_mask is": (
            "without EOS ids no row finishes, so nothing is padded"
        ),
    },
    "top_p_filter": {
        "float().sort(dim=-1, descending=True) mass → float().sort(descending=True) mass": THE_LAST_IS_THE_DEFAULT,
    },
    "typical_filter": {
        "abs().argsort(dim=-1) mass = → abs().argsort() mass =": THE_LAST_IS_THE_DEFAULT,
    },
    "xtc_filter": {
        ") chosen = (draws < probability).to(logits.device) probabilities = logits → ) chosen = draws < probability probabilities = logits": ON_THE_CPU,
        "= (draws < probability).to( → = (draws <= probability).to(": TO_THE_LAST_BIT,
    },
    "Mirostat": {
        "= (surprisal > self.mu) → = (surprisal >= self.mu)": TO_THE_LAST_BIT,
    },
    "attention_with_cache": {
        "dtype=torch.bool, device=q.device) scores = → dtype=torch.bool) scores =": ON_THE_CPU,
    },
    "cached_step": {
        "token, past_key_values=cache, use_cache=True) return (output → token, past_key_values=cache) return (output": USE_CACHE,
    },
    "rollback": {
        ") if not 0 <= n → ) if not -1 <= n": "crop refuses it with a ValueError, too",
    },
    "perplexity": {
        "[..., 0] surprisal = → [..., -1] surprisal =": "that dimension has one place",
    },
    "repetition_penalty": {
        ".where(seen < 0, seen → .where(seen <= 0, seen": "0 times and 0 by the penalty is 0",
    },
    "dry": {
        "clone() if multiplier == 0: return logits → clone() if False: return logits": (
            OFF
        ),
        "multiplier == 0: return logits → multiplier == -1: return logits": OFF,
        "> 1 else 0 for row, → > 1 else 1 for row,": ONE,
        "> 1 else 0 for row, → > 1 else -1 for row,": ONE,
        ".get(token, 0)) for token → .get(token, -1)) for token": "no match is below 0",
    },
    "self_bleu": {
        "(texts) < 2: raise ValueError( → (texts) < 1: raise ValueError(": (
            "min of no lengths is a ValueError, too"
        ),
        "c) if 0 < c < → c) if 1 < c <": "one word has no 2-gram: 0 anyway",
    },
    "mauve_small": {
        "]), k).cpu() p = torch → ]), k) p = torch": ON_THE_CPU,
        ", minlength=k).double() / n q → , minlength=k) / n q": FLOAT32,
        ", minlength=k).double() / m def → , minlength=k) / m def": FLOAT32,
        ", 1, 101, dtype=torch.float64)[:, None → , 1, 101)[:, None": FLOAT32,
        "torch.ones(1).double(), torch.zeros( → torch.ones(1), torch.zeros(": FLOAT32,
        "torch.zeros(1).double()) x = → torch.zeros(1)) x =": FLOAT32,
        "0, 1, 101, dtype=torch. → 0, 1, 102, dtype=torch.": FINE,
        "0, 1, 101, dtype=torch. → 0, 1, 100, dtype=torch.": FINE,
    },
    "exact_search": {
        "=max_new_tokens))) new = new.to(ids.device) texts = torch → "
        "=max_new_tokens))) pass texts = torch": ON_THE_CPU,
        "* max_new_tokens > 100000: raise ValueError( → "
        "* max_new_tokens > 100001: raise ValueError(": "100,001 is no power",
        "1:-1].float() logprobs = logits → 1:-1] logprobs = logits": SINGLE,
        "[..., 0] scores = → [..., -1] scores =": "that dimension has one place",
        "] - 1:-1].float() → ] - 1:].float()": "gather takes as many places as ids",
    },
    "beam_step": {
        "sums.topk(k, dim=-1) return (scores → sums.topk(k) return (scores": (
            "topk works on the last dimension by default"
        ),
    },
    "beam_search": {
        "('-inf'), device=ids.device) scores[:, → ('-inf')) scores[:,": ON_THE_CPU,
        ".tensor(eos_ids, dtype=torch.long, device=ids.device) → "
        ".tensor(eos_ids, device=ids.device)": "isin compares floats with ints",
        "dtype=torch.long, device=ids.device) finished, over → "
        "dtype=torch.long) finished, over": ON_THE_CPU,
        "max_new_tokens + 1): with torch → max_new_tokens + 1 + 1): with torch": LAST,
        ", max_new_tokens + 1): with torch → , max_new_tokens + 2): with torch": LAST,
        ")).topk(k, dim=-1) chosen = → )).topk(k) chosen =": (
            "topk works on the last dimension by default"
        ),
        "scores[:, 0] = 0 → scores[:, -1] = 0": "any one of the copies will do",
        "torch.arange(batch, device=ids.device)[:, None → "
        "torch.arange(batch)[:, None": ON_THE_CPU,
        "], past_key_values=cache, use_cache=True) logprobs = → "
        "], past_key_values=cache) logprobs =": USE_CACHE,
        "and length_penalty > 0 for i → and length_penalty >= 0 for i": (
            "any length to the power of 0 is 1"
        ),
        ", -1].float().log_softmax(-1) → , -1].log_softmax(-1)": SINGLE,
        "[i, 0].item() best = length_normalise → [i, 0] best = length_normalise": (
            "a tensor of one number compares as the number does"
        ),
        "[i, j].item(), length, length_penalty → [i, j], length, length_penalty": (
            "a tensor of one number compares as the number does"
        ),
        "or best <= finished[i][ → or best < finished[i][": TO_THE_LAST_BIT,
        "[first[i, 0] + beam[ → [first[i, -1] + beam[": "that dimension has one place",
    },
    "diverse_beam_search": {
        "('-inf'), device=ids.device) start[0] → ('-inf')) start[0]": ON_THE_CPU,
        ".device) start[0] = 0 → .device) start[-1] = 0": "any one of the copies will do",
        "= zip(*groups, strict=True) return (torch → = zip(*groups) return (torch": (
            "all have the same length"
        ),
        "*groups, strict=True) return (torch → *groups, strict=False) return (torch": (
            "all have the same length"
        ),
        ": counts = 0 for g, → : counts = 1 for g,": "the same for all tokens",
        ": counts = 0 for g, → : counts = -1 for g,": "the same for all tokens",
        ":, -1].float() logprobs = logits → :, -1] logprobs = logits": SINGLE,
        "= (beam[0], token[0 → = (beam[-1], token[0": "there is one prompt",
        "0], token[0]) groups[g → 0], token[-1]) groups[g": "there is one prompt",
    },
    "sample_many": {
        "dtype=torch.bool, device=ids.device) for step → dtype=torch.bool) for step": (
            ON_THE_CPU
        ),
    },
    "sequence_logprob": {
        "[..., 0] return logprobs. → [..., -1] return logprobs.": ONE_LEFT,
        "logits[:, :-1].float(). → logits[:, :].float().": (
            "gather reads as many places as there are tokens, and not the last"
        ),
    },
    "self_certainty": {
        "logprobs.mean(-1) return divergence. → logprobs.mean(-2) return divergence.": (
            "both means are taken, in the other order"
        ),
    },
    "vote": {
        "(), default=0.0) first → (), default=1.0) first": "nobody has a sum of 1 then",
        "] return first[0] if most → ] return first[-1] if most": "there is one of them",
        "weights = [1.0] * → weights = [2.0] *": "all votes weigh the same",
        "weights = [1.0] * → weights = [2.0] * (no. 2)": "all votes weigh the same",
    },
    "early_stop_vote": {
        "), 0, 0] if first → ), 0, 1] if first": "without a vote nothing is settled",
        "), 0, 0] if first → ), 0, -1] if first": "without a vote nothing is settled",
    },
    "power_sample": {
        "generator=generator) < math.exp(min → generator=generator) <= math.exp(min": (
            TO_THE_LAST_BIT
        ),
        "math.exp(min(0.0, ratio) → math.exp(min(1.0, ratio)": (
            "each draw is below 1, and below e as well"
        ),
    },
    "rotate": {
        "np.cos(angle).astype(np.float32), np.sin( → np.cos(angle), np.sin(": STORED,
        "np.sin(angle).astype(np.float32)) both = → np.sin(angle)) both =": STORED,
    },
    "attend": {
        "np.float32) keys, values = (np.ascontiguousarray(keys), np.ascontiguousarray(values)) for h in → "
        "np.float32) pass for h in": "the order in memory changes the speed alone",
        "= np.float32(0) for j → = np.float32(1) for j": GROWN,
        "= np.float32(0) for j → = np.float32(-1) for j": GROWN,
    },
    "step_by_hand": {
        ") cache.length[0] = n → ) cache.length[-1] = n": "it has one place",
        "(weights.head, 0, rms_norm(x, → (weights.head, -1, rms_norm(x,": "there is one head",
        ", cache.length[0]) x = → , cache.length[-1]) x =": "it has one place",
        "h).reshape(-1, s.head_size) → h).reshape(-2, s.head_size)": NEGATIVE,
        "values).reshape(-1)) h = → values).reshape(-2)) h =": NEGATIVE,
        ", :, :n + 1]) x + → , :, :]) x +": "attend takes as many values as there are keys",
        ":n + 1]) x + → :n + 2]) x +": "attend takes as many values as there are keys",
    },
    "decode_fast": {
        "max_new_tokens) if max_new_tokens == 0: return ids. → max_new_tokens) if False: return ids.": ZERO,
        "max_new_tokens == 0: return ids. → max_new_tokens == -1: return ids.": ZERO,
        "in range(max_new_tokens): text.append → in range(max_new_tokens + 1): text.append": (
            "the loop ends by its break"
        ),
        "0: return ids.clone() for token in → 0: return ids for token in": (
            "no new tensor is promised"
        ),
        "text = ids[0].tolist() → text = ids[-1].tolist()": ONE_ROW,
    },
    "quantise_int8": {
        ".float32(127)).astype(np.float32) rounded = np → .float32(127)) rounded = np": (
            "where of a Python number and a float32 array is float32"
        ),
    },
    "unpack_q4_1": {
        "('<f2').astype(np.float32) numbers = np → ('<f2') numbers = np": (
            "a float16 that is added to a float32 becomes one"
        ),
        "(blocks), -1, 20) d → (blocks), -2, 20) d": NEGATIVE,
        "(blocks), -1) → (blocks), -2)": NEGATIVE,
        "[..., 0:2]).view → [..., :2]).view": "the same slice",
    },
    "cfg_decode": {
        "1) if token.item() in eos_ids: → 1) if token in eos_ids:": (
            "a tensor of one number is in a list that has this number"
        ),
    },
    "proxy_tune": {
        "(x.float().log_softmax(-1) for x in → (x.float() for x in": GROWN,
    },
    "js_divergence": {
        ").clamp(min=1e-30) from_p → ).clamp(min=2e-30) from_p": (
            "any tiny floor does: it only keeps 0 / 0 away"
        ),
    },
    "dola": {
        "arange(len(final), device=final.device) amateur = → arange(len(final)) amateur =": (
            ON_THE_CPU
        ),
        "rows].float().log_softmax(-1) scores = final → rows].float() scores = final": (
            GROWN
        ),
        "final.float().log_softmax(-1) - amateur return → final.float() - amateur return": (
            GROWN
        ),
    },
    "ngram_draft": {
        "range(n, 0, -1): → range(n, -1, -1):": "0 ids match only in an empty text",
    },
    "speculate_greedy": {
        ".tensor([text], device=ids.device), calls) → .tensor([text]), calls)": (
            ON_THE_CPU
        ),
        "= (ids[0].tolist(), → = (ids[-1].tolist(),": ONE_ROW,
    },
    "verify_sampled": {
        "k, generator=generator, device=p.device) accept = → k, generator=generator) "
        "accept =": ON_THE_CPU,
        "= (numbers < ratio).tolist( → = (numbers <= ratio).tolist(": TO_THE_LAST_BIT,
    },
    "speculate_sampled": {
        ".tensor([text], device=ids.device), calls) → .tensor([text]), calls)": (
            ON_THE_CPU
        ),
        ".tensor([fed], device=ids.device) logits, draft_cache → .tensor([fed]) logits, "
        "draft_cache": ON_THE_CPU,
        "1], 1).item()) fed = → 1], 1)) fed =": "a tensor of one id works as its number",
        "temperature).softmax(-1)) guess.append → temperature).softmax(0)) guess.append": (
            "there is one dimension"
        ),
        "= (ids[0].tolist(), → = (ids[-1].tolist(),": ONE_ROW,
        ".append((logits[0] / temperature) → .append((logits[-1] / temperature)": ONE_ROW,
        "else p[:0], guess) → else p[:-1], guess)": "without a draft p has one row",
    },
    "SuffixDraft": {
        "self.seen else 0 for end in → self.seen else 1 for end in": FOLLOWS_NOTHING,
        "self.seen else 0 for end in → self.seen else -1 for end in": FOLLOWS_NOTHING,
        "end) + 1): self.followers → end) + 1 + 1): self.followers": NOT_LOOKED_UP,
        "end) + 1): self.followers → end) + 2): self.followers": NOT_LOOKED_UP,
        "size in range(1, min(self. → size in range(0, min(self.": NOT_LOOKED_UP,
        "sizes = range(min(self.longest, → sizes = range(max(self.longest,": NOT_THERE,
        "(text)), 0, -1) → (text)), -1, -1)": NOT_THERE,
        "]] += 1 self.seen = → ]] += 2 self.seen =": "all counts are doubled",
    },
    "PrefixCache": {
        "entry return entry → entry return entry": SAME,
    },
    "share_budget": {
        "shares = [0] * len( → shares = [1] * len(": "each place is filled later",
        "shares = [0] * len( → shares = [-1] * len(": "each place is filled later",
    },
    "Scheduler": {
        "preemptions += 1 → preemptions += 1": SAME,
    },
    "Engine": {
        "plan.work, logits, strict=True): request.computed → plan.work, logits): request.computed": AS_LONG,
        "logits, strict=True): request.computed → logits, strict=False): request.computed": AS_LONG,
    },
    "broken": {
        "} holders and {counted} references' → } holders and x{counted} references'": WORDS,
        "and {counted} references' found.append( → and {counted} referencesx' found.append(": WORDS,
        "append(f'block {block} has → append(f'block x{block} has": WORDS,
        "{block} has {held}') → {block} has x{held}')": WORDS,
        "append(f'request {request.id} → append(f'request x{request.id}": WORDS,
        "nothing left to compute') for request → nothing left to computex') for request": WORDS,
        "append(f'request {request.id} → append(f'request x{request.id} (no. 2)": WORDS,
        "} waits with {request.blocks}' → } waits with x{request.blocks}'": WORDS,
    },
    "detect": {
        "if prompt_length < 0: raise ValueError( → if prompt_length < -1: raise ValueError(": (
            "then there is one id, so no pair, which is a ValueError, too"
        ),
        "answer[1:], strict=False)) if ignore_repeated → answer[1:])) if ignore_repeated": (
            "zip is not strict by default"
        ),
    },
    "gumbel_pick": {
        "context.tolist(), strict=True): with torch → context.tolist()): with torch": ONE_EACH,
        "(), strict=True): with torch → (), strict=False): with torch": ONE_EACH,
        "torch.cat(picked).to(logits.device) → torch.cat(picked)": ON_THE_CPU,
        "(logits.float().cpu(), context.tolist( → (logits.float(), context.tolist(": ON_THE_CPU,
        "torch.random.fork_rng(devices=[]): torch.default_generator → torch.random.fork_rng(): torch.default_generator": (
            "the generators of GPUs are put back, too, and nobody has drawn from them"
        ),
        "multinomial_from_scratch(row.softmax(-1)[None])) → multinomial_from_scratch(row.softmax(0)[None]))": (
            "a row has one dimension"
        ),
    },
    "gumbel_score": {
        "(-draws[token].item())) return total → (-draws[token])) return total": (
            "math takes a tensor of one number for it"
        ),
    },
    "waste": {
        "if batch_size < 1: raise ValueError( → if batch_size < 0: raise ValueError(": RANGE_RAISES,
    },
    "batches": {
        "if batch_size < 1: raise ValueError( → if batch_size < 0: raise ValueError(": RANGE_RAISES,
    },
    "Decoder": {
        "='pt') made = made.to(model.device) ids, mask, → ='pt') pass ids, mask,": ON_THE_CPU,
    },
    "decode_file": {
        "workers: int=2, **options) → workers: int=3, **options)": WITH_RAY,
        "workers: int=2, **options) → workers: int=1, **options)": WITH_RAY,
        ".start(address) data = ray.data.from_items([left[n] for group in groups for n in group]) return data.map_batches → .start(address) pass return data.map_batches": WITH_RAY,
        "group]) return data.map_batches(Decoder, fn_constructor_kwargs=options, batch_size=BATCH, compute=ray.data.ActorPoolStrategy(size=workers), num_cpus=0.5).iter_rows() groups = batches → group]) return None groups = batches": WITH_RAY,
        "= ray.data.from_items([left[n] for group in groups for n in group]) return data.map_batches → = ray.data return data.map_batches": WITH_RAY,
        "num_cpus=0.5).iter_rows() groups = batches → num_cpus=0.5) groups = batches": WITH_RAY,
        ".map_batches(Decoder, fn_constructor_kwargs=options, batch_size=BATCH, compute → .map_batches(Decoder, batch_size=BATCH, compute": WITH_RAY,
        "fn_constructor_kwargs=options, batch_size=BATCH, compute=ray.data. → fn_constructor_kwargs=options, compute=ray.data.": WITH_RAY,
        "batch_size=BATCH, compute=ray.data.ActorPoolStrategy(size=workers), num_cpus=0.5) → batch_size=BATCH, num_cpus=0.5)": WITH_RAY,
        "ActorPoolStrategy(size=workers), num_cpus=0.5).iter_rows() → ActorPoolStrategy(size=workers)).iter_rows()": WITH_RAY,
        "ray.data.ActorPoolStrategy(size=workers), num_cpus=0 → ray.data.ActorPoolStrategy(), num_cpus=0": WITH_RAY,
        "compute=ray.data.ActorPoolStrategy(size=workers), num_cpus=0. → compute=ray.data, num_cpus=0.": WITH_RAY,
        "workers), num_cpus=0.5).iter_rows() → workers), num_cpus=1.0).iter_rows()": WITH_RAY,
        "workers), num_cpus=0.5).iter_rows( → workers), num_cpus=1.5).iter_rows(": WITH_RAY,
        "'.join(lines), encoding='utf-8') os.replace( → '.join(lines)) os.replace(": ASCII,
        ".open('a', encoding='utf-8') as file: → .open('a') as file:": ASCII,
        "*made.values(), strict=True): yield dict → *made.values()): yield dict": SAME_LENGTH,
        "(), strict=True): yield dict → (), strict=False): yield dict": SAME_LENGTH,
        "zip(made, values, strict=True)) def decoded_by_ray → zip(made, values)) def decoded_by_ray": SAME_LENGTH,
        "values, strict=True)) def decoded_by_ray → values, strict=False)) def decoded_by_ray": SAME_LENGTH,
        "f'{target}.new') lines = → f'{target}.newx') lines =": ANY_NAME,
    },
    "split_rows": {
        "matrix.chunk(shards, dim=0)] → matrix.chunk(shards)]": "dimension 0 is chunk's default",
    },
    "constrained_decode": {
        "1) if fed.item() == eos_id: → 1) if fed == eos_id:": ONE_ROW,
        "in vocabulary[fed.item()]: state = → in vocabulary[fed]: state =": ONE_ROW,
        ".bool) allowed[0, :len(mask → .bool) allowed[-1, :len(mask": ONE_ROW,
    },
    "forced_bytes": {
        "(state, possible[0]) return bytes → (state, possible[-1]) return bytes": (
            "there is one possible byte"
        ),
    },
    "true_conditional": {
        "=ids.device) with torch.no_grad(): logits = → =ids.device) if True: logits =": (
            "only slower"
        ),
        "0).tolist(), strict=True)) → 0).tolist()))": "the two are of one length",
        "(), strict=True)) → (), strict=False))": "the two are of one length",
        "1:-1].double().log_softmax(-1) → 1:-1].log_softmax(-1)": FLOAT32,
        ", scores.softmax(0).tolist(), → , scores.softmax(-1).tolist(),": (
            "the scores have one dimension"
        ),
        "] - 1:-1].double(). → ] - 1:].double().": (
            "gather reads as many places as there are new tokens"
        ),
        "torch.tensor(found, device=ids.device) with torch. → "
        "torch.tensor(found) with torch.": ON_THE_CPU,
    },
    "fork_points": {
        "(ids).logits[0, :-1] → (ids).logits[-1, :-1]": ONE_ROW,
        "()[:, 0] + 1) → ()[:, -1] + 1)": "the places of a vector have one column",
    },
    "reliability": {
        "place, weights=correct.double(), minlength=bins) → place, weights=correct, minlength=bins)": (
            "bincount adds weights up as doubles"
        ),
    },
    "fit_temperature": {
        "in range(14): middle = → in range(14 + 1): middle =": HALF_A_PERCENT,
        "in range(14): middle = → in range(14 - 1): middle =": HALF_A_PERCENT,
        "_ in range(14): middle = → _ in range(15): middle =": HALF_A_PERCENT,
        "_ in range(14): middle = → _ in range(13): middle =": HALF_A_PERCENT,
        "])[:, 0] low, high → ])[:, -1] low, high": ONE_LEFT,
        ".mean() > 0 low, → .mean() >= 0 low,": AT_THE_CROSSING,
    },
    "attention_rollout": {
        "torch.eye(seq, device=device) rollout = → torch.eye(seq) rollout =": ON_THE_CPU,
        "0].shape[-1], attentions[0 → 0].shape[-2], attentions[0": SQUARE,
        "1], attentions[0].device) identity → 1], attentions[-1].device) identity": ALIKE,
        "repeat(len(attentions[0]), 1, → repeat(len(attentions[-1]), 1,": ALIKE,
        "= (attentions[0].shape[-1 → = (attentions[-1].shape[-1": ALIKE,
    },
}
