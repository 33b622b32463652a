"""Minutes to quality: seconds are logged, and their curves are drawn."""

import contextlib
import json
import time

import pytest

from experiments import pretrain, report
from experiments.flags.binder import SettingsError
from experiments.pretraining import validation
from experiments.run.logs import MetricsLog
from tests.tiny_runs import Interruption, interrupt_at, lines, pretrain_settings


def seconds_of(folder):
  found = [line for line in lines(folder) if 'seconds' in line]
  assert all('validation_loss' in line for line in found)
  return [line['seconds'] for line in found]


def test_seconds_are_those_of_training_and_continue_on_resuming(
  tmp_path, data_dir, monkeypatch
):
  pauses = []

  def slow(*_, **__):
    pauses.append(time.perf_counter())
    time.sleep(1)
    return 0.5

  monkeypatch.setattr(validation, 'probe_score', slow)
  settings = pretrain_settings(
    tmp_path, data_dir, select_by='probe', log_seconds=True
  )
  with monkeypatch.context() as patch:
    interrupt_at(patch, 8)
    with pytest.raises(Interruption):
      pretrain.main(settings)
  first = seconds_of(tmp_path)
  assert len(first) == len(pauses) == 2
  # The pause of a second in each epoch is not part of training.
  between = pauses[1] - pauses[0]
  assert 0 < first[1] - first[0] < between - 0.9
  pretrain.main(settings)
  assert seconds_of(tmp_path)[:2] == first
  assert seconds_of(tmp_path)[2] > first[1]


def test_a_checkpoint_saves_the_seconds_since_the_last_log(tmp_path, data_dir):
  settings = pretrain_settings(tmp_path, data_dir, log_seconds=True)

  def open_at(start, saved):
    return MetricsLog(tmp_path, settings, resume_at=start, saved=saved)

  with contextlib.closing(open_at(0, [])) as log:
    time.sleep(0.2)
    saved = log.since_save(4)
  with contextlib.closing(open_at(4, [saved])) as log, log.paused() as found:
    assert found['seconds'] >= 0.2


def test_seconds_are_logged_only_if_asked_for(pretrained):
  assert not seconds_of(pretrained.workdir)


def folder_of(path, text='--task=gender\n', metrics=(), result=None):
  path.mkdir()
  (path / 'flags.txt').write_text(text)
  if metrics:
    text = ''.join(json.dumps(line) + '\n' for line in metrics)
    (path / 'metrics.jsonl').write_text(text)
  if result:
    (path / 'result.json').write_text(json.dumps(result))
  return str(path)


def probed(step, seconds, gender, age):
  return {
    'step': step,
    'seconds': seconds,
    'validation_probe_gender': gender,
    'validation_probe_age': age,
  }


@pytest.fixture(name='runs')
def two_runs_and_a_bag(tmp_path):
  quick = [probed(3, 1.5, 0.5, 0.2), probed(6, 2.5, 0.8, 0.3)]
  slow = [{'step': 1, 'loss': 2.0}, probed(3, 9.0, 0.7, 0.4)]
  result = {
    'task': 'gender',
    'method': 'bag_of_items',
    'validation': {'accuracy': 0.75},
  }
  return (
    folder_of(tmp_path / 'quick', metrics=quick),
    folder_of(tmp_path / 'slow', metrics=slow),
    folder_of(tmp_path / 'bag', result=result),
  )


def test_quality_over_seconds_is_drawn_and_printed(runs, tmp_path, capsys):
  path = tmp_path / 'minutes.svg'
  settings = report.ReportSettings(runs=runs, picture=str(path))
  report.main(settings)
  assert '<svg' in path.read_text()
  shown = capsys.readouterr().out.splitlines()
  assert shown[1:] == [
    'age, quick: best 0.3000',
    'age, slow: best 0.4000',
    'gender, quick: best 0.8000; bag (0.7500) reached after 2 s',
    'gender, slow: best 0.7000; bag (0.7500) not reached',
  ]
  with pytest.raises(SettingsError, match=r'minutes.svg exists: move it'):
    report.main(settings)


def test_each_data_set_has_its_own_panel(runs, tmp_path, capsys):
  lines = [probed(3, 1.5, 0.9, 0.2)]
  text = '--dataset=other\n--task=gender\n'
  other = folder_of(tmp_path / 'other', text, metrics=lines)
  path = str(tmp_path / 'minutes.svg')
  report.main(report.ReportSettings(runs=(*runs, other), picture=path))
  shown = capsys.readouterr().out.splitlines()
  assert shown[-1] == 'other, gender, other: best 0.9000'
  assert shown[-2] == 'other, age, other: best 0.2000'


@pytest.mark.parametrize(
  ('name', 'some', 'message'),
  [
    ('no/a.svg', slice(None), '--picture=.*: there is no folder .*no; make it'),
    ('a.svg', slice(2, None), 'pre-train with --select_by=probe --log_seconds'),
    ('a.txt', slice(None), r'a.txt was not written: .*not supported'),
  ],
)
def test_pictures_that_cannot_be_drawn_are_errors(
  runs, tmp_path, name, some, message
):
  settings = report.ReportSettings(
    runs=runs[some], picture=str(tmp_path / name)
  )
  with pytest.raises(SettingsError, match=message):
    report.main(settings)
