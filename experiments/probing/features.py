"""Features of users, from vectors and from the items that they have seen.

None of them needs a label, and so they are made once of all users of a data
set, whichever of them are labelled.
"""

from typing import Any

import numpy as np

from adaptssr_jax.data import Ragged, RaggedView

# An array [rows, dim], or a sparse matrix [rows, columns].
Features = Any
# Rows of histories padded at once.
_BLOCK = 1024


def bags(
  histories: Ragged | RaggedView, num_items: int, *, max_length: int = 0
) -> Features:
  """Which items the histories of users hold, each counted once.

  Args:
    histories: item numbers from 1, the oldest first.
    max_length: behaviours seen of a user, the last ones; 0: all of them.

  Returns:
    Ones, sparse [users, num_items + 1]; column 0 stands for padding.

  Example:
    >>> histories = Ragged.from_rows([[3, 1, 3], []])
    >>> bags(histories, 3).toarray()
    array([[0., 1., 0., 1.],
           [0., 0., 0., 0.]])
    >>> bags(histories, 3, max_length=1).toarray()[0]
    array([0., 0., 0., 1.])
  """
  from scipy import sparse

  users, items = [], []
  for start in range(0, len(histories), _BLOCK):
    rows = np.arange(start, min(start + _BLOCK, len(histories)))
    longest = max(int(histories.lengths_of(rows).max()), 1)
    padded = histories.padded(rows, min(longest, max_length or longest))
    row, place = np.nonzero(padded)
    users.append(row + start)
    items.append(padded[row, place])
  if not users:
    return sparse.csr_matrix((0, num_items + 1))
  found = np.concatenate(users), np.concatenate(items)
  shape = len(histories), num_items + 1
  bag = sparse.csr_matrix((np.ones(len(found[0])), found), shape)
  # Items met twice were added up.
  bag.data[:] = 1
  return bag


def tf_idf(bag: Features, *, rows: np.ndarray | None = None) -> Features:
  """Bags in which rarer items weigh more, and rows have unit length.

  b_i = x_i (1 + log((1 + n) / (1 + n_i))), over its length

  Args:
    bag: of ones, sparse [users, columns].
    rows: the n users that are counted, n_i of whom have item i [all].

  Returns:
    Sparse [users, columns]. The row of a user without items is 0.

  Example:
    >>> from scipy import sparse
    >>> bag = sparse.csr_matrix([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    >>> tf_idf(bag).toarray().round(3)
    array([[0.509, 0.861],
           [1.   , 0.   ],
           [1.   , 0.   ]])
  """
  import sklearn.feature_extraction.text

  weigh = sklearn.feature_extraction.text.TfidfTransformer()
  return weigh.fit(bag if rows is None else bag[rows]).transform(bag)


def bag_svd(bag: Features, *, num_components: int) -> np.ndarray:
  """The bags in the directions in which they differ most: a truncated SVD.

  With B = U S V', the features are B V. The same bags have the same features,
  to the bit, on one machine.

  Args:
    bag: sparse [users, columns].
    num_components: of the SVD; no more are taken than users or columns.

  Returns:
    float32 [users, components].
  """
  import sklearn.decomposition
  import threadpoolctl

  svd = sklearn.decomposition.TruncatedSVD(
    min(num_components, *bag.shape), n_iter=7, random_state=0
  )
  with threadpoolctl.threadpool_limits(1):
    return svd.fit_transform(bag).astype(np.float32)


def joined(
  vectors: np.ndarray, bag: Features, train: np.ndarray, *, weight: float
) -> Features:
  """Vectors and bags of items, side by side.

  x = [z, weight sqrt(dim) b],  z the standardised vector, b the bag

  A row of z has about the length sqrt(dim) and one of b the length 1: with a
  weight of 1 both count alike.

  Args:
    bag: of all rows, of unit length, sparse [rows, columns].
    train: the rows over which vectors are standardised.
  """
  from scipy import sparse

  vectors = standardised(vectors, train)
  scale = weight * np.sqrt(vectors.shape[1])
  parts = [sparse.csr_matrix(vectors), (bag * scale).astype(np.float32)]
  return sparse.hstack(parts, format='csr')


def standardised(features: Features, train: np.ndarray) -> Features:
  """Columns of mean 0 and variance 1 over the training rows, in float32.

  A column that does not vary there becomes 0. Sparse features stay as they are.
  """
  if not isinstance(features, np.ndarray):
    return features.astype(np.float32)
  mean, shrink = moments(features, train)
  return ((features - mean) * shrink).astype(np.float32)


def moments(
  features: np.ndarray, train: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The mean of each column, and 1 / its standard deviation: [dim], [dim].

  Of a column that does not vary, 0 instead of the latter.
  """
  of_train = features[train].astype(np.float64)
  scale = of_train.std(axis=0)
  # Less is rounding: dividing by it would make noise of a constant.
  varies = scale > 1e-6 * np.abs(of_train).max(axis=0, initial=0)
  return of_train.mean(axis=0), varies / np.where(varies, scale, 1)
