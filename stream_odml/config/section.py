"""What every section of the configuration is: frozen, without unknown keys, each field described by its docstring."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from stream_odml.storage.regular import machine_path


class Section(BaseModel):
    """A section of the configuration."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _path_is_written_out(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, str) and Path in get_args(field.annotation):
            return machine_path("path", value)
        return value
