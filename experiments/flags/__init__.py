"""The settings of the commands, as flags."""
