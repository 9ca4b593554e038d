"""Objects that travel between processes: as unnamed files in memory, through a socket.

What has neither a name nor a lock cannot be left behind by a process that is killed: a
file goes with the last process that holds or maps it. Arrays are not copied on arrival.
"""

import errno
import mmap
import os
import pickle
import socket
import tempfile
from typing import Any, BinaryIO

ALIGNMENT = 64  # bytes; jax takes arrays without a copy that begin at a multiple of it
NUMBER = 8  # bytes


def pack(value: Any) -> BinaryIO:
  """Writes an object to an unnamed file, which the caller closes.

  Raises:
    Exception: any that pickle raises for what it cannot write.
  """
  buffers = []
  stream = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
  file = _unnamed_file()
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


def _unnamed_file() -> BinaryIO:
  if hasattr(os, "memfd_create"):
    return os.fdopen(os.memfd_create("parcel"), "w+b")
  return tempfile.TemporaryFile()


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
  """
  message, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
  if not message:
    raise ConnectionAbortedError("the other end is closed")
  if not descriptors:  # the system drops what there is no place for
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
  try:
    memory = memoryview(mmap.mmap(descriptors[0], 0, access=mmap.ACCESS_COPY))
  finally:
    os.close(descriptors[0])
  end = int.from_bytes(memory[-NUMBER:])
  places, stream = pickle.loads(memory[end:])
  return pickle.loads(stream, buffers=[memory[place] for place in places])
