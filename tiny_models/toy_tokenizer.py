"""Small tokenizers, for tests that must not need a real one."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def toy_tokenizer(
    chat_template: str | None = CHAT_TEMPLATE, specials_last: bool = False
) -> PreTrainedTokenizerFast:
    """Byte level, 259 tokens: <pad> 0, <s> 1, </s> 2 (EOS), then the 256 bytes.

    With `specials_last` the bytes come first, so that token 0 is text.
    Pads on the left. The default chat template closes each message with EOS. Each call
    makes a new one, so that a test may change its own.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"]
    tokens = [*alphabet, *special] if specials_last else [*special, *alphabet]
    vocab = {token: n for n, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.padding_side = "left"
    tokenizer.chat_template = chat_template
    return tokenizer


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As SentencePiece's of Llama 2: <unk> 0, <s> 1, </s> 2, the bytes <0x00> to <0xFF>
    from 3 on, then a few letters and words. ▁ is a space; a text loses its first one.
    """
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["▁", *"abcdefgh", "▁a", "▁bad", "▁cab", "é", "\ufffd"]
    vocab = {
        token: n for n, token in enumerate(["<unk>", "<s>", "</s>", *bytes_, *words])
    }
    core = Tokenizer(
        models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
