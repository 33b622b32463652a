"""Metrics reach the files, and progress reaches the terminal."""

import contextlib
import json
import math
import os
import pathlib
import re
import types

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from experiments.flags.binder import SettingsError
from experiments.flags.shared import RunSettings
from experiments.run import logs
from experiments.run.logs import MetricsLog, restore_metrics
from experiments.run.progress import Progress


def read(folder):
  text = (folder / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def events(folder):
  """(step, name, value) of all TensorBoard events, after purging, sorted."""
  found = []
  for path in sorted(folder.glob('events.*'), key=os.path.getmtime):
    data, at = path.read_bytes(), 0
    while at < len(data):
      size = int.from_bytes(data[at : at + 8], 'little')
      body = data[at + 12 : at + 12 + size]
      check = data[at + 12 + size : at + 16 + size]
      assert int.from_bytes(check, 'little') == masked_crc32c(body)
      at += 16 + size
      event = event_pb2.Event.FromString(body)
      if event.session_log.status == event_pb2.SessionLog.START:
        found = [old for old in found if old[0] < event.step]
      for value in event.summary.value:
        found.append((event.step, value.tag, value.simple_value))
  return sorted(found)


def in_lines(folder):
  return sorted(
    (line['step'], name, pytest.approx(value))
    for line in read(folder)
    for name, value in line.items()
    if name != 'step'
  )


def write(folder, steps, *, resume_at=0, shift=0.0):
  log = MetricsLog(folder, RunSettings(), resume_at=resume_at)
  for step in steps:
    log.write(step, {'loss': step / 3 + shift, 'lambda': 0.5})
  log.close()


def test_a_line_of_json_a_step(tmp_path):
  write(tmp_path, [1, 2])
  assert (tmp_path / 'metrics.jsonl').read_text() == (
    '{"step": 1, "loss": 0.3333333333333333, "lambda": 0.5}\n'
    '{"step": 2, "loss": 0.6666666666666666, "lambda": 0.5}\n'
  )


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path):
  log = MetricsLog(tmp_path, RunSettings(), resume_at=0)
  log.write(1, {'loss': 2.0})
  assert read(tmp_path) == [{'step': 1, 'loss': 2.0}]
  log.close()


def test_events_say_the_same(tmp_path):
  write(tmp_path, [1, 2, 5])
  assert events(tmp_path) == in_lines(tmp_path)
  assert len(events(tmp_path)) == 6


def test_a_resumed_run_cuts_what_comes_after_its_checkpoint(tmp_path):
  write(tmp_path, [2, 4, 6, 8])
  (path,) = tmp_path.glob('events.*')
  # Files are named by the second, and this test takes less.
  path.rename(path.with_name('events.before'))
  write(tmp_path, [6, 8, 10], resume_at=4, shift=1.0)
  assert [line['step'] for line in read(tmp_path)] == [2, 4, 6, 8, 10]
  assert [line['loss'] for line in read(tmp_path)] == pytest.approx(
    [2 / 3, 4 / 3, 3, 11 / 3, 13 / 3]
  )
  assert events(tmp_path) == in_lines(tmp_path)


def test_two_lines_of_the_checkpoint_step_stay(tmp_path):
  log = MetricsLog(tmp_path, RunSettings(), resume_at=0)
  log.write(2, {'loss': 1.0})
  log.write(2, {'validation_loss': 2.0})
  log.close()
  write(tmp_path, [], resume_at=2)
  assert len(read(tmp_path)) == 2


@pytest.mark.parametrize('cut', [1, 9, 30])
def test_a_half_written_last_line_is_cut(tmp_path, cut):
  write(tmp_path, [2, 4])
  path = tmp_path / 'metrics.jsonl'
  whole = path.read_text()
  path.write_text(whole[:-cut])
  # The step of the half line was saved: nothing but the line is lost.
  write(tmp_path, [6], resume_at=4)
  assert [line['step'] for line in read(tmp_path)] == [2, 6]


def test_a_run_without_checkpoint_begins_anew(tmp_path):
  write(tmp_path, [2, 4])
  write(tmp_path, [1], resume_at=0)
  assert [line['step'] for line in read(tmp_path)] == [1]


def test_what_follows_the_last_whole_line_is_cut(tmp_path):
  write(tmp_path, [2, 4])
  path = tmp_path / 'metrics.jsonl'
  with path.open('ab') as file:
    file.write(b'\0\0\xff\n"text"\n{"loss": 1.0}\n\n{"step": 5')
  write(tmp_path, [6], resume_at=4)
  assert [line['step'] for line in read(tmp_path)] == [2, 4, 6]


def test_what_is_broken_between_whole_lines_is_an_error(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\n{"step": 2\n{"step": 3}\n')
  before = path.read_bytes()
  with pytest.raises(SettingsError, match=f'{path}, line 2: not the JSON'):
    MetricsLog(tmp_path, RunSettings(), resume_at=3)
  assert path.read_bytes() == before


def test_metrics_that_cannot_be_read_are_one_error(tmp_path):
  (tmp_path / 'metrics.jsonl').mkdir()
  with pytest.raises(SettingsError, match=r'written \(Is a directory'):
    restore_metrics(tmp_path, resume_at=0)


def test_lines_that_are_lost_come_from_the_checkpoints(tmp_path):
  log = MetricsLog(tmp_path, RunSettings(), resume_at=0)
  saved = []
  for step in range(1, 9):
    log.write(step, {'loss': step / 7})
    if step % 3 == 0:
      saved.append(log.since_save(step))
  log.close()
  assert [len(part['lines']) for part in saved] == [3, 3]
  path = tmp_path / 'metrics.jsonl'
  whole = path.read_text().splitlines(keepends=True)
  # Of three checkpoints the first is gone.
  for kept, expected in [(0, [4, 5, 6]), (2, [1, 2, 4, 5, 6])]:
    path.write_text(''.join(whole[:kept]) + whole[kept][:-4])
    restore_metrics(tmp_path, resume_at=6, saved=saved[1:])
    assert [line['step'] for line in read(tmp_path)] == expected
  path.write_text(whole[0])
  restore_metrics(tmp_path, resume_at=6, saved=saved)
  assert path.read_text() == ''.join(whole[:6])


def test_what_is_no_number_is_left_out(tmp_path):
  log = MetricsLog(tmp_path, RunSettings(), resume_at=0)
  log.write(1, {'loss': math.nan, 'lambda': 0.5, 'mean': -math.inf})
  log.close()
  assert (tmp_path / 'metrics.jsonl').read_text() == (
    '{"step": 1, "lambda": 0.5}\n'
  )
  assert events(tmp_path) == in_lines(tmp_path)


@pytest.mark.parametrize('part', ['_file', '_events'])
def test_a_full_disk_is_told_of(tmp_path, monkeypatch, part):
  log = MetricsLog(tmp_path, RunSettings(), resume_at=0)
  # As large as what a file collects before it writes.
  values = {f'number_{number}': 0.5 for number in range(9999)}
  with pathlib.Path('/dev/full').open('a' if part == '_file' else 'ab') as full:
    if part == '_file':
      log._file = full
    else:
      events = log._trackers['tensorboard']._events
      events._py_recordio_writer._writer = full
    with pytest.raises(SettingsError, match=r'No space left.*: make room, and'):
      log.write(1, values)
    with contextlib.suppress(OSError):
      full.close()


def test_the_other_processes_write_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(logs, 'is_main_process', lambda: False)
  log = MetricsLog(tmp_path, RunSettings(), resume_at=0)
  log.write(1, {'loss': 1.0})
  assert 'lines' not in log.since_save(1)
  log.close()
  assert not list(tmp_path.iterdir())


class Clock:
  """Time goes on when a test says so."""

  now = 0.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  fake = types.SimpleNamespace(monotonic=clock)
  monkeypatch.setattr('experiments.run.progress.time', fake)
  monkeypatch.setattr('tqdm.std.time', clock)
  return clock


def progress(total, start=0, **settings):
  settings = {'users': 1000, 'every': 2.0} | settings
  return Progress('run', total=total, start=start, **settings)


def step(shown, clock, times=1, *, seconds=1.0, loss=1.0):
  for _ in range(times):
    clock.now += seconds
    shown.update(loss)


def rates_in(text):
  return re.findall(r'([\d,]+) users/s', text)


def test_lines_tell_speed_loss_and_time_left(clock, capsys):
  with progress(20_000, every=10.0) as shown:
    for number in range(11):
      step(shown, clock, loss=0.5 + number)
  captured = capsys.readouterr()
  assert captured.out == ''
  # A step of 1,000 users a second; the first, which compiles, is not counted.
  assert captured.err == (
    'run: step 10/20,000, 1,000 users/s, loss 9.5000, 5:33:10 left\n'
  )


def test_the_second_step_tells_no_rate_of_its_own(clock, capsys):
  # It is given to the devices at once, while they are at the first.
  with progress(60, every=1.0) as shown:
    step(shown, clock, 2)
    step(shown, clock, 4, seconds=10.0)
  assert rates_in(capsys.readouterr().err) == ['100'] * 4


def test_the_rate_is_that_of_the_last_steps(clock, capsys):
  with progress(2000, every=1.0) as shown:
    step(shown, clock, 150)
    step(shown, clock, 150, seconds=4.0)
  rates = rates_in(capsys.readouterr().err)
  assert (rates[0], rates[-1]) == ('1,000', '250')


def test_a_long_validation_does_not_count(clock, capsys):
  with progress(100, every=1.0) as shown:
    step(shown, clock, 47)
    step(shown, clock, seconds=500.0)
    step(shown, clock, 2)
  captured = capsys.readouterr().err
  assert set(rates_in(captured)) == {'1,000'}
  assert captured.endswith(', 00:50 left\n')


def test_lines_tell_the_share_of_time_that_waits_for_input(clock, capsys):
  waits = iter([50.0, 50.25, 50.5, 50.75])
  with progress(5, every=100.0, waited=lambda: next(waits)) as shown:
    step(shown, clock, 5)
  # Not the wait for the first batch, which was before the first step.
  assert capsys.readouterr().err == (
    'run: step 5/5, 1,000 users/s, loss 1.0000, input wait 25.0%, 00:00 left\n'
  )


def test_lines_come_every_so_often_and_at_the_end(clock, capsys):
  with progress(10, every=3.0) as shown:
    step(shown, clock, 10)
  steps = re.findall(r'step (\d+)/10', capsys.readouterr().err)
  assert steps == ['3', '6', '9', '10']


def test_the_loss_is_waited_for_only_where_it_is_told(clock, capsys):
  class Loss:
    def __float__(self):
      told.append(clock.now)
      return 1.0

  told = []
  with progress(10, every=3.0) as shown:
    step(shown, clock, 8, loss=Loss())
  assert told == [3.0, 6.0]


def test_a_resumed_run_counts_from_where_it_starts(clock, capsys):
  with progress(12, start=8, every=100.0) as shown:
    step(shown, clock, 4)
  assert capsys.readouterr().err == (
    'run: step 12/12, 1,000 users/s, loss 1.0000, 00:00 left\n'
  )


def test_a_terminal_has_a_bar(clock, capsys, monkeypatch):
  monkeypatch.setattr('sys.stderr.isatty', lambda: True)
  with progress(4) as shown:
    step(shown, clock, 4, loss=0.25)
  text = capsys.readouterr().err
  assert '4/4' in text
  assert '1.00step/s, 1,000 users/s, loss 0.2500]\n' in text


def test_a_bar_ends_where_the_steps_do(clock, capsys, monkeypatch):
  monkeypatch.setattr('sys.stderr.isatty', lambda: True)
  with progress(2) as shown:
    step(shown, clock, 2)
  assert '2/2' in capsys.readouterr().err


def test_a_run_of_one_step_is_no_error(clock, capsys):
  with progress(1) as shown:
    step(shown, clock)
  assert capsys.readouterr().err == ''
