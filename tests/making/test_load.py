"""The load client counts what the server says that it gave."""

import httpx

from course.making.benchmarks.load import run
from tiny_models import random_llama, serve
from tiny_models.toy_tokenizer import toy_tokenizer


def test_every_token_is_counted_once():
    tokenizer = toy_tokenizer()
    model = random_llama(vocab_size=len(tokenizer), eos_token_id=None)
    model.generation_config.eos_token_id = []  # nothing ends an answer
    with serve(model, tokenizer) as server:
        result = run(server.base_url, server.model, streams=3, tokens=20)
        page = httpx.get(server.base_url.removesuffix("/v1") + "/metrics").text
    assert "generation_tokens_total 60.0" in page
    assert 0 < result.between <= result.between_p95
    assert result.tokens_per_second > 0
    assert result.first > 0
