"""What all objects of a request have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


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
        required = {k for k, f in cls.model_fields.items() if f.is_required()}
        data = {k: v for k, v in data.items() if v is not None or k in required}
        # To explain each of a hundred thousand would hold up the other clients.
        first = next((k for k in data if k not in cls.model_fields), None)
        return {k: v for k, v in data.items() if k in cls.model_fields or k == first}
