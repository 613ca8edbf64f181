"""What our own answers of lessons 01 to 05 do beyond what is asked of a learner's."""

import ast
import os
import random

import httpx
import pytest
import torch
from openai import OpenAI

from course.making.answers import reference
from course.paths import SOLUTIONS
from tests.lessons.test_01_calling_a_model import FakeClient, chunk, completion
from tiny_models.toy_tokenizer import byte_fallback_tokenizer, toy_tokenizer

HI = ({"role": "user", "content": "Hi"},)


def test_of_two_streamed_answers_the_first_comes_out():
    pieces = [chunk("Pa"), chunk("Lon"), chunk("ris"), chunk("don")]
    for number, piece in enumerate(pieces):
        piece["choices"] = [piece["choices"][0] | {"index": number % 2}]
    client = FakeClient(pieces)
    got = list(reference("stream_text")(client, "tiny", list(HI), n=2))
    assert got == ["Pa", "ris"]


def test_a_chunk_whose_delta_is_null_has_no_text():
    empty = chunk()
    empty["choices"][0]["delta"] = None
    client = FakeClient([empty, chunk("Pa"), empty])
    assert list(reference("stream_text")(client, "tiny", list(HI))) == ["Pa"]


def test_an_answer_without_text_is_an_empty_one():
    assert reference("ask")(FakeClient(completion(None)), "tiny", list(HI)) == ""


@pytest.mark.parametrize("content", [[], None])
def test_an_answer_that_ends_at_once_has_no_alternatives(content):
    answer = completion("", logprobs={"content": content, "refusal": None})
    got = reference("top_alternatives")(FakeClient(answer), "tiny", list(HI), 3)
    assert got == []


def cells_of(lesson):
    text = (SOLUTIONS / f"{lesson}.py").read_text(encoding="utf-8")
    return [cell for cell in text.split("\n# %%") if "[markdown]" not in cell[:20]]


def test_lesson_01_asks_for_a_limit_by_the_name_that_no_provider_refuses():
    """Newer models of OpenAI answer 400 to `max_tokens`."""
    code = "\n".join(
        line
        for cell in cells_of("01_calling_a_model")
        for line in cell.splitlines()
        if not line.lstrip().startswith("#")
    )
    assert "max_completion_tokens" in code
    assert "max_tokens" not in code


def test_a_provider_without_the_name_of_a_model_is_a_sentence(monkeypatch):
    (cell,) = [c for c in cells_of("01_calling_a_model") if "OPENAI_MODEL" in c]
    code = ast.parse(cell.split("\n", 1)[1])
    choice = [node for node in code.body if isinstance(node, ast.If)]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://api.invalid/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.delenv("OPENAI_MODEL", raising=False)
    program = compile(ast.Module(choice, []), "cell", "exec")
    with pytest.raises(RuntimeError, match="OPENAI_MODEL is not: set it to the name"):
        exec(program, {"os": os, "OpenAI": OpenAI})
    monkeypatch.setenv("OPENAI_MODEL", "theirs")
    names = {"os": os, "OpenAI": OpenAI}
    exec(program, names)
    assert names["model"] == "theirs"


def test_the_fake_stream_is_closed_as_a_real_one():
    client = FakeClient([chunk("Pa"), chunk("ris")])
    request = {"model": "tiny", "messages": list(HI), "stream": True}
    with client.chat.completions.create(**request) as stream:
        assert next(stream).choices[0].delta.content == "Pa"
    with pytest.raises(httpx.StreamError):
        list(client_stream(FakeClient([chunk("Pa")]), request))


def client_stream(client, request):
    with client.chat.completions.create(**request) as stream:
        pass
    return stream


# --- lessons 03 to 05 -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sampling_of_half_precision_logits_is_that_of_float32(dtype):
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(0)) * 9
    half = logits.to(dtype)
    for draw in (
        lambda x: reference("pick_sample")(x, 1e-4),  # 9 / 1e-4 is no float16 number
        lambda x: reference("pick_sample")(x, 1.3),
        lambda x: reference("sample_top_k")(x, 7, 1e-4),
        lambda x: reference("sample_top_k")(x, 0, 1.3),
    ):
        torch.manual_seed(0)
        oracle = draw(half.float())
        torch.manual_seed(0)
        assert torch.equal(draw(half), oracle)
    mass = reference("kept_mass")(half, 20)
    assert torch.equal(mass, reference("kept_mass")(half.float(), 20))


@pytest.mark.parametrize("make", [toy_tokenizer, byte_fallback_tokenizer])
def test_streamed_pieces_join_to_decode_whatever_the_tokens(make):
    draw, tokenizer = random.Random(1), make()
    bytes_ = b"\xc3\xa9\xe6\x9d\xb1\xf0\x9f\xa6\x8a\xff\xef\xbf\xbda "
    if make is toy_tokenizer:
        likely = [
            0,
            1,
            2,
            *tokenizer("é東\ufffda b", add_special_tokens=False).input_ids,
        ]
    else:  # byte b has the id 3 + b
        likely = [*range(3), *(3 + byte for byte in bytes_), *range(259, 272)]
    for _ in range(500):
        ids = draw.choices(likely, k=draw.randint(0, 12))
        pieces = list(reference("stream_tokens")(tokenizer, iter(ids)))
        assert "" not in pieces
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True), ids


def test_a_run_of_real_replacement_signs_is_not_held_to_the_end():
    ids = toy_tokenizer()("\ufffd" * 9 + "a", add_special_tokens=False).input_ids
    asked = []
    tokens = (asked.append(token) or token for token in ids)
    pieces = reference("stream_tokens")(toy_tokenizer(), tokens)
    assert next(pieces) == "\ufffd"
    assert len(asked) <= 4  # the first sign is sure when the second one begins
    assert "".join(pieces) == "\ufffd" * 8 + "a"


def test_a_string_for_the_list_of_stop_strings_is_a_sentence():
    with pytest.raises(TypeError, match=r"should be a list, as \['END'\]"):
        list(reference("stop_at")(iter(["a"]), "END"))
