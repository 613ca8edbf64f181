"""The models of the course: a real small one, tiny random ones, a scripted one, and the
local API server."""

from tiny_models.loading import load
from tiny_models.renamed import keep_quiet
from tiny_models.small import ScriptedModel, Watched, random_gpt2, random_llama
from tiny_models.weights import ModelNotAvailable, gguf_path

__all__ = [
    "ModelNotAvailable",
    "ScriptedModel",
    "Watched",
    "gguf_path",
    "load",
    "random_gpt2",
    "random_llama",
    "serve",
]

keep_quiet()


def __getattr__(name):
    # The server's dependencies are loaded only by those who use it.
    if name == "serve":
        from tiny_models.server import serve

        return serve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
