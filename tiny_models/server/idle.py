"""Fields of the API, and of other servers, that ask this server for nothing.

They are accepted only at such a value. So nothing is ignored: the value is obeyed.

One table: the request's model is made from it, and so is /openapi.json. Causes stand
before what depends on them, since an error names the first (`tools` before
`tool_choice`).
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """An object of the request: no field but these, and no type but theirs. A key with
    null asks for nothing, whatever it is."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"additionalProperties": {"type": "null"}},
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = {f.alias or k: f for k, f in cls.model_fields.items()}
        required = {k for k, f in fields.items() if f.is_required()}
        data = {k: v for k, v in data.items() if v is not None or k in required}
        # To explain each of a hundred thousand would hold up the other clients.
        first = next((k for k in data if k not in fields), None)
        return {k: v for k, v in data.items() if k in fields or k == first}


@dataclass(frozen=True)
class Idle:
    """kind: the type of what is accepted, besides null. why: what is missing, and the
    way out; an error ends with it."""

    kind: Any
    why: str


EMPTY_LIST = Annotated[list[Any], Field(max_length=0, fail_fast=True)]
EMPTY_OBJECT = Annotated[dict[str, Any], Field(max_length=0, fail_fast=True)]


def _boolean(value: Any) -> Any:
    if not isinstance(value, bool):  # in Python 0 is False, in JSON it is not
        raise ValueError("not a boolean")
    return value


FALSE = Annotated[Literal[False], BeforeValidator(_boolean)]
TRUE = Annotated[Literal[True], BeforeValidator(_boolean)]


def _only(number: float):
    return Annotated[float, Field(ge=number, le=number)]


NO_TOOLS = "this server has no tools: leave it out and ask in the prompt"
NO_SOUND = 'this server answers in text: leave it out, or give ["text"]'
NO_CHOICE = "there are no tools to choose from: leave it out, or give"
NOTHING_KEPT = "this server keeps nothing: leave it out, or give"
OFF = "this server has no such sampler: leave it out, or give"

IDLE: dict[str, Idle] = {
    # tools
    "tools": Idle(EMPTY_LIST, NO_TOOLS),
    "functions": Idle(EMPTY_LIST, NO_TOOLS),
    "tool_choice": Idle(Literal["none", "auto"], f'{NO_CHOICE} "none"'),
    "function_call": Idle(Literal["none", "auto"], f'{NO_CHOICE} "none"'),
    "parallel_tool_calls": Idle(bool, f"{NO_CHOICE} true or false"),
    # another kind of answer
    "modalities": Idle(
        Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)], NO_SOUND
    ),
    "reasoning_effort": Idle(
        Literal["none"], 'the model answers at once: leave it out, or give "none"'
    ),
    "verbosity": Idle(
        Literal["medium"], 'ask for it in the prompt; "medium" is allowed'
    ),
    # who asks, and what is kept
    "user": Idle(str, "it must be a string; nothing depends on it"),
    "safety_identifier": Idle(str, "it must be a string; nothing depends on it"),
    "prompt_cache_key": Idle(str, "it must be a string; nothing depends on it"),
    "store": Idle(FALSE, f"{NOTHING_KEPT} false"),
    "metadata": Idle(EMPTY_OBJECT, f"{NOTHING_KEPT} {{}}"),
    "service_tier": Idle(
        Literal["auto", "default"], 'there is one tier: leave it out, or give "auto"'
    ),
    # samplers and switches of other servers
    "min_p": Idle(_only(0), f"{OFF} 0"),
    "typical_p": Idle(_only(1), f"{OFF} 1"),
    "top_a": Idle(_only(0), f"{OFF} 0"),
    "repetition_penalty": Idle(_only(1), f"{OFF} 1"),
    "repeat_penalty": Idle(_only(1), f"{OFF} 1"),
    "length_penalty": Idle(_only(1), f"{OFF} 1"),
    "use_beam_search": Idle(FALSE, f"{OFF} false"),
    "best_of": Idle(_only(1), f"{OFF} 1"),
    "min_tokens": Idle(_only(0), f"{OFF} 0"),
    "ignore_eos": Idle(
        FALSE,
        'EOS always ends the text: leave it out, or forbid EOS with "logit_bias"',
    ),
    "echo": Idle(FALSE, "the prompt is not repeated: leave it out"),
    "add_generation_prompt": Idle(TRUE, "leave it out, or give true"),
    "continue_final_message": Idle(FALSE, "leave it out, or give false"),
    "skip_special_tokens": Idle(TRUE, "leave it out, or give true"),
    "include_stop_str_in_output": Idle(FALSE, "leave it out, or give false"),
    "stop_token_ids": Idle(EMPTY_LIST, 'leave it out, or use "stop"'),
    "bad_words": Idle(EMPTY_LIST, 'leave it out, or use "logit_bias"'),
    "chat_template_kwargs": Idle(EMPTY_OBJECT, "leave it out, or give {}"),
}

# In a message. An answer is sent back with the next question, with all its fields.
NO_CALLS = "this server has no tools: tell in the text what was called and what came"
IDLE_IN_MESSAGE: dict[str, Idle] = {
    "tool_calls": Idle(EMPTY_LIST, NO_CALLS),
    "function_call": Idle(type(None), NO_CALLS),
    "tool_call_id": Idle(type(None), NO_CALLS),
    "annotations": Idle(EMPTY_LIST, "this server takes text: leave it out"),
    "audio": Idle(type(None), "this server takes text: leave it out"),
    "refusal": Idle(type(None), 'this server takes text: put it into "content"'),
}
IDLE_IN_STREAM_OPTIONS: dict[str, Idle] = {
    "include_obfuscation": Idle(FALSE, "leave it out, or give false"),
    "continuous_usage_stats": Idle(
        FALSE, 'leave it out; "include_usage" gives the usage at the end'
    ),
}


def fields_of(table: dict[str, Idle]) -> dict[str, Any]:
    """The table as fields for pydantic's `create_model`."""
    return {
        name: (Optional[row.kind], Field(None, description=row.why))  # noqa: UP045
        for name, row in table.items()
    }
