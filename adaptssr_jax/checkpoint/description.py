"""What a checkpoint says of itself."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from adaptssr_jax.encoder.model import UserEncoder


class Description(NamedTuple):
  """What a checkpoint says of itself, beside the state of training.

  Args:
    encoder: the fields of the `UserEncoder`.
    vocabulary: the raw item ids, that of item i at i - 1.
    flags: the settings of the run by name.
    labels: the names of the classes, of a fine-tuned model.
  """

  encoder: Mapping[str, Any]
  vocabulary: list[str]
  flags: Mapping[str, Any]
  labels: list[str]


def describe(
  encoder: UserEncoder,
  vocabulary: list[str],
  flags: Mapping[str, Any],
  labels: list[str] | None = None,
) -> Description:
  """The description of an encoder on a vocabulary."""
  fields = {
    field.name: getattr(encoder, field.name)
    for field in dataclasses.fields(encoder)
    if field.name not in ('parent', 'name')
  }
  return Description(fields, list(vocabulary), dict(flags), list(labels or []))
