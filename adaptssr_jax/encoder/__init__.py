"""The user encoder, its parts, and the heads of fine-tuning tasks."""

from adaptssr_jax.encoder.convert import encoder_from_reference
from adaptssr_jax.encoder.model import TaskHead, UserEncoder

__all__ = ['TaskHead', 'UserEncoder', 'encoder_from_reference']
