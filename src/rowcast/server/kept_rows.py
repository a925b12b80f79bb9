"""The rows of one shape as a query read them, kept once for all who want them.

The one rule of this room: rows are kept as the JSON that was made of them when they were read, and chunks over a bound
lie in a temporary file. So memory does not grow with the table, nor with the crowd.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Final

import msgspec

from rowcast.hub import Shape
from rowcast.server.corrections import Corrections
from rowcast.snapshot import Visibility

# Chunks up to this much stay in memory, per shape; what is over goes to a temporary file.
_MEMORY_BYTES: Final = 8 << 20

_json: Final = msgspec.json.Encoder().encode
_split_columns: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_rows: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


def split_rows(chunk: bytes) -> list[bytes]:
    """The JSON objects that a chunk holds with commas between them."""
    return [bytes(row) for row in _decode_rows(b"[%s]" % chunk)]


def key_json(row: bytes, names: Sequence[str]) -> bytes:
    """The key of a row, both as JSON objects."""
    values = _split_columns(row)
    return _json({name: values[name] for name in names})


class ShapeSnapshot:
    """The rows of one shape, being read or read.

    Attributes:
        complete: All rows are here and the stream has passed the snapshot's L: with the corrections folded up to
            the head, it is exact at the head.
        attempt: Counts up when the rows are read again; whoever has sent some of them starts over.
        error: Why it cannot be had, if it cannot.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.visibility: Visibility | None = None
        self.corrections: Corrections | None = None
        self.complete = False
        self.attempt = 0
        self.error: str | None = None
        self.row_count = 0
        self.size_bytes = 0
        self.last_used = 0.0
        self.waiting: dict[Callable[[], None], None] = {}
        self._chunks: list[bytes | tuple[int, int]] = []
        self._file: IO[bytes] | None = None

    def restart(self) -> None:
        self.attempt += 1
        self.complete = False
        self.row_count = self.size_bytes = 0
        self._chunks = []
        self.close()

    def add(self, chunk: bytes, rows: int) -> None:
        """Add rows, as JSON objects with commas between them."""
        if self.size_bytes + len(chunk) <= _MEMORY_BYTES:
            self._chunks.append(chunk)
        else:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="rowcast-snapshot-")  # noqa: SIM115
            self._file.seek(0, 2)
            self._chunks.append((self._file.tell(), len(chunk)))
            self._file.write(chunk)
        self.row_count += rows
        self.size_bytes += len(chunk)
        self.wake()

    def chunk(self, index: int) -> bytes:
        chunk = self._chunks[index]
        if isinstance(chunk, bytes):
            return chunk
        assert self._file is not None
        self._file.seek(chunk[0])
        return self._file.read(chunk[1])

    @property
    def chunk_count(self) -> int:
        return len(self._chunks)

    def wake(self) -> None:
        """Something has changed: whoever waits looks again."""
        waiting, self.waiting = self.waiting, {}
        for callback in waiting:
            callback()

    def close(self) -> None:
        """Let go of the temporary file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        # Whoever still sends these rows keeps them; the file goes with the last one.
        self.close()


class FrozenRows:
    """The rows of a finished snapshot at one position, whatever the stream does afterwards."""

    def __init__(self, snapshot: ShapeSnapshot, corrections: Corrections) -> None:
        self.position = corrections.folded
        self._snapshot = snapshot
        self._keyed = dict(corrections.keyed)
        self._removed = Counter(corrections.removed)
        self._last = corrections.rows
        table = snapshot.shape.table
        self._names = [table.columns[index].name for index in table.key]

    def batches(self) -> Iterator[list[bytes]]:
        """The rows as JSON objects, some at a time."""
        for index in range(self._snapshot.chunk_count):
            rows = split_rows(self._snapshot.chunk(index))
            if self._keyed:
                rows = [row for row in rows if key_json(row, self._names) not in self._keyed]
            elif self._removed:
                rows = [row for row in rows if not self._take(row)]
            yield rows
        yield self._last

    def _take(self, row: bytes) -> bool:
        if not self._removed[row]:
            return False
        self._removed[row] -= 1
        return True
