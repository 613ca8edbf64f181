"""The server's response_format: masks, texts, ends, and what is refused."""

import json
import random

import httpx
import pytest
import torch
from jsonschema import Draft202012Validator
from openai import BadRequestError, OpenAI

from course.making.answers import reference
from tests.lessons.test_12_constrained_decoding import random_schema
from tiny_models import random_llama, serve
from tiny_models.grammar import parse, token_bytes
from tiny_models.grammar.automaton import Automaton
from tiny_models.grammar.masks import Format, TokenTrie
from tiny_models.grammar.schema import any_object, regex_of_schema
from tiny_models.toy_tokenizer import toy_tokenizer

HI = [{"role": "user", "content": "Hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "n": {"type": "integer"}},
    "required": ["a", "n"],
    "additionalProperties": False,
}


def formatted(schema):
    return {
        "type": "json_schema",
        "json_schema": {"name": "test", "strict": True, "schema": schema},
    }


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return random_llama(len(tokenizer))


@pytest.fixture(scope="module")
def client(model, tokenizer):
    with serve(model, tokenizer, name="tiny") as server:
        yield OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


def ask(client, response_format, **options):
    options = {"seed": 1, "max_tokens": 100} | options
    return client.chat.completions.create(
        model="tiny", messages=HI, response_format=response_format, **options
    )


def streamed(client, response_format, **options):
    """The text and the finish reason."""
    text, reason = "", None
    for chunk in ask(client, response_format, stream=True, **options):
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
    return text, reason


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_in_a_schema_is_valid_and_the_same_when_streamed(client, seed):
    choice = ask(client, formatted(SCHEMA), seed=seed).choices[0]
    text = choice.message.content
    assert streamed(client, formatted(SCHEMA), seed=seed) == (
        text,
        choice.finish_reason,
    )
    assert choice.finish_reason == "stop"
    Draft202012Validator(SCHEMA).validate(json.loads(text))


def test_an_answer_that_was_cut_says_length(client):
    answer = ask(client, formatted(SCHEMA), max_tokens=5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == '{"a":'
    assert answer.usage.completion_tokens == 5
    assert streamed(client, formatted(SCHEMA), max_tokens=5) == ('{"a":', "length")


def test_all_choices_are_valid(client):
    answer = ask(client, formatted(SCHEMA), n=4)
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) > 1
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        Draft202012Validator(SCHEMA).validate(json.loads(choice.message.content))


def test_a_json_object_is_one_when_it_ended_by_itself(client):
    ended = 0
    for seed in range(30):
        choice = ask(client, {"type": "json_object"}, seed=seed).choices[0]
        assert choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            ended += 1
            assert isinstance(json.loads(choice.message.content), dict)
    assert ended, "some should end"


def test_text_is_what_comes_without_a_format(client):
    plain = client.chat.completions.create(
        model="tiny", messages=HI, seed=1, max_tokens=8
    )
    text = ask(client, {"type": "text"}, max_tokens=8)
    assert text.choices[0].message == plain.choices[0].message


@pytest.mark.parametrize("temperature", [0, 1])
def test_generate_gives_the_same_tokens(client, model, tokenizer, temperature):
    """With prefix_allowed_tokens_fn, and the automaton of lesson 12."""
    automaton = reference("Automaton")(reference("schema_to_regex")(SCHEMA))
    vocabulary = token_bytes(tokenizer)
    ids = tokenizer.apply_chat_template(
        HI, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).input_ids

    def allowed(row, so_far):
        state = automaton.start
        for byte in b"".join(vocabulary[i] for i in so_far[ids.shape[1] :]):
            state = automaton.step(state, byte)
        mask = reference("token_mask")(automaton, state, vocabulary, 2)
        return mask.nonzero()[:, 0].tolist()

    torch.manual_seed(1)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=60,
        do_sample=temperature > 0,
        top_k=0,
        prefix_allowed_tokens_fn=allowed,
    )
    wanted = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    answer = ask(client, formatted(SCHEMA), temperature=temperature, max_tokens=60)
    assert answer.choices[0].message.content == wanted


@pytest.mark.parametrize(
    ("response_format", "param", "told"),
    [
        ("json", "response_format", '"json"'),
        ({}, "response_format.type", "missing"),
        ({"type": "xml"}, "response_format.type", '"xml"'),
        ({"type": "json_object", "x": 1}, "response_format.x", "no such field"),
        ({"type": "json_schema"}, "response_format.json_schema", "must be given"),
        (
            formatted(SCHEMA) | {"type": "json_object"},
            "response_format.json_schema",
            "must be given",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "x"}},
            "response_format.json_schema.schema",
            "missing",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": {}}},
            "response_format.json_schema.name",
            "missing",
        ),
        *(
            (formatted(schema), "response_format.json_schema.schema", told)
            for schema, told in (
                ({"type": "string", "pattern": "a"}, '"pattern"'),
                ({"type": "array"}, '"items"'),
                ({}, '"type"'),
                ({"enum": []}, '"enum"'),
                ({"anyOf": {}}, '"anyOf"'),
                ({"anyOf": [1]}, "must be an object"),
                ({"type": "object", "properties": [1]}, '"properties"'),
                ({"type": "object", "required": ["x"]}, "required"),
                ({"type": "object", "required": 5}, "required"),
                ({"type": "string", "maxLength": -1}, "maxLength"),
                ({"type": "string", "maxLength": "1"}, "maxLength"),
                ({"type": "string", "maxLength": 10**9}, "maxLength"),
                ({"type": "string", "minLength": 3, "maxLength": 2}, "above"),
                ({"type": {"a": 1}}, '"type"'),
            )
        ),
    ],
)
def test_what_cannot_be_obeyed_is_refused_and_named(
    client, response_format, param, told
):
    with pytest.raises(BadRequestError) as caught:
        ask(client, response_format)
    assert caught.value.body["param"] == param
    assert told in caught.value.body["message"]


def test_half_a_surrogate_pair_in_a_schema_is_refused():
    with pytest.raises(ValueError, match="surrogate"):
        regex_of_schema({"const": "\ud800"})


def test_a_model_that_cannot_end_a_text_promises_no_format(tokenizer):
    endless = random_llama(len(tokenizer))
    endless.generation_config.eos_token_id = len(tokenizer)
    with serve(endless, tokenizer, name="tiny") as server:
        client = OpenAI(base_url=server.base_url, api_key="none", max_retries=0)
        with pytest.raises(BadRequestError) as caught:
            ask(client, {"type": "json_object"})
        assert caught.value.body["param"] == "response_format"
        assert ask(client, {"type": "text"}).choices[0].message.content


def test_a_schema_that_repeats_too_much_is_refused(client):
    wide = {"type": "null"}
    for _ in range(4):
        wide = {"type": "array", "items": wide, "minItems": 900}
    with pytest.raises(BadRequestError) as caught:
        ask(client, formatted(wide))
    assert caught.value.body["param"] == "response_format.json_schema.schema"


@pytest.mark.parametrize("depth", [50, 400, 2000, 100_000])
def test_a_schema_that_is_nested_deep_is_answered_or_refused(client, depth):
    deep = '{"type":"array","items":' * depth + '{"type":"null"}' + "}" * depth
    wanted = json.dumps({"model": "tiny", "messages": HI, "max_tokens": 3})[:-1]
    wanted += ', "response_format": {"type": "json_schema", "json_schema": '
    wanted += f'{{"name": "deep", "schema": {deep}}}}}}}'
    response = httpx.post(
        f"{client.base_url}chat/completions",
        content=wanted,
        headers={"Content-Type": "application/json"},
        timeout=60,
    )
    assert response.status_code == (200 if depth == 50 else response.status_code)
    assert response.status_code in (200, 400), response.text


# --- the masks, which are made in another way than in the lesson ----------------------


@pytest.mark.parametrize("seed", range(12))
def test_the_masks_are_those_of_lesson_12(tokenizer, seed):
    schema, r = random_schema(random.Random(seed)), random.Random(seed)
    vocabulary = [*token_bytes(tokenizer), b'"}', b'": ', b"null", b"[]", b"e, ", b'{"']
    slow = reference("Automaton")(reference("schema_to_regex")(schema))
    fast = Format(regex_of_schema(schema), TokenTrie(vocabulary))
    for _ in range(3):
        state, new = slow.start, []
        for _ in range(15):
            wanted = reference("token_mask")(slow, state, vocabulary, 2)
            assert fast.allowed(new, {2}).equal(wanted), (schema, new)
            choices = [i for i in wanted.nonzero()[:, 0].tolist() if i != 2]
            if not choices:
                break
            new.append(r.choice(choices))
            for byte in vocabulary[new[-1]]:
                state = slow.step(state, byte)


def test_an_object_without_a_schema_may_nest_four_deep():
    automaton = Automaton(any_object())
    value = {"a": [1, {"b": [True, None, -1.5e3, "é\n"]}], "c": {}}
    for good in (value, {}, {"x": {"y": {"z": {}}}}, {"x": [[[]]]}):
        text = json.dumps(good, ensure_ascii=False).encode()
        assert automaton.accepting(automaton.read(0, text)), text
    for bad in (b"[]", b'{"a":1}', b'{"a": 1,}', b"{a: 1}", b'{"x": [[[[]]]]}', b"{} "):
        assert not automaton.accepting(automaton.read(0, bad)), bad


def test_where_no_token_can_follow_it_is_said():
    one = Format(parse("ab"), TokenTrie([b"a", b"", b"c"]))
    assert one.allowed([], {1}).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="no token may follow b'a'"):
        one.allowed([0], {1})
