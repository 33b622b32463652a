"""Pre-training and fine-tuning objectives, one per file.

An objective is a function `(params, batch, key) -> (loss, metrics)`:

  params   the model: `table`, `encoder`, and `head` for parameters that the
           objective adds
  batch    of this device: `items` int32 [users, length], padded with 0; `where`
           bool [users], False for padding users; `example_id` int32 [users]
  key      the random key of this step
  loss     a scalar, the mean over the users of all devices
  metrics  {name: (sum, count)} over the users of this device

If the batch has `sampled`, int32 [m], softmaxes over all items are estimated
from these ids. All objectives but losses of given views also take

  encoding  how sequences are encoded and over which devices the batch is split,
            see `users.Encoding`

and each docstring says what else an objective needs.
Draws for a user use a key that depends only on the step and on that user.
"""
