// Vocabulary heads: all rows of a weight, or the blocks of the best clusters and of the ids that are always scored.
#pragma once
#include "draws.h"

// `first` is the vocabulary, or the directions of the clusters, `outputs` rows of it. Where `probes` is not zero, the
// `forced` blocks behind the clusters' and those of the best `probes` clusters are scored, `slots` rows each.
typedef struct {
    Norm norm;
    double eps;
    Matrix first, blocks;
    int64_t outputs, probes, forced, slots;
    const int64_t *ids;
    const float *bias;
} Head;

static int64_t columns_of(const Head *h) { return h->probes ? (h->probes + h->forced) * h->slots : h->outputs; }

#define STRIDE 32
// Numbers of the `wanted` largest of `count` values, rising; the smallest numbers win a tie. `keys` is scratch for `count`.
static void best_numbers(const float *values, int64_t count, int64_t wanted, int32_t *keys, int64_t *numbers) {
    int64_t low = INT32_MIN, high = INT32_MAX, found = 0, over = 0;
    for (int64_t c = 0; c < count; c++) {
        int32_t bits;
        memcpy(&bits, values + c, sizeof bits);
        keys[c] = bits ^ ((bits >> 31) & 0x7fffffff);
    }
    while (low < high) {
        int32_t middle = (int32_t)(low + (high - low + 1) / 2), at_least = 0;
        for (int64_t c = 0; c < count; c++) at_least += keys[c] >= middle;
        if (at_least >= wanted) low = middle;
        else high = (int64_t)middle - 1;
        if (at_least == wanted) break;
    }
    for (int64_t c = 0; c < count; c++) over += keys[c] > low;
    int64_t level = wanted - over;
    for (int64_t start = 0; start < count && found < wanted; start += STRIDE) {
        int64_t stop = start + STRIDE < count ? start + STRIDE : count;
        int32_t any = stop - start < STRIDE;
        for (int64_t i = 0; i < STRIDE && !(stop - start < STRIDE); i++) any |= keys[start + i] >= low;
        for (int64_t c = start; any && c < stop && found < wanted; c++) {
            if (keys[c] < low || (keys[c] == low && level-- <= 0)) continue;
            numbers[found++] = c;
        }
    }
}

// Bytes of scratch that scoring `rows` rows needs.
static int64_t scoring(const Head *h, int64_t rows) {
    int64_t clustered = h->probes ? h->outputs * 8 + (h->probes + h->forced) * 8 : 0;
    int64_t rounded = h->probes && h->blocks.kind >= U4 ? cells_of(h->blocks.depth) * (CELL + sizeof(Rounded)) : 0;
    return rows * (h->first.depth * 4 + clustered + rounded) + 64;
}

// The chosen blocks of rows; where the blocks are integers, the rows are rounded once, at `room`.
static void score_blocks(const Head *h, const float *states, int64_t rows, const int64_t *chosen, char *room, int64_t *ids, float *logits) {
    int64_t depth = h->blocks.depth, probes = h->probes + h->forced, slots = h->slots, cells = cells_of(depth);
    int64_t block = bytes_of(h->blocks.kind, slots, depth), later = DISTANCE / block + 1, whole = h->blocks.kind >= U4;
    Rounded *groups = (Rounded *)room;
    int8_t *codes = (int8_t *)(groups + rows * cells);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < (whole ? rows : 0); r++) round_row(states + r * depth, depth, codes + r * cells * CELL, groups + r * cells);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows * probes; i++) {
        int64_t from = chosen[i] * slots, r = i / probes;
        const char *next = i + later < rows * probes ? row_at(h->blocks, chosen[i + later] * slots) : 0;
        float *out = logits + i * slots - from;
        if (whole) {
            for (int64_t line = 0; next && line < block; line += 64) __builtin_prefetch(next + line, 0, 2);
            rounded_product(codes + r * cells * CELL, groups + r * cells, 1, h->blocks, from, from + slots, out, 0);
        } else product(states + r * depth, 1, (Span){h->blocks, from, from + slots, next, block}, out, 0);
        for (int64_t j = 0; j < slots; j++) {
            ids[i * slots + j] = h->ids[from + j];
            logits[i * slots + j] += h->bias[from + j];
        }
    }
}

// Logits, and ids where there are clusters, of rows [n, depth] before the norm: called by all threads of a team.
static void score(const Head *h, const float *rows, int64_t n, char *scratch, int64_t *ids, float *logits) {
    int64_t depth = h->first.depth, probes = h->probes + h->forced, from, to;
    int64_t *chosen = (int64_t *)scratch;
    float *states = (float *)(chosen + (h->probes ? n * probes : 0)), *likeness = states + n * depth;
    int32_t *keys = (int32_t *)(likeness + n * h->outputs);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < n; r++) {
        if (h->norm.weight) normalise(rows + r * depth, h->norm, (float)h->eps, depth, states + r * depth);
        else memcpy(states + r * depth, rows + r * depth, depth * sizeof(float));
    }
    share(h->outputs, &from, &to);
    product(states, n, span(h->first, from, to, 0), h->probes ? likeness : logits, h->outputs);
#pragma omp barrier
    if (!h->probes) return;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < n; r++) {
        for (int64_t f = 0; f < h->forced; f++) chosen[r * probes + f] = h->outputs + f;
        best_numbers(likeness + r * h->outputs, h->outputs, h->probes, keys + r * h->outputs, chosen + r * probes + h->forced);
    }
    score_blocks(h, states, n, chosen, (char *)(keys + n * h->outputs), ids, logits);
}
