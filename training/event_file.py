"""A file of TensorBoard's events, written with the tensorboard package alone.

Its own EventFileWriter would import TensorFlow, which takes seconds and hundreds of megabytes.
"""

import os
import socket
import time

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """A file of events. Each is in the file when the call that writes it returns."""

    def __init__(self, folder, first_step):
        """Of the other files in `folder` TensorBoard will show what comes before `first_step`."""
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "ab")
        self._writer = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def close(self):
        """Closes the file; nothing can be written any more."""
        self._file.close()

    def write_scalars(self, step, scalars):
        """`scalars`: name -> number; TensorBoard groups names by what stands before their `/`."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(Event(step=step, summary=Summary(value=values)))

    def write_text(self, step, name, text):
        """`text` is Markdown."""
        tensor = TensorProto(
            dtype=DT_STRING,
            # A flag may name a file whose name is not UTF-8.
            string_val=[text.encode(errors="backslashreplace")],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        )
        value = Summary.Value(tag=name, metadata=create_summary_metadata("", ""), tensor=tensor)
        self._write(Event(step=step, summary=Summary(value=[value])))

    def _write(self, event):
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
        self._file.flush()
