// Verdicts of speculative sampling (Leviathan et al. 2023, section 2.3) on warped logits.
#pragma once
#include "heads.h"

// One row of warped logits: the ids they speak for (null: the whole vocabulary, in order), the largest of them, and the sum
// of exp(logit - largest).
typedef struct {
    const float *logits;
    const int64_t *ids;
    int64_t count;
    float most, whole;
} Row;

static void weigh(Row *row) {
    float parts[row->count / PART + 2];
    row->whole = unnormalised(row->logits, row->count, parts);
    row->most = parts[(row->count + PART - 1) / PART];
}

static float share_at(const Row *row, int64_t column) { return expf(row->logits[column] - row->most) / row->whole; }

// Probability of an id; an id that stands twice has its mass in one of the places.
static float probability(const Row *row, int64_t id) {
    float mass = 0;
    if (!row->ids) return share_at(row, id);
    for (int64_t c = 0; c < row->count; c++)
        if (row->ids[c] == id) mass += share_at(row, c);
    return mass;
}

static void shares(const Row *row, float *out) {
    int64_t c = 0;
    for (; c + 8 <= row->count; c += 8) {
        v8 v = exp8(load_f32(row->logits + c) - row->most) / row->whole;
        memcpy(out + c, &v, sizeof v);
    }
    for (; c < row->count; c++) out[c] = share_at(row, c);
}

// A column drawn from weights by the inverse of their running sum, -1 where they sum to nothing.
static int64_t weighted_column(const float *weights, int64_t count, double uniform) {
    double whole = 0, seen = 0;
    int64_t last = -1;
    for (int64_t c = 0; c < count; c++) whole += weights[c];
    if (!(whole > 0)) return -1;
    for (int64_t c = 0; c < count; c++) {
        if (weights[c] > 0) last = c;
        seen += weights[c];
        if (weights[c] > 0 && seen > uniform * whole) break;
    }
    return last;
}

// From max(p - q, 0), or from p where nothing is left of it; `left` is scratch for the vocabulary.
static int64_t corrected(const Row *p, const Row *q, double uniform, float *left) {
    shares(p, left);
    for (int64_t c = 0; c < q->count; c++) {
        int64_t id = q->ids ? q->ids[c] : c;
        float rest = left[id] - share_at(q, c);
        left[id] = q->logits[c] == -INFINITY ? left[id] : rest > 0 ? rest : 0;
    }
    int64_t column = weighted_column(left, p->count, uniform);
    return column >= 0 ? column : drawn_column(p->logits, p->count, uniform);
}
