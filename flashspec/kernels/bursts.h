// A burst: a draft reads what it has not read, then writes tokens one behind the other, without a word from the host.
#pragma once
#include <time.h>
#include "heads.h"

// How a token follows from logits: the best at temperature 0, the best of noisy ones where `hashed` ids are given, a draw by
// the inverse of the running sum otherwise.
typedef struct {
    double temperature;
    const int32_t *hashed, *keys;
    const double *uniform;
} Law;

// `positions` are added to embeddings, row by row from the first token on; a null weight adds nothing. Layers above others take
// their rows by position from `before`, where that is not null, instead of embeddings.
typedef struct {
    const Shape *shape;
    const Layer *layers;
    int64_t count;
    Matrix embedding, positions;
    const Head *head;
    const float *before;
} Writer;

// What a burst works on: tokens and rows by position, and the scores of every token it writes; a check reads tokens up to
// `start` + `want` and scores the rows from `start` on. Times are nanoseconds.
typedef struct {
    int64_t *tokens;
    float *rows;
    int64_t seen, start, want;
    int64_t *ids;
    float *logits;
    uint8_t *sound;
    int64_t *times;
} Burst;

static int64_t instant(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

// Eight columns of a weight's row, widened.
ALWAYS v8 eight_of(Matrix table, int64_t row, int64_t d) {
    if (table.kind == F32) return load_f32((const float *)table.w + row * table.depth + d);
    if (table.kind == BF16) return load_bf16((const uint16_t *)table.w + row * table.depth + d);
    v8 v;
    const uint8_t *cell = (const uint8_t *)row_at(table, row / PANEL * PANEL) + d / CELL * cell_of(table.kind);
    for (int i = 0; i < 8; i++) v[i] = weight_of(cell, table.kind, row % PANEL, d % CELL + i);
    return v;
}

// Rows of the tokens from `start` to `stop`, as they come into the layers.
static void embed(const Writer *w, const int64_t *tokens, int64_t start, int64_t stop, float *rows) {
    int64_t hidden = w->embedding.depth;
    if (w->before) {
        if (stop > start) memcpy(rows + start * hidden, w->before + start * hidden, (stop - start) * hidden * sizeof(float));
        return;
    }
    for (int64_t t = start; t < stop; t++)
        for (int64_t d = 0; d < hidden; d += 8) {
            v8 v = eight_of(w->embedding, tokens[t], d);
            if (w->positions.w) v += eight_of(w->positions, t, d);
            memcpy(rows + t * hidden + d, &v, sizeof v);
        }
}

// Warp logits in place and draw the burst's token number j from them; `noisy` is scratch for `count`.
static void draw_token(const Law *law, Burst b, int64_t j, float *logits, const int64_t *ids, int64_t count, float *noisy) {
    float heat = (float)law->temperature;
    int coupled = heat != 0 && law->hashed;
    if (heat != 0 && (coupled || heat != 1)) {
#pragma omp for schedule(static)
        for (int64_t at = 0; at < count; at += 8) {
            v8 v = load_f32(logits + at);
            if (heat != 1) v = v / heat;
            memcpy(logits + at, &v, sizeof v);
            if (!coupled) continue;
            u8 hashed;
            if (ids) for (int i = 0; i < 8; i++) hashed[i] = (uint32_t)law->hashed[ids[at + i]];
            else memcpy(&hashed, law->hashed + at, sizeof hashed);
            v += noise(hashed, (uint32_t)law->keys[j]);
            memcpy(noisy + at, &v, sizeof v);
        }
    }
#pragma omp single
    {
        int64_t column = heat == 0 ? best_column(logits, count) : coupled ? best_column(noisy, count) : drawn_column(logits, count, law->uniform[j]);
        b.sound[j] = column >= 0;
        column = column < 0 ? 0 : column;
        b.tokens[b.start + j] = ids ? ids[column] : column;
    }
}

// Nanoseconds since `*clock`, which moves to this instant.
static int64_t passed(int64_t *clock) {
    int64_t before = *clock;
    *clock = instant();
    return *clock - before;
}

// Floats rounded up to whole cache lines.
static int64_t lines(int64_t floats) { return (floats + 15) / 16 * 16; }

// Embed and carry the tokens between `from` and `stop`.
static void read_tokens(const Writer *w, Burst b, int64_t from, int64_t stop, float *scratch) {
    int64_t hidden = w->embedding.depth;
#pragma omp single
    embed(w, b.tokens, from, stop, b.rows);
    carry(w->shape, w->layers, w->count, b.rows + from * hidden, stop - from, (Places){.start = from}, scratch);
}

// Write `want` tokens behind `start`; the team's threads share every step. `room` floats of scratch are the layers'.
static void write_burst(const Writer *w, const Law *law, Burst b, float *scratch, int64_t room) {
    int64_t hidden = w->embedding.depth, columns = columns_of(w->head), clock = instant();
    float *noisy = scratch + room;
    char *rest = (char *)(noisy + lines(columns));
    for (int64_t j = 0; j < b.want; j++) {
        int64_t stop = b.start + j, from = j ? stop - 1 : b.seen;
        int64_t *ids = w->head->probes ? b.ids + j * columns : 0;
        read_tokens(w, b, from, stop, scratch);
#pragma omp master
        b.times[0] += passed(&clock);
        score(w->head, b.rows + (stop - 1) * hidden, 1, rest, ids, b.logits + j * columns);
#pragma omp master
        b.times[1] += passed(&clock);
        draw_token(law, b, j, b.logits + j * columns, ids, columns, noisy);
#pragma omp master
        b.times[2] += passed(&clock);
    }
}
