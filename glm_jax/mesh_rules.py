"""Meshes by the devices that a run finds: `config.mesh_rules`, as AXLearn has them.

A rule is "PATTERN: name=value ...", such as "TPU v5p? x 64: fsdp=8 model=8 remat=full". The
first whose pattern matches "<kind of device> x <number of devices>" as a whole is applied.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Collection

from glm_jax.errors import UserError

if typing.TYPE_CHECKING:
    from glm_jax.config import Config

_SIZE = "-1|[1-9][0-9]*"
_FIELDS = {
    **dict.fromkeys(("data", "fsdp", "context", "model"), ("mesh", _SIZE)),
    "rules": ("mesh", None),
    "remat": ("model", None),
    "accumulation_steps": ("training", _SIZE),
}
"""Section of what a rule may set, and how its numbers are written."""


@dataclasses.dataclass(frozen=True)
class MeshRule:
    """One rule.

    Attributes:
      values: by section and field of the config.
    """

    text: str
    pattern: re.Pattern
    values: dict[tuple[str, str], int | str]

    def without(self, fields: Collection[str]) -> str:
        """The text of the rule without its values for these fields, such as "mesh.fsdp"."""
        kept = [
            f"{field}={value}"
            for (section, field), value in self.values.items()
            if f"{section}.{field}" not in fields
        ]
        return f"{self.pattern.pattern}: {' '.join(kept)}"

    def applied(self, config: Config) -> Config:
        """The config with the values of the rule, unchecked."""
        for (section, field), value in self.values.items():
            part = dataclasses.replace(getattr(config, section), **{field: value})
            config = dataclasses.replace(config, **{section: part})
        return config


def parse_rule(text: str) -> MeshRule:
    """Reads a rule.

    Raises:
      UserError: it cannot be read.
    """
    pattern, colon, assignments = text.rpartition(": ")
    if not colon:
        raise _wrong(text, "it is not of the form 'PATTERN: name=value ...'")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise _wrong(text, f"the pattern is no regular expression: {error}") from error
    assigned = [_assigned(text, part) for part in assignments.split()]
    if len(dict(assigned)) < len(assigned):
        raise _wrong(text, "it sets a field twice")
    return MeshRule(text, compiled, dict(assigned))


def _assigned(text: str, part: str) -> tuple[tuple[str, str], int | str]:
    name, equals, value = part.partition("=")
    if not equals or name not in _FIELDS:
        raise _wrong(text, f"{part!r} is none of {', '.join(f'{n}=' for n in _FIELDS)}")
    section, number = _FIELDS[name]
    if number is None:
        return (section, name), value
    if not re.fullmatch(number, value):
        raise _wrong(text, f"{name} must be a positive number or -1, got {value!r}")
    return (section, name), int(value)


def _wrong(text: str, reason: str) -> UserError:
    return UserError(f"config.mesh_rules: {text!r}: {reason}")


def with_mesh_rules(config: Config, device_kind: str, num_devices: int) -> tuple[Config, str]:
    """The config for these devices, and the rule that was applied; empty if none matches."""
    found = f"{device_kind} x {num_devices}"
    for rule in map(parse_rule, config.mesh_rules):
        if rule.pattern.fullmatch(found):
            return rule.applied(config), rule.text
    return config, ""
