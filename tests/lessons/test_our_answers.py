"""What our own answers of lessons 01 to 05 do beyond what is asked of a learner's."""

import ast
import os

import httpx
import pytest
from openai import OpenAI

from course.making.answers import reference
from course.paths import SOLUTIONS
from tests.lessons.test_01_calling_a_model import FakeClient, chunk, completion

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
