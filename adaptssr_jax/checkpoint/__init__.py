"""Checkpoints: every call to Orbax."""

from adaptssr_jax.checkpoint.encoders import restore_encoder, save_encoder

__all__ = ['restore_encoder', 'save_encoder']
