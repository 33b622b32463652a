"""What every run does: data, encoder, loop, logs, folder."""
