"""Readers and heads whose rows are fixed functions of the prefix, the exact law of their text, and a chi-square test."""

import functools
import itertools
from collections import Counter
from dataclasses import replace

import torch
from scipy.stats import chisquare

from flashspec import DenseHead, FlashHead, Limits, SpeculativeSampling, Stage, decode
from flashspec.decoding import cascade
from flashspec.heads.base import Head
from flashspec.heads.cluster import from_assignments
from flashspec.sampling import Sampling, Scores, warp

VOCAB, DEPTH = 4, 3
PREFIXES = sum(VOCAB**d for d in range(DEPTH + 1)) + 3  # a multiple of 8
PLAIN = Sampling(1.0, rule="speculative")


def number(prefix):
    return functools.reduce(lambda code, token: code * VOCAB + token + 1, prefix, 0)


class PrefixReader:
    """Row j is the number of the prefix that ends with token j; the prompt is one token."""

    context = 1 + DEPTH + 1

    def __init__(self):
        self.rows = torch.zeros(self.context, dtype=torch.int64)
        self.seen = 0

    def read(self, tokens):
        new = tokens.tolist()[1:]
        numbers = [number(new[:j]) for j in range(self.seen, len(new) + 1)]
        if numbers:
            self.rows[self.seen : len(new) + 1] = torch.tensor(numbers)
            self.seen = len(new) + 1
        return (len(numbers),)

    def rewind(self, n):
        self.seen = min(self.seen, n)


class PrefixHead(Head):
    vocab_size = VOCAB

    def __init__(self, head):
        self.scores = head(torch.eye(PREFIXES))

    def __call__(self, rows):
        ids = self.scores.ids
        return Scores(None if ids is None else ids[rows], self.scores.logits[rows])


@functools.cache
def weight(seed, *near):
    """Logits [vocab, prefixes] of one toy model; from the model it is `near` it differs by 0.3 to 0.5 in total variation."""
    if not near:
        return torch.randn(VOCAB, PREFIXES, generator=torch.Generator().manual_seed(seed)) * 1.2
    tries = torch.randn(500, VOCAB, PREFIXES, generator=torch.Generator().manual_seed(seed)) * 1.2
    apart = distance(tries, weight(*near))
    fits = (apart > 0.3) & (apart < 0.5)
    first = fits.int().argmax(0)
    return tries[first, :, torch.arange(PREFIXES)].T.contiguous()


def distance(first, second):
    return (first.softmax(-2) - second.softmax(-2)).abs().sum(-2) / 2


def dense(*which):
    return PrefixHead(DenseHead(None, weight(*which)))


def sparse(*which):
    logits = weight(*which)
    pairs = from_assignments(logits, torch.tensor([0, 1, 0, 1]), 2)
    return PrefixHead(FlashHead.build(logits, None, pairs, probes=1))


@functools.cache
def law(target, sampling=PLAIN):
    rows = warp(Scores(None, weight(target).T), sampling).logits.double().softmax(-1)
    joint = torch.zeros(VOCAB, VOCAB, VOCAB, dtype=torch.float64)
    for a, b, c in itertools.product(range(VOCAB), repeat=3):
        joint[a, b, c] = rows[number(()), a] * rows[number((a,)), b] * rows[number((a, b)), c]
    return joint


def three_tokens(make, seed, new, sampling=PLAIN):
    steps = decode(make(replace(sampling, seed=seed)), [0], Limits(new))
    return tuple([token for step in steps for token in step.tokens][:3])


def p_value(found, joint):
    """Chi-square p-value of counted triples against their law; cells of an expectation below 5 are one with another cell."""
    expected, order = (sum(found.values()) * joint.flatten()).sort(descending=True)
    seen = torch.tensor([found[cell] for cell in itertools.product(range(VOCAB), repeat=3)])[order].double()
    alone = int((expected >= 5).sum()) - 1
    return float(chisquare(*(torch.cat((each[:alone], each[alone:].sum()[None])) for each in (seen, expected))).pvalue)


def p_of(make, seeds, joint, new=3, sampling=PLAIN):
    return p_value(Counter(three_tokens(make, s, new, sampling) for s in range(seeds)), joint)


def caught(make, joint, new=3, seeds=20_000):
    found, looks = Counter(), {*(500 * 2**i for i in range(8)), seeds}
    for seed in range(seeds):
        found[three_tokens(make, seed, new)] += 1
        if seed + 1 in looks and p_value(found, joint) < 1e-8:
            return True
    return False


def stack(heads, rules=SpeculativeSampling, every=(1, 2, 2)):
    readers = [PrefixReader() for _ in heads]
    kinds = rules if isinstance(rules, list) else [rules] * len(heads)
    return lambda sampling: [
        Stage(*parts[:2], parts[2](sampling, VOCAB), parts[3])
        for parts in zip(readers, heads, kinds, every[: len(heads)], strict=True)
    ]


def without_promotion(state, first, found, promoted=cascade.promoted):
    waiting = state.waiting[first - state.marks[-1] :]
    return [*waiting[: found.kept], promoted(state, first, found)[-1]]
