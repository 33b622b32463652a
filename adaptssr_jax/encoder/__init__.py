"""The user encoder, the heads that tasks put on it, and its parts."""

from adaptssr_jax.encoder.convert import encoder_from_reference
from adaptssr_jax.encoder.model import TaskHead, UserEncoder

__all__ = ['TaskHead', 'UserEncoder', 'encoder_from_reference']
