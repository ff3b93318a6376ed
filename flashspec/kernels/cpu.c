// Decode kernels for CPUs: products with stored weights, norms, noise, and whole spans of transformer layers.
#include "bursts.h"
#include "repacked.h"
#include "verdicts.h"

// Products with integers go by an instruction set from now on: the numbered one, the fastest here for -1, as before for -2.
// Its number, or -1 where this processor, or this library, does not have it.
int64_t fs_isa(int64_t wanted) {
    for (int64_t i = 0; i < (int64_t)(sizeof ISAS / sizeof *ISAS); i++)
        if (wanted == -2 ? ISAS[i].product == panel_of_integers : (wanted < 0 || wanted == ISAS[i].number) && ISAS[i].here()) {
            panel_of_integers = ISAS[i].product;
            return ISAS[i].number;
        }
    return -1;
}

// Panels of integers of `rows` rows of a type of ggml's, at `out`, which is all zeros.
void fs_repack(const uint8_t *raw, int64_t type, int64_t rows, int64_t depth, uint8_t *out) { repack(raw, type, rows, depth, out); }

// Rows by number of a weight in panels, see take.
void fs_take(const uint8_t *cells, int64_t kind, int64_t depth, const int64_t *ids, int64_t count, uint8_t *out) { take(cells, (int)kind, depth, ids, count, out); }

// out[r, j] = x[r] . w[j]; `kind` names how the weight is stored.
void fs_linear(const float *x, int64_t rows, const void *w, int64_t kind, int64_t outputs, int64_t depth, float *out) {
#pragma omp parallel
    {
        int64_t start, stop;
        share(outputs, &start, &stop);
        product(x, rows, span((Matrix){w, kind, depth}, start, stop, 0), out, outputs);
    }
}

// out[r, p, :] = blocks[chosen[r, p]] . x[r]: each chosen block of `cap` weight rows is read where it lies, and the block
// DISTANCE bytes later is fetched meanwhile.
void fs_gather_linear(const float *x, int64_t rows, const void *blocks, int64_t kind, int64_t cap, int64_t depth, const int64_t *chosen, int64_t probes, float *out) {
    Matrix m = {blocks, kind, depth};
    int64_t block = bytes_of(kind, cap, depth), later = DISTANCE / block + 1;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows * probes; i++) {
        int64_t first = chosen[i] * cap;
        const char *next = i + later < rows * probes ? row_at(m, chosen[i + later] * cap) : 0;
        product(x + i / probes * depth, 1, (Span){m, first, first + cap, next, block}, out + i * cap - first, 0);
    }
}

// Rows behind a norm; without a bias it is one by the root mean square.
void fs_norm(const float *x, int64_t rows, const float *weight, const float *bias, double eps, int64_t width, float *out) {
    for (int64_t r = 0; r < rows; r++) normalise(x + r * width, (Norm){weight, bias}, (float)eps, width, out + r * width);
}

// Columns [rows] drawn with probabilities softmax(logits), see drawn_column.
void fs_draw(const float *logits, int64_t rows, int64_t count, const double *uniform, int64_t *columns) {
    for (int64_t r = 0; r < rows; r++) columns[r] = drawn_column(logits + r * count, count, uniform[r]);
}

// The best column [rows] of each row, -1 where there is NaN; behind Gumbel noise where there are hashed ids: those of every
// row, or the same ones for all.
void fs_best_columns(const float *logits, int64_t rows, int64_t count, const int32_t *hashed, int64_t same_ids, const int32_t *keys, int64_t *columns) {
#pragma omp parallel for schedule(static) if (hashed && rows > 1)
    for (int64_t r = 0; r < rows; r++) {
        const float *row = logits + r * count;
        float noisy[hashed ? count : 1];
        for (int64_t c = 0; hashed && c < count; c += 8) {
            u8 ids;
            memcpy(&ids, hashed + (same_ids ? c : r * count + c), sizeof ids);
            v8 v = load_f32(row + c) + noise(ids, (uint32_t)keys[r]);
            memcpy(noisy + c, &v, sizeof v);
        }
        columns[r] = best_column(hashed ? noisy : row, count);
    }
}

// Speculative sampling's verdict on `waiting` tokens, by waiting + 1 rows p of `count` logits and the rows q they were drawn
// from: how many stand, and the column that follows them; a column of -1 where there is NaN. `scratch` holds `count` floats.
void fs_judge(const float *logits, int64_t count, Row *q, int64_t waiting, const int64_t *tokens, const double *uniforms, float *scratch, int64_t *verdict) {
    const double *accept = uniforms, *residual = uniforms + waiting, *draw = residual + waiting;
    Row p[waiting + 1];
    int64_t kept = 0, sound = 1;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < 2 * waiting + 1; i++) {
        if (i <= waiting) p[i] = (Row){logits + i * count, 0, count, 0, 0};
        weigh(i <= waiting ? p + i : q + i - waiting - 1);
    }
    for (int64_t i = 0; i <= waiting; i++) sound &= p[i].whole > 0;
    while (sound && kept < waiting && accept[kept] * probability(q + kept, tokens[kept]) < probability(p + kept, tokens[kept])) kept++;
    verdict[0] = kept;
    if (!sound) verdict[1] = -1;
    else if (kept == waiting) verdict[1] = drawn_column(p[kept].logits, count, *draw);
    else verdict[1] = corrected(p + kept, q + kept, residual[kept], scratch);
}

// Gumbel noise of hashed ids under one key a row.
void fs_gumbel(const int32_t *hashed, int64_t same_ids, const int32_t *keys, int64_t rows, int64_t count, float *out) {
#pragma omp parallel for schedule(static) if (rows * count > 32768)
    for (int64_t at = 0; at < rows * count; at += 8) {
        u8 ids;
        memcpy(&ids, hashed + (same_ids ? at % count : at), sizeof ids);
        v8 found = noise(ids, (uint32_t)keys[at / count]);
        memcpy(out + at, &found, sizeof found);
    }
}

// Numbers of the `wanted` largest of each row of values, rising.
void fs_best_numbers(const float *values, int64_t rows, int64_t count, int64_t wanted, int32_t *keys, int64_t *numbers) {
    for (int64_t r = 0; r < rows; r++) best_numbers(values + r * count, count, wanted, keys, numbers + r * wanted);
}

// Floats of scratch fs_span needs for `rows` rows on `threads` threads.
int64_t fs_scratch(const Shape *s, int64_t rows, int64_t threads) { return carrying(s, rows, threads); }

// Carry x [rows, hidden] in place through `count` layers, see Places; scratch is for `threads`.
void fs_span(const Shape *s, const Layer *layers, int64_t count, float *x, int64_t rows, int64_t start, const Layer **texts, const int64_t *numbers, const int64_t *positions, int64_t threads, float *scratch) {
    Places places = {start, texts, numbers, positions};
#pragma omp parallel num_threads((int)threads)
    carry(s, layers, count, x, rows, places, scratch);
}

// Bytes of scratch fs_score needs for `rows` rows.
int64_t fs_scoring(const Head *h, int64_t rows) { return scoring(h, rows); }

// Scores of rows [n, depth] before the head's norm: logits, and ids where the head has clusters.
void fs_score(const Head *h, const float *rows, int64_t n, char *scratch, int64_t *ids, float *logits) {
#pragma omp parallel
    score(h, rows, n, scratch, ids, logits);
}

static int64_t room_of(const Writer *w, int64_t rows, int64_t threads) { return lines(carrying(w->shape, rows, threads)); }

// Floats of scratch fs_burst and fs_check need.
int64_t fs_bursting(const Writer *w, const Burst *b, int64_t threads) {
    int64_t rows = b->start + b->want - b->seen + 1;
    return room_of(w, rows, threads) + lines(columns_of(w->head)) + scoring(w->head, b->want) / 4 + 1;
}

// Write a burst of tokens, see write_burst.
void fs_burst(const Writer *w, const Law *law, const Burst *b, int64_t threads, float *scratch) {
    int64_t room = room_of(w, b->start - b->seen + 1, threads);
#pragma omp parallel num_threads((int)threads)
    write_burst(w, law, *b, scratch, room);
}

// Read what was not read of the tokens up to `start` + `want`, and score the last `want` rows.
void fs_check(const Writer *w, const Burst *b, int64_t threads, float *scratch) {
    int64_t stop = b->start + b->want, room = room_of(w, stop - b->seen, threads);
#pragma omp parallel num_threads((int)threads)
    {
        int64_t clock = instant();
        read_tokens(w, *b, b->seen, stop, scratch);
#pragma omp master
        b->times[0] += passed(&clock);
        score(w->head, b->rows + b->start * w->embedding.depth, b->want, (char *)(scratch + room), b->ids, b->logits);
#pragma omp master
        b->times[1] += passed(&clock);
    }
}
