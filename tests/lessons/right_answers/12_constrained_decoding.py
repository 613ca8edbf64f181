"""Right answers to lesson 12 in another style: each must pass all checks."""

import json
import math
import re
from functools import cache

import torch

from course.making.answers import reference, right
from tiny_models.grammar import (
    EMPTY,
    NOTHING,
    Either,
    Empty,
    Many,
    Nothing,
    OneOf,
    Then,
    either,
    many,
    parse,
    then,
)

INF = float("inf")
accepts_empty_ = reference("accepts_empty")
derive_ = reference("derive")
token_mask_ = reference("token_mask")


# --- choice_mask ----------------------------------------------------------------------


@right("choice_mask")
def with_eos_behind_each_choice(choices, new_ids, eos_id, vocab_size):
    """EOS is the last token of each choice; then there is one case only."""
    n = len(new_ids)
    whole = [[*choice, eos_id] for choice in choices]
    following = {c[n] for c in whole if len(c) > n and c[:n] == list(new_ids)}
    return torch.tensor([i in following for i in range(vocab_size)], dtype=torch.bool)


@right("choice_mask")
def by_one_hot_rows(choices, new_ids, eos_id, vocab_size):
    """Adds up rows of an identity matrix."""
    mask = torch.zeros(vocab_size, dtype=torch.long)
    eye = torch.eye(vocab_size, dtype=torch.long)
    for choice in map(tuple, choices):
        if choice[: len(new_ids)] == tuple(new_ids):
            rest = (*choice[len(new_ids) :], eos_id)
            mask += eye[rest[0]]
    return mask > 0


@right("choice_mask")
def by_a_tree(choices, new_ids, eos_id, vocab_size):
    """Builds a trie of the choices and walks it."""
    root = {}
    for choice in choices:
        node = root
        for token in choice:
            node = node.setdefault(token, {})
        node[eos_id] = {}
    node = root
    for token in new_ids:
        node = node.get(token, {})
    mask = torch.full((vocab_size,), False)
    mask[list(node)] = True
    return mask


# --- accepts_empty --------------------------------------------------------------------


@right("accepts_empty")
def by_match(regex):
    """Pattern matching on the classes."""
    match regex:
        case Nothing() | OneOf():
            return False
        case Then(first, second):
            return by_match_(first) and by_match_(second)
        case Either(options):
            return any(map(by_match_, options))
    return True


def by_match_(regex):
    return by_match.value(regex)


@right("accepts_empty")
def with_a_list_of_work(regex):
    """Without recursion: the parts of a sequence one by one; choices by tries."""
    work = [[regex]]
    while work:
        parts = work.pop()
        if not parts:
            return True
        head, *rest = parts
        if isinstance(head, (Empty, Many)):
            work.append(rest)
        elif isinstance(head, Then):
            work.append([head.first, head.second, *rest])
        elif isinstance(head, Either):
            work += [[option, *rest] for option in head.options]
    return False


@right("accepts_empty")
def by_what_is_left_without_bytes(regex):
    """Puts NOTHING for each byte, and looks what remains."""

    def without_bytes(regex):
        if isinstance(regex, OneOf):
            return NOTHING
        if isinstance(regex, Then):
            return then(without_bytes(regex.first), without_bytes(regex.second))
        if isinstance(regex, Either):
            return either(*map(without_bytes, regex.options))
        if isinstance(regex, Many):
            return EMPTY
        return regex

    return without_bytes(regex) == EMPTY


# --- derive ---------------------------------------------------------------------------


@right("derive")
def by_the_textbook(regex, byte):
    """Brzozowski's formula for a sequence, with ε or ∅ for `may be empty`."""

    def go(regex):
        if isinstance(regex, OneOf):
            return EMPTY if byte in regex.bytes else NOTHING
        if isinstance(regex, Then):
            delta = EMPTY if accepts_empty_(regex.first) else NOTHING
            first = then(go(regex.first), regex.second)
            return either(first, then(delta, go(regex.second)))
        if isinstance(regex, Either):
            return either(*(go(option) for option in regex.options))
        if isinstance(regex, Many):
            return then(go(regex.inner), many(regex.inner))
        return NOTHING

    return go(regex)


@right("derive")
def from_the_end_of_a_sequence(regex, byte):
    """Takes the sequence apart first, and goes on as long as parts may be empty."""

    @cache
    def go(regex):
        if isinstance(regex, Then):
            parts, options = [], []
            while isinstance(regex, Then):
                parts.append(regex.first)
                regex = regex.second
            parts.append(regex)
            for n, part in enumerate(parts):
                options.append(then(go(part), *parts[n + 1 :]))
                if not accepts_empty_(part):
                    break
            return either(*options)
        if isinstance(regex, Either):
            result = NOTHING
            for option in regex.options:
                result = either(result, go(option))
            return result
        if isinstance(regex, Many):
            return then(go(regex.inner), regex)
        return EMPTY if byte in getattr(regex, "bytes", ()) else NOTHING

    return go(regex)


@right("derive")
def as_a_set_of_pieces(regex, byte):
    """Antimirov's partial derivatives: a set, which is joined at the end."""

    def pieces(regex):
        if isinstance(regex, OneOf):
            return {EMPTY} if byte in regex.bytes else set()
        if isinstance(regex, Either):
            return set().union(*map(pieces, regex.options))
        if isinstance(regex, Many):
            return {then(piece, regex) for piece in pieces(regex.inner)}
        if isinstance(regex, Then):
            found = {then(piece, regex.second) for piece in pieces(regex.first)}
            return found | (
                pieces(regex.second) if accepts_empty_(regex.first) else set()
            )
        return set()

    return either(*pieces(regex))


# --- Automaton ------------------------------------------------------------------------


@right("Automaton")
class NumbersForStates:
    """A state is its number in a list; rows of 256 next states, made when needed."""

    def __init__(self, pattern):
        self.start = 0
        self.regexes, self.rows = [parse(pattern)], {}

    def step(self, state, byte):
        row = self.rows.setdefault(state, [-1] * 256)
        if row[byte] == -1:
            after = derive_(self.regexes[state], byte)
            if after != NOTHING and after not in self.regexes:
                self.regexes.append(after)
            row[byte] = None if after == NOTHING else self.regexes.index(after)
        return row[byte]

    def accepting(self, state):
        return accepts_empty_(self.regexes[state])


@right("Automaton")
class WithACache:
    """functools.cache around a method of its own."""

    def __init__(self, pattern):
        self.start = parse(pattern)
        self.step = cache(self._step)
        self.accepting = accepts_empty_

    def _step(self, state, byte):
        after = derive_(state, byte)
        if after == NOTHING:
            return None
        return after


@right("Automaton")
class AllAtOnce:
    """Computes all states before the first step, where they are few."""

    def __init__(self, pattern):
        self.start = parse(pattern)
        self.table, work = {}, [self.start]
        while work and len(self.table) < 40:
            state = work.pop()
            if state in self.table:
                continue
            self.table[state] = [derive_(state, byte) for byte in range(256)]
            work += self.table[state]

    def step(self, state, byte):
        if state not in self.table:
            self.table[state] = [derive_(state, x) for x in range(256)]
        after = self.table[state][byte]
        return after if after != NOTHING else None

    def accepting(self, state):
        return accepts_empty_(state)


# --- token_mask -----------------------------------------------------------------------


@right("token_mask")
def with_an_else(automaton, state, vocabulary, eos_id):
    """`for ... else`, and a list of bools."""
    allowed = []
    for i, token in enumerate(vocabulary):
        now = state
        for byte in token:
            now = automaton.step(now, byte)
            if now is None:
                allowed.append(False)
                break
        else:
            allowed.append(len(token) > 0 and i != eos_id)
    allowed[eos_id] = bool(automaton.accepting(state))
    return torch.tensor(allowed)


@right("token_mask")
def by_recursion(automaton, state, vocabulary, eos_id):
    """A token is read by its first byte, and then the rest."""

    def reads(state, token):
        if not token:
            return True
        after = automaton.step(state, token[0])
        return after is not None and reads(after, token[1:])

    ok = [bool(token) and reads(state, token) for token in vocabulary]
    ok[eos_id] = automaton.accepting(state)
    return torch.tensor(ok, dtype=torch.bool)


@right("token_mask")
def by_sorted_tokens(automaton, state, vocabulary, eos_id):
    """In sorted order the beginning that two neighbours share is read once."""
    mask = torch.zeros(len(vocabulary)).bool()
    states, before = [state], b""
    for token, i in sorted((token, i) for i, token in enumerate(vocabulary)):
        shared = 0
        while shared < min(len(token), len(before)) and token[shared] == before[shared]:
            shared += 1
        del states[shared + 1 :]
        while len(states) <= len(token) and states[-1] is not None:
            if len(states) == len(token) + 1:
                break
            states.append(automaton.step(states[-1], token[len(states) - 1]))
        mask[i] = (
            bool(token) and len(states) == len(token) + 1 and states[-1] is not None
        )
        before = token[: len(states) - 1]
    mask[eos_id] = automaton.accepting(state)
    return mask


# --- TokenTrie ------------------------------------------------------------------------


@right("TokenTrie")
class NodesAsObjects:
    """A small class for the nodes, and recursion."""

    class Node:
        def __init__(self):
            self.children, self.ids = {}, []

    def __init__(self, vocabulary):
        self.vocabulary_size = len(vocabulary)
        self.root, self.cache = self.Node(), {}
        for i, token in enumerate(vocabulary):
            if not token:
                continue
            node = self.root
            for byte in token:
                if byte not in node.children:
                    node.children[byte] = self.Node()
                node = node.children[byte]
            node.ids.append(i)

    def mask(self, automaton, state):
        masks = self.cache.setdefault(id(automaton), (automaton, {}))[1]
        if state not in masks:
            masks[state] = torch.zeros(self.vocabulary_size, dtype=torch.bool)
            self._walk(self.root, automaton, state, masks[state])
        return masks[state].clone()

    def _walk(self, node, automaton, state, mask):
        for byte, child in node.children.items():
            after = automaton.step(state, byte)
            if after is not None:
                mask[child.ids] = True
                self._walk(child, automaton, after, mask)


@right("TokenTrie")
class SortedBeginnings:
    """No tree: all beginnings of all tokens, sorted by length, with their parent."""

    def __init__(self, vocabulary):
        self.vocabulary = [bytes(token) for token in vocabulary]
        self.beginnings = sorted(
            {t[:n] for t in self.vocabulary for n in range(1, len(t) + 1)}, key=len
        )
        self.known = []

    def mask(self, automaton, state):
        for one, other, mask in self.known:
            if one is automaton and other == state:
                return torch.tensor(mask, dtype=torch.bool)
        states = {b"": state}
        for beginning in self.beginnings:
            before = states.get(beginning[:-1])
            if before is not None:
                states[beginning] = automaton.step(before, beginning[-1])
        mask = [t != b"" and states.get(t) is not None for t in self.vocabulary]
        self.known.append((automaton, state, mask))
        return torch.tensor(mask, dtype=torch.bool)


@right("TokenTrie")
class NestedDictionaries:
    """Dictionaries in dictionaries; None is the key of the tokens that end here."""

    def __init__(self, vocabulary):
        self.root, self.n, self.seen = {}, len(vocabulary), {}
        for i, token in enumerate(vocabulary):
            node = self.root
            for byte in token:
                node = node.setdefault(byte, {})
            if token:
                node.setdefault(None, []).append(i)

    def mask(self, automaton, state):
        if (automaton, state) not in self.seen:
            mask, work = [False] * self.n, [(state, self.root)]
            while work:
                now, node = work.pop(0)
                for byte, child in node.items():
                    if byte is None:
                        for i in child:
                            mask[i] = True
                    elif (after := automaton.step(now, byte)) is not None:
                        work.append((after, child))
            self.seen[automaton, state] = tuple(mask)
        return torch.tensor(self.seen[automaton, state], dtype=torch.bool)


# --- constrained_decode ---------------------------------------------------------------


@right("constrained_decode")
def without_a_cache(model, ids, automaton, vocabulary, max_new_tokens, pick, eos_id):
    """The whole text at each step, and the plain mask."""
    state, finished = automaton.start, False
    while max_new_tokens > 0 and not finished:
        mask = token_mask_(automaton, state, vocabulary, eos_id)
        if not bool(mask.any()):
            break
        with torch.no_grad():
            logits = model(input_ids=ids).logits[:, -1, :].float().clone()
        logits[:, mask.numel() :] = -INF
        logits[:, : mask.numel()][:, ~mask] = -INF
        token = pick(logits)
        ids = torch.cat((ids, token), 1)
        finished = bool((token == eos_id).all())
        for byte in b"" if finished else vocabulary[int(token)]:
            state = automaton.step(state, byte)
        max_new_tokens -= 1
    return ids, finished


@right("constrained_decode")
def with_the_models_cache(
    model, ids, automaton, vocabulary, max_new_tokens, pick, eos_id
):
    """Past keys and values by hand, a list of tokens, one new tensor at the end."""
    new, cache_, state = [], None, automaton.start
    for _ in range(max_new_tokens):
        allowed = token_mask_(automaton, state, vocabulary, eos_id).nonzero()[:, 0]
        if len(allowed) == 0:
            break
        fed = ids if not new else torch.tensor([new[-1:]])
        with torch.no_grad():
            out = model(fed, past_key_values=cache_, use_cache=True)
        cache_ = out.past_key_values
        logits = torch.full_like(out.logits[:, -1].float(), -INF)
        logits[0, allowed] = out.logits[0, -1, allowed].float()
        new.append(pick(logits).item())
        if new[-1] == eos_id:
            break
        for byte in vocabulary[new[-1]]:
            state = automaton.step(state, byte)
    ids = torch.cat([ids, torch.tensor([new], dtype=torch.long)], dim=-1)
    return ids, bool(new) and new[-1] == eos_id


@right("constrained_decode")
def from_the_text_each_time(
    model, ids, automaton, vocabulary, max_new_tokens, pick, eos_id
):
    """Keeps no state: reads the new bytes again at each step."""
    prompt = ids.shape[1]
    for _ in range(max_new_tokens):
        state = automaton.start
        for token in ids[0, prompt:].tolist():
            for byte in vocabulary[token]:
                state = automaton.step(state, byte)
        mask = token_mask_(automaton, state, vocabulary, eos_id)
        if mask.sum() == 0:
            return ids, False
        with torch.no_grad():
            logits = model(ids).logits[:, -1].float()
        missing = logits.shape[-1] - len(mask)
        mask = torch.cat([mask, torch.zeros(missing, dtype=torch.bool)])
        token = pick(torch.where(mask, logits, -INF))
        ids = torch.cat([ids, token], -1)
        if token.item() == eos_id:
            return ids, True
    return ids, False


# --- schema_to_regex ------------------------------------------------------------------

CHARACTER = r"(?:[^\"\\\x00-\x1f]|\\(?:[\"\\/bfnrt]|u00[01][0-9a-f]))"
KNOWN = "const enum anyOf type properties items minLength maxLength minItems maxItems "
KNOWN += "required additionalProperties title description default examples $schema"
NUMBER = r"-?(?:0|[1-9]\d*)"


def literal(value):
    return re.escape(json.dumps(value, ensure_ascii=False))


@right("schema_to_regex")
def a_method_for_each_type(schema):
    """A dictionary of functions; groups that do not capture."""

    def between(schema, what):
        low, high = schema.get("min" + what, 0), schema.get("max" + what, math.inf)
        if low > high:
            raise ValueError("empty")
        return low, high

    def times(low, high):
        return "{%d,%s}" % (low, "" if high == math.inf else high)  # noqa: UP031

    def string(schema):
        return '"' + CHARACTER + times(*between(schema, "Length")) + '"'

    def array(schema):
        item = go(schema["items"])
        low, high = between(schema, "Items")
        if high == 0:
            return r"\[\]"
        some = item + "(?:, " + item + ")" + times(max(0, low - 1), high - 1)
        return r"\[(?:" + some + ")" + ("?" if low == 0 else "") + r"\]"

    def object_(schema):
        properties = schema.get("properties", {})
        if not set(schema.get("required", ())) <= set(properties):
            raise ValueError("required")
        body = ", ".join(f"{literal(k)}: {go(v)}" for k, v in properties.items())
        return r"\{" + body + r"\}"

    kinds = {
        "string": string,
        "array": array,
        "object": object_,
        "null": lambda schema: "null",
        "boolean": lambda schema: "(?:true|false)",
        "integer": lambda schema: NUMBER,
        "number": lambda schema: NUMBER + r"(?:\.\d+)?(?:[eE][+-]?\d+)?",
    }

    def any_of(patterns):
        patterns = list(patterns)
        if not patterns:
            raise ValueError("nothing")
        return "(?:" + "|".join(patterns) + ")"

    def go(schema):
        for word in schema:
            if word not in KNOWN.split():
                raise ValueError(word)
        if "const" in schema:
            return literal(schema["const"])
        if "enum" in schema:
            return any_of(map(literal, schema["enum"]))
        if "anyOf" in schema:
            return any_of(map(go, schema["anyOf"]))
        kind = schema.get("type")
        if isinstance(kind, list):
            return any_of(go(schema | {"type": one}) for one in kind)
        try:
            return kinds[kind](schema)
        except KeyError as error:
            raise ValueError(f"missing or unknown: {error}") from None

    return go(schema)


@right("schema_to_regex")
def with_counts_written_out(schema):
    """Repeats as what they are: so many in a row, and then optional ones, nested."""

    def repeated(one, low, high):
        if high is None:
            return one * low + f"({one})*"
        tail = ""
        for _ in range(high - low):
            tail = f"({one}{tail})?"
        return one * low + tail

    def go(schema):
        strange = [word for word in schema if word not in KNOWN.split()]
        if strange:
            raise ValueError(f"unknown: {strange}")
        if "const" in schema:
            return f"({literal(schema['const'])})"
        if "enum" in schema or "anyOf" in schema:
            options = [{"const": v} for v in schema.get("enum", [])]
            options = options if "enum" in schema else schema["anyOf"]
            if len(options) == 0:
                raise ValueError("no options")
            return "(" + "|".join(go(option) for option in options) + ")"
        kind = schema.get("type")
        if type(kind) is list:
            return go({"anyOf": [dict(schema, type=k) for k in kind]})
        if kind in ("string", "array"):
            what = {"string": "Length", "array": "Items"}[kind]
            low, high = schema.get("min" + what, 0), schema.get("max" + what)
            if high is not None and high < low:
                raise ValueError("low above high")
            if kind == "string":
                return '"' + repeated(CHARACTER, low, high) + '"'
            if "items" not in schema:
                raise ValueError("items")
            one = go(schema["items"])
            if high == 0:
                return r"\[\]"
            more = repeated(f"(, {one})", max(low - 1, 0), high and high - 1)
            whole = one + more
            return r"\[" + (whole if low else f"({whole})?") + r"\]"
        if kind == "object":
            properties = schema.get("properties") or {}
            for name in schema.get("required", []):
                properties[name] if name in properties else fail(name)
            inner = [literal(n) + r":\x20" + go(s) for n, s in properties.items()]
            return "[{]" + ",[ ]".join(inner) + "[}]"
        if kind == "integer":
            return NUMBER
        if kind == "number":
            return rf"({NUMBER}(\.[0-9]+|)((e|E)(\+|-|)[0-9]+|))"
        return {"null": "null", "boolean": "(false|true)"}.get(kind) or fail(kind)

    return go(schema)


def fail(what):
    raise ValueError(what)


@right("schema_to_regex")
def checks_first_and_writes_then(schema):
    """Walks the schema twice: once for what is wrong with it."""

    def check(schema):
        unknown = set(schema) - set(KNOWN.split())
        if unknown:
            raise ValueError(f"unsupported: {', '.join(sorted(unknown))}")
        if "const" in schema:
            return
        if "enum" in schema:
            if not schema["enum"]:
                raise ValueError("enum")
            return
        if "anyOf" in schema:
            if not schema["anyOf"]:
                raise ValueError("anyOf")
            [check(inner) for inner in schema["anyOf"]]
            return
        kinds = schema.get("type", [])
        kinds = kinds if isinstance(kinds, list) else [kinds]
        simple = {"null", "boolean", "integer", "number", "string", "array", "object"}
        if not kinds or not set(kinds) <= simple:
            raise ValueError("type")
        for kind, what in (("string", "Length"), ("array", "Items")):
            limits = schema.get(f"min{what}", 0), schema.get(f"max{what}", 1e9)
            if kind in kinds and limits[0] > limits[1]:
                raise ValueError(what)
        if "array" in kinds:
            if "items" not in schema:
                raise ValueError("items")
            check(schema["items"])
        if "object" in kinds:
            for name in schema.get("required", []):
                if name not in schema.get("properties", {}):
                    raise ValueError(name)
            for inner in schema.get("properties", {}).values():
                check(inner)

    check(schema)
    return reference("schema_to_regex")(schema)


# --- forced_bytes ---------------------------------------------------------------------


@right("forced_bytes")
def by_a_dictionary(automaton, state):
    """All next states in a dictionary."""
    forced = bytearray()
    while True:
        after = {x: automaton.step(state, x) for x in range(256)}
        live = {x: s for x, s in after.items() if s is not None}
        if automaton.accepting(state) or len(live) != 1:
            return bytes(forced)
        [(byte, state)] = live.items()
        forced.append(byte)


@right("forced_bytes")
def stops_at_the_second(automaton, state):
    """Looks for a second byte only until there is one."""
    out = b""
    while not automaton.accepting(state):
        only = None
        for byte in range(256):
            if automaton.step(state, byte) is None:
                continue
            if only is not None:
                return out
            only = byte
        if only is None:
            return out
        out += only.to_bytes(1, "big")
        state = automaton.step(state, only)
    return out


@right("forced_bytes")
def by_a_generator(automaton, state):
    """bytes() of a generator."""

    def path():
        here = state
        while not automaton.accepting(here):
            on = [x for x in range(256) if automaton.step(here, x) is not None]
            if len(on) > 1:
                return
            yield from on
            here = automaton.step(here, on[0])

    return bytes(path())


# --- true_conditional -----------------------------------------------------------------


@right("true_conditional")
def token_by_token(model, ids, automaton, vocabulary, length):
    """Grows texts that are alive; a model call for each beginning."""
    alive = {(): (automaton.start, 0.0)}
    for _ in range(length):
        grown = {}
        for text, (state, score) in alive.items():
            so_far = torch.cat([ids, torch.tensor([text], dtype=torch.long)], dim=-1)
            with torch.no_grad():
                logprobs = model(so_far).logits[0, -1].double().log_softmax(-1)
            for i, token in enumerate(vocabulary):
                now = state if token else None
                for byte in token:
                    now = None if now is None else automaton.step(now, byte)
                if now is not None:
                    grown[(*text, i)] = (now, score + logprobs[i].item())
        alive = grown
    scores = {t: s for t, (state, s) in alive.items() if automaton.accepting(state)}
    if not scores:
        raise ValueError("no text")
    top = max(scores.values())
    total = math.fsum(math.exp(s - top) for s in scores.values())
    return {t: math.exp(s - top) / total for t, s in scores.items()}


@right("true_conditional")
def by_recursion_over_texts(model, ids, automaton, vocabulary, length):
    """A generator of accepted texts, and logsumexp."""

    def texts(state, left):
        if left == 0:
            if automaton.accepting(state):
                yield ()
            return
        for i, token in enumerate(vocabulary):
            now = state
            for byte in token:
                now = automaton.step(now, byte)
                if now is None:
                    break
            if token and now is not None:
                yield from ((i, *rest) for rest in texts(now, left - 1))

    found = list(texts(automaton.start, length))
    if len(found) == 0:
        raise ValueError(f"nothing of length {length}")
    scores = []
    for text in found:
        whole = torch.cat([ids, torch.tensor([text])], dim=1)
        with torch.inference_mode():
            rows = model(whole).logits[0, -length - 1 : -1].double().log_softmax(-1)
        scores.append(sum(rows[n, t] for n, t in enumerate(text)))
    scores = torch.stack(scores)
    shares = (scores - scores.logsumexp(0)).exp()
    return {text: float(share) for text, share in zip(found, shares, strict=True)}


@right("true_conditional")
def all_of_them_in_float32(model, ids, automaton, vocabulary, length):
    """A grid of all ids; float32; keys from tolist()."""
    grid = torch.cartesian_prod(*[torch.arange(len(vocabulary))] * length)
    grid = grid.view(-1, length)
    keep = []
    for row in grid.tolist():
        state = automaton.start if all(vocabulary[i] for i in row) else None
        for i in row:
            for byte in vocabulary[i]:
                state = None if state is None else automaton.step(state, byte)
        keep.append(state is not None and automaton.accepting(state))
    grid = grid[torch.tensor(keep)]
    if not grid.numel():
        raise ValueError("none")
    with torch.no_grad():
        logits = model(torch.cat([ids.repeat(len(grid), 1), grid], 1)).logits
    logprobs = logits[:, -length - 1 : -1].float().log_softmax(-1)
    share = logprobs.gather(-1, grid.unsqueeze(-1)).sum((1, 2)).softmax(0)
    return {tuple(t): p.item() for t, p in zip(grid.tolist(), share, strict=True)}
