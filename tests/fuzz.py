"""Spoiled files and odd values, and what comes of a call: a value, a sentence, or a defect that is found."""

import faulthandler
import json
import math
import re
import struct
import time
from pathlib import Path

from hypothesis import strategies as st

from flashspec.refusals import in_words

SECONDS, GIB = 20, 2**20
ODD = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, 10**40, -(2**70), 10**400, 0.0, -0.5, 1e308, math.nan]),
    st.sampled_from([math.inf, -math.inf, "", "no", "1", "../x", "/", "\0", "\ud800", "\n", "x" * 300, [], {}, [[]], {"": {}}]),
    st.lists(st.sampled_from([None, 1, -1, "a", 2.5, []]), max_size=3),
    st.dictionaries(st.sampled_from(["rope_type", "factor", "quant_method"]), st.sampled_from([1, "llama3", "awq", None, []])),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
)  # fmt: skip


def places(tree):
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from places(tree[key])


def spoiled_tree(draw, text):
    tree = json.loads(text)
    known = list(places(tree))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        holder, key = draw(st.sampled_from(known))
        how = draw(st.sampled_from(["replace", "replace", "replace", "delete", "twice", "deep", "nested json"]))
        if how == "delete" and (key in holder if isinstance(holder, dict) else key < len(holder)):
            del holder[key]
        elif how == "nested json" and isinstance(holder, dict) and isinstance(holder.get(key), str) and holder[key][:2] == '{"':
            holder[key] = spoiled_tree(draw, holder[key].encode()).decode(errors="replace")
        elif isinstance(holder, dict) or key < len(holder):
            holder[key] = "DEEP" if how == "deep" else draw(ODD)
        if how == "twice" and isinstance(tree, dict):
            return json.dumps(tree).encode()[:-1] + b"," + json.dumps({str(key): draw(ODD)}).encode()[1:]
    return json.dumps(tree).encode().replace(b'"DEEP"', draw(st.sampled_from([b"[" * 90_000, b"[" * 400 + b"]" * 400])))


@st.composite
def spoiled_bytes(draw, text):
    """A file cut short, or with bytes changed."""
    if draw(st.booleans()):
        return text[: draw(st.integers(0, len(text) - 1))]
    found = bytearray(text)
    for _ in range(draw(st.integers(1, 3))):
        found[draw(st.one_of(st.integers(0, min(len(text), 200) - 1), st.integers(0, len(text) - 1)))] = draw(st.integers(0, 255))
    return bytes(found)


@st.composite
def spoiled(draw, text, tensors=False):
    """A JSON file, or a safetensors file's header, with bytes or values changed, removed or repeated."""
    if draw(st.integers(0, 3)) == 0:
        return draw(spoiled_bytes(text))
    if not tensors:
        return spoiled_tree(draw, text)
    (size,) = struct.unpack("<Q", text[:8])
    header = spoiled_tree(draw, text[8 : 8 + size])
    return struct.pack("<Q", len(header)) + header + text[8 + size :]


def peak():
    """The most memory in KiB that this process has held since the mark was taken down."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def outcome(call, seconds=SECONDS, kibibytes=GIB):
    """The sentence in which a call is refused, or "fine"; AssertionError where it is a defect, slow, or takes gigabytes."""
    Path("/proc/self/clear_refs").write_text("5")
    faulthandler.dump_traceback_later(10 * SECONDS, exit=True)
    began, before, said = time.monotonic(), peak(), "fine"
    try:
        call()
    except Exception as error:
        said = in_words(error)
    finally:
        faulthandler.cancel_dump_traceback_later()
    taken = peak() - before
    assert "defect" not in said and len(said) > 3 and time.monotonic() - began < seconds and taken < kibibytes, said[:2000]
    return said
