"""Primitive values of the protocol, in chunks of any size and from peers that send wrong lengths."""

from collections.abc import Callable, Iterable
from struct import pack

import pytest
from clickhouse_driver.varint import make_varint
from hypothesis import given
from hypothesis import strategies as st

from dags.local.clickhouse.wire import (
    FRAME_BYTES,
    MAX_STRING_BYTES,
    ProtocolError,
    WireReader,
    compressed_frames,
    encode_string,
    frames_of,
)

METHODS = ["lz4", "lz4hc", "zstd"]


def chunks(data: bytes, size: int) -> Callable[[], bytes]:
    """Return a `fill` function that returns `data` in chunks of `size` bytes, then the end."""
    parts = iter([*(data[start : start + size] for start in range(0, len(data), size)), b""])
    return lambda: next(parts)


def collect(parts: Iterable[bytes]) -> bytes:
    return b"".join(parts)


@given(st.integers(0, 2**64 - 1), st.integers(1, 11))
def test_integers_of_any_length_are_read(value: int, size: int) -> None:
    reader = WireReader(chunks(bytes(make_varint(value)) + b"\x07", size))
    assert reader.varint() == value
    assert reader.read_one() == 7


def test_an_integer_of_more_than_64_bits_is_rejected() -> None:
    with pytest.raises(ProtocolError, match="more than 64 bits"):
        WireReader(chunks(b"\xff" * 20, 20)).varint()


@given(st.text(), st.integers(1, 9))
def test_text_is_read_as_it_was_written(text: str, size: int) -> None:
    assert WireReader(chunks(encode_string(text), size)).string() == text


@given(st.binary())
def test_bytes_that_are_not_utf_8_survive_a_round_trip(data: bytes) -> None:
    text = WireReader(chunks(bytes(make_varint(len(data))) + data, 5)).string()
    assert encode_string(text) == bytes(make_varint(len(data))) + data


def test_a_string_above_the_limit_is_rejected_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match="exceeds the limit"):
        WireReader(chunks(bytes(make_varint(MAX_STRING_BYTES + 1)), 3)).string()


@given(st.lists(st.binary(max_size=300)), st.integers(1, 400), st.binary(min_size=1, max_size=3))
def test_strings_are_skipped_to_where_they_end(strings: list[bytes], size: int, rest: bytes) -> None:
    data = b"".join(bytes(make_varint(len(value))) + value for value in strings)
    reader = WireReader(chunks(data + rest, size))
    reader.skip_strings(len(strings))
    assert reader.read(len(rest)) == rest


@given(st.lists(st.integers(0, 40)), st.integers(1, 50))
def test_every_byte_consumed_is_copied_once_and_in_order(steps: list[int], size: int) -> None:
    data = bytes(number % 251 for number in range(sum(steps) + 10))
    reader, copied = WireReader(chunks(data, size)), list[bytes]()
    reader.read(3)
    reader.copy_to(copied.append)
    for step in steps:
        reader.skip(step)
    reader.stop_copying()
    reader.read(2)
    assert collect(copied) == data[3 : 3 + sum(steps)]


@pytest.mark.parametrize(
    "read", [WireReader.read_one, WireReader.varint, WireReader.string, WireReader.uint64, WireReader.int32]
)
def test_the_end_of_the_stream_is_an_error(read: Callable[[WireReader], object]) -> None:
    with pytest.raises(EOFError):
        read(WireReader(chunks(b"", 1)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 1000, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES + 5])
def test_frames_contain_what_was_compressed(method: str, size: int) -> None:
    data = bytes(number % 253 for number in range(1000)) * (size // 1000) + bytes(size % 1000)
    packed = b"".join(compressed_frames(data, method))
    fill = frames_of(WireReader(chunks(packed, 65_537)))
    received = bytearray()
    while len(received) < size:
        received += fill()
    assert received == data


@pytest.mark.parametrize("method", METHODS)
def test_a_corrupt_frame_is_rejected(method: str) -> None:
    packed = b"".join(compressed_frames(b"some data" * 100, method))
    for position in range(len(packed)):
        changed = packed[:position] + bytes([packed[position] ^ 0x10]) + packed[position + 1 :]
        with pytest.raises((ProtocolError, EOFError)):
            frames_of(WireReader(chunks(changed, 1000)))()


@pytest.mark.parametrize(("compressed", "size"), [(8, 10), (2**32 - 1, 10), (20, 0), (20, 2**32 - 1)])
def test_invalid_frame_sizes_are_rejected(compressed: int, size: int) -> None:
    header = pack("<QQBII", 0, 0, 0x82, compressed, size)
    with pytest.raises(ProtocolError) as caught:
        frames_of(WireReader(chunks(header, 100)))()
    assert caught.value.code == 271
