"""Primitive values of ClickHouse's native protocol: variable-length integers, strings, compressed frames.

The buffered reader of clickhouse-driver is not used because it trusts the lengths that a peer sends.
"""

from collections.abc import Callable, Iterator
from struct import Struct

from clickhouse_cityhash.cityhash import CityHash128
from clickhouse_driver.compression import get_compressor_cls, get_decompressor_cls
from clickhouse_driver.errors import UnknownCompressionMethod
from clickhouse_driver.varint import make_varint

# A query may have its data as text, so this is large; names and settings never need as much.
MAX_STRING_BYTES = 1 << 28
MAX_FRAME_BYTES = 1 << 30
# ClickHouse's own clients write frames of 1 MiB before compression.
FRAME_BYTES = 1 << 20

_FRAME_HEADER = Struct("<QQBII")
_CHECKSUM = Struct("<QQ")
_FRAME_SIZES = Struct("<BII")
_INT32 = Struct("<i")
_UINT64 = Struct("<Q")


class ProtocolError(Exception):
    """The peer violated the native protocol. `code` is ClickHouse's error code for it."""

    def __init__(self, message: str, code: int = 101) -> None:
        super().__init__(message)
        self.code = code


class WireReader:
    """A reader of the chunks that `fill` returns; an empty chunk is the end of the stream.

    While a sink is set, every byte consumed is also passed to it, in order and without a second copy.
    """

    def __init__(self, fill: Callable[[], bytes]) -> None:
        self._fill = fill
        self._sink: Callable[[bytes], None] | None = None
        self._mark = 0
        self.chunk = b""
        self.position = 0

    def refill(self) -> bytes:
        """Replace the consumed chunk by the next one and return it. Raises EOFError at the end of the stream."""
        if self._sink is not None and self._mark < len(self.chunk):
            self._sink(self.chunk[self._mark :])
        self.chunk = b""
        self.position = self._mark = 0
        self.chunk = self._fill()
        if not self.chunk:
            raise EOFError("the peer closed the connection")
        return self.chunk

    def copy_to(self, sink: Callable[[bytes], None]) -> None:
        """Pass every byte consumed from now on to `sink`."""
        self._sink = sink
        self._mark = self.position

    def stop_copying(self) -> None:
        """Pass the rest to the sink and remove the sink."""
        if self._sink is not None and self._mark < self.position:
            self._sink(self.chunk[self._mark : self.position])
        self._sink = None

    @property
    def at_chunk_end(self) -> bool:
        """Whether everything received so far has been consumed."""
        return self.position == len(self.chunk)

    def skip(self, size: int) -> None:
        """Consume `size` bytes."""
        while size:
            available = len(self.chunk) - self.position
            if not available:
                available = len(self.refill())
            step = min(size, available)
            self.position += step
            size -= step

    def read(self, size: int) -> bytes:
        """Consume and return `size` bytes. Memory grows with the bytes that arrive, not with `size`."""
        end = self.position + size
        if end <= len(self.chunk):
            taken = self.chunk[self.position : end]
            self.position = end
            return taken
        parts = []
        while size:
            if self.at_chunk_end:
                self.refill()
            part = self.chunk[self.position : self.position + size]
            self.position += len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def read_one(self) -> int:
        """Consume and return one byte."""
        if self.position == len(self.chunk):
            self.refill()
        value = self.chunk[self.position]
        self.position += 1
        return value

    def varint(self) -> int:
        """Read an unsigned LEB128 integer of at most 64 bits."""
        value = self.read_one()
        if value < 0x80:
            return value
        value &= 0x7F
        for shift in range(7, 64, 7):
            byte = self.read_one()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ProtocolError("a variable-length integer has more than 64 bits")

    def binary_string(self) -> bytes:
        """Read a length and that many bytes. Raises ProtocolError for a length above the limit."""
        length = self.varint()
        if length > MAX_STRING_BYTES:
            raise ProtocolError(f"a string of {length} bytes exceeds the limit of {MAX_STRING_BYTES}")
        return self.read(length)

    def string(self) -> str:
        """Read UTF-8 text; bytes that are not UTF-8 survive as surrogates."""
        return self.binary_string().decode("utf-8", "surrogateescape")

    def int32(self) -> int:
        """Read a signed 32-bit integer."""
        return int(_INT32.unpack(self.read(4))[0])

    def uint64(self) -> int:
        """Read an unsigned 64-bit integer."""
        return int(_UINT64.unpack(self.read(8))[0])

    def read_strings(self, count: int, encoding: str | None = None) -> list[bytes] | list[str]:
        """Read `count` strings, under the name that the driver's column readers call."""
        values = [self.binary_string() for _ in range(count)]
        return [value.decode(encoding, "replace") for value in values] if encoding else values

    def skip_strings(self, count: int) -> None:
        """Consume `count` strings in one loop without calls, because this runs for every inserted string."""
        chunk, position = self.chunk, self.position
        end = len(chunk)
        while count:
            if position >= end:
                self.position = end
                chunk, excess = self._skip_past(position - end)
                position, end = excess, len(chunk)
            length = chunk[position]
            if length < 0x80:
                position += length + 1
            else:
                self.position = position
                length = self.varint()
                if length > MAX_FRAME_BYTES:
                    raise ProtocolError(f"a string of {length} bytes exceeds the limit of {MAX_FRAME_BYTES}")
                chunk, position = self.chunk, self.position + length
                end = len(chunk)
            count -= 1
        if position > end:
            self.position = end
            self.skip(position - end)
        else:
            self.position = position

    def _skip_past(self, overshoot: int) -> tuple[bytes, int]:
        """Consume `overshoot` bytes beyond the chunk; return the next chunk with bytes left, and the position."""
        self.skip(overshoot)
        if self.at_chunk_end:
            self.refill()
        return self.chunk, self.position


def encode_string(text: str) -> bytes:
    """Return a length and the text in UTF-8; surrogates become the bytes that they stand for."""
    data = text.encode("utf-8", "surrogateescape")
    return bytes(make_varint(len(data))) + data


def frames_of(reader: WireReader) -> Callable[[], bytes]:
    """Return a `fill` function that reads one compressed frame from `reader` and returns its content.

    A frame is: CityHash128 of the rest, method byte, compressed size with these nine bytes, original size, data. Raises
    ProtocolError for a wrong checksum, size or method.
    """

    def fill() -> bytes:
        header = reader.read(_FRAME_HEADER.size)
        high, low, method, compressed_size, size = _FRAME_HEADER.unpack(header)
        if not 9 <= compressed_size <= MAX_FRAME_BYTES or not 0 < size <= MAX_FRAME_BYTES:
            raise ProtocolError(f"a compressed frame declares {compressed_size} bytes for {size}", code=271)
        data = reader.read(compressed_size - 9)
        if CityHash128(header[16:] + data) != (high << 64) + low:
            raise ProtocolError("the checksum of a compressed frame does not match", code=40)
        try:
            content = bytes(get_decompressor_cls(method)(None).decompress_data(data, size))
        except UnknownCompressionMethod:
            raise ProtocolError(f"unknown compression method {method:#x}", code=89) from None
        except Exception as error:  # noqa: BLE001 - lz4 and zstd each raise their own, for data unlike its header
            raise ProtocolError(f"a compressed frame cannot be decompressed: {error}", code=271) from None
        if len(content) != size:
            raise ProtocolError(f"a compressed frame has {len(content)} bytes instead of {size}", code=271)
        return content

    return fill


def compressed_frames(data: bytes, method: str) -> Iterator[bytes]:
    """Yield `data` as compressed frames; `method` is "lz4", "lz4hc" or "zstd"."""
    compressor = get_compressor_cls(method)()
    for start in range(0, len(data), FRAME_BYTES):
        part = data[start : start + FRAME_BYTES]
        packed = compressor.compress_data(part)
        body = _FRAME_SIZES.pack(compressor.method_byte, len(packed) + _FRAME_SIZES.size, len(part)) + packed
        checksum = CityHash128(body)
        yield _CHECKSUM.pack(checksum >> 64, checksum & 0xFFFFFFFFFFFFFFFF) + body
