"""scikit-learn and LightGBM, which are extras."""

from typing import Any

from experiments.flags.binder import SettingsError


def scikit_learn(what: str) -> Any:
  """The package, with the modules in use here.

  Args:
    what: needs it.

  Raises:
    SettingsError: it is not installed; names the extra.
  """
  try:
    import sklearn.decomposition
    import sklearn.exceptions
    import sklearn.feature_extraction.text
    import sklearn.linear_model
  except ImportError as error:
    raise SettingsError(
      f"{what} needs scikit-learn: pip install '.[probe]'"
    ) from error
  return sklearn


def check_lightgbm(what: str) -> None:
  """Raises `SettingsError`, which names the extra, if it is not installed.

  Args:
    what: needs it.
  """
  try:
    import lightgbm  # noqa: F401
  except (ImportError, OSError) as error:
    # OSError: its own library needs one that the machine has not.
    raise SettingsError(
      f"{what} needs LightGBM ({error}): pip install '.[lightgbm]'"
    ) from error
