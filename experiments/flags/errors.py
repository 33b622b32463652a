"""What is raised for bad flags."""


class SettingsError(ValueError):
  """A flag has a value that it cannot have; the message names it."""
