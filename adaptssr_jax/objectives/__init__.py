"""Pre-training and fine-tuning objectives, one a file.

An objective is a function of `params`, of the whole model (`table`, `encoder`,
and in `head` what is learned beside them); of the `batch` of this device, with
`items` int32 [users, length], the behaviours, padded with 0, `where` bool
[users] and `example_id` int32 [users]; and of the `key` of this step. Its
docstring says what it needs beside these. If the batch has `sampled` ids, a
softmax over all items is estimated by them. The settings that most of them
share are

  encoder        gives the vectors of users, or hidden states
  deterministic  whether there is no dropout, as in validation
  buckets        in which parts sequences are encoded
  axis_name      the axis of the devices that share the batch

An objective returns the loss over the users of all devices, and metrics as
(sum, count) over those of this device. What draws for one user takes a key of
this user at this step.
"""
