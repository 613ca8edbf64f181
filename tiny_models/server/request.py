"""The body of POST /v1/chat/completions: which fields there are, and of what kind."""

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
)

from tiny_models.server.idle import (
    IDLE,
    IDLE_IN_MESSAGE,
    IDLE_IN_STREAM_OPTIONS,
    Strict,
    fields_of,
)

MAX_CHOICES = 8


def _whole_number(number: Any) -> Any:
    """JSON has one kind of number: 1.0 is 1."""
    whole = isinstance(number, float) and number.is_integer()
    return int(number) if whole else number


WHOLE = BeforeValidator(_whole_number)


class TextPart(Strict):
    type: Literal["text"]
    text: str


def _content_text(content: Any) -> Any:
    """A list of text parts is the same as its text."""
    if isinstance(content, str):
        content.encode()  # half a surrogate pair is valid JSON, but no text
        return content
    if not isinstance(content, list):
        return content  # pydantic says no
    for part in content:
        if isinstance(part, dict):
            part = {k: v for k, v in part.items() if v is not None}
        if not (
            isinstance(part, dict)
            and part.keys() == {"type", "text"}
            and part["type"] == "text"
            and isinstance(part["text"], str)
        ):
            raise ValueError("not a text part")
    return _content_text("".join(part["text"] for part in content))


_IdleInMessage = create_model(
    "_IdleInMessage", __base__=Strict, **fields_of(IDLE_IN_MESSAGE)
)


class Message(_IdleInMessage):
    role: Literal["system", "developer", "user", "assistant"] = Field(
        description='"system", "developer", "user" or "assistant"; there are no tools'
    )
    content: Annotated[
        str, BeforeValidator(_content_text, json_schema_input_type=str | list[TextPart])
    ] = Field(
        description='a string, or a list of {"type": "text", "text": "..."} parts'
    )

    name: str | None = Field(
        None, description="a string; the model's chat template gets it"
    )


_IdleInStreamOptions = create_model(
    "_IdleInStreamOptions", __base__=Strict, **fields_of(IDLE_IN_STREAM_OPTIONS)
)


class StreamOptions(_IdleInStreamOptions):
    include_usage: bool = Field(False, description="true or false")


def _stop_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


NonEmpty = Annotated[str, Field(min_length=1)]
Bias = Annotated[float, Field(ge=-100, le=100)]
_check_bias = TypeAdapter(Bias, config=Strict.model_config).validate_python


def _first_wrong_bias(biases: Any) -> Any:
    """Of wrong numbers the first, for the reason that Strict gives; else all."""
    if not isinstance(biases, dict):
        return biases
    for token, bias in biases.items():
        try:
            _check_bias(bias)
        except ValidationError:
            return {token: bias}
    return biases


_IdleInRequest = create_model("_IdleInRequest", __base__=Strict, **fields_of(IDLE))


class JSONSchema(Strict):
    name: str = Field(description="a string; nothing depends on it")
    description: str | None = Field(None, description="a string; leave it out")
    strict: bool | None = Field(
        None, description="true or false; the schema is obeyed either way"
    )
    schema_: dict[str, Any] = Field(
        alias="schema", description="a JSON schema, an object"
    )


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"] = Field(
        description='"text", "json_object" or "json_schema"'
    )
    json_schema: JSONSchema | None = Field(
        None, description='an object: {"name": "...", "schema": {...}}'
    )


class ChatRequest(_IdleInRequest):
    """The body of POST /v1/chat/completions. null means the default.

    A field's description says what is allowed; error messages quote it. Of a key that
    is given twice the last counts, as for most readers of JSON.
    """

    model: str = Field(description="the id of a model, a string")
    messages: list[Message] = Field(
        min_length=1,
        fail_fast=True,
        description='a list with at least one {"role": "...", "content": "..."}',
    )
    stream: bool = Field(False, description="true or false")
    stream_options: StreamOptions | None = Field(
        None, description='an object: {"include_usage": true}'
    )
    max_tokens: Annotated[int, Field(ge=1), WHOLE] | None = Field(
        None, description="an integer of 1 or more"
    )
    max_completion_tokens: Annotated[int, Field(ge=1), WHOLE] | None = Field(
        None, description="an integer of 1 or more"
    )
    temperature: float = Field(
        1.0, ge=0, le=2, description="a number from 0 (greedy) to 2"
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="a number above 0 and at most 1 (off)"
    )
    top_k: Annotated[int, WHOLE] = Field(
        0, ge=0, description="an integer of 0 (off) or more"
    )
    response_format: ResponseFormat | None = Field(
        None,
        description='an object such as {"type": "json_object"} or {"type": '
        '"json_schema", "json_schema": {"name": "...", "schema": {...}}}',
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), WHOLE] | None = Field(
        None, description="an integer of at most 64 bits"
    )
    stop: Annotated[
        list[NonEmpty],
        BeforeValidator(
            _stop_list,
            json_schema_input_type=NonEmpty
            | Annotated[list[NonEmpty], Field(max_length=4)],
        ),
    ] = Field([], max_length=4, description="a non-empty string or a list of up to 4")
    n: Annotated[int, WHOLE] = Field(
        1, ge=1, le=MAX_CHOICES, description=f"an integer from 1 to {MAX_CHOICES}"
    )
    logprobs: bool = Field(False, description="true or false")
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = Field(
        None, description="an integer from 0 to 20"
    )
    logit_bias: Annotated[
        dict[str, Bias],
        BeforeValidator(_first_wrong_bias, json_schema_input_type=dict[str, Bias]),
    ] = Field(
        {},
        description="an object that gives token ids (as strings) numbers "
        "from -100 to 100",
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="a number from -2 to 2"
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="a number from -2 to 2"
    )

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage
