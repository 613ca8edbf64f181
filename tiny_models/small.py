"""Models that check logic in milliseconds: tiny random ones, and one with a script.

Each takes what it needs of transformers' models when it is made: that import costs two
seconds, which most checks can do without.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

PAD, BOS, EOS = 0, 1, 2


def random_llama(vocab_size: int = 97, seed: int = 0, eos_token_id=EOS, **config):
    """A Llama of 2 layers with random float32 weights, in eval mode.

    eos_token_id: an id, a list of ids, or None. The pad token is 0. Further keywords go
    to LlamaConfig. The same seed gives the same weights; the global generator is not
    touched.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    return _random(LlamaForCausalLM, LlamaConfig, settings | config, seed, eos_token_id)


def random_gpt2(vocab_size: int = 97, seed: int = 0, eos_token_id=EOS, **config):
    """A GPT-2 of 2 layers with random float32 weights, in eval mode.

    Its positions are absolute, so it shows mistakes in position ids that a Llama hides.
    Arguments as for `random_llama`.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = {
        "vocab_size": vocab_size,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
    }
    return _random(GPT2LMHeadModel, GPT2Config, settings | config, seed, eos_token_id)


def _random(kind, make_config, settings, seed, eos_token_id):
    special = {"bos_token_id": BOS, "eos_token_id": eos_token_id}
    with torch.random.fork_rng(devices=[]):
        model = kind(make_config(**settings, **special)).eval()
    # The usual initialisation is so small that all logits are nearly equal. The new one
    # has its own generator: torch.manual_seed would also reach those of the GPUs.
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3, generator=generator)
    # The pad token is here only: with one in its config, a model warns of a missing
    # mask whenever it happens to generate that token.
    model.generation_config = GenerationConfig(**special, pad_token_id=PAD)
    return model


@dataclass
class Call:
    """One call of a ScriptedModel."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    grad_enabled: bool
    options: dict = field(default_factory=dict)


class Watched:
    """A model that records how it is called, and is `model` in all else.

    shapes: of the input ids of each call. grad: whether gradients were on in one.
    """

    def __init__(self, model):
        self.model, self.shapes, self.grad = model, [], False

    def __call__(self, input_ids=None, **options):
        self.shapes.append(tuple(input_ids.shape))
        self.grad |= torch.is_grad_enabled()
        return self.model(input_ids, **options)

    def __getattr__(self, name):
        return getattr(self.model, name)


class ScriptedModel:
    """A model that returns the logits it was told to, and records every call.

    script: a function from ids (batch, seq) to logits (batch, seq, vocab), or see
    `of_tokens`. `calls` holds a Call for each call of the model.
    """

    def __init__(
        self,
        script: Callable[[torch.Tensor], torch.Tensor],
        vocab_size: int | None = None,
        eos_token_id=EOS,
    ):
        from transformers import LlamaConfig

        self.script = script
        self.calls: list[Call] = []
        self.training = False
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.config = LlamaConfig(
            vocab_size=vocab_size or 97, eos_token_id=eos_token_id, pad_token_id=PAD
        )
        self.generation_config = GenerationConfig(
            eos_token_id=eos_token_id, pad_token_id=PAD
        )

    @classmethod
    def of_tokens(cls, rows: list[list[int]], vocab_size: int, eos_token_id=EOS):
        """Greedy decoding of row b gives the tokens rows[b], one at each call.

        The logits of all positions but the last favour another token, so that code
        that reads the wrong position is caught. A call after the end of the script
        raises AssertionError.
        """
        steps = min(len(row) for row in rows)

        def script(ids):
            step = len(model.calls) - 1
            if step >= steps:
                enough = "1 call is" if steps == 1 else f"{steps} calls are"
                raise AssertionError(
                    f"the model was called {step + 1} times, where {enough} enough: "
                    "what comes after the last token is never used"
                )
            if ids.shape[0] != len(rows):
                raise AssertionError(
                    f"the model was given a batch of {ids.shape[0]}, not {len(rows)}: "
                    f"ids of shape {tuple(ids.shape)}"
                )
            batch, seq = ids.shape
            logits = torch.zeros(batch, seq, vocab_size)
            for b, row in enumerate(rows):
                logits[b, :, (row[step] + 1) % vocab_size] = 7.0
                logits[b, -1] = 0.0
                logits[b, -1, row[step]] = 5.0
            return logits

        model = cls(script, vocab_size, eos_token_id)
        return model

    def __call__(
        self, input_ids=None, attention_mask=None, position_ids=None, **options
    ):
        if not isinstance(input_ids, torch.Tensor) or input_ids.dim() != 2:
            shape = getattr(input_ids, "shape", None)
            given = type(input_ids).__name__ if shape is None else list(shape)
            raise TypeError(f"the model takes ids of shape (batch, seq), not {given}")
        self.calls.append(
            Call(
                input_ids.clone(),
                None if attention_mask is None else attention_mask.clone(),
                None if position_ids is None else position_ids.clone(),
                torch.is_grad_enabled(),
                options,
            )
        )
        logits = self.script(input_ids)
        keep = options.get("logits_to_keep", 0)
        if keep:
            logits = logits[:, -keep:]
        return CausalLMOutputWithPast(
            logits=logits, past_key_values=options.get("past_key_values")
        )

    def parameters(self):
        """One parameter, for code that asks it for the device or the dtype."""
        return iter([torch.nn.Parameter(torch.zeros(1))])

    def eval(self):
        return self

    def to(self, *_, **__):
        return self
