"""Objects that travel between processes: as unnamed files in memory, through a socket.

What has neither a name nor a lock cannot be left behind by a process that is killed: a
file goes with the last process that holds or maps it. Arrays are not copied on arrival.
"""

import mmap
import os
import pickle
import socket
from typing import Any, BinaryIO

from gfnet_jax.errors import UserError

AVAILABLE = hasattr(os, "memfd_create")  # on Linux
ALIGNMENT = 64  # bytes; jax takes arrays without a copy that begin at a multiple of it
NUMBER = 8  # bytes


def pack(value: Any) -> BinaryIO:
  """Writes an object to an unnamed file, which the caller closes.

  Raises:
    Exception: any that pickle raises for what it cannot write.
  """
  buffers = []
  stream = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
  file = os.fdopen(os.memfd_create("parcel"), "w+b")
  try:
    places = []
    for buffer in buffers:
      with buffer.raw() as view:
        begin = file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT)
        file.write(view)
        places.append(slice(begin, begin + len(view)))
    end = file.tell()
    file.write(pickle.dumps((places, stream)) + end.to_bytes(NUMBER))
    file.flush()
  except BaseException:
    file.close()
    raise
  return file


def send(connection: socket.socket, parcel: BinaryIO) -> None:
  """Sends a packed object through a Unix socket, any number of times.

  Raises:
    ConnectionError: if nobody can receive it any more.
  """
  socket.send_fds(connection, [b"\0"], [parcel.fileno()])


def receive(connection: socket.socket) -> Any:
  """Waits for a packed object and opens it.

  The arrays in it keep its memory, and a file descriptor, for as long as they live;
  what is written to them stays in this process.

  Raises:
    ConnectionError: if none will come.
    UserError: if this process may open no more files.
  """
  # Programs that are started meanwhile must not keep the memory.
  message, descriptors, _, _ = socket.recv_fds(connection, 1, 1, socket.MSG_CMSG_CLOEXEC)
  if not message:
    raise ConnectionAbortedError("the other end is closed")
  if not descriptors:  # the system drops what there is no place for
    raise UserError("too many open files for another batch; raise the limit (ulimit -n)")
  try:
    memory = memoryview(mmap.mmap(descriptors[0], 0, access=mmap.ACCESS_COPY))
  finally:
    os.close(descriptors[0])
  end = int.from_bytes(memory[-NUMBER:])
  places, stream = pickle.loads(memory[end:])
  return pickle.loads(stream, buffers=[memory[place] for place in places])
