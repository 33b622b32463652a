"""The training step, and the devices that it runs on."""

from adaptssr_jax.training.step import TrainState, pmap_step

__all__ = ['TrainState', 'pmap_step']
