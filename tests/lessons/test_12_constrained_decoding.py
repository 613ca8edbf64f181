"""Checks of lesson 12. Oracles: cases worked by hand, Python's `re`, `jsonschema`,
`generate` with its prefix_allowed_tokens_fn, and slow searches over all texts."""

import itertools
import json
import math
import random
import re
import time

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
        return state in self.words


class Table:
    """An automaton that is written down: {state: {character: next state}}."""

    def __init__(self, table, accepting):
        self.table, self.ends, self.start = table, accepting, 0

    def step(self, state, byte):
        return self.table[state].get(chr(byte))

    def accepting(self, state):
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
        hint = " It matches no text, but is not seen to: build it with `then`."
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


def test_no_step_is_computed_twice(Automaton):
    automaton = Automaton("|".join(f"a{n}" for n in range(600)))
    start = time.perf_counter()
    automaton.step(automaton.start, ord("a"))
    first, rest = time.perf_counter() - start, []
    for _ in range(3):  # the fastest: what else runs only makes it slower
        start = time.perf_counter()
        for _ in range(60):
            automaton.step(automaton.start, ord("a"))
        rest.append(time.perf_counter() - start)
    assert min(rest) < 20 * first, (
        "of a pattern with 600 words, 60 more steps with the same state and byte took "
        f"{min(rest) / first:.0f} times as long as the first one: remember what came out"
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
    assert not automaton.steps
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
