"""Checkpoints: every call to Orbax."""

from adaptssr_jax.checkpoint.checkpoints import restore_encoder

__all__ = ['restore_encoder']
