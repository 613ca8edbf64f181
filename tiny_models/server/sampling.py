"""From a request to what an engine is asked to do."""

from tiny_models.engine import Sampling
from tiny_models.grammar.regex import Regex
from tiny_models.grammar.schema import any_object, regex_of_schema
from tiny_models.server.errors import APIError, shown
from tiny_models.server.interface import Engine
from tiny_models.server.request import ChatRequest


def conversation(chat: ChatRequest) -> list[dict[str, str]]:
    """The messages as a chat template takes them."""
    # Templates know "system"; "developer" is the API's newer name for it.
    return [
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": message.content,
            **({} if message.name is None else {"name": message.name}),
        }
        for message in chat.messages
    ]


def format_asked_for(chat: ChatRequest) -> Regex | None:
    """What the text must match, or None. Raises APIError for a schema that we cannot
    obey."""
    asked = chat.response_format
    if asked is not None and (asked.type == "json_schema") != bool(asked.json_schema):
        raise APIError(
            "'response_format.json_schema' must be given with the type "
            '"json_schema", and with no other.',
            param="response_format.json_schema",
            code="invalid_value",
        )
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return any_object()
    try:
        return regex_of_schema(asked.json_schema.schema_)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise APIError(
            f"'response_format.json_schema.schema' cannot be obeyed: {why}.",
            param="response_format.json_schema.schema",
            code="invalid_value",
        ) from None


def sampling(
    chat: ChatRequest,
    engine: Engine,
    prompt_tokens: int,
    defaults: dict[str, float],
) -> Sampling:
    """What is asked for. defaults: for fields that the request has not given.

    Raises APIError where fields contradict each other or the model; a field alone has
    been checked by then.
    """
    wanted = [
        name
        for name in ("max_tokens", "max_completion_tokens")
        if getattr(chat, name) is not None
    ]
    if len(wanted) == 2 and chat.max_tokens != chat.max_completion_tokens:
        raise APIError(
            f"'max_tokens' is {shown(chat.max_tokens)} and 'max_completion_tokens' is "
            f"{shown(chat.max_completion_tokens)}: they mean the "
            "same; give one of them.",
            param="max_tokens",
            code="invalid_value",
        )
    if chat.top_logprobs and not chat.logprobs:
        raise APIError(
            f"'top_logprobs' is {chat.top_logprobs}, but needs 'logprobs' to be true.",
            param="top_logprobs",
            code="invalid_value",
        )
    if chat.include_usage and not chat.stream:
        raise APIError(
            "'stream_options.include_usage' needs 'stream' to be true.",
            param="stream_options",
            code="invalid_value",
        )
    for token in chat.logit_bias:
        known = token.isascii() and token.isdecimal() and len(token) <= 9
        if not known or int(token) >= engine.vocab_size or str(int(token)) != token:
            raise APIError(
                f"'logit_bias' has the key {shown(token)}, but a key must be a token "
                f"id of this model: an integer from 0 to {engine.vocab_size - 1}, "
                "as a string.",
                param="logit_bias",
                code="invalid_value",
            )

    def given(name: str) -> float:
        missing = name in defaults and name not in chat.model_fields_set
        return defaults[name] if missing else getattr(chat, name)

    left = engine.context - prompt_tokens
    max_tokens = getattr(chat, wanted[0]) if wanted else left
    if left < 1 or max_tokens > left:
        asked = (
            f" and '{wanted[0]}' asks for {shown(max_tokens)} more" if wanted else ""
        )
        raise APIError(
            f"The model's context holds {engine.context} tokens, the last of them for "
            f"the answer. The messages take {prompt_tokens}{asked}. "
            "Shorten the messages or the answer.",
            param=wanted[0] if wanted and left >= 1 else "messages",
            code="context_length_exceeded",
        )
    return Sampling(
        max_tokens=max_tokens,
        temperature=given("temperature"),
        top_p=given("top_p"),
        top_k=chat.top_k,
        seed=chat.seed,
        stop=tuple(chat.stop),
        top_logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
        logit_bias={int(token): bias for token, bias in chat.logit_bias.items()},
        frequency_penalty=chat.frequency_penalty,
        presence_penalty=chat.presence_penalty,
        n=chat.n,
        format=format_asked_for(chat),
    )
