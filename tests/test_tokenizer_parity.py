"""The tokenizer of a GGUF file gives the ids of a slow obvious one, and of transformers', on texts of many scripts."""

import json
import random
import unicodedata
from itertools import pairwise

import pytest
import shelf
import test_gguf

from flashspec.models.folder import PAIRS, published
from flashspec.models.gguf import Gguf, opened
from flashspec.models.tokenizer import PRE, from_gguf, pre_of

regex, transformers = pytest.importorskip("regex"), pytest.importorskip("transformers")
gguf, slow = pytest.importorskip("gguf"), pytest.importorskip("transformers.convert_slow_tokenizer")
END = "<|endoftext|>"
SCRIPTS = [
    (0x20, 0x7E), (0xA1, 0x17F), (0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x621, 0x64A), (0x660, 0x669), (0x905, 0x939),
    (0x93E, 0x94D), (0xE01, 0xE2E), (0x1100, 0x1112), (0x3041, 0x3096), (0x4E00, 0x4FFF), (0xAC00, 0xACFF), (0x300, 0x30F),
    (0x2010, 0x2027), (0x1F600, 0x1F64F), (0x2460, 0x2473),
]  # fmt: skip
WORDS = [
    "it's", "WE'LL", "don't", " x", "  ", "\n", "\n\n  ", "\t", "\r\n", "12", "345678", "!?\n", " (a_b)", "...",
    "def f(x):\n    return",
]  # fmt: skip
WORDS_OF_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # Radford et al. 2019, encoder.py


def texts(count, seed=0):
    dice = random.Random(seed)
    for _ in range(count):
        low, high = dice.choice(SCRIPTS)
        letters = [chr(dice.randint(low, high)) for _ in range(dice.randint(1, 12))]
        pieces = [*letters, *dice.choices(WORDS, k=dice.randint(1, 6))]
        dice.shuffle(pieces)
        yield "".join(piece for piece in pieces if unicodedata.category(piece[0]) != "Cn")


def splitter(pre):
    """How a family's texts fall into words, by the patterns that others published."""
    if pre == "qwen2":
        pattern = transformers.models.qwen2.tokenization_qwen2.PRETOKENIZE_REGEX
        return lambda text: regex.findall(pattern, unicodedata.normalize("NFC", text))
    if pre == "llama-bpe":
        return lambda text: regex.findall(slow.TikTokenConverter().pattern, text)
    if pre == "smollm":  # every digit alone, and GPT-2's words between them
        return lambda text: [word for run in regex.split(r"(\p{N})", text) for word in regex.findall(WORDS_OF_GPT2, run)]
    return lambda text: regex.findall(WORDS_OF_GPT2, text)


class Slow:
    """Byte pairs one merge at a time (Sennrich et al. 2016), on bytes written as GPT-2 does."""

    def __init__(self, facts):
        self.ids = {token: i for i, token in enumerate(facts["tokenizer.ggml.tokens"])}
        self.ranks = {tuple(pair.split(" ")): rank for rank, pair in enumerate(facts["tokenizer.ggml.merges"])}
        self.pre, self.known = facts["tokenizer.ggml.pre"], {}
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in plain]
        self.letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}

    def word(self, text):
        word = tuple(self.letters[byte] for byte in text.encode())
        if self.pre == "llama-bpe" and "".join(word) in self.ids:
            return [self.ids["".join(word)]]
        while len(word) > 1:
            best = min(pairwise(word), key=lambda pair: self.ranks.get(pair, 1e9))
            if best not in self.ranks:
                break
            word = self.merged(word, best)
        return [self.ids[piece] for piece in word]

    def merged(self, word, pair):
        made, at = [], 0
        while at < len(word):
            step = 2 if word[at : at + 2] == pair else 1
            made.append("".join(word[at : at + step]))
            at += step
        return tuple(made)

    def encode(self, text):
        words = splitter(self.pre)(text)
        self.known |= {word: self.word(word) for word in words if word not in self.known}
        return [i for word in words for i in self.known[word]]


def theirs(facts):
    """transformers' own tokenizer of these tokens and merges, where the family has a class."""
    kinds = {"qwen2": transformers.Qwen2Tokenizer, "gpt-2": transformers.GPT2Tokenizer}
    vocab = {token: i for i, token in enumerate(facts["tokenizer.ggml.tokens"])}
    merges = [tuple(pair.split(" ")) for pair in facts["tokenizer.ggml.merges"]]
    found = kinds.get(facts["tokenizer.ggml.pre"])
    return found and found(vocab=vocab, merges=merges)


def check(file, count):
    """Equal ids for that many texts; how many texts a tokenizer of another family would have split otherwise."""
    ours, naive, other = from_gguf(file), Slow(file.facts), theirs(file.facts)
    assert pre_of(ours, file.path) == file.facts["tokenizer.ggml.pre"]
    wrong, differing = Slow(file.facts), 0
    wrong.pre = "smollm" if naive.pre == "gpt-2" else "gpt-2"
    for text in texts(count):
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == naive.encode(text), repr(text)
        assert other is None or ids == other.encode(text, add_special_tokens=False), repr(text)
        assert ours.decode(ids) == (unicodedata.normalize("NFC", text) if naive.pre == "qwen2" else text)
        differing += ids != wrong.encode(text)
    return differing


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from tokenizers import Tokenizer

    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    shelf.train_tokenizer(path, "".join(texts(3000, 1)), 2000, END)
    return Tokenizer.from_file(str(path))


@pytest.mark.parametrize("pre", PRE)
def test_ids_are_those_of_a_slow_tokenizer_and_of_transformers(trained, tmp_path, pre):
    raw = json.loads(trained.to_str())["model"]
    writer, tokens = gguf.GGUFWriter(tmp_path / "t.gguf", "llama"), sorted(raw["vocab"], key=raw["vocab"].get)
    test_gguf.speak(writer, pre, tokens, [pair if isinstance(pair, str) else " ".join(pair) for pair in raw["merges"]])
    writer.add_token_types([3 if token == END else 1 for token in tokens])
    test_gguf.finish(writer)
    assert check(Gguf(tmp_path / "t.gguf"), 500) > 50  # the control
    assert from_gguf(Gguf(tmp_path / "t.gguf")).encode(f"x{END}").ids[-1] == tokens.index(END)


@pytest.mark.parametrize(("name", "role"), [(name, role) for name, pair in PAIRS.items() for role in pair])
def test_ids_of_published_models_are_those_of_transformers(name, role):
    assert check(opened(shelf.here(published, name, role)), 2000) > 100  # the control
