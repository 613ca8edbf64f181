"""The kernels of lesson 14 in their fastest form, for the lessons that build on them.

    decoder = Decoder(read_gguf(gguf_path()))       # the file's 4-bit blocks
    decoder = Decoder(read_model(model))            # float32
    new_ids = decoder.generate(ids, max_new_tokens=128, eos_ids=[2])

Both give the tokens of `model.generate` in float32. Python for numba, without a
compiler on the machine.

    vectors     registers of N numbers as a numba type
    threads     threads that wait for each other inside compiled code
    matrices    a matrix times vectors, from 4-bit, 8-bit and float32 weights
    layers      norms, SiLU, rotary positions
    attention   of the heads that share keys
    step        the forward pass, made of these
    forward     the step with its threads
    decoder     `Decoder`: checks, greedy decoding
    reading     weights from a GGUF file or from a model
    caches      keys and values
    lookup      prompt lookup on top
    compiling   options, and where machine code is kept
"""

from tiny_models.kernels.caches import Cache, new_cache
from tiny_models.kernels.decoder import Decoder
from tiny_models.kernels.forward import Forward
from tiny_models.kernels.lookup import generate_with_lookup
from tiny_models.kernels.reading import (
    NotSupported,
    Weights,
    as_they_are,
    read_gguf,
    read_model,
    weights_of,
)

__all__ = [
    "Cache",
    "Decoder",
    "Forward",
    "NotSupported",
    "Weights",
    "as_they_are",
    "generate_with_lookup",
    "new_cache",
    "read_gguf",
    "read_model",
    "weights_of",
]
