"""Checks of lesson 12. Oracles: cases worked by hand, Python's `re`, `jsonschema`,
`generate` with its prefix_allowed_tokens_fn, and slow searches over all texts."""

import copy
import itertools
import json
import math
import random
import re
import sys

import pytest
import torch

from course.checks import expect
from course.checks.plugin import exercise
from tiny_models import ScriptedModel, random_gpt2, random_llama
from tiny_models.grammar import (
    NOTHING,
    Either,
    Empty,
    Many,
    Nothing,
    OneOf,
    Regex,
    Then,
    parse,
    show,
)

choice_mask = exercise("choice_mask")
accepts_empty = exercise("accepts_empty")
derive = exercise("derive")
Automaton = exercise("Automaton")
token_mask = exercise("token_mask")
TokenTrie = exercise("TokenTrie")
constrained_decode = exercise("constrained_decode")
schema_to_regex = exercise("schema_to_regex")
forced_bytes = exercise("forced_bytes")
true_conditional = exercise("true_conditional")

INF = float("inf")
MODELS = pytest.mark.parametrize("make", [random_llama, random_gpt2])


class Words:
    """The automaton of a list of words: a state is the text so far."""

    def __init__(self, *words: bytes):
        self.words, self.start, self.steps = words, b"", []

    def step(self, state, byte):
        assert state is not None, (
            "`step` was called with the state None: where a path has died, no step "
            "leads on"
        )
        assert type(byte) is int, (
            f"`step` was given {byte!r}, not a byte: a number from 0 to 255"
        )
        after = state + bytes([byte])
        self.steps.append(after)
        return after if any(w.startswith(after) for w in self.words) else None

    def accepting(self, state):
        assert state is not None, "`accepting` was asked of the state None"
        return state in self.words


class Table:
    """An automaton that is written down: {state: {character: next state}}."""

    def __init__(self, table, accepting):
        self.table, self.ends, self.start = table, accepting, 0

    def step(self, state, byte):
        assert state is not None, "`step` was called with the state None"
        return self.table[state].get(chr(byte))

    def accepting(self, state):
        assert state is not None, "`accepting` was asked of the state None"
        return state in self.ends


def some_as_then_b():
    """a*b, and again from the beginning: (a*b)*."""
    return Table({0: {"a": 1, "b": 0}, 1: {"a": 1, "b": 0}}, {0})


def state_after(automaton, text: bytes):
    state = automaton.start
    for byte in text:
        state = automaton.step(state, byte)
        if state is None:
            return None
    return state


def texts_over(alphabet, longest):
    """All texts of up to `longest` characters."""
    for length in range(longest + 1):
        yield from map("".join, itertools.product(alphabet, repeat=length))


def matches(pattern, text) -> bool:
    return re.fullmatch(pattern, text, re.ASCII) is not None


# --- choice_mask ----------------------------------------------------------------------

CHOICES = ((5, 7), (5, 7, 2), (6,))


def choices():
    return [list(choice) for choice in CHOICES]


def allowed(mask, size, call):
    """The ids that a mask allows."""
    expect.tensor(mask, (size,), call, torch.bool)
    return mask.nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("new", "wanted", "hint"),
    [
        ([], [5, 6], "Every choice begins with the empty text."),
        ([5], [7], "Both choices that begin with 5 go on with 7."),
        ([5, 7], [0, 2], "[5, 7] is a whole choice, so EOS is allowed, and 2 too."),
        ([6], [0], "[6] is a whole choice: only the end may follow."),
        ([7], [], "No choice begins with 7, wherever else it has one."),
        ([5, 7, 2], [0], ""),
        ([5, 7, 2, 2], [], "That is longer than any choice."),
        ([6, 0], [], "After the end nothing follows."),
        ([5, 6], [], "[5] fits, but [5, 6] does not."),
    ],
)
def test_choices_worked_by_hand(choice_mask, new, wanted, hint):
    call = f"choice_mask([[5, 7], [5, 7, 2], [6]], {new}, eos_id=0, vocab_size=8)"
    got = allowed(choice_mask(choices(), list(new), 0, 8), 8, call)
    assert got == wanted, f"{call} should allow {wanted}, not {got}. {hint}".rstrip()


def test_choices_of_random_tokens(choice_mask):
    generator = random.Random(0)
    for _ in range(60):
        some = [
            [generator.randrange(3) for _ in range(generator.randrange(1, 5))]
            for _ in range(generator.randrange(1, 6))
        ]
        new = [generator.randrange(3) for _ in range(generator.randrange(4))]
        ends = {(*choice, 9) for choice in some}  # 9 is EOS
        wanted = sorted(
            t for t in range(10) if any(e[: len(new) + 1] == (*new, t) for e in ends)
        )
        call = f"choice_mask({some}, {new}, eos_id=9, vocab_size=10)"
        got = allowed(choice_mask(some, new, 9, 10), 10, call)
        assert got == wanted, f"{call} should allow {wanted}, not {got}"


def test_tokens_are_numbers_not_digits(choice_mask):
    """1 and 23 are other tokens than 12 and 3."""
    for new, wanted in (
        ([1], [23]),
        ([12], [3]),
        ([2], []),
        ([1, 2], []),
        ([12, 3], [0]),
    ):
        call = f"choice_mask([[1, 23], [12, 3]], {new}, eos_id=0, vocab_size=30)"
        got = allowed(choice_mask([[1, 23], [12, 3]], new, 0, 30), 30, call)
        assert got == wanted, f"{call} should allow {wanted}, not {got}"


def test_an_empty_choice_may_end_at_once(choice_mask):
    call = "choice_mask([[], [4]], [], eos_id=1, vocab_size=6)"
    got = allowed(choice_mask([[], [4]], [], 1, 6), 6, call)
    assert got == [1, 4], f"{call} should allow [1, 4], not {got}"


def test_without_choices_nothing_is_allowed(choice_mask):
    call = "choice_mask([], [], eos_id=1, vocab_size=6)"
    got = allowed(choice_mask([], [], 1, 6), 6, call)
    assert got == [], f"{call} should allow nothing, not {got}"


def test_choices_stay_as_they_are(choice_mask):
    some, new = choices(), [5]
    with expect.unchanged("work on a copy", choices=some, new_ids=new):
        choice_mask(some, new, 0, 8)


# --- regexes: what is asked of them, without derivatives ------------------------------


def ends(regex, text: bytes, start: int) -> set[int]:
    """Where a match that begins at `start` may end."""
    if isinstance(regex, Nothing):
        return set()
    if isinstance(regex, Empty):
        return {start}
    if isinstance(regex, OneOf):
        fits = start < len(text) and text[start] in regex.bytes
        return {start + 1} if fits else set()
    if isinstance(regex, Then):
        middle = ends(regex.first, text, start)
        return {end for m in middle for end in ends(regex.second, text, m)}
    if isinstance(regex, Either):
        return {end for option in regex.options for end in ends(option, text, start)}
    assert isinstance(regex, Many), f"{regex!r} is no regex"
    found, new = {start}, {start}
    while new:
        new = {e for m in new for e in ends(regex.inner, text, m)} - found
        found |= new
    return found


def tree_matches(regex, text: str) -> bool:
    return len(text.encode()) in ends(regex, text.encode(), 0)


PATTERNS = (
    *("", "a", "ab", "a|b", "a*", "ab*", "a*b*", "a|b*", "(ab)*", "a*ab", "a?b"),
    *("(a|b)*abb", "(ab|a)(bc)?", "a{2,3}", "(a|b){2}", "((a|)b)*", "(a*)*b"),
    *("[ab]c|[^a]", "(a|ab)(c|bcd)", "a+b+", "(a?){3}", "(a*b*)*c", "a(b|)c?"),
)


# --- accepts_empty --------------------------------------------------------------------


def test_empty_texts_worked_by_hand(accepts_empty):
    for pattern, wanted in (
        *(("a*", True), ("ab*", False), ("a*b*", True), ("a|b*", True)),
        *(("a|b", False), ("", True), ("a*b", False), ("(ab)*", True)),
    ):
        call = f"accepts_empty(parse({pattern!r}))"
        expect.value(accepts_empty(parse(pattern)), wanted, call)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_re_agrees_about_the_empty_text(accepts_empty, pattern):
    call = f"accepts_empty(parse({pattern!r}))"
    expect.value(accepts_empty(parse(pattern)), matches(pattern, ""), call)


def test_nothing_does_not_even_match_the_empty_text(accepts_empty):
    hint = "NOTHING matches no text, EMPTY the empty one."
    expect.value(accepts_empty(NOTHING), False, "accepts_empty(NOTHING)", hint)
    dead = Many(OneOf(frozenset({97})))
    expect.value(
        accepts_empty(Then(NOTHING, dead)), False, "accepts_empty(Then(NOTHING, a*))"
    )
    expect.value(
        accepts_empty(Many(NOTHING)), True, "accepts_empty(Many(NOTHING))", "No times."
    )


# --- derive ---------------------------------------------------------------------------


def same_language(got, wanted, call, hint=""):
    """Two regexes match the same texts of up to four letters."""
    expect.returned(got, Regex, call)
    for text in texts_over("abc", 4):
        want = tree_matches(wanted, text)
        if tree_matches(got, text) != want:
            does = "match" if want else "not match"
            raise AssertionError(
                f"{call} should be {show(wanted)}, not {show(got)}: it should {does} "
                f"{text!r}.{' ' + hint if hint else ''}"
            )


@pytest.mark.parametrize(
    ("pattern", "rest", "hint"),
    [
        ("a", "", "The byte is read; ε is left."),
        ("ab", "b", ""),
        ("ab|ac", "b|c", ""),
        ("(ab)*", "b(ab)*", "After one round there may be more."),
        ("a*", "a*", "After one a there may be more."),
        ("a*ab", "a*ab|b", "The first part may be empty: then the second is read."),
        ("a?b", "b", ""),
        ("aab", "ab", "One byte is read, and no more."),
        ("(a|b)c", "c", ""),
        ("c*b*a", "", "Both parts before the a may be empty."),
    ],
)
def test_derivatives_worked_by_hand(derive, pattern, rest, hint):
    call = f"derive(parse({pattern!r}), ord('a'))"
    same_language(derive(parse(pattern), ord("a")), parse(rest), call, hint)


@pytest.mark.parametrize("pattern", ["b", "", "ba", "(bc)*", "b*c", "[^a]"])
def test_what_cannot_begin_so_leaves_nothing(derive, pattern):
    call = f"derive(parse({pattern!r}), ord('a'))"
    got = expect.returned(derive(parse(pattern), ord("a")), Regex, call)
    hint = ""
    if not isinstance(got, Nothing) and not any(
        tree_matches(got, t) for t in texts_over("abc", 3)
    ):
        how = "either" if isinstance(got, Either) else "then"
        hint = (
            f" It matches no text, but is of the class {type(got).__name__}, which "
            f"nobody sees to be dead: build it with `{how}`."
        )
    assert got == NOTHING, f"{call} should be NOTHING, not {show(got)}.{hint}"


def test_nothing_leaves_nothing(derive):
    got = derive(NOTHING, 97)
    assert got == NOTHING, f"derive(NOTHING, 97) should be NOTHING, not {got!r}"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_re_agrees_about_what_may_follow(derive, pattern):
    for letter in "abc":
        call = f"derive(parse({pattern!r}), ord({letter!r}))"
        got = expect.returned(derive(parse(pattern), ord(letter)), Regex, call)
        for text in texts_over("abc", 3):
            want = matches(pattern, letter + text)
            assert tree_matches(got, text) == want, (
                f"{call} gives {show(got)}, which should {'' if want else 'not '}match "
                f"{text!r}: {pattern!r} does{'' if want else ' not'} match "
                f"{letter + text!r}"
            )


def test_a_character_of_two_bytes_takes_two_derivatives(derive):
    first = derive(parse("é*x"), 0xC3)
    same_language(derive(first, 0xA9), parse("é*x"), "derive by C3, then by A9, of é*x")
    got = derive(first, ord("x"))
    assert got == NOTHING, "after C3, half of é, no x may follow"


@pytest.mark.parametrize("pattern", ["(a|b)*abb", "(a*b*)*c", "(a|b)*a(a|b){2}"])
def test_the_derivatives_are_few(derive, pattern):
    generator, found, regex = random.Random(1), set(), parse(pattern)
    for _ in range(120):
        regex = derive(regex, generator.choice(b"ab"))
        found.add(regex)
        assert len(found) <= 12, (
            f"{pattern!r} has more than 12 different derivatives, the last one "
            f"{show(regex)[:80]}. Build them with `then`, `either` and `many`, which "
            "see what is equal"
        )


# --- Automaton ------------------------------------------------------------------------


def accepts(automaton, text) -> bool:
    state = state_after(automaton, text.encode())
    return state is not None and bool(automaton.accepting(state))


def test_the_automaton_worked_by_hand(Automaton):
    automaton = Automaton("ab?")
    start = automaton.start
    assert start is not None, 'Automaton("ab?").start should not be None'
    expect.value(automaton.accepting(start), False, "accepting(start) of ab?")
    dead = automaton.step(start, ord("b"))
    assert dead is None, f"step(start, b) of ab? should give None, not {dead!r}"
    state = automaton.step(start, ord("a"))
    assert state is not None, "step(start, a) of ab? should give a state, not None"
    expect.value(automaton.accepting(state), True, "accepting, after a, of ab?")
    last = automaton.step(state, ord("b"))
    assert last is not None, "step(state, b), after a, should give a state, not None"
    expect.value(automaton.accepting(last), True, "accepting, after ab, of ab?")
    for byte in range(256):
        dead = automaton.step(last, byte)
        assert dead is None, f"after ab, the byte {byte} should give None, not {dead!r}"
    again = automaton.step(start, ord("a"))
    assert again == state, "step(start, a) gives another state when asked again"


@pytest.mark.parametrize(
    "pattern", [*PATTERNS, "a.c", "é+", "[a-cé]b", r"\w\.", "日|b"]
)
def test_re_accepts_the_same_texts(Automaton, pattern):
    automaton = Automaton(pattern)
    for text in texts_over("abcé.", 3):
        got, want = accepts(automaton, text), matches(pattern, text)
        assert got == want, (
            f"Automaton({pattern!r}) {'accepts' if got else 'does not accept'} {text!r}"
        )


@pytest.mark.parametrize(
    "pattern", ["a(b|c)?d", "(ab|a)(bc)?", "(a|b){2,3}c", "ab|cd|abcd", "a?b?c?d"]
)
def test_a_state_is_none_exactly_where_no_text_goes_on(Automaton, pattern):
    accepted = [t for t in texts_over("abcd", 4) if matches(pattern, t)]
    automaton = Automaton(pattern)
    for text in texts_over("abcd", 4):
        live = any(t.startswith(text) for t in accepted)
        got = state_after(automaton, text.encode()) is not None
        assert got == live, f"Automaton({pattern!r}), after {text!r}: " + (
            "None, but a text goes on so" if live else "a state, but no text does"
        )


def test_states_are_hashable_and_few(Automaton):
    automaton, generator = Automaton("(a|b)*a(a|b){2}"), random.Random(2)
    state, found = automaton.start, set()
    for _ in range(300):
        state = automaton.step(state, generator.choice(b"ab"))
        found.add(state)
        assert len(found) <= 12, (
            'Automaton("(a|b)*a(a|b){2}") has more than 12 states: equal places in a '
            "text should have one state, or nothing can be remembered about it"
        )


def python_calls(work):
    """How many Python functions `work` calls: its effort, whatever else runs."""
    number, before = 0, sys.getprofile()

    def count(frame, event, argument):
        nonlocal number
        number += event == "call"

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return number


@pytest.mark.parametrize("byte", ["a", "b"])
def test_no_step_is_computed_twice(Automaton, byte):
    """Also not one that is dead, as by b is."""
    automaton = Automaton("|".join(f"a{n}" for n in range(600)))
    first = automaton.step(automaton.start, ord(byte))
    number = python_calls(lambda: automaton.step(automaton.start, ord(byte)))
    came = "None" if first is None else "a state"
    assert number < 100, (
        f"of a pattern with 600 words, step(start, {byte}) gave {came}, and when asked "
        f"again called {number} functions: keep what came out, None as well"
    )


def test_two_automata_know_nothing_of_each_other(Automaton):
    one, two = Automaton("ab"), Automaton("ac")
    for automaton, text in ((one, "ab"), (two, "ac"), (one, "ab"), (two, "ac")):
        assert accepts(automaton, text), f"beside another one, {text!r} is not accepted"
    assert not accepts(one, "ac"), 'Automaton("ab"), beside Automaton("ac"), accepts ac'


def test_two_walks_through_one_automaton_do_not_meet(Automaton):
    """As in a batch: the state is what `step` returns, not kept in the object."""
    automaton = Automaton("abc|axy")
    one = two = automaton.start
    for a, b in zip(b"abc", b"axy", strict=True):
        one, two = automaton.step(one, a), automaton.step(two, b)
        assert None not in (one, two), "two walks side by side disturb each other"
    assert automaton.accepting(one), "abc, read beside axy, is not accepted"
    assert automaton.accepting(two), "axy, read beside abc, is not accepted"


# --- token_mask and TokenTrie ---------------------------------------------------------

SMALL = (b"a", b"b", b"ab", b"abb", b"", b"</s>")


def test_a_mask_worked_by_hand(token_mask):
    automaton = Words(b"a", b"ab")
    call = "token_mask of ab?, at the start,"
    got = token_mask(automaton, b"", list(SMALL), 5)
    expect.tensor(got, (6,), call, torch.bool)
    hint = ""
    if got[4]:
        hint = "A token without bytes would be allowed for ever."
    elif got[3]:
        hint = "All bytes of a token must be read: abb dies at its last."
    elif not got[0]:
        hint = "The text need not be complete behind a token."
    expect.same(got, [True, False, True, False, False, False], call, hint)
    call = "token_mask of ab?, after a,"
    hint = "EOS is allowed where the text may end."
    got = token_mask(automaton, b"a", list(SMALL), 5)
    expect.same(got, [False, True, False, False, False, True], call, hint)


WORDS = (b"cat", b"cats", b"cow", b"a\xc3\xa9", b"a\xc3\xa8t", b"")
PIECES = (
    *(b"c", b"ca", b"cat", b"cats", b"catsc", b"at", b"ats", b"s", b"t", b"o", b"ow"),
    *(b"a", b"a\xc3", b"\xc3", b"\xa9", b"\xa8", b"\xa8t", b"\xc3\xa9", b"", b"w"),
    *(b"t", b"cow", b"cowc", b"a\xc3\xa8", b"e", b"\xc3\xa8t", b""),
)


def prefixes():
    return sorted({w[:n] for w in WORDS for n in range(len(w) + 1)})


def pieces_that_go_on(prefix):
    """By comparing texts: some word begins with prefix + piece."""
    return [bool(p) and any(w.startswith(prefix + p) for w in WORDS) for p in PIECES]


@pytest.mark.parametrize("eos_id", [18, 26])
def test_masks_in_all_states_of_some_words(token_mask, eos_id):
    for prefix in prefixes():
        wanted = pieces_that_go_on(prefix)
        wanted[eos_id] = prefix in WORDS
        call = f"token_mask of the words {list(WORDS)}, after {prefix!r},"
        got = token_mask(Words(*WORDS), prefix, list(PIECES), eos_id)
        differs_at(got, wanted, PIECES, call)


def differs_at(got, wanted, vocabulary, call):
    expect.tensor(got, (len(vocabulary),), call, torch.bool)
    for i, want in enumerate(wanted):
        assert bool(got[i]) == want, (
            f"{call} should {'' if want else 'not '}allow token {i}, {vocabulary[i]!r}"
        )


def test_eos_has_no_text(token_mask):
    """Its bytes fit here, and mean nothing."""
    call = "token_mask of the word </s>, at the start, where EOS has the bytes </s>,"
    got = token_mask(Words(b"</s>"), b"", list(SMALL), 5)
    hint = "EOS is allowed where the state accepts, and nowhere else."
    expect.same(got, [False] * 6, call, hint)


def test_masks_of_a_language_without_end(token_mask):
    vocabulary = [b"a", b"b", b"ab", b"ba", b"aab", b"c", b"bc", b"", b"aaaa"]
    for state, wanted in (
        (0, [1, 1, 1, 1, 1, 0, 0, 1, 1]),
        (1, [1] * 5 + [0] * 3 + [1]),
    ):
        call = f"token_mask of (a*b)*, state {state},"
        got = token_mask(some_as_then_b(), state, list(vocabulary), 7)
        differs_at(got, [bool(x) for x in wanted], vocabulary, call)


def test_a_token_is_read_from_the_given_state(token_mask):
    automaton = Words(b"aab")
    got = token_mask(automaton, b"aa", [b"a", b"b", b"aab", b""], 3)
    expect.same(got, [False, True, False, False], "token_mask of aab, after aa,")


def test_a_path_that_died_is_not_read_on(token_mask):
    automaton = Words(b"ab")
    token_mask(automaton, b"", [b"xyz", b"ab", b""], 2)
    assert b"xy" not in automaton.steps, "x is dead, and y was read behind it"


def test_the_trie_worked_by_hand(TokenTrie):
    automaton = Words(b"a", b"ab")
    vocabulary = [b"a", b"b", b"ab", b"abb", b"ba"]
    trie = TokenTrie(list(vocabulary))
    got = trie.mask(automaton, b"")
    call = "TokenTrie([a, b, ab, abb, ba]).mask of ab?, at the start,"
    differs_at(got, [True, False, True, False, False], vocabulary, call)
    steps = sorted(automaton.steps)
    assert steps == [b"a", b"ab", b"abb", b"b"], (
        f"{call} should take the steps a, ab, abb and b, each once, not {steps}"
    )


def test_the_trie_makes_the_masks_of_the_words(TokenTrie):
    trie, automaton = TokenTrie(list(PIECES)), Words(*WORDS)
    for prefix in prefixes():
        call = f"the trie's mask of the words {list(WORDS)}, after {prefix!r},"
        got = trie.mask(automaton, prefix)
        differs_at(got, pieces_that_go_on(prefix), PIECES, call)


def test_each_path_is_walked_once(TokenTrie):
    generator = random.Random(3)
    vocabulary = [
        bytes(generator.choice(b"ab") for _ in range(generator.randrange(7)))
        for _ in range(400)
    ]
    paths = {t[:n] for t in vocabulary for n in range(1, len(t) + 1)}
    automaton = Words(*[bytes(w) for w in itertools.product(b"ab", repeat=6)])
    trie = TokenTrie(list(vocabulary))
    assert not automaton.steps, "building the trie needs no automaton"
    got = trie.mask(automaton, b"")
    differs_at(got, [bool(t) for t in vocabulary], vocabulary, "a trie of 400 tokens")
    assert sorted(automaton.steps) == sorted(paths), (
        f"400 tokens with {len(paths)} different beginnings took "
        f"{len(automaton.steps)} steps: each beginning is walked once"
    )


def test_a_state_that_was_seen_takes_no_steps(TokenTrie):
    trie, automaton = TokenTrie(list(PIECES)), Words(*WORDS)
    first = trie.mask(automaton, b"ca")
    number = len(automaton.steps)
    first[:] = True  # it is the caller's own
    again = trie.mask(automaton, b"ca")
    assert len(automaton.steps) == number, (
        f"the second mask of the same state took {len(automaton.steps) - number} steps"
    )
    hint = "Another caller has changed the tensor that it got: return a copy."
    expect.same(again, pieces_that_go_on(b"ca"), "the second mask of a state", hint)
    again[:] = True
    third = trie.mask(automaton, b"ca")
    expect.same(third, pieces_that_go_on(b"ca"), "the third mask of a state", hint)


def test_all_states_that_were_seen_are_remembered(TokenTrie):
    trie, automaton = TokenTrie(list(PIECES)), Words(*WORDS)
    for prefix in prefixes():
        trie.mask(automaton, prefix)
    number = len(automaton.steps)
    for prefix in prefixes():
        got = trie.mask(automaton, prefix)
        call = f"the second mask of the words {list(WORDS)}, after {prefix!r},"
        differs_at(got, pieces_that_go_on(prefix), PIECES, call)
    assert len(automaton.steps) == number, (
        f"{len(prefixes())} states, each for the second time, took "
        f"{len(automaton.steps) - number} steps"
    )


def test_an_automaton_that_is_gone_is_not_mixed_up_with_a_new_one(TokenTrie):
    trie = TokenTrie([b"a", b"b"])
    for n in range(60):
        automaton = Words(b"ab"[n % 2 : n % 2 + 1])
        wanted = [n % 2 == 0, n % 2 == 1]
        hint = "An id() is given to another object when the first one is gone."
        call = f"the mask of the word {automaton.words[0]!r}"
        expect.same(trie.mask(automaton, b""), wanted, call, hint)
        del automaton


def test_two_automata_share_a_trie(TokenTrie):
    trie = TokenTrie([b"a", b"b"])
    for word in (b"a", b"b", b"a"):
        wanted = [word == b"a", word == b"b"]
        got = trie.mask(Words(word), b"")
        hint = "The same state of another automaton is another state."
        expect.same(got, wanted, f"the mask of the word {word!r}", hint)
    kept = [Words(b"a"), Words(b"b")]
    for automaton, wanted in zip(
        kept * 2, [[True, False], [False, True]] * 2, strict=True
    ):
        got = trie.mask(automaton, b"")
        expect.same(got, wanted, f"the mask of the word {automaton.words[0]!r}")


def test_two_tries_have_their_own_vocabularies(TokenTrie):
    automaton = Words(b"ab")
    one, two = TokenTrie([b"a", b"b"]), TokenTrie([b"b", b"ab", b"c"])
    expect.same(one.mask(automaton, b""), [True, False], "the mask of the first trie")
    got = two.mask(automaton, b"")
    expect.same(got, [False, True, False], "the mask of a second trie")


def test_a_trie_reads_on_in_any_state_but_none(TokenTrie):
    """A state may be 0: it is not dead."""
    vocabulary = [b"a", b"b", b"ab", b"ba", b"bb", b"c"]
    trie, automaton = TokenTrie(list(vocabulary)), some_as_then_b()
    for state in (0, 1):
        call = f"the trie's mask of (a*b)*, state {state} (0 is a state like others),"
        differs_at(trie.mask(automaton, state), [True] * 5 + [False], vocabulary, call)


def test_automata_in_turns_are_all_remembered(TokenTrie):
    """As in a server whose clients have several schemas."""
    trie, automata = TokenTrie([b"a", b"b", b"ab"]), [Words(b"ab"), Words(b"b")]
    for automaton in automata:
        trie.mask(automaton, b"")
    number = sum(len(automaton.steps) for automaton in automata)
    for automaton in automata:
        trie.mask(automaton, b"")
    more = sum(len(automaton.steps) for automaton in automata) - number
    assert not more, (
        f"two automata in turns, in states that were seen, took {more} more steps: "
        "another automaton is no reason to forget the first"
    )


def test_a_trie_of_which_nothing_is_allowed(TokenTrie):
    trie = TokenTrie([b"a", b"", b"ca"])
    got = trie.mask(Words(b"b"), b"")
    expect.tensor(
        got, (3,), "the mask of the word b, tokens a, b'' and ca,", torch.bool
    )
    expect.same(got, [False] * 3, "the mask of the word b, tokens a, b'' and ca,")


def test_the_vocabulary_stays_as_it_is(TokenTrie):
    vocabulary = list(PIECES)
    with expect.unchanged("work on a copy", vocabulary=vocabulary):
        TokenTrie(vocabulary).mask(Words(*WORDS), b"")


# --- constrained_decode ---------------------------------------------------------------


def greedy(logits):
    return logits.argmax(dim=-1, keepdim=True)


def sample(logits):
    return torch.multinomial(logits.softmax(-1), 1)


def always(logits):
    """A model whose logits are the same at each place."""
    row = torch.tensor(logits)
    return ScriptedModel(lambda ids: row.expand(*ids.shape, -1).clone(), len(logits))


def decoded(got, call):
    """(ids, finished) of an answer."""
    expect.returned(got, tuple, call)
    assert len(got) == 2, f"{call} should return ids and a bool, not {len(got)} values"
    expect.returned(got[0], torch.Tensor, f"the ids of {call}")
    expect.returned(got[1], bool, f"`finished` of {call}")
    return got


LETTERS = (b"a", b"b", b"")  # a 0, b 1, EOS 2
PROMPT = ((1, 1, 0),)


def letters_decode(
    constrained_decode, logits, words, new, vocabulary=LETTERS, pick=greedy
):
    model = always(logits)
    got = constrained_decode(
        model, torch.tensor(PROMPT), Words(*words), list(vocabulary), new, pick, 2
    )
    call = f"constrained_decode of the words {list(words)}, {new} new tokens,"
    ids, finished = decoded(got, call)
    return ids, finished, model, call


@pytest.mark.parametrize(
    ("new", "wanted", "ends"),
    [(0, [], False), (1, [0], False), (2, [0, 1], False), (3, [0, 1, 2], True)],
)
def test_a_text_worked_by_hand(constrained_decode, new, wanted, ends):
    ids, finished, model, call = letters_decode(
        constrained_decode, [1.0, 2.0, 0.0], (b"a", b"ab"), new
    )
    hint = ""
    if isinstance(ids, torch.Tensor) and ids.shape == (1, 3 + len(wanted) - 1) and ends:
        hint = "After ab the text may end: EOS is allowed there, and nothing else is."
        if finished is True:
            hint = "The EOS that ended the text belongs to it, as in generate."
    expect.same_ids(ids, torch.tensor([[*PROMPT[0], *wanted]]), call, hint=hint)
    hint = "Only an EOS that was picked ends a text."
    expect.value(finished, ends, f"`finished` of {call}", hint)
    assert len(model.calls) == new, (
        f"{call} called the model {len(model.calls)} times, not {new}"
    )
    for one in model.calls:
        assert not one.grad_enabled, f"{call} calls the model with gradients"


def test_the_end_comes_where_it_is_picked(constrained_decode):
    ids, finished, _, call = letters_decode(
        constrained_decode, [1.0, 0.0, 5.0], (b"ab", b"abab"), 9
    )
    hint = "EOS is likeliest at each place, and allowed after ab only."
    expect.same_ids(ids, torch.tensor([[*PROMPT[0], 0, 1, 2]]), call, hint=hint)
    expect.value(finished, True, f"`finished` of {call}")


def test_an_empty_text_may_be_all(constrained_decode):
    ids, finished, model, call = letters_decode(
        constrained_decode, [1.0, 0.0, 5.0], (b"", b"ab"), 9
    )
    expect.same_ids(ids, torch.tensor([[*PROMPT[0], 2]]), call)
    expect.value(finished, True, f"`finished` of {call}")
    assert len(model.calls) == 1, f"{call} called the model {len(model.calls)} times"


@pytest.mark.parametrize(
    ("word", "new"), [(b"ac", [0]), (b"c", []), (b"abac", [0, 1, 0])]
)
def test_a_dead_end_is_not_finished(constrained_decode, word, new):
    def watched(logits):
        assert (logits > -INF).any(), (
            "pick was given logits that are all -inf: in a dead end there is nothing "
            "to pick"
        )
        return greedy(logits)

    ids, finished, model, call = letters_decode(
        constrained_decode, [1.0, 2.0, 0.0], (word,), 9, pick=watched
    )
    hint = "No token has the byte c: what was written until then is returned."
    expect.same_ids(ids, torch.tensor([[*PROMPT[0], *new]]), call, hint=hint)
    expect.value(finished, False, f"`finished` of {call}", hint)
    assert len(model.calls) == len(new), (
        f"{call} called the model {len(model.calls)} times, not {len(new)}: nothing is "
        "asked in a dead end"
    )


def test_an_eos_in_the_prompt_ends_nothing(constrained_decode):
    """A chat prompt has one behind each message."""
    for new, wanted, ends in ((0, [], False), (1, [0], False), (5, [0, 1, 2], True)):
        call = (
            f"constrained_decode of ab after a prompt with EOS in it, {new} new tokens,"
        )
        prompt = torch.tensor([[0, 2, 1, 2]])
        got = constrained_decode(
            always([1.0, 2.0, 0.0]), prompt, Words(b"ab"), list(LETTERS), new, greedy, 2
        )
        ids, finished = decoded(got, call)
        expect.same_ids(ids, torch.tensor([[0, 2, 1, 2, *wanted]]), call)
        expect.value(finished, ends, f"`finished` of {call}")


def test_the_bytes_of_eos_are_no_text(constrained_decode):
    ids, finished, _, call = letters_decode(
        constrained_decode, [1.0, 0.0, 5.0], (b"a</s>", b"ab"), 9, (b"a", b"b", b"</s>")
    )
    expect.same_ids(ids, torch.tensor([[*PROMPT[0], 0, 1, 2]]), call)
    expect.value(finished, True, f"`finished` of {call}")


def test_pick_gets_float32_logits_and_minus_infinity(constrained_decode):
    wanted = [[1.0, -INF, -INF, -INF, -INF], [-INF, 2.0, 0.5, -INF, -INF]]
    wanted.append([-INF, -INF, 0.5, -INF, -INF])
    steps = []

    def watched(logits):
        call = f"the logits for pick, step {len(steps)} of ab?,"
        expect.tensor(logits, (1, 5), call, torch.float32)
        hint = ""
        if (logits[0, 3:] > -INF).any():
            hint = "Logits beyond the vocabulary are padding: never allowed."
        expect.same(logits, [wanted[len(steps)]], call, hint)
        steps.append(logits)
        return greedy(logits)

    row = torch.tensor([1.0, 2.0, 0.5, 9.0, 9.0], dtype=torch.bfloat16)
    model = ScriptedModel(lambda ids: row.expand(*ids.shape, -1).clone(), 5)
    call = "constrained_decode with 3 tokens and 5 bfloat16 logits"
    got = constrained_decode(
        model, torch.tensor(PROMPT), Words(b"a", b"ab"), list(LETTERS), 9, watched, 2
    )
    ids, _ = decoded(got, call)
    expect.same_ids(ids, torch.tensor([[*PROMPT[0], 0, 1, 2]]), call)


def test_decoding_leaves_its_input_alone(constrained_decode):
    ids, vocabulary = torch.tensor(PROMPT), list(LETTERS)
    with expect.unchanged(ids=ids, vocabulary=vocabulary):
        constrained_decode(
            always([1.0, 2.0, 0.0]), ids, Words(b"ab"), vocabulary, 3, greedy, 2
        )


BYTES = (b"", b"", b"", *(bytes([byte]) for byte in b"abcde"))
BYTES += tuple(bytes(w) for n in (2, 3) for w in itertools.product(b"abc", repeat=n))


def follows(table, new):
    """The tokens that may follow, by reading each: the slow way."""
    state = state_after(table, b"".join(BYTES[i] for i in new))
    found = [2] if table.accepting(state) else []
    for i, token in enumerate(BYTES):
        after = state
        for byte in token:
            after = None if after is None else table.step(after, byte)
        if token and after is not None:
            found.append(i)
    return found


def a_language():
    """(ab|c)*d, then e any number of times."""
    table = {0: {"a": 1, "c": 0, "d": 2}, 1: {"b": 0}, 2: {"e": 2}}
    return Table(table, {2})


@MODELS
@pytest.mark.parametrize("pick", [greedy, sample])
def test_generate_gives_the_same_tokens(constrained_decode, make, pick):
    stopped = 0
    for seed in range(6):
        model = make(len(BYTES), seed=seed)
        ids, new = torch.tensor([[5, 9, 4, 20]]), 10
        torch.manual_seed(seed)
        oracle = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=pick is sample,
            top_k=0,
            prefix_allowed_tokens_fn=lambda row, x: follows(
                a_language(), x[4:].tolist()
            ),
        )
        torch.manual_seed(seed)
        call = f"constrained_decode of (ab|c)*de*, seed {seed}"
        mine, finished = decoded(
            constrained_decode(model, ids, a_language(), list(BYTES), new, pick, 2),
            call,
        )
        hint = "generate, with prefix_allowed_tokens_fn, goes another way."
        expect.same_ids(mine, oracle, call, hint=hint)
        ends = oracle[0, -1].item() == 2
        stopped += ends
        expect.value(finished, ends, f"`finished` of {call}")
    assert pick is greedy or stopped, "some of these texts should end"


def test_a_second_text_begins_anew(constrained_decode):
    """With the same automaton, as a server that answers twice."""
    automaton = Words(b"ab")
    for _ in range(2):
        got = constrained_decode(
            always([1.0, 2.0, 0.0]),
            torch.tensor(PROMPT),
            automaton,
            list(LETTERS),
            5,
            greedy,
            2,
        )
        call = "constrained_decode of ab, with an automaton that was used before,"
        ids, _ = decoded(got, call)
        expect.same_ids(ids, torch.tensor([[*PROMPT[0], 0, 1, 2]]), call)


# --- schema_to_regex ------------------------------------------------------------------


def pattern_of(schema_to_regex, schema):
    """The learner's pattern, if the course's parser reads it."""
    call = f"schema_to_regex({json.dumps(schema, ensure_ascii=False)})"
    pattern = expect.returned(schema_to_regex(copy.deepcopy(schema)), str, call)
    try:
        parse(pattern)
    except ValueError as error:
        raise AssertionError(
            f"{call} gives a pattern that `parse` refuses: {error}"
        ) from None
    return pattern, call


def takes(schema_to_regex, schema, good=(), bad=()):
    pattern, call = pattern_of(schema_to_regex, schema)
    for texts, want in ((good, True), (bad, False)):
        for text in texts:
            assert matches(pattern, text) == want, (
                f"{call} gives {pattern!r}, which should {'' if want else 'not '}"
                f"match {text!r}"
            )


def test_the_array_worked_by_hand(schema_to_regex):
    schema = {"type": "array", "items": {"enum": [1, "a"]}, "maxItems": 2}
    good = ["[]", "[1]", '["a"]', '[1, "a"]', "[1, 1]"]
    bad = ["", "[", "[1,1]", "[1 , 1]", "[1, ]", "[, 1]", "[1, 1, 1]", "[a]", "[ ]"]
    takes(schema_to_regex, schema, good, [*bad, "[1] ", "1", "[1"])


SIMPLE_CASES = {
    "null": (["null"], ["", "Null", "nul", "null "]),
    "boolean": (["true", "false"], ["True", "truefalse", "", "1", "tru"]),
    "integer": (["0", "-0", "7", "-120"], ["01", "+1", "1.0", "", "-", "1e3", "--1"]),
    "number": (
        ["0", "-1", "0.5", "-12.25e+10", "1E5", "1e-07"],
        ["01", ".5", "1.", "+1", "1e", "", "0x1", "1e5.0", "NaN"],
    ),
    "string": (
        [
            '""',
            '"a"',
            r'"\""',
            r'"\\"',
            r'"\n\u001f\u0000"',
            '"é日😀"',
            '"it\'s [a]{2}"',
        ],
        ["", '"', "a", '"a""', '"\n"', r'"\x"', r'"\"', r'"\u12"', '"\x1f"', "'a'"],
    ),
}


@pytest.mark.parametrize("kind", SIMPLE_CASES)
def test_values_of_simple_types(schema_to_regex, kind):
    takes(schema_to_regex, {"type": kind}, *SIMPLE_CASES[kind])


@pytest.mark.parametrize(
    ("limits", "good", "bad"),
    [
        ({"minLength": 2}, [2, 3, 9], [0, 1]),
        ({"maxLength": 2}, [0, 1, 2], [3, 4]),
        ({"minLength": 1, "maxLength": 3}, [1, 2, 3], [0, 4]),
        ({"minLength": 2, "maxLength": 2}, [2], [1, 3]),
        ({"maxLength": 0}, [0], [1]),
    ],
)
def test_strings_of_so_many_characters(schema_to_regex, limits, good, bad):
    for one in ("a", "é", "😀", r"\n", r"\u0007"):
        texts = [[f'"{one * n}"' for n in numbers] for numbers in (good, bad)]
        takes(schema_to_regex, {"type": "string", **limits}, *texts)


@pytest.mark.parametrize(
    ("limits", "good", "bad"),
    [
        ({}, [0, 1, 2, 5], []),
        ({"minItems": 0}, [0, 1, 2], []),
        ({"minItems": 1}, [1, 2, 4], [0]),
        ({"minItems": 3}, [3, 4], [0, 1, 2]),
        ({"maxItems": 0}, [0], [1, 2]),
        ({"maxItems": 1}, [0, 1], [2]),
        ({"minItems": 2, "maxItems": 3}, [2, 3], [0, 1, 4]),
        ({"minItems": 1, "maxItems": 1}, [1], [0, 2]),
        ({"minItems": 0, "maxItems": 2}, [0, 1, 2], [3]),
    ],
)
def test_arrays_of_so_many_items(schema_to_regex, limits, good, bad):
    texts = [[json.dumps([True] * n) for n in numbers] for numbers in (good, bad)]
    takes(
        schema_to_regex,
        {"type": "array", "items": {"type": "boolean"}, **limits},
        *texts,
    )


def test_objects_have_all_properties_in_order(schema_to_regex):
    schema = {
        "type": "object",
        "properties": {"b": {"type": "null"}, "a": {"enum": [1]}},
    }
    bad = [
        '{"a": 1, "b": null}',
        '{"b": null}',
        "{}",
        '{"b":null,"a":1}',
        '{"b": null, }',
    ]
    bad += ['{ "b": null, "a": 1}', '{"b": null, "a": 1, "c": 1}', '"b": null, "a": 1']
    takes(schema_to_regex, schema, ['{"b": null, "a": 1}'], bad)
    for empty in ({"type": "object"}, {"type": "object", "properties": {}}):
        takes(schema_to_regex, empty, ["{}"], ["{ }", "", "{}{}"])


def test_what_has_a_meaning_in_patterns_is_escaped(schema_to_regex):
    odd = 'a.b*(c)|[d]{2}+?^$\\ "é"\n-/#&~'
    text = json.dumps(odd, ensure_ascii=False)
    other = json.dumps('a_b*(c)|[d]{2}+?^$\\ "é"\n-/#&~', ensure_ascii=False)
    takes(schema_to_regex, {"const": odd}, [text], [other])
    takes(schema_to_regex, {"enum": [odd, "x"]}, [text, '"x"'], [other, "x"])
    takes(
        schema_to_regex,
        {"type": "object", "properties": {odd: {"const": 1.5}}},
        [f"{{{text}: 1.5}}"],
        [f"{{{other}: 1.5}}", f"{{{text}: 1_5}}"],
    )


def test_choices_stay_apart_from_what_is_around_them(schema_to_regex):
    inner = {"anyOf": [{"type": "null"}, {"type": "array", "items": {"enum": [1, 2]}}]}
    schema = {"type": "object", "properties": {"a": inner, "b": {"enum": ["x", True]}}}
    good = ['{"a": null, "b": "x"}', '{"a": [1, 2], "b": true}', '{"a": [], "b": "x"}']
    bad = ['{"a": null', 'null, "b": "x"}', '{"a": null, "b": "x"', "true}"]
    takes(schema_to_regex, schema, good, bad)


def test_values_of_any_kind_may_be_chosen(schema_to_regex):
    values = [
        None,
        True,
        False,
        0,
        -1.5,
        "a",
        [],
        [1, "b"],
        {},
        {"l": [None], "k": 2},
        "",
    ]
    good = [json.dumps(value) for value in values]
    takes(schema_to_regex, {"enum": values}, good, ["None", "True", "[1,2]", "{k: 1}"])
    for value, text in zip(values, good, strict=True):
        takes(schema_to_regex, {"const": value}, [text], ["7", "", text + text])
    takes(schema_to_regex, {"type": "string", "enum": ["a"]}, ['"a"'], ['"b"', '""'])
    takes(schema_to_regex, {"type": "string", "const": "a"}, ['"a"'], ['"b"', '""'])


def test_beside_a_value_nothing_else_is_looked_at(schema_to_regex):
    one, two, none = {"const": 1}, {"enum": [2]}, {"anyOf": [{"type": "null"}]}
    takes(schema_to_regex, one | two | none, ["1"], ["2", "null"])
    takes(schema_to_regex, none | two | {"type": "boolean"}, ["2"], ["null", "true"])
    takes(schema_to_regex, none | {"type": "boolean"}, ["null"], ["true"])


def test_a_list_of_types_is_a_choice(schema_to_regex):
    schema = {
        "type": ["string", "null", "array"],
        "maxLength": 2,
        "items": {"const": 1},
    }
    good = ['"ab"', "null", "[1, 1]", '""']
    takes(schema_to_regex, schema, good, ['"abc"', "nullnull", "[2]", "1"])


def test_what_says_nothing_changes_nothing(schema_to_regex):
    notes = {"title": "T", "description": "d", "default": 1, "examples": [2]}
    notes |= {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    takes(schema_to_regex, {"type": "boolean", **notes}, ["true"], ["1", "2"])
    schema = {
        **notes,
        "type": "object",
        "properties": {"title": {"type": "null", **notes}},
        "required": ["title"],
        "additionalProperties": False,
    }
    for more in (False, True, {"type": "null"}):
        schema["additionalProperties"] = more
        bad = ["{}", '{"title": null, "a": null}']
        takes(schema_to_regex, schema, ['{"title": null}'], bad)


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        ({"type": "string", "pattern": "a+"}, "pattern"),
        ({"type": "integer", "minimum": 3}, "minimum"),
        ({"$ref": "#/$defs/a", "type": "null"}, "$ref"),
        ({"oneOf": [{"type": "null"}]}, "oneOf"),
        ({"const": 1, "multipleOf": 2}, "multipleOf"),
        ({"type": "array", "items": {"type": "string", "format": "date"}}, "format"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "not"),
        ({"anyOf": [{"type": "null"}, {"type": "null", "if": {}}]}, "if"),
        ({"type": ["null", "string"], "contentEncoding": "base64"}, "contentEncoding"),
    ],
)
def test_other_keywords_are_refused_by_name(schema_to_regex, schema, names):
    call = f"schema_to_regex({json.dumps(schema)})"
    expect.rejects(
        ValueError, lambda: schema_to_regex(copy.deepcopy(schema)), call, names
    )


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "text"},
        {"properties": {"a": {"type": "null"}}},
        {"type": "array"},
        {"type": ["null", "array"]},
        {"type": "array", "maxItems": 2},
        {"type": "object", "properties": {"a": {}}},
        {
            "type": "object",
            "properties": {"a": {"type": "null"}},
            "required": ["a", "b"],
        },
        {"type": "object", "required": ["a"]},
        {"enum": []},
        {"anyOf": []},
        {"type": []},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 0},
        {"type": "array", "items": {"type": "null"}, "minItems": 4, "maxItems": 3},
    ],
)
def test_what_we_could_not_obey_is_refused(schema_to_regex, schema):
    call = f"schema_to_regex({json.dumps(schema)})"
    expect.rejects(ValueError, lambda: schema_to_regex(copy.deepcopy(schema)), call)


# Schemas, values and texts that nobody has thought of.


def random_schema(r, depth=2):
    kinds = ["null", "boolean", "integer", "number", "string", "enum", "const"]
    kind = r.choice(
        kinds + ["array", "object", "object", "anyOf", "types"] * bool(depth)
    )
    if kind == "enum":
        return {"enum": [random_value(r) for _ in range(r.randrange(1, 4))]}
    if kind == "const":
        return {"const": random_value(r)}
    if kind == "anyOf":
        return {
            "anyOf": [random_schema(r, depth - 1) for _ in range(r.randrange(1, 4))]
        }
    if kind == "types":
        return {"type": r.sample(["null", "boolean", "string", "integer"], 2)}
    schema = {"type": kind}
    if kind == "string":
        schema |= random_limits(r, "Length")
    if kind == "array":
        schema |= {"items": random_schema(r, depth - 1), **random_limits(r, "Items")}
    if kind == "object":
        names = r.sample(["a", "b", "é", "a.b", 'q"', "{", "long name"], r.randrange(4))
        schema["properties"] = {name: random_schema(r, depth - 1) for name in names}
        schema["required"] = [name for name in names if r.random() < 0.5]
        schema["additionalProperties"] = False
    return schema


def random_limits(r, what):
    limits, least = {}, r.randrange(3)
    if r.random() < 0.5:
        limits[f"min{what}"] = least
    if r.random() < 0.6:
        limits[f"max{what}"] = least + r.randrange(3)
    return limits


def random_value(r):
    strings = ["", "a", "x|y", 'q"', "\\", "\n", "é日", "(", "[1]", "a.b"]
    return r.choice([None, True, False, 0, -7, 2.5, 1e-07, [], [1], {}, *strings])


def value_of(schema, r):
    """A value that is valid under the schema."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return r.choice(schema["enum"])
    if "anyOf" in schema:
        return value_of(r.choice(schema["anyOf"]), r)
    kind = schema["type"]
    if isinstance(kind, list):
        return value_of({**schema, "type": r.choice(kind)}, r)
    if kind == "object":
        return {n: value_of(s, r) for n, s in schema["properties"].items()}
    what = "Length" if kind == "string" else "Items"
    least = schema.get(f"min{what}", 0)
    size = r.randint(least, schema.get(f"max{what}", least + 3))
    if kind == "array":
        return [value_of(schema["items"], r) for _ in range(size)]
    if kind == "string":
        return "".join(
            r.choice('ab"\\\n\x00\x1f\x7fé日😀/{}[],: ') for _ in range(size)
        )
    if kind == "number":
        return r.choice([0, -3, 12, 0.5, -1e300, 1e-07, 123456.75])
    return {"null": None, "boolean": r.random() < 0.5, "integer": r.randrange(-99, 99)}[
        kind
    ]


def text_of(regex, r) -> bytes:
    """A text that the regex matches."""
    if isinstance(regex, Empty):
        return b""
    if isinstance(regex, OneOf):
        return bytes([r.choice(sorted(regex.bytes))])
    if isinstance(regex, Then):
        return text_of(regex.first, r) + text_of(regex.second, r)
    if isinstance(regex, Either):
        return text_of(r.choice(sorted(regex.options, key=show)), r)
    return b"".join(text_of(regex.inner, r) for _ in range(r.choice([0, 0, 1, 2, 5])))


def test_valid_values_match(schema_to_regex):
    r = random.Random(5)
    for _ in range(80):
        schema = random_schema(r)
        good = [json.dumps(value_of(schema, r), ensure_ascii=False) for _ in range(4)]
        takes(schema_to_regex, schema, good)


def test_what_matches_is_valid(schema_to_regex):
    from jsonschema import Draft202012Validator

    r = random.Random(6)
    for _ in range(80):
        schema = random_schema(r)
        pattern, call = pattern_of(schema_to_regex, schema)
        for _ in range(4):
            text = text_of(parse(pattern), r).decode()
            try:
                value = json.loads(text)
            except ValueError as error:
                raise AssertionError(
                    f"{call} matches {text!r}, which is no JSON: {error}"
                ) from None
            errors = [
                e.message for e in Draft202012Validator(schema).iter_errors(value)
            ]
            assert not errors, (
                f"{call} matches {text!r}, which is not valid: {errors[0]}"
            )


def test_the_schema_stays_as_it_is(schema_to_regex):
    r = random.Random(7)
    for _ in range(30):
        schema = random_schema(r)
        before = json.dumps(schema)
        schema_to_regex(schema)
        assert json.dumps(schema) == before, (
            f"the schema was changed: {before} became {json.dumps(schema)}"
        )


# --- forced_bytes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "state", "wanted", "hint"),
    [
        ((b"abce", b"abde"), b"", b"ab", "c or d may follow: a choice."),
        ((b"abce", b"abde"), b"abc", b"e", ""),
        ((b"abce", b"abde"), b"ab", b"", "c or d may follow."),
        ((b"a", b"ab"), b"", b"a", "After a the text may end: that is a choice, too."),
        ((b"a", b"ab"), b"a", b"", "The text may end: that is a choice, too."),
        ((b"a", b"ab"), b"ab", b"", "Nothing follows."),
        ((b"", b"a"), b"", b"", "The text may end at once."),
        ((b"\xc3\xa9", b"\xc3\xa8"), b"", b"\xc3", "Bytes are forced, not characters."),
        ((b"\x00\xff\x00",), b"", b"\x00\xff\x00", "All 256 bytes count."),
        ((b"a" * 300,), b"a", b"a" * 299, "However long it is."),
    ],
)
def test_forced_bytes_of_words(forced_bytes, words, state, wanted, hint):
    shown = list(words) if len(words[0]) < 20 else "'a' * 300"
    call = f"forced_bytes of the words {shown}, after {state!r},"
    expect.value(forced_bytes(Words(*words), state), wanted, call, hint)


def test_forced_bytes_of_a_loop_end(forced_bytes):
    """x, then (ab)* and c: after x there is a choice, after a there is b alone."""
    table = Table({0: {"x": 1}, 1: {"a": 2, "c": 3}, 2: {"b": 1}, 3: {}}, {3})
    for state, wanted in ((0, b"x"), (1, b""), (2, b"b"), (3, b"")):
        call = f"forced_bytes of x(ab)*c, state {state},"
        expect.value(forced_bytes(table, state), wanted, call)


def test_forced_bytes_go_on_in_any_state_but_none(forced_bytes):
    """A state may be 0: it is not dead."""
    table = Table({1: {"a": 0}, 0: {"b": 2}, 2: {}}, {2})
    hint = "Its states are 1, 0 and 2: only None is dead."
    call = "forced_bytes of ab, state 1,"
    expect.value(forced_bytes(table, 1), b"ab", call, hint)


# --- true_conditional -----------------------------------------------------------------


def chances(*probabilities):
    """A model with these probabilities at each place."""
    return always([math.log(p) for p in probabilities])


def same_chances(got, wanted, call, hint=""):
    expect.returned(got, dict, call)
    for text in got:
        expect.returned(text, tuple, f"a key of {call}")
        assert all(type(i) is int for i in text), (
            f"{call} has a key of {text!r}, not ints"
        )
    assert set(got) == set(wanted), (
        f"{call} should have the texts {sorted(wanted)}, not {sorted(got)}."
        f"{' ' + hint if hint else ''}"
    )
    for text, probability in wanted.items():
        expect.value(got[text], probability, f"{call}, at {text},", hint, 1e-4)


def test_conditional_worked_by_hand(true_conditional):
    got = true_conditional(
        chances(0.75, 0.25), torch.tensor([[0]]), Words(b"aa", b"ba"), [b"a", b"b"], 2
    )
    hint = "Of the accepted texts alone, so that they sum to 1."
    call = "true_conditional of aa|ba"
    same_chances(got, {(0, 0): 0.75, (1, 0): 0.25}, call, hint)


def test_only_the_given_length_counts(true_conditional):
    model, vocabulary = chances(0.5, 0.25, 0.25), [b"a", b"b", b"ab"]
    words = Words(b"a", b"ab", b"aab", b"b")
    for length, wanted in (
        (1, {(0,): 0.5, (2,): 0.25, (1,): 0.25}),
        (2, {(0, 1): 0.5, (0, 2): 0.5}),
        (3, {(0, 0, 1): 1.0}),
    ):
        got = true_conditional(
            model, torch.tensor([[0]]), words, list(vocabulary), length
        )
        call = f"true_conditional of a|ab|aab|b, {length} tokens,"
        hint = "Two ways to write one text are two texts of tokens."
        same_chances(got, wanted, call, hint)


def test_one_text_in_several_tokens_counts_several_times(true_conditional):
    model, vocabulary = chances(0.5, 0.1, 0.1, 0.3), [b"a", b"b", b"ab", b"aa"]
    got = true_conditional(model, torch.tensor([[0]]), Words(b"aab"), vocabulary, 2)
    call = "true_conditional of aab, 2 tokens of a, b, ab and aa,"
    same_chances(got, {(0, 2): 0.05 / 0.08, (3, 1): 0.03 / 0.08}, call)


def test_tokens_without_bytes_take_no_part(true_conditional):
    got = true_conditional(
        chances(0.25, 0.25, 0.5),
        torch.tensor([[0, 1]]),
        Words(b"a", b"ab"),
        list(LETTERS),
        2,
    )
    same_chances(got, {(0, 1): 1.0}, "true_conditional of a|ab, 2 tokens,")


def test_texts_may_end_in_any_state_but_none(true_conditional):
    """A state may be 0: it is not dead."""
    model, start = chances(0.5, 0.5), torch.tensor([[0]])
    got = true_conditional(model, start, some_as_then_b(), [b"a", b"b"], 2)
    hint = "They end in the state 0: only None is dead."
    call = "true_conditional of (a*b)*, 2 tokens,"
    same_chances(got, {(0, 1): 0.5, (1, 1): 0.5}, call, hint)


def test_where_no_text_is_accepted_there_is_no_condition(true_conditional):
    for words, length in (((b"ab",), 3), ((b"c",), 1)):
        expect.rejects(
            ValueError,
            lambda w=words, n=length: true_conditional(
                chances(0.5, 0.5), torch.tensor([[0]]), Words(*w), [b"a", b"b"], n
            ),
            f"true_conditional of {words}, {length} tokens,",
        )


@MODELS
def test_a_slow_sum_gives_the_same(true_conditional, make):
    vocabulary = [b"", b"", b"", b"a", b"b", b"c", b"ab", b"cc"]
    for seed in range(3):
        model, ids = make(8, seed=seed), torch.tensor([[3, 5, 4]])
        scores = {}
        for text in itertools.product(range(3, 8), repeat=3):
            written = b"".join(vocabulary[i] for i in text)
            if not re.fullmatch(b"(ab|c)+a?", written):
                continue
            score, so_far = 0.0, ids
            for token in text:
                with torch.no_grad():
                    row = model(so_far).logits[0, -1].double().log_softmax(-1)
                score += row[token].item()
                so_far = torch.cat([so_far, torch.tensor([[token]])], -1)
            scores[text] = score
        total = sum(math.exp(s) for s in scores.values())
        wanted = {text: math.exp(s) / total for text, s in scores.items()}
        table = {0: {"a": 1, "c": 2}, 1: {"b": 2}, 2: {"a": 3, "c": 2}, 3: {"b": 2}}
        automaton = Table(table, {2, 3})
        call = f"true_conditional of (ab|c)+a?, 3 tokens, seed {seed},"
        with expect.unchanged(ids=ids):
            got = true_conditional(model, ids, automaton, list(vocabulary), 3)
        hint = (
            "It comes from the model's own probabilities, over its whole vocabulary "
            "and without a mask. The logits at place i predict the token at i + 1."
        )
        same_chances(got, wanted, call, hint)


def test_unlikely_texts_keep_their_share(true_conditional):
    """Accepted texts may have hardly any of the probability: 1e-40 here."""
    model = always([0.0, -91.0, -92.0])
    got = true_conditional(
        model, torch.tensor([[0]]), Words(b"b", b"c"), [b"a", b"b", b"c"], 1
    )
    share = 1 / (1 + math.exp(-1))
    hint = (
        "exp of the log-probabilities is 0 in float32: subtract first (softmax does)."
    )
    same_chances(got, {(1,): share, (2,): 1 - share}, "true_conditional of b|c", hint)
