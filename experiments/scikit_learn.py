"""scikit-learn, which is an extra."""

from typing import Any

from experiments.settings import SettingsError


def scikit_learn(what: str) -> Any:
  """The package, with the modules in use here.

  Args:
    what: needs it.

  Raises:
    SettingsError: it is not installed; names the extra.
  """
  try:
    import sklearn.dummy
    import sklearn.exceptions
    import sklearn.feature_extraction.text
    import sklearn.linear_model
    import sklearn.pipeline
    import sklearn.preprocessing
  except ImportError as error:
    raise SettingsError(
      f"{what} needs scikit-learn: pip install '.[probe]'"
    ) from error
  return sklearn
