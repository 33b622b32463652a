"""Serves user vectors over HTTP, from a folder that `experiments.export` wrote.

pip install fastapi uvicorn jax flatbuffers
ENCODER=deployed uvicorn --app-dir examples/serve app:app
"""

import asyncio
import contextlib
import os
import pathlib
import runpy
from typing import Annotated

import fastapi
from pydantic import BaseModel, Field

MAX_USERS, MAX_BEHAVIOURS = 1024, 10_000  # Per request; per user.
History = Annotated[list[str], Field(max_length=MAX_BEHAVIOURS)]


class Users(BaseModel):
  """Raw item ids of each user, oldest first."""

  histories: Annotated[list[History], Field(max_length=MAX_USERS)]


class Batcher:
  """Encodes the users of all waiting requests together."""

  def __init__(self, encode):
    self.encode, self.waiting, self.turn = encode, [], asyncio.Lock()

  async def __call__(self, histories):
    """The vectors of the users of one request."""
    vectors = asyncio.get_running_loop().create_future()
    self.waiting.append((histories, vectors))
    async with self.turn:
      while not vectors.done():
        await self.encode_next()
    return await vectors

  async def encode_next(self):
    """Encodes the oldest waiting requests, as many as fit one batch."""
    batch = [self.waiting.pop(0)]
    size = len(batch[0][0])
    while self.waiting and size + len(self.waiting[0][0]) <= MAX_USERS:
      batch.append(self.waiting.pop(0))
      size += len(batch[-1][0])
    users = [user for histories, _ in batch for user in histories]
    try:
      # In a thread, so that new requests are accepted while JAX computes.
      rows = iter((await asyncio.to_thread(self.encode, users)).tolist())
    except asyncio.CancelledError:
      # Only this request is cancelled: the others stay in the queue.
      self.waiting[:0] = batch
      raise
    except Exception as error:
      for _, vectors in batch:
        if not vectors.done():
          vectors.set_exception(RuntimeError(f'not encoded: {error!r}'))
      return
    for histories, vectors in batch:
      found = [next(rows) for _ in histories]
      if not vectors.done():
        vectors.set_result(found)


@contextlib.asynccontextmanager
async def started(app):
  """Loads the encoder, and compiles the programs that most requests need."""
  folder = pathlib.Path(os.environ.get('ENCODER', 'deployed'))
  encoder = runpy.run_path(str(folder / 'load.py'))['Encoder'](folder)
  for users in (1, 8, 64):
    encoder([['']] * (users - 1) + [[''] * encoder.max_length])
  app.state.encoder, app.state.batcher = encoder, Batcher(encoder)
  yield


app = fastapi.FastAPI(title='User vectors', lifespan=started)


@app.post('/vectors')
async def vectors(users: Users):
  """Returns a vector for each user, and the number of unknown items."""
  encoder = app.state.encoder
  parts = map(encoder.encoded_part, users.histories)
  unknown = sum(item not in encoder.numbers for part in parts for item in part)
  return {
    'vectors': await app.state.batcher(users.histories),
    'unknown_items': unknown,
  }
