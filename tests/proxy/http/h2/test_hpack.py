"""HPACK against the `hpack` library, and what the two sides' tables do."""

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.http.compression import huffman
from proxy.http.compression.hpack import STATIC, Decoder, Encoder, HpackBombError, HpackError
from proxy.http.sensitive import Sensitive

LARGE = 1 << 30

fields = st.one_of(
    st.tuples(st.binary(min_size=1, max_size=30), st.binary(max_size=60)),
    st.sampled_from(STATIC),
    st.sampled_from([(b"x-%d" % i, b"v" * 40 * i) for i in range(30)]),
    st.tuples(st.sampled_from([b"authorization", b"cookie", b"user-agent", b":path"]), st.binary(max_size=30)),
)
blocks = st.lists(st.lists(fields, max_size=15), max_size=20)


def test_static_table_is_that_of_the_rfc():
    assert tuple(hpack.table.HeaderTable.STATIC_TABLE) == STATIC


@settings(deadline=None)
@given(blocks)
def test_what_we_encode_the_library_decodes(lists):
    encoder, decoder = Encoder(), hpack.Decoder(max_header_list_size=LARGE)
    for each in lists:
        assert [tuple(field) for field in decoder.decode(encoder.encode(each), raw=True)] == each


@settings(deadline=None)
@given(blocks, st.booleans(), st.lists(st.sampled_from([0, 100, 1000, 4096]), max_size=20))
def test_what_the_library_encodes_we_decode(lists, coded, sizes):
    encoder, decoder = hpack.Encoder(), Decoder()
    for index, each in enumerate(lists):
        if index < len(sizes):
            encoder.header_table_size = sizes[index]
        assert decoder.decode(encoder.encode(each, huffman=coded), LARGE, LARGE) == each


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.lists(fields, max_size=8), st.lists(st.sampled_from([0, 64, 500, 4096, 9999]), max_size=3)))
)
def test_resizes_of_ours(lists):
    encoder, decoder = Encoder(), hpack.Decoder(max_header_list_size=LARGE)
    for each, sizes in lists:
        for size in sizes:
            encoder.resize(size)
            decoder.max_allowed_table_size = min(size, 4096)
        assert [tuple(field) for field in decoder.decode(encoder.encode(each), raw=True)] == each


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60))
def test_any_block_decodes_or_is_refused_for_a_reason(block):
    try:
        ours = Decoder().decode(block, LARGE, LARGE)
    except HpackError:
        return
    assert ours == [tuple(field) for field in hpack.Decoder(max_header_list_size=LARGE).decode(block, raw=True)]


@given(st.binary(max_size=300))
def test_huffman_round_trip(text):
    assert huffman.decode(hpack.Encoder().huffman_coder.encode(text)) == text


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\xff", b"\x1f\xff", b"\x18"])
def test_huffman_faults(data):
    with pytest.raises(ValueError, match="Huffman"):
        huffman.decode(data)


def test_field_is_indexed_when_it_comes_again():
    encoder = Encoder()
    sizes = [len(encoder.encode([(b"x-name", b"value")])) for _ in range(4)]
    assert sizes == [14, 14, 1, 1]


def test_values_that_never_repeat_stay_out_of_the_table():
    encoder = Encoder()
    for _ in range(2):
        encoder.encode([(b"x-name", b"value")])
    for number in range(1000):
        encoder.encode([(b"x-request-id", b"%040d" % number)])
    assert len(encoder.encode([(b"x-name", b"value")])) == 1


@pytest.mark.parametrize(
    "field",
    [
        (b"authorization", b"Bearer x"),
        (b"cookie", b"short"),
        (b"x-token", Sensitive(b"secret")),
        (b"proxy-authorization", b"x"),
    ],
)
def test_secrets_are_never_indexed(field):
    encoder = Encoder()
    blocks = [encoder.encode([field]) for _ in range(3)]
    assert blocks[0] == blocks[1] == blocks[2]
    assert blocks[0][0] & 0xF0 == 0x10


def test_secret_that_was_sent_openly_before():
    encoder = Encoder()
    for _ in range(3):
        encoder.encode([(b"x-token", b"secret")])
    assert encoder.encode([(b"x-token", Sensitive(b"secret"))])[0] & 0xF0 == 0x10


def test_mark_of_a_never_indexed_field_is_kept():
    (field,) = Decoder().decode(b"\x10\x01a\x01b", 100, 10) or []
    assert type(field[1]) is Sensitive
    assert field == (b"a", b"b")


@pytest.mark.parametrize(("limit", "count", "fits"), [(34 * 3, 3, True), (34 * 3 - 1, 3, False), (34 * 3, 2, False)])
def test_list_above_its_bound_keeps_the_table_in_step(limit, count, fits):
    decoder = Decoder()
    decoded = decoder.decode(b"\x40\x01a\x01b" * 3, limit, count)
    assert decoded == ([(b"a", b"b")] * 3 if fits else None)
    assert decoder.decode(b"\xbe\xbf\xc0", LARGE, LARGE) == [(b"a", b"b")] * 3


@pytest.mark.parametrize("limits", [(34 * 10, LARGE), (LARGE, 10)])
def test_bomb(limits):
    with pytest.raises(HpackBombError):
        Decoder().decode(b"\x40\x01a\x01b" + b"\xbe" * 40, *limits)


def test_changes_tell_when_equal_blocks_may_differ():
    decoder = Decoder()
    decoder.decode(b"\x82\x00\x01a\x01b", LARGE, LARGE)
    assert decoder.changes == 0
    decoder.decode(b"\x40\x01a\x01b", LARGE, LARGE)
    assert decoder.changes == 1
    decoder.decode(b"\x20", LARGE, LARGE)
    assert decoder.changes == 2


def test_entry_larger_than_the_table_empties_it():
    decoder = Decoder()
    decoder.decode(b"\x40\x01a\x01b", LARGE, LARGE)
    decoder.decode(b"\x40\x01a\x7f\xa1\x1f" + b"v" * 4128, LARGE, LARGE)
    with pytest.raises(HpackError):
        decoder.decode(b"\xbe", LARGE, LARGE)
