"""Wrong answers to lesson 12, and what the learner must be told of each."""

import itertools
import json
import re

import torch

from course.making.answers import reference, wrong
from tiny_models.grammar import (
    EMPTY,
    NOTHING,
    Either,
    Empty,
    Many,
    OneOf,
    Then,
    either,
    parse,
    then,
)

INF = float("inf")
accepts_empty_ = reference("accepts_empty")
derive_ = reference("derive")
Automaton_ = reference("Automaton")
token_mask_ = reference("token_mask")
TokenTrie_ = reference("TokenTrie")
schema_to_regex_ = reference("schema_to_regex")
true_conditional_ = reference("true_conditional")


# --- choice_mask ----------------------------------------------------------------------

BY_HAND = "test_choices_worked_by_hand"


@wrong("choice_mask", BY_HAND, "[5, 7] is a whole choice, so EOS is allowed, and 2 too")
def the_shorter_choice_cannot_end(choices, new_ids, eos_id, vocab_size):
    """Where a longer choice goes on, the shorter one is forgotten."""
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    n = len(new_ids)
    for choice in choices:
        if choice[:n] == new_ids and n < len(choice):
            mask[choice[n]] = True
    if not mask.any() and new_ids in choices:
        mask[eos_id] = True
    return mask


@wrong("choice_mask", BY_HAND, "should allow [], not [0]")
def eos_where_nothing_fits(choices, new_ids, eos_id, vocab_size):
    """Without anything to allow, ends: a text that is no choice looks finished."""
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    n = len(new_ids)
    for choice in choices:
        if choice[:n] == new_ids and n < len(choice):
            mask[choice[n]] = True
    if not mask.any() or new_ids in choices:
        mask[eos_id] = True
    return mask


@wrong("choice_mask", BY_HAND, "[5] fits, but [5, 6] does not")
def by_the_place_alone(choices, new_ids, eos_id, vocab_size):
    """Any choice that is long enough, whatever its beginning."""
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    n = len(new_ids)
    for choice in choices:
        if len(choice) > n and (not n or choice[0] == new_ids[0]):
            mask[choice[n]] = True
        if choice == new_ids:
            mask[eos_id] = True
    return mask


@wrong("choice_mask", BY_HAND, "should be torch.bool")
def a_mask_of_numbers(choices, new_ids, eos_id, vocab_size):
    """0 and 1 for False and True."""
    mask = torch.zeros(vocab_size)
    n = len(new_ids)
    for choice in choices:
        if choice[:n] == new_ids:
            mask[choice[n] if n < len(choice) else eos_id] = 1
    return mask


@wrong("choice_mask", BY_HAND, "should allow [5, 6]")
def only_the_first_choice_that_fits(choices, new_ids, eos_id, vocab_size):
    """Returns from within the loop."""
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    n = len(new_ids)
    for choice in choices:
        if choice[:n] == new_ids:
            mask[choice[n] if n < len(choice) else eos_id] = True
            return mask
    return mask


@wrong("choice_mask", "test_choices_stay_as_they_are", "was changed")
def eos_is_put_behind_the_choices(choices, new_ids, eos_id, vocab_size):
    """Appends EOS to the caller's lists."""
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    n = len(new_ids)
    for choice in choices:
        choice.append(eos_id)
        if choice[:n] == new_ids and n < len(choice):
            mask[choice[n]] = True
    return mask


@wrong(
    "choice_mask",
    "test_tokens_are_numbers_not_digits",
    "should allow [23], not [3, 23]",
)
def by_their_digits(choices, new_ids, eos_id, vocab_size):
    """Joins ids to a string, where 1, 23 is 12, 3."""
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    n, start = len(new_ids), "".join(map(str, new_ids))
    for choice in choices:
        if "".join(map(str, choice)).startswith(start) and len(choice) >= n:
            mask[choice[n] if n < len(choice) else eos_id] = True
    return mask


# --- accepts_empty --------------------------------------------------------------------

EMPTY_BY_HAND = "test_empty_texts_worked_by_hand"


@wrong("accepts_empty", EMPTY_BY_HAND, "accepts_empty(parse('ab*')) should give False")
def one_part_is_enough(regex):
    """`or` for `and` in a sequence."""

    def go(regex):
        if isinstance(regex, Then):
            return go(regex.first) or go(regex.second)
        if isinstance(regex, Either):
            return any(go(x) for x in regex.options)
        return isinstance(regex, (Empty, Many))

    return go(regex)


@wrong("accepts_empty", EMPTY_BY_HAND, "accepts_empty(parse('a|b*')) should give True")
def all_options_must(regex):
    """`all` for `any` in a choice."""

    def go(regex):
        if isinstance(regex, Then):
            return go(regex.first) and go(regex.second)
        if isinstance(regex, Either):
            return all(go(x) for x in regex.options)
        return isinstance(regex, (Empty, Many))

    return go(regex)


@wrong("accepts_empty", EMPTY_BY_HAND, "accepts_empty(parse('a*')) should give True")
def asks_inside_a_star(regex):
    """`a*` matches the empty text, whether `a` does or not."""

    def go(regex):
        if isinstance(regex, Then):
            return go(regex.first) and go(regex.second)
        if isinstance(regex, Either):
            return any(go(x) for x in regex.options)
        if isinstance(regex, Many):
            return go(regex.inner)
        return isinstance(regex, Empty)

    return go(regex)


@wrong("accepts_empty", EMPTY_BY_HAND, "accepts_empty(parse('a*b*')) should give True")
def only_the_outermost(regex):
    """Looks at the kind of the whole tree alone."""
    return isinstance(regex, (Empty, Many))


@wrong(
    "accepts_empty",
    "test_nothing_does_not_even_match_the_empty_text",
    "NOTHING matches no text",
)
def nothing_is_taken_for_empty(regex):
    """No text at all is something else than the empty text."""
    return regex == NOTHING or accepts_empty_(regex)


@wrong("accepts_empty", EMPTY_BY_HAND, "returned None")
def no_answer_for_a_byte(regex):
    """Falls off the end for OneOf."""

    def go(regex):
        if isinstance(regex, Then):
            return bool(go(regex.first) and go(regex.second))
        if isinstance(regex, Either):
            return any(go(x) for x in regex.options) or None
        if isinstance(regex, (Empty, Many)):
            return True
        return None

    return go(regex)


# --- derive ---------------------------------------------------------------------------

DERIVED = "test_derivatives_worked_by_hand"


@wrong("derive", DERIVED, "The first part may be empty: then the second is read")
def the_first_part_alone(regex, byte):
    """In a sequence, forgets that the first part may be empty."""

    def go(regex, byte):
        if isinstance(regex, OneOf):
            return EMPTY if byte in regex.bytes else NOTHING
        if isinstance(regex, Either):
            return either(*[go(x, byte) for x in regex.options])
        if isinstance(regex, Many):
            return then(go(regex.inner, byte), regex)
        if isinstance(regex, Then):
            return then(go(regex.first, byte), regex.second)
        return NOTHING

    return go(regex, byte)


@wrong("derive", DERIVED, "After one round there may be more")
def one_round_of_a_star(regex, byte):
    """After one round of (ab)*, nothing more."""

    def go(regex, byte):
        if isinstance(regex, Many):
            return go(regex.inner, byte)
        if isinstance(regex, Either):
            return either(*[go(x, byte) for x in regex.options])
        if isinstance(regex, Then):
            rest = then(go(regex.first, byte), regex.second)
            if accepts_empty_(regex.first):
                rest = either(rest, go(regex.second, byte))
            return rest
        return derive_(regex, byte)

    return go(regex, byte)


@wrong("derive", "test_what_cannot_begin_so_leaves_nothing", "build it with `then`")
def nodes_made_by_hand(regex, byte):
    """Then(...) and Either(...) in place of then(...) and either(...)."""

    def go(regex, byte):
        if isinstance(regex, Either):
            return Either(frozenset(go(x, byte) for x in regex.options))
        if isinstance(regex, Many):
            return Then(go(regex.inner, byte), regex)
        if isinstance(regex, Then):
            rest = Then(go(regex.first, byte), regex.second)
            if accepts_empty_(regex.first):
                rest = Either(frozenset({rest, go(regex.second, byte)}))
            return rest
        return derive_(regex, byte)

    return go(regex, byte)


@wrong("derive", "test_what_cannot_begin_so_leaves_nothing", "build it with `either`")
def a_choice_made_by_hand(regex, byte):
    """Either(...) in place of either(...): a choice of nothing is left."""
    if isinstance(regex, Either):
        return Either(frozenset(derive_(option, byte) for option in regex.options))
    return derive_(regex, byte)


@wrong("derive", DERIVED, "should be [bc], not b")
def the_first_option_that_fits(regex, byte):
    """Takes one option of a choice and forgets the others."""
    if isinstance(regex, Either):
        left = [derive_(x, byte) for x in sorted(regex.options, key=str)]
        return next((x for x in left if x != NOTHING), NOTHING)
    return derive_(regex, byte)


@wrong("derive", "test_re_agrees_about_what_may_follow", "should not match")
def the_second_part_always(regex, byte):
    """Reads the second part even where the first may not be empty."""

    def go(regex, byte):
        if isinstance(regex, Then):
            return either(
                then(go(regex.first, byte), regex.second),
                go(regex.second, byte),
            )
        if isinstance(regex, Either):
            return either(*[go(x, byte) for x in regex.options])
        if isinstance(regex, Many):
            return then(go(regex.inner, byte), regex)
        return derive_(regex, byte)

    return go(regex, byte)


@wrong("derive", DERIVED, "should be ε, not ∅")
def nothing_for_empty(regex, byte):
    """After its only byte, a regex leaves the empty text, not none."""
    if isinstance(regex, OneOf):
        return NOTHING
    return derive_(regex, byte)


@wrong("derive", DERIVED, "returned None")
def none_for_nothing(regex, byte):
    """None in place of NOTHING, and of what is left of a byte."""
    return None if derive_(regex, byte) in (NOTHING, EMPTY) else derive_(regex, byte)


# --- Automaton ------------------------------------------------------------------------


@wrong("Automaton", "test_the_automaton_worked_by_hand", "should give None")
class NothingIsAState(Automaton_):
    """The dead state is a state like the others."""

    def step(self, state, byte):
        return derive_(state, byte)


@wrong("Automaton", "test_no_step_is_computed_twice", "keep what came out")
class ForgetsItsSteps(Automaton_):
    """Derives again each time."""

    def step(self, state, byte):
        after = derive_(state, byte)
        return None if after == NOTHING else after


@wrong("Automaton", "test_no_step_is_computed_twice", "None as well")
class ForgetsWhatIsDead(Automaton_):
    """Takes a remembered None for nothing remembered."""

    def __init__(self, pattern):
        super().__init__(pattern)
        self.table = {}

    def step(self, state, byte):
        after = self.table.get((state, byte))
        if after is None:
            after = derive_(state, byte)
            after = self.table[state, byte] = None if after == NOTHING else after
        return after


@wrong(
    "Automaton",
    "test_two_automata_know_nothing_of_each_other",
    "is not accepted",
)
class OneTableForAll:
    """The table is a class attribute, and its keys are numbers: automata share it."""

    known, regexes = {}, {}

    def __init__(self, pattern):
        self.start = 0
        self.regexes[0] = parse(pattern)

    def step(self, state, byte):
        key = (state, byte)
        if key not in self.known:
            after = derive_(self.regexes[state], byte)
            self.known[key] = None if after == NOTHING else len(self.known) + 1
            self.regexes[self.known[key]] = after
        return self.known[key]

    def accepting(self, state):
        return state in self.regexes and accepts_empty_(self.regexes[state])


@wrong("Automaton", "test_states_are_hashable_and_few", "more than 12 states")
class TheTextIsTheState:
    """A state for each text: nothing can be remembered."""

    def __init__(self, pattern):
        self.pattern, self.start = pattern, b""

    def step(self, state, byte):
        regex = parse(self.pattern)
        for one in state + bytes([byte]):
            regex = derive_(regex, one)
        return None if regex == NOTHING else state + bytes([byte])

    def accepting(self, state):
        regex = parse(self.pattern)
        for one in state:
            regex = derive_(regex, one)
        return accepts_empty_(regex)


@wrong(
    "Automaton",
    "test_two_walks_through_one_automaton_do_not_meet",
    "disturb each other",
)
class KeepsTheState(Automaton_):
    """Steps from where it stands, not from the state that it is given."""

    def __init__(self, pattern):
        super().__init__(pattern)
        self.now = self.start

    def step(self, state, byte):
        if state is self.start:
            self.now = self.start
        after = derive_(self.now, byte)
        self.now = self.now if after == NOTHING else after
        return None if after == NOTHING else after


@wrong(
    "Automaton",
    "test_a_state_is_none_exactly_where_no_text_goes_on",
    "a text goes on so",
)
class DeadUnlessAccepting(Automaton_):
    """None wherever the text may not end yet and one byte is not enough."""

    def step(self, state, byte):
        after = super().step(state, byte)
        if after is None or accepts_empty_(after):
            return after
        one_more = [derive_(after, x) for x in range(256)]
        return after if any(accepts_empty_(x) for x in one_more) else None


# --- token_mask -----------------------------------------------------------------------

MASK = "test_a_mask_worked_by_hand"


@wrong("token_mask", MASK, "A token without bytes would be allowed for ever")
def special_tokens_fit_everywhere(automaton, state, vocabulary, eos_id):
    """A token without bytes dies nowhere, so it stays allowed."""
    mask = torch.zeros(len(vocabulary), dtype=torch.bool)
    for i, token in enumerate(vocabulary):
        now = state
        for byte in token:
            now = automaton.step(now, byte)
            if now is None:
                break
        mask[i] = now is not None
    mask[eos_id] = automaton.accepting(state)
    return mask


@wrong("token_mask", MASK, "All bytes of a token must be read")
def the_first_byte_decides(automaton, state, vocabulary, eos_id):
    """A token is allowed if its first byte is."""
    mask = torch.zeros(len(vocabulary), dtype=torch.bool)
    for i, token in enumerate(vocabulary):
        mask[i] = bool(token) and automaton.step(state, token[0]) is not None
    mask[eos_id] = automaton.accepting(state)
    return mask


@wrong("token_mask", MASK, "The text need not be complete behind a token")
def only_tokens_that_complete(automaton, state, vocabulary, eos_id):
    """Asks whether the text may end behind the token."""
    mask = token_mask_(automaton, state, vocabulary, eos_id)
    for i, token in enumerate(vocabulary):
        now = state
        if i != eos_id and mask[i]:
            for byte in token:
                now = automaton.step(now, byte)
            mask[i] = automaton.accepting(now) and len(token) > 1
    return mask


@wrong("token_mask", "test_eos_has_no_text", "allowed where the state accepts")
def eos_by_its_bytes_too(automaton, state, vocabulary, eos_id):
    """`or` between the bytes of EOS and the accepting state."""
    mask = token_mask_(automaton, state, [*vocabulary, b""], len(vocabulary))[:-1]
    mask[eos_id] = mask[eos_id] or automaton.accepting(state)
    return mask


@wrong("token_mask", MASK, "EOS is allowed where the text may end")
def eos_never(automaton, state, vocabulary, eos_id):
    """The text can never end."""
    mask = token_mask_(automaton, state, vocabulary, eos_id)
    mask[eos_id] = False
    return mask


@wrong("token_mask", MASK, "should be [True, False, True, False, False, False]")
def eos_always(automaton, state, vocabulary, eos_id):
    """The text may end anywhere: half a JSON object is no JSON."""
    mask = token_mask_(automaton, state, vocabulary, eos_id)
    mask[eos_id] = True
    return mask


@wrong("token_mask", "test_a_token_is_read_from_the_given_state", "not [")
def from_the_start(automaton, state, vocabulary, eos_id):
    """Reads each token from the automaton's start."""
    mask = token_mask_(automaton, automaton.start, vocabulary, eos_id)
    mask[eos_id] = automaton.accepting(state)
    return mask


@wrong("token_mask", MASK, "no step leads on")
def reads_on_after_death(automaton, state, vocabulary, eos_id):
    """No `break`: steps from the state None."""
    mask = torch.zeros(len(vocabulary), dtype=torch.bool)
    for i, token in enumerate(vocabulary):
        now = state
        for byte in token:
            now = automaton.step(now, byte)
        mask[i] = bool(token) and now is not None
    mask[eos_id] = automaton.accepting(state)
    return mask


@wrong("token_mask", "test_masks_in_all_states_of_some_words", "should allow token")
def as_characters(automaton, state, vocabulary, eos_id):
    """Decodes tokens to text: half a character becomes the sign U+FFFD."""
    texts = [token.decode(errors="replace").encode() for token in vocabulary]
    return token_mask_(automaton, state, texts, eos_id)


# --- TokenTrie ------------------------------------------------------------------------


@wrong("TokenTrie", "test_the_trie_worked_by_hand", "each once")
class NoTreeAtAll:
    """Walks each token by itself."""

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def mask(self, automaton, state):
        mask = token_mask_(automaton, state, [*self.vocabulary, b""], -1)
        return mask[:-1]


@wrong("TokenTrie", "test_the_trie_makes_the_masks_of_the_words", "allow token")
class OneTokenForEachPath:
    """Two tokens with the same bytes: the second one takes the place of the first."""

    def __init__(self, vocabulary):
        self.size, self.places = len(vocabulary), {}
        for i, token in enumerate(vocabulary):
            self.places[token] = i
        self.unique = [
            t if self.places[t] == i else b"" for i, t in enumerate(vocabulary)
        ]
        self.trie = TokenTrie_(self.unique)

    def mask(self, automaton, state):
        return self.trie.mask(automaton, state)


@wrong("TokenTrie", "test_a_state_that_was_seen_takes_no_steps", "took")
class ForgetsItsMasks(TokenTrie_):
    """Walks again each time."""

    def mask(self, automaton, state):
        self.known = {}
        return super().mask(automaton, state)


@wrong("TokenTrie", "test_a_state_that_was_seen_takes_no_steps", "return a copy")
class HandsOutItsOwn(TokenTrie_):
    """The caller gets the remembered tensor itself, and sets EOS in it."""

    def mask(self, automaton, state):
        super().mask(automaton, state)
        return self.known[automaton, state]


@wrong("TokenTrie", "test_two_automata_share_a_trie", "another state")
class RemembersByStateAlone:
    """The automaton is not part of what is remembered."""

    def __init__(self, vocabulary):
        self.trie, self.masks = TokenTrie_(vocabulary), {}

    def mask(self, automaton, state):
        if state not in self.masks:
            self.masks[state] = self.trie.mask(automaton, state)
        return self.masks[state].clone()


@wrong("TokenTrie", "test_all_states_that_were_seen_are_remembered", "took")
class RemembersTheLastStateOnly(TokenTrie_):
    """One mask is kept, and two states take turns."""

    def mask(self, automaton, state):
        if (automaton, state) not in self.known:
            self.known.clear()
        return super().mask(automaton, state)


@wrong("TokenTrie", "test_automata_in_turns_are_all_remembered", "took")
class RemembersTheLastAutomatonOnly(TokenTrie_):
    """All its states are kept, until another automaton comes."""

    def mask(self, automaton, state):
        if not any(known is automaton for known, _ in self.known):
            self.known.clear()
        return super().mask(automaton, state)


@wrong("TokenTrie", "test_a_trie_reads_on_in_any_state_but_none", "should allow token")
class FalseForNone:
    """Asks `if state`, which the state 0 does not pass."""

    def __init__(self, vocabulary):
        self.vocabulary, self.tokens = vocabulary, sorted(set(vocabulary) - {b""})
        self.known = {}

    def mask(self, automaton, state):
        if (automaton, state) not in self.known:
            reached = {b"": state}
            beginnings = {t[:n] for t in self.tokens for n in range(1, len(t) + 1)}
            for text in sorted(beginnings):
                if text[:-1] in reached:
                    after = automaton.step(reached[text[:-1]], text[-1])
                    if after:
                        reached[text] = after
            self.known[automaton, state] = [t in reached for t in self.vocabulary]
        mask = torch.tensor(self.known[automaton, state], dtype=torch.bool)
        return mask & torch.tensor([bool(t) for t in self.vocabulary])


@wrong(
    "TokenTrie",
    "test_an_automaton_that_is_gone_is_not_mixed_up_with_a_new_one",
    "given to another object",
)
class RemembersById:
    """id(automaton) as the key, and the automaton itself is not kept."""

    def __init__(self, vocabulary):
        self.vocabulary, self.known = vocabulary, {}

    def mask(self, automaton, state):
        key = (id(automaton), state)
        if key not in self.known:
            self.known[key] = TokenTrie_(self.vocabulary).mask(automaton, state)
        return self.known[key].clone()


@wrong("TokenTrie", "test_the_trie_makes_the_masks_of_the_words", "allow token 18")
class TheRootHasTokens:
    """Tokens without bytes end at the root, and are allowed everywhere."""

    def __init__(self, vocabulary):
        self.trie = TokenTrie_(vocabulary)
        self.empty = [i for i, token in enumerate(vocabulary) if not token]

    def mask(self, automaton, state):
        mask = self.trie.mask(automaton, state)
        mask[self.empty] = True
        return mask


@wrong("TokenTrie", "test_two_tries_have_their_own_vocabularies", "should have shape")
class OneRootForAll(TokenTrie_):
    """The root is a class attribute: each trie gets the tokens of those before it."""

    shared = []

    def __init__(self, vocabulary):
        self.shared[:] = [*self.shared[:8], *vocabulary]
        super().__init__(list(self.shared))


# --- constrained_decode ---------------------------------------------------------------


def loop(
    *arguments,
    eos_where=lambda automaton, state: automaton.accepting(state),
    dead_end=lambda ids: (ids, False),
    keep_eos=True,
    at_the_end=lambda automaton, state: False,
    dtype=torch.float32,
    removed=-INF,
    padding=True,
    read_prompt=False,
):
    """The loop with one thing after the other done otherwise."""
    model, ids, automaton, vocabulary, max_new_tokens, pick, eos_id = arguments
    trie, state = TokenTrie_(vocabulary), automaton.start
    if read_prompt:
        for token in ids[0].tolist():
            for byte in vocabulary[token]:
                state = automaton.step(state, byte)
    for _ in range(max_new_tokens):
        mask = trie.mask(automaton, state)
        mask[eos_id] = eos_where(automaton, state)
        if dead_end and not mask.any():
            return dead_end(ids)
        with torch.no_grad():
            logits = model(ids).logits[:, -1].to(dtype)
        logits[:, : len(mask)] = logits[:, : len(mask)].masked_fill(~mask, removed)
        if padding:
            logits[:, len(mask) :] = -INF
        token = pick(logits)
        if token.item() == eos_id:
            return (torch.cat([ids, token], dim=-1) if keep_eos else ids), True
        ids = torch.cat([ids, token], dim=-1)
        for byte in vocabulary[token.item()]:
            state = automaton.step(state, byte)
    return ids, at_the_end(automaton, state)


HAND = "test_a_text_worked_by_hand"


@wrong("constrained_decode", HAND, "The EOS that ended the text belongs to it")
def without_eos(*arguments):
    """Returns the text without the EOS that ended it."""
    return loop(*arguments, keep_eos=False)


@wrong("constrained_decode", HAND, "Only an EOS that was picked ends a text")
def finished_where_it_could_end(*arguments):
    """At the end of the budget, asks whether the state accepts."""
    return loop(
        *arguments, at_the_end=lambda automaton, state: automaton.accepting(state)
    )


@wrong(
    "constrained_decode", "test_the_end_comes_where_it_is_picked", "allowed after ab"
)
def eos_may_always_be_picked(*arguments):
    """EOS is never masked."""
    return loop(*arguments, eos_where=lambda automaton, state: True)


@wrong("constrained_decode", HAND, "EOS is allowed there")
def eos_is_never_allowed(*arguments):
    """The trie's mask as it is: the text never ends."""
    return loop(*arguments, eos_where=lambda automaton, state: False)


@wrong("constrained_decode", "test_a_dead_end_is_not_finished", "nothing to pick")
def picks_in_a_dead_end(*arguments):
    """All logits are -inf, and argmax takes token 0."""
    return loop(*arguments, dead_end=None)


@wrong("constrained_decode", "test_a_dead_end_is_not_finished", "should give False")
def a_dead_end_counts_as_finished(*arguments):
    """Nothing can follow, so it calls the text finished."""
    return loop(*arguments, dead_end=lambda ids: (ids, True))


@wrong(
    "constrained_decode",
    "test_pick_gets_float32_logits_and_minus_infinity",
    "should be torch.float32",
)
def logits_in_half_precision(*arguments):
    """Leaves the model's dtype as it is."""
    return loop(*arguments, dtype=torch.bfloat16)


@wrong(
    "constrained_decode",
    "test_pick_gets_float32_logits_and_minus_infinity",
    "not [[1, 0",
)
def zero_for_minus_infinity(*arguments):
    """A logit of 0 is a probability like any other."""
    return loop(*arguments, removed=0.0)


@wrong(
    "constrained_decode",
    "test_pick_gets_float32_logits_and_minus_infinity",
    "are padding",
)
def padding_may_be_picked(*arguments):
    """Logits beyond the vocabulary stay as they are."""
    return loop(*arguments, padding=False)


@wrong("constrained_decode", HAND, "no step leads on")
def reads_the_prompt_too(*arguments):
    """The automaton reads the prompt before the new text."""
    return loop(*arguments, read_prompt=True)


@wrong("constrained_decode", "test_the_bytes_of_eos_are_no_text", "differs first")
def eos_where_its_bytes_fit(*arguments):
    """`or` between the trie's mask and the accepting state."""
    vocabulary, eos_id = arguments[3], arguments[6]

    def fits(automaton, state):
        return bool(TokenTrie_(vocabulary).mask(automaton, state)[eos_id]) or (
            automaton.accepting(state)
        )

    return loop(*arguments, eos_where=fits)


# --- schema_to_regex ------------------------------------------------------------------


@wrong("schema_to_regex", "test_the_array_worked_by_hand", "should not match '[1,1]'")
def spaces_if_you_like(schema):
    """Any white space behind a comma, or none."""
    return schema_to_regex_(schema).replace(", ", ", *")


@wrong(
    "schema_to_regex",
    "test_what_has_a_meaning_in_patterns_is_escaped",
    "that `parse` refuses",
)
def values_are_not_escaped(schema):
    """A value's text is taken for a pattern: . matches anything."""
    if "const" in schema:
        return json.dumps(schema["const"], ensure_ascii=False)
    return schema_to_regex_(schema)


@wrong("schema_to_regex", "test_choices_stay_apart_from_what_is_around_them", "should")
def no_brackets_around_a_choice(schema):
    """a|b inside a sequence reaches as far as it can."""

    def go(schema):
        if "enum" in schema or "anyOf" in schema:
            options = schema.get("anyOf") or [{"const": x} for x in schema["enum"]]
            return "|".join(go(x) for x in options)
        if schema.get("type") == "object":
            fields = [
                f"{re.escape(json.dumps(n))}: {go(s)}"
                for n, s in schema.get("properties", {}).items()
            ]
            return r"\{" + ", ".join(fields) + r"\}"
        if schema.get("type") == "array":
            return rf"\[({go(schema['items'])}(, {go(schema['items'])})*)?\]"
        return schema_to_regex_(schema)

    return go(schema)


@wrong("schema_to_regex", "test_other_keywords_are_refused_by_name", "should raise")
def other_keywords_are_ignored(schema):
    """A keyword that is not known is no matter: the text need not be valid then."""

    def known(schema):
        if isinstance(schema, dict):
            return {
                k: known(v)
                if k != "properties"
                else {n: known(s) for n, s in v.items()}
                for k, v in schema.items()
                if k in KNOWN or k in ("properties",)
            }
        return [known(x) for x in schema] if isinstance(schema, list) else schema

    return schema_to_regex_(known(schema))


KNOWN = {"const", "enum", "anyOf", "type", "items", "minLength", "maxLength"}
KNOWN |= {"minItems", "maxItems", "required", "additionalProperties"}


@wrong("schema_to_regex", "test_arrays_of_so_many_items", "should not match")
def commas_count(schema):
    """`maxItems` commas, which are between items: one item too many."""
    if schema.get("type") == "array" and schema.get("maxItems"):
        item = schema_to_regex_(schema["items"])
        least, most = schema.get("minItems", 0), schema["maxItems"]
        items = f"{item}(, {item}){{{max(least - 1, 0)},{most}}}"
        return rf"\[{items}\]" if least else rf"\[({items})?\]"
    return schema_to_regex_(schema)


@wrong("schema_to_regex", "test_values_of_any_kind_may_be_chosen", "match 'null'")
def python_for_json(schema):
    """str(value): None, True and single quotes are no JSON."""
    if "const" in schema:
        return re.escape(str(schema["const"]))
    if "enum" in schema and schema["enum"]:
        return "(" + "|".join(re.escape(str(x)) for x in schema["enum"]) + ")"
    return schema_to_regex_(schema)


@wrong("schema_to_regex", "test_values_of_simple_types", "should not match")
def any_text_in_quotes(schema):
    """Strings without escapes: a quote or a line end inside is no JSON."""
    if schema.get("type") == "string":
        return '"(.|\n)*"'
    return schema_to_regex_(schema)


@wrong("schema_to_regex", "test_values_of_simple_types", "should match")
def letters_and_digits_only(schema):
    """Strings without any escape at all."""
    if schema.get("type") == "string":
        return r'"[^"\\\x00-\x1f]*"'
    return schema_to_regex_(schema)


@wrong(
    "schema_to_regex", "test_what_has_a_meaning_in_patterns_is_escaped", "should match"
)
def only_ascii(schema):
    r"""json.dumps as it comes: é becomes \u00e9."""
    if "const" in schema:
        return re.escape(json.dumps(schema["const"]))
    return schema_to_regex_(schema)


@wrong("schema_to_regex", "test_the_array_worked_by_hand", "that `parse` refuses")
def with_anchors(schema):
    """^ and $, which fullmatch needs as little as the automaton."""
    return f"^{schema_to_regex_(schema)}$"


@wrong("schema_to_regex", "test_what_we_could_not_obey_is_refused", "should raise")
def what_is_required_is_not_looked_at(schema):
    """A required property that nobody describes would be missing from each text."""
    return schema_to_regex_({k: v for k, v in schema.items() if k != "required"})


@wrong("schema_to_regex", "test_what_says_nothing_changes_nothing", "more properties")
def refuses_more_properties(schema):
    """additionalProperties: true is allowed, and changes nothing."""
    if schema.get("additionalProperties"):
        raise ValueError("there are no more properties")
    return schema_to_regex_(schema)


@wrong("schema_to_regex", "test_values_of_any_kind_may_be_chosen", "should match")
def keys_in_order(schema):
    """Sorts the keys of a value."""
    if "const" in schema:
        return re.escape(
            json.dumps(schema["const"], ensure_ascii=False, sort_keys=True)
        )
    if "enum" in schema and schema["enum"]:
        return (
            "(" + "|".join(keys_in_order_({"const": x}) for x in schema["enum"]) + ")"
        )
    return schema_to_regex_(schema)


def keys_in_order_(schema):
    return keys_in_order.value(schema)


# --- forced_bytes ---------------------------------------------------------------------

FORCED = "test_forced_bytes_of_words"


def forced(automaton, state, ends=True, alphabet=range(256), longest=10_000):
    found = []
    while (not ends or not automaton.accepting(state)) and len(found) < longest:
        possible = [x for x in alphabet if automaton.step(state, x) is not None]
        if len(possible) != 1:
            break
        found += possible
        state = automaton.step(state, possible[0])
    return bytes(found)


@wrong("forced_bytes", FORCED, "the text may end: that is a choice")
def an_end_is_no_choice(automaton, state):
    """Goes on where the text may end."""
    return forced(automaton, state, ends=False)


@wrong("forced_bytes", FORCED, "All 256 bytes count")
def printable_bytes_only(automaton, state):
    """Tries ASCII alone."""
    return (
        forced(automaton, state, alphabet=range(1, 128))
        if (automaton.step(state, 0xC3) is None)
        else forced(automaton, state)
    )


@wrong("forced_bytes", FORCED, "c or d may follow: a choice")
def the_first_that_is_possible(automaton, state):
    """Takes the smallest byte where there are several."""
    found = b""
    while not automaton.accepting(state):
        byte = next(x for x in range(256) if automaton.step(state, x) is not None)
        found += bytes([byte])
        state = automaton.step(state, byte)
    return found


@wrong("forced_bytes", FORCED, "should give b'ab', not b'a'")
def one_byte_at_most(automaton, state):
    """Stops after the first."""
    return forced(automaton, state, longest=1)


@wrong("forced_bytes", FORCED, "not 'ab'")
def text_for_bytes(automaton, state):
    """A str, which half a character is not."""
    return forced(automaton, state).decode(errors="replace")


@wrong("forced_bytes", FORCED, "However long it is")
def at_most_hundred(automaton, state):
    """A limit that nobody asked for."""
    return forced(automaton, state, longest=100)


@wrong("forced_bytes", FORCED, "should give b'e', not b'ab'")
def forced_from_the_start(automaton, state):
    """Begins at the automaton's start."""
    return forced(automaton, automaton.start)


@wrong("forced_bytes", "test_forced_bytes_go_on_in_any_state_but_none", "None is dead")
def a_state_of_zero_is_dead(automaton, state):
    """Asks `if automaton.step(...)`, which the state 0 does not pass."""
    found = b""
    while not automaton.accepting(state):
        possible = [x for x in range(256) if automaton.step(state, x)]
        if len(possible) != 1:
            break
        found += bytes(possible)
        state = automaton.step(state, possible[0])
    return found


# --- true_conditional -----------------------------------------------------------------


def accepted(automaton, vocabulary, length, ends=True):
    tokens = [i for i, token in enumerate(vocabulary) if token]
    for text in itertools.product(tokens, repeat=length):
        state = automaton.start
        for byte in b"".join(vocabulary[i] for i in text):
            state = None if state is None else automaton.step(state, byte)
        if state is not None and (not ends or automaton.accepting(state)):
            yield text


def rows(model, ids, texts, shift=1):
    new = torch.tensor(texts)
    with torch.no_grad():
        logits = model(torch.cat([ids.expand(len(new), -1), new], dim=-1)).logits
    start = ids.shape[1] - shift
    return logits[:, start : start + new.shape[1]].double(), new[..., None]


CONDITIONAL = "test_conditional_worked_by_hand"


@wrong("true_conditional", CONDITIONAL, "so that they sum to 1")
def the_probability_of_the_text(model, ids, automaton, vocabulary, length):
    """Not divided by what all accepted texts have together."""
    texts = list(accepted(automaton, vocabulary, length))
    if not texts:
        raise ValueError("none")
    logits, new = rows(model, ids, texts)
    scores = logits.log_softmax(-1).gather(-1, new).sum((1, 2))
    return dict(zip(texts, scores.exp().tolist(), strict=True))


@wrong("true_conditional", "test_a_slow_sum_gives_the_same", "should give")
def masked_at_each_step(model, ids, automaton, vocabulary, length):
    """What constrained decoding does: the softmax of what is allowed, at each place."""
    texts = list(accepted(automaton, vocabulary, length))
    if not texts:
        raise ValueError("none")
    logits, new = rows(model, ids, texts)
    result = {}
    for row, text in enumerate(texts):
        total = 0.0
        for place in range(length):
            on = sorted({t[place] for t in texts if t[:place] == text[:place]})
            of_those = logits[row, place, on].log_softmax(-1)
            total += of_those[on.index(text[place])]
        result[text] = float(torch.as_tensor(total).exp())
    return result


@wrong("true_conditional", "test_a_slow_sum_gives_the_same", "its whole vocabulary")
def without_the_special_tokens(model, ids, automaton, vocabulary, length):
    """The softmax of those tokens alone that have bytes."""
    texts = list(accepted(automaton, vocabulary, length))
    if not texts:
        raise ValueError("none")
    logits, new = rows(model, ids, texts)
    special = [i for i, token in enumerate(vocabulary) if not token]
    logits = logits.index_fill(-1, torch.tensor(special, dtype=torch.long), -INF)
    scores = logits.log_softmax(-1).gather(-1, new).sum((1, 2))
    return dict(zip(texts, scores.softmax(0).tolist(), strict=True))


@wrong("true_conditional", "test_texts_may_end_in_any_state_but_none", "None is dead")
def ends_where_the_state_is_true(model, ids, automaton, vocabulary, length):
    """Asks `if state`, which the state 0 does not pass."""
    all_of_them = true_conditional_(model, ids, automaton, vocabulary, length)
    kept = {}
    for text, chance in all_of_them.items():
        state = automaton.start
        for byte in b"".join(vocabulary[i] for i in text):
            state = automaton.step(state, byte)
        if state:
            kept[text] = chance
    if not kept:
        kept = dict.fromkeys(itertools.islice(all_of_them, 1), 1.0)
    return {text: chance / sum(kept.values()) for text, chance in kept.items()}


@wrong("true_conditional", "test_only_the_given_length_counts", "should have the texts")
def beginnings_count_too(model, ids, automaton, vocabulary, length):
    """Texts that could still become accepted ones."""
    texts = list(accepted(automaton, vocabulary, length, ends=False))
    if not texts:
        raise ValueError("none")
    logits, new = rows(model, ids, texts)
    scores = logits.log_softmax(-1).gather(-1, new).sum((1, 2))
    return dict(zip(texts, scores.softmax(0).tolist(), strict=True))


@wrong(
    "true_conditional", "test_a_slow_sum_gives_the_same", "logits at place i predict"
)
def the_logits_behind_each_token(model, ids, automaton, vocabulary, length):
    """Off by one: the logits at a token predict the next one."""
    texts = list(accepted(automaton, vocabulary, length))
    if not texts:
        raise ValueError("none")
    logits, new = rows(model, ids, texts, shift=0)
    scores = logits.log_softmax(-1).gather(-1, new).sum((1, 2))
    return dict(zip(texts, scores.softmax(0).tolist(), strict=True))


@wrong("true_conditional", "test_a_slow_sum_gives_the_same", "should give")
def logits_for_logprobs(model, ids, automaton, vocabulary, length):
    """Adds up logits, which have another constant at each place."""
    texts = list(accepted(automaton, vocabulary, length))
    if not texts:
        raise ValueError("none")
    logits, new = rows(model, ids, texts)
    scores = logits.gather(-1, new).sum((1, 2))
    return dict(zip(texts, scores.softmax(0).tolist(), strict=True))


@wrong(
    "true_conditional",
    "test_where_no_text_is_accepted_there_is_no_condition",
    "should raise ValueError",
)
def nothing_where_none_is_accepted(model, ids, automaton, vocabulary, length):
    """An empty dictionary."""
    if not list(accepted(automaton, vocabulary, length)):
        return {}
    return true_conditional_(model, ids, automaton, vocabulary, length)


@wrong("true_conditional", "test_tokens_without_bytes_take_no_part", "should have the")
def special_tokens_take_part(model, ids, automaton, vocabulary, length):
    """A token without bytes leaves the automaton where it is, and is counted."""
    texts = []
    for text in itertools.product(range(len(vocabulary)), repeat=length):
        state = automaton.start
        for byte in b"".join(vocabulary[i] for i in text):
            state = None if state is None else automaton.step(state, byte)
        if state is not None and automaton.accepting(state):
            texts.append(text)
    if not texts:
        raise ValueError("none")
    logits, new = rows(model, ids, texts)
    scores = logits.log_softmax(-1).gather(-1, new).sum((1, 2))
    return dict(zip(texts, scores.softmax(0).tolist(), strict=True))


@wrong("true_conditional", "test_unlikely_texts_keep_their_share", "nan")
def exp_first(model, ids, automaton, vocabulary, length):
    """exp in float32, and then the division: 0 by 0."""
    texts = list(accepted(automaton, vocabulary, length))
    if not texts:
        raise ValueError("none")
    logits, new = rows(model, ids, texts)
    scores = logits.float().log_softmax(-1).gather(-1, new).sum((1, 2))
    chances = (2 * scores).exp().sqrt()
    return dict(zip(texts, (chances / chances.sum()).tolist(), strict=True))
