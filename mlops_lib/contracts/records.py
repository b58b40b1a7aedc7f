"""Frozen records that pydantic checks, and whose faults are told in this library's words.

>>> @record
... class Limit:
...     name: str
...     share: Share = 0.5
>>> Limit("late", share=5)
Traceback (most recent call last):
mlops_lib.errors.ContractError: Limit 'late' has share=5, needs 0 to 1. No contract was made or changed.
"""

from __future__ import annotations

import functools
from dataclasses import field
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, Field, Strict, ValidationError
from pydantic.dataclasses import dataclass

from mlops_lib.errors import ContractError

T = TypeVar("T")
Share = Annotated[float, Field(ge=0, le=1, description="0 to 1")]
FromList = Strict(False)  # JSON has no tuples


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Make a frozen dataclass whose values pydantic holds to their annotations, without coercing any but whole numbers.

    A value that a field cannot have raises ``ContractError``, in the words of the field's description.
    """
    checked: Any = dataclass(cls, frozen=True, config=ConfigDict(strict=True, extra="forbid"))
    check, fields = checked.__init__, checked.__pydantic_fields__

    @functools.wraps(check)
    def construct(self: Any, *args: Any, **values: Any) -> None:
        try:
            check(self, *args, **values)
        except ValidationError as error:
            arguments = {**dict(zip(fields, args, strict=False)), **values}
            title = arguments.get("name") or arguments.get("expression")
            subject = f"{cls.__name__} '{title}'" if title else "The contract"
            fault = error.errors()[0]
            name = str(fault["loc"][0])
            if name not in fields:
                raise ContractError("name", subject=subject, what="field", name=name, names=tuple(fields)) from None
            found = f"has {name}={arguments.get(name)!r}"
            expected = fields[name].description or fault["msg"].removeprefix("Input should be ")
            raise ContractError("definition", subject=subject, found=found, expected=expected) from error

    checked.__init__ = construct
    return cast("type[T]", checked)
