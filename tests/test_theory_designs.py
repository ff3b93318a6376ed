"""The optimiser finds the draft that the relations were made for, and refuses to fit what does not span a plane."""

from itertools import product

import pytest

from flashspec.theory import Costs, acceptance_for, best_design, best_k, fitted, tokens_per_check

PLACES = [(float(layers), body) for layers, body in product((1, 2, 4, 8), (1e6, 2e6))]


def seconds(layers, body):
    return 5e-4 + 1e-4 * layers + 1e-10 * body


def alpha(layers, body):
    odds = 0.8 * layers**0.5 * (body / 1e6) ** 0.5
    return odds / (1 + odds)


def bursts(step=seconds):
    return {k: fitted([(*place, k * step(*place)) for place in PLACES]) for k in range(1, 9)}


def relations():
    kept = fitted([(*place, alpha(*place)) for place in PLACES], "share")
    return bursts(), dict.fromkeys(range(1, 9), kept)


def test_relations_give_back_what_they_were_fitted_to():
    burst, acceptance = relations()
    for place in [*PLACES, (3.0, 1.5e6)]:
        assert burst[3](*place) == pytest.approx(3 * seconds(*place), rel=1e-6)
        assert acceptance[4](*place) == pytest.approx(alpha(*place), rel=1e-6)


def test_the_optimum_is_the_best_of_a_naive_search():
    burst, acceptance = relations()
    layers, bodies = list(range(1, 9)), [1e6, 1.5e6, 2e6]
    naive = {place: best_k(alpha(*place), Costs(seconds(*place), 4e-3), 8) for place in product(layers, bodies)}
    place = max(naive, key=lambda where: naive[where].throughput)
    found = best_design(burst, acceptance, lambda block: 4e-3, layers, bodies)
    assert (found.layers, found.body, found.block) == (*place, naive[place].block)
    assert found.throughput == pytest.approx(naive[place].throughput, rel=1e-6)


def test_dear_layers_make_the_best_draft_shallower():
    _, acceptance = relations()
    dear, cheap = bursts(lambda layers, body: seconds(layers, body) + 2e-3 * layers), bursts(lambda layers, body: 1e-5)
    depth = [best_design(burst, acceptance, lambda block: 4e-3, range(1, 9), [1e6]).layers for burst in (dear, cheap)]
    assert depth == [1, 8]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_acceptance_for_inverts_tokens_per_check(alpha):
    assert acceptance_for(tokens_per_check(alpha, 4), 4) == pytest.approx(alpha, abs=1e-6)
