"""TFRecord files, read to their end or to where they are damaged, through Beam's file systems. No TensorFlow."""

from __future__ import annotations

import zlib
from collections.abc import Iterator


def read(path: str) -> Iterator[bytes | str]:
    """The records of a file in order; gzip where its name ends in `.gz`.

    A TFRecord file has no index and no marks to find the next record by, so that nothing can be read behind damage:
    a text that says so comes last, in place of whatever was there. (A file that was cut exactly between two records,
    or whose compressed bytes were, cannot be told from a whole one.)

    Raises:
        OSError: The file cannot be opened.
    """
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.io.tfrecordio import _TFRecordUtil

    with FileSystems.open(path) as file:
        while True:
            try:
                record = _TFRecordUtil.read_record(file)
            except (ValueError, OSError, EOFError, zlib.error) as error:
                # What follows the last colon of Beam's text is all that it has read, as hexadecimal digits.
                reason = str(error).split(": b'", maxsplit=1)[0]
                yield f"the file ends here, for it is no whole TFRecord file: {reason}"
                return
            if record is None:
                return
            yield record
