"""How long a mask of lesson 12 takes, for the course's tokenizer:

    python -m course.making.benchmarks.masks

For some places in a JSON text: the tokens allowed, and the milliseconds of the plain
mask, of the trie's at the first visit of the state, again, and of llguidance (if it is
installed). Times of one run can be compared with each other, not with another machine.
"""

import json
import time

from course.making.answers import reference
from tiny_models import load
from tiny_models.grammar import token_bytes

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["new", "old"]}, "maxItems": 3},
    },
}
VALUE = {"name": "Zoë Miller", "age": 37, "tags": ["new", "old"]}
ROW = "{:>22}  {:>7}  {:>9}  {:>9}  {:>9}  {:>10}"


def milliseconds(function, *arguments, tries=1):
    """What the function returns, and the fastest of some tries."""
    taken = []
    for _ in range(tries):
        start = time.perf_counter()
        result = function(*arguments)
        taken.append(1000 * (time.perf_counter() - start))
    return result, min(taken)


def matcher_of(tokenizer, pattern):
    """llguidance's, or None where it is not installed."""
    try:
        import llguidance
        from llguidance.hf import from_tokenizer
    except ImportError:
        return None
    grammar = llguidance.LLMatcher.grammar_from_regex(pattern)
    return llguidance.LLMatcher(from_tokenizer(tokenizer), grammar)


def main():
    _, tokenizer = load()
    vocabulary = token_bytes(tokenizer)
    trie, build = milliseconds(reference("TokenTrie"), vocabulary)
    print(f"{len(vocabulary)} tokens; the trie takes {build:.0f} ms, once")
    pattern = reference("schema_to_regex")(SCHEMA)
    automaton = reference("Automaton")(pattern)
    matcher = matcher_of(tokenizer, pattern)
    print(ROW.format("after", "allowed", "plain", "first", "again", "llguidance"))
    state, eos_id = automaton.start, tokenizer.eos_token_id
    text = json.dumps(VALUE, ensure_ascii=False)
    written = b""
    for token in tokenizer(text).input_ids:
        mask, first = milliseconds(trie.mask, automaton, state)
        _, again = milliseconds(trie.mask, automaton, state, tries=5)
        slow, plain = milliseconds(
            reference("token_mask"), automaton, state, vocabulary, eos_id
        )
        mask[eos_id] = automaton.accepting(state)
        assert mask.equal(slow), "the two masks differ"
        theirs = "none"
        if matcher:
            theirs = f"{milliseconds(matcher.compute_bitmask)[1]:.3f}"
            assert matcher.consume_token(token)
        times = (f"{plain:.1f}", f"{first:.1f}", f"{again:.3f}", theirs)
        print(
            ROW.format(written[-22:].decode(errors="replace"), int(mask.sum()), *times)
        )
        for byte in vocabulary[token]:
            state = automaton.step(state, byte)
        written += vocabulary[token]


if __name__ == "__main__":
    main()
