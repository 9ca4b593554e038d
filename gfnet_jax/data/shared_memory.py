"""Python objects sent from one process to another: as unnamed files in memory, through a socket.

Without a name or a lock, nothing can be left behind by a process that is killed: such a
file disappears with the last process that has it open or mapped. Arrays are not copied on
arrival.
"""

import mmap
import os
import pickle
import socket
from typing import Any, BinaryIO

from gfnet_jax.errors import UserError

AVAILABLE = hasattr(os, "memfd_create")  # on Linux
ALIGNMENT = 64  # bytes; jax takes arrays that begin at a multiple of it without copying
NUMBER = 8  # bytes of an integer


def pack(value: Any) -> BinaryIO:
  """Pickles an object into an unnamed file in memory, which the caller closes.

  The file holds the object's buffers, then the pickle and their positions, then the
  position of the pickle.

  Raises:
    Exception: whatever pickle raises for an object that cannot be pickled.
  """
  buffers = []
  stream = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
  message = os.fdopen(os.memfd_create("gfnet_jax"), "w+b")
  try:
    positions = []
    for buffer in buffers:
      with buffer.raw() as view:
        begin = message.seek(-(-message.tell() // ALIGNMENT) * ALIGNMENT)
        message.write(view)
        positions.append(slice(begin, begin + len(view)))
    end = message.tell()
    message.write(pickle.dumps((positions, stream)) + end.to_bytes(NUMBER))
    message.flush()
  except BaseException:
    message.close()
    raise
  return message


def send(connection: socket.socket, message: BinaryIO) -> None:
  """Sends a packed object through a Unix socket; it may be sent any number of times.

  Raises:
    ConnectionError: if nobody is there to receive it.
  """
  socket.send_fds(connection, [b"\0"], [message.fileno()])


def receive(connection: socket.socket) -> Any:
  """Waits for a packed object and unpacks it.

  Its arrays keep the memory of the message, and a file descriptor, for as long as they
  live; what is written to them stays in this process.

  Raises:
    ConnectionError: if the other end is closed.
    UserError: if this process may not open any more files.
  """
  # Closed on exec: programs that are started meanwhile must not keep the memory.
  mark, descriptors, _, _ = socket.recv_fds(connection, 1, 1, socket.MSG_CMSG_CLOEXEC)
  if not mark:
    raise ConnectionAbortedError("the other end is closed")
  if not descriptors:  # the system drops what it has no room for
    raise UserError("too many open files for another batch; raise the limit (ulimit -n)")
  try:
    memory = memoryview(mmap.mmap(descriptors[0], 0, access=mmap.ACCESS_COPY))
  finally:
    os.close(descriptors[0])
  end = int.from_bytes(memory[-NUMBER:])
  positions, stream = pickle.loads(memory[end:])
  return pickle.loads(stream, buffers=[memory[position] for position in positions])
