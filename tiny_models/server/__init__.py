"""An OpenAI-compatible server for a model that is already in memory.

    with serve(model, tokenizer) as server:
        client = OpenAI(base_url=server.base_url, api_key="unused")

It follows the Chat Completions API, https://platform.openai.com/docs/api-reference/chat,
plus top_k. What it does not know it refuses: no field is ever ignored. It applies what
the request says and nothing else; sampling defaults in a model's generation_config do
not count. Choice i of a request with seed s is the text of

    torch.manual_seed(s + i)
    model.generate(..., do_sample=True, temperature=..., top_p=..., top_k=...)

With `serve(model, tokenizer, kernels=True)` the kernels of lesson 14 do the arithmetic,
many times faster; the command has --kernels.

Requests are read in `request`, checked against the model in `sampling`, answered in
`answers`; `app` has the routes. They know an engine only by `interface`.

`python -m tiny_models.server` serves the course's model until Ctrl-C.
"""

from tiny_models.server.command import main
from tiny_models.server.interface import Engine, Step
from tiny_models.server.request import ChatRequest
from tiny_models.server.running import Server, serve, serve_engine
from tiny_models.server.turns import ModelEngine

__all__ = [
    "ChatRequest",
    "Engine",
    "ModelEngine",
    "Server",
    "Step",
    "main",
    "serve",
    "serve_engine",
]
