"""Trackers, which get the numbers of metrics.jsonl as well: --log_to.

A tracker is a function (workdir, flags, resume_at) -> log. `workdir` is the
path of the run's folder, `flags` its settings as text by name, and `resume_at`
the last step that is kept: later steps are logged again. For each line,
`log.write(step, {name: number})` is called, and `log.close()` at the end.
"""

import importlib
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from experiments.flags.binder import SettingsError, function_of
from experiments.flags.shared import RunSettings
from experiments.run.workdir import atomic_write, writing

Tracker = Callable[[pathlib.Path, Mapping[str, str], int], Any]


def find_trackers(settings: RunSettings) -> dict[str, Tracker]:
  """The functions that --log_to names."""
  known = dict(_TRACKERS)
  for name in settings.log_to:
    if ':' in name:
      known[name] = function_of('log_to', name)
    elif name not in known:
      raise SettingsError(
        f'--log_to={name} must be one of {", ".join(_TRACKERS)}, or '
        'MODULE:FUNCTION of your own'
      )
    elif name != 'tensorboard':
      try:
        importlib.import_module(name)
      except ImportError as error:
        advice = f"pip install '.[{name}]'"
        raise SettingsError(f'--log_to={name}: {error}; {advice}') from error
  return {name: known[name] for name in settings.log_to}


class TensorBoard:
  """Event files next to metrics.jsonl, for TensorBoard."""

  def __init__(
    self, folder: pathlib.Path, flags: Mapping[str, str], resume_at: int
  ):
    del flags
    self._folder = folder
    with writing(folder):
      # Without the thread of tensorboardX, which a full disk ends silently.
      self._events = EventsWriter(str(folder / 'events'))
      purge = SessionLog(status=SessionLog.START)
      self._add(step=resume_at + 1, session_log=purge)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Logs the numbers of a step."""
    with writing(self._folder):
      for name, value in values.items():
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        self._add(step=step, summary=summary)
      self._events.flush()

  def _add(self, **fields: Any) -> None:
    self._events.write_event(Event(wall_time=time.time(), **fields))

  def close(self) -> None:
    """Flushes and closes the file."""
    with writing(self._folder):
      self._events.close()


class MLflow:
  """A run of MLflow, on the server of its variables (MLFLOW_TRACKING_URI)."""

  def __init__(
    self, folder: pathlib.Path, flags: Mapping[str, str], resume_at: int
  ):
    del resume_at
    import mlflow

    self._mlflow, known = mlflow, _run_id(folder, 'mlflow')
    run = mlflow.start_run(run_id=known, run_name=folder.name)
    self._run_id = run.info.run_id
    try:
      if not known:
        atomic_write(folder / 'mlflow_run', self._run_id)
        mlflow.log_params(flags)
    except Exception:
      mlflow.end_run('FAILED')
      raise

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Logs the numbers of a step."""
    # MLflow does not allow @ in names.
    values = {n.replace('@', '_at_'): value for n, value in values.items()}
    self._mlflow.log_metrics(values, step=step, run_id=self._run_id)

  def close(self) -> None:
    """Ends the run, which can be resumed."""
    self._mlflow.end_run('KILLED' if sys.exception() else 'FINISHED')


class WeightsAndBiases:
  """A run of W&B, in the project of its variables (WANDB_PROJECT)."""

  def __init__(
    self, folder: pathlib.Path, flags: Mapping[str, str], resume_at: int
  ):
    del resume_at
    import wandb

    known = _run_id(folder, 'wandb')
    self._run = wandb.init(
      id=known,
      resume='allow',
      name=folder.name,
      dir=folder,
      config=dict(flags),
    )
    atomic_write(folder / 'wandb_run', self._run.id)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Logs the numbers of a step."""
    self._run.log(dict(values), step=step)

  def close(self) -> None:
    """Waits until everything is sent."""
    self._run.finish(exit_code=1 if sys.exception() else 0)


def _run_id(folder: pathlib.Path, tracker: str) -> str | None:
  """The id that a tracker gave to this run earlier, if any."""
  path = folder / f'{tracker}_run'
  return path.read_text().strip() if path.exists() else None


_TRACKERS = {
  'tensorboard': TensorBoard,
  'mlflow': MLflow,
  'wandb': WeightsAndBiases,
}
