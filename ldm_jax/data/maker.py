"""What the makers of fields (see fields.py) share."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from ldm_jax.core.errors import UserError


class Maker:
    """What makers share: `gives` is one field, and a description of the dataclass's own fields that are JSON-able."""

    version: ClassVar[int] = 1

    def describe(self) -> dict:
        """What fixes the numbers."""
        told = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {name: value for name, value in told.items() if isinstance(value, bool | int | float | str | tuple | Mapping)}
        return {"maker": type(self).__name__, "version": self.version} | plain


def taken(record: Mapping, key: str) -> Any:
    """Raises UserError: the record has no such thing."""
    if key not in record:
        raise UserError(f"the record has no {key}, and config.data.fields asks for it: this data cannot tell it")
    return record[key]
