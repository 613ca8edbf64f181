"""The load client counts what the server says that it gave. Nothing is timed."""

import urllib.request

import pytest
import torch

from course.making.benchmarks import load, serving
from tiny_models import random_llama, serve
from tiny_models.toy_tokenizer import toy_tokenizer

TOKENIZER = toy_tokenizer()


@pytest.fixture(scope="module")
def model():
    model = random_llama(
        vocab_size=len(TOKENIZER), eos_token_id=None, max_position_embeddings=16384
    )
    model.generation_config.eos_token_id = []  # nothing ends an answer
    return model


@pytest.fixture(scope="module")
def server(model):
    with serve(model, TOKENIZER) as server:
        yield server


def test_every_token_is_counted_once(server):
    seen = load.apart(serving.place(server), "streams", streams=3, tokens=20)
    assert [one["tokens"] for one in seen] == [20] * 3
    result = load.summary(seen)
    with urllib.request.urlopen(server.base_url.removesuffix("/v1") + "/metrics") as x:
        page = x.read().decode()
    assert "generation_tokens_total 60.0" in page
    assert 0 < result["between"] <= result["between_p95"]
    assert result["tokens_per_second"] > 0
    assert result["first"] > 0


def test_an_error_of_the_server_is_told(server):
    with pytest.raises(RuntimeError):
        load.apart(f"{server.base_url}#nobody", "streams", streams=1, tokens=2)


def test_a_crowd_is_compared_with_generate(server, model):
    alone = serving.texts_alone(model, TOKENIZER)
    found = serving.hung_up(server, TOKENIZER, alone, seed=0)
    assert found == {"stayed": 100, "wrong": 0, "blocks": 0}
    other = [torch.roll(ids, 1) for ids in alone]
    assert serving.hung_up(server, TOKENIZER, other, seed=1)["wrong"] > 50


def test_what_a_short_request_waits_is_counted_in_steps_of_others(server):
    found = serving.while_reading(server, 200)
    assert 1 <= found["steps"] <= 5
    assert found["gaps"] > 8
    assert 0 < found["median"] <= found["p95"]


def test_ratios_are_those_within_a_round():
    found = {serving.BASE: [1.0, 2.0, 4.0], "other": [3.0, 8.0, 8.0]}
    lines = serving.table(found).splitlines()
    assert lines[1].split()[-3:] == ["2.0", "1.0", "1.0-1.0"]
    assert lines[2].split() == ["other", "8.0", "3.0", "2.0-4.0"]
