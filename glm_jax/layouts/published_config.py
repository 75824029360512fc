"""Reading a published config.json: every field that decides the function is looked at."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from glm_jax.config import ModelConfig
from glm_jax.config_checks import check_model
from glm_jax.errors import UserError

_MISSING = object()
_PLAIN = ModelConfig()


@dataclasses.dataclass(frozen=True)
class Fields:
    """The fields of a config.json; one that is null is one that is absent."""

    values: Mapping[str, Any]

    def size(self, name: str, default: Any = _MISSING) -> int:
        """A positive whole number."""
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise UserError(f"config.json: {name} must be a positive whole number, got {value!r}")
        return value

    def number(self, name: str, default: Any = _MISSING) -> float:
        value = self.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UserError(f"config.json: {name} must be a number, got {value!r}")
        return float(value)

    def flag(self, name: str, default: Any = _MISSING) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise UserError(f"config.json: {name} must be true or false, got {value!r}")
        return value

    def must_be(self, name: str, *values: Any) -> None:
        """A field that this program computes for these values only; it may be absent or null."""
        if self.values.get(name) not in (None, *values):
            supported = " or ".join(map(repr, values))
            raise UserError(
                f"config.json: {name} is {self.values[name]!r}, supported is {supported}"
            )

    def get(self, name: str, default: Any = _MISSING) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            raise UserError(f"config.json has no field {name}")
        return default


def model_config(base: ModelConfig = _PLAIN, **fields: Any) -> ModelConfig:
    """A checked ModelConfig: `base` with other values of some fields.

    Raises:
      UserError: the fields do not make a model.
    """
    model = dataclasses.replace(base, **fields)
    check_model(model)
    return model


def num_layers(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    """How many of the tensors `pattern`, with {i} for the layer, there are."""
    return next(i for i in range(len(shapes) + 1) if pattern.format(i=i) not in shapes)
