"""Pre-training and fine-tuning objectives, one a file.

An objective is a function `(params, batch, key) -> (loss, metrics)`:

  params   the model: `table`, `encoder`, and `head` for parameters that the
           objective adds
  batch    of this device: `items` int32 [users, length], padded with 0; `where`
           bool [users], False for padding users; `example_id` int32 [users]
  key      the random key of this step
  loss     a scalar, the mean over the users of all devices
  metrics  {name: (sum, count)} over the users of this device

If the batch has `sampled`, int32 [m], softmaxes over all items are estimated
from these ids. Each docstring says what else an objective needs. Most take

  encoder        the `UserEncoder`
  deterministic  True switches dropout off, as in validation
  buckets        how sequences are grouped by length, see `ops.buckets`
  axis_name      the device axis over which the batch is split; None: one device

Draws for a user use a key that depends only on the step and on that user.
"""
