"""The parts that all runs share: data, encoder, loop, logs, folder."""
