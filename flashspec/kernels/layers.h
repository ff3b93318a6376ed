// Transformer layers: every function is called by all threads of a team, which share the rows of each matrix.
#pragma once
#include "products.h"

static void rms_norm(const float *x, const float *weight, float eps, int64_t width, float *out) {
    v8 sum = {0};
    for (int64_t d = 0; d < width; d += 8) {
        v8 v = load_f32(x + d);
        sum += v * v;
    }
    float scale = 1.0f / sqrtf(total(sum) / (float)width + eps);
    for (int64_t d = 0; d < width; d++) out[d] = weight[d] * (x[d] * scale);
}

ALWAYS v8 larger(v8 a, v8 b) {
    i8 first = a > b;
    return (v8)(((i8)a & first) | ((i8)b & ~first));
}

typedef struct {
    const void *qkv, *out, *gate_up, *down;
    const float *qkv_scales, *out_scales, *gate_up_scales, *down_scales;
    const float *attention_norm, *mlp_norm, *q_norm, *k_norm;
    float *keys, *values;
} Layer;

typedef struct {
    int64_t hidden, ffn, heads, kv_heads, head_dim, context, kind, group, qk_norm;
    double eps;
    const float *cos, *sin;
} Shape;

static Matrix matrix(const Shape *s, const void *w, const float *scales, int64_t depth) {
    return (Matrix){w, scales, s->kind, depth, s->group ? s->group : depth};
}

static void rotate(const Shape *s, float *head, int64_t position) {
    const float *cosine = s->cos + position * s->head_dim, *sine = s->sin + position * s->head_dim;
    int64_t half = s->head_dim / 2;
    for (int64_t d = 0; d < half; d++) {
        float left = head[d], right = head[d + half];
        head[d] = left * cosine[d] - right * sine[d];
        head[d + half] = right * cosine[d + half] + left * sine[d + half];
    }
}

// Normalise and rotate query and key heads of one row, and put its keys and values into the cache.
static void place(const Shape *s, const Layer *l, float *row, int64_t position) {
    int64_t hd = s->head_dim, rotated = s->heads + s->kv_heads;
    for (int64_t h = 0; h < rotated; h++) {
        float *head = row + h * hd;
        if (s->qk_norm) rms_norm(head, h < s->heads ? l->q_norm : l->k_norm, (float)s->eps, hd, head);
        rotate(s, head, position);
    }
    for (int64_t h = 0; h < s->kv_heads; h++) {
        int64_t at = (h * s->context + position) * hd;
        memcpy(l->keys + at, row + (s->heads + h) * hd, hd * sizeof(float));
        memcpy(l->values + at, row + (rotated + h) * hd, hd * sizeof(float));
    }
}

// exp(weight * scale - the largest) in place, -INFINITY behind the `seen` ones; their sum.
static float exponentials(float *weights, int64_t seen, float scale) {
    int64_t padded = (seen + 7) / 8 * 8;
    for (int64_t t = seen; t < padded; t++) weights[t] = -INFINITY;
    v8 top = (v8){0} - INFINITY, sums = {0};
    for (int64_t t = 0; t < padded; t += 8) top = larger(load_f32(weights + t) * scale, top);
    float most = top[0];
    for (int i = 1; i < 8; i++)
        if (top[i] > most) most = top[i];
    for (int64_t t = 0; t < padded; t += 8) {
        v8 e = exp8(load_f32(weights + t) * scale - most);
        memcpy(weights + t, &e, sizeof e);
        sums += e;
    }
    return total(sums);
}

// out = sum over t of weights[t] * values[t], over `sum`, for `vectors` times eight columns.
ALWAYS void mixture(const float *weights, const float *values, int64_t seen, int64_t stride, float sum, float *out, int vectors) {
    v8 mix[8] = {{0}};
    for (int64_t t = 0; t < seen; t++)
        for (int i = 0; i < vectors; i++) mix[i] = fused((v8){0} + weights[t], load_f32(values + t * stride + 8 * i), mix[i]);
    for (int i = 0; i < vectors; i++) {
        v8 mean = mix[i] / sum;
        memcpy(out + 8 * i, &mean, sizeof mean);
    }
}

// Softmax attention of `group` query heads that share keys and values, over `seen` cached positions.
// `weights` is scratch of `seen`, rounded up to 8, for every head.
static void attend(const Shape *s, const float *query, int64_t group, const float *keys, const float *values, int64_t seen, float *weights, float *out) {
    int64_t hd = s->head_dim, padded = (seen + 7) / 8 * 8;
    product(query, group, span((Matrix){keys, 0, F32, hd, hd}, 0, seen, values), weights, padded);
    for (int64_t g = 0; g < group; g++) {
        float *own = weights + g * padded, *mixed = out + g * hd, sum = exponentials(own, seen, 1.0f / sqrtf((float)hd));
        int64_t d = 0;
        for (; d + 64 <= hd; d += 64) mixture(own, values + d, seen, hd, sum, mixed + d, 8);
        for (; d < hd; d += 8) mixture(own, values + d, seen, hd, sum, mixed + d, 1);
    }
}

static void add_into(float *x, const float *part, int64_t rows, int64_t width, int64_t start, int64_t stop) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = start; d < stop; d++) x[r * width + d] += part[r * width + d];
}

static void gate(float *hidden, int64_t rows, int64_t ffn, int64_t start, int64_t stop) {
    for (int64_t r = 0; r < rows; r++) {
        float *g = hidden + r * 2 * ffn, *u = g + ffn;
        for (int64_t d = start; d + 8 <= stop; d += 8) {
            v8 v = load_f32(g + d);
            v8 silu = v / (1.0f + exp8(-v)) * load_f32(u + d);
            memcpy(g + d, &silu, sizeof silu);
        }
    }
}

// Where this thread's share of a matrix with `outputs` rows begins.
static const void *share_of(const Shape *s, const void *w, int64_t outputs, int64_t depth) {
    int64_t from, to;
    share(outputs, &from, &to);
    return row_at(matrix(s, w, 0, depth), from);
}

static void attention(const Shape *s, const Layer *l, float *x, int64_t rows, int64_t start, float *norm, float *qkv, float *mixed, float *part, float *weights) {
    int64_t width = (s->heads + 2 * s->kv_heads) * s->head_dim, inner = s->heads * s->head_dim, from, to;
    for (int64_t r = 0; r < rows; r++) rms_norm(x + r * s->hidden, l->attention_norm, (float)s->eps, s->hidden, norm + r * s->hidden);
    share(width, &from, &to);
    product(norm, rows, span(matrix(s, l->qkv, l->qkv_scales, s->hidden), from, to, share_of(s, l->out, s->hidden, inner)), qkv, width);
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) place(s, l, qkv + r * width, start + r);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows * s->kv_heads; i++) {
        int64_t r = i / s->kv_heads, group = s->heads / s->kv_heads, h = i % s->kv_heads * group, kv = i % s->kv_heads * s->context * s->head_dim;
        attend(s, qkv + r * width + h * s->head_dim, group, l->keys + kv, l->values + kv, start + r + 1, weights, mixed + r * inner + h * s->head_dim);
    }
    share(s->hidden, &from, &to);
    product(mixed, rows, span(matrix(s, l->out, l->out_scales, inner), from, to, share_of(s, l->gate_up, s->ffn, s->hidden)), part, s->hidden);
    add_into(x, part, rows, s->hidden, from, to);
#pragma omp barrier
}

static void feed_forward(const Shape *s, const Layer *l, float *x, int64_t rows, const void *next, float *norm, float *inner, float *dense, float *part) {
    int64_t from, to;
    for (int64_t r = 0; r < rows; r++) rms_norm(x + r * s->hidden, l->mlp_norm, (float)s->eps, s->hidden, norm + r * s->hidden);
    share(s->ffn, &from, &to);
    Matrix gate_up = matrix(s, l->gate_up, l->gate_up_scales, s->hidden), down = matrix(s, l->down, l->down_scales, s->ffn);
    product(norm, rows, span(gate_up, from, to, row_at(gate_up, s->ffn + from)), inner, 2 * s->ffn);
    product(norm, rows, span(gate_up, s->ffn + from, s->ffn + to, share_of(s, l->down, s->hidden, s->ffn)), inner, 2 * s->ffn);
    gate(inner, rows, s->ffn, from, to);
    for (int64_t r = 0; r < rows; r++) memcpy(dense + r * s->ffn + from, inner + r * 2 * s->ffn + from, (to - from) * sizeof(float));
#pragma omp barrier
    share(s->hidden, &from, &to);
    product(dense, rows, span(down, from, to, next), part, s->hidden);
    add_into(x, part, rows, s->hidden, from, to);
#pragma omp barrier
}

// Floats of scratch that carrying `rows` rows on `threads` threads needs.
static int64_t carrying(const Shape *s, int64_t rows, int64_t threads) {
    int64_t width = (s->heads + 2 * s->kv_heads) * s->head_dim, inner = s->heads * s->head_dim;
    return rows * (width + inner + 3 * s->ffn + s->hidden) + threads * (rows * s->hidden + s->heads / s->kv_heads * (s->context + 8));
}

// Carry x [rows, hidden] in place through `count` layers; the first row stands at position `start`.
static void carry(const Shape *s, const Layer *layers, int64_t count, float *x, int64_t rows, int64_t start, float *scratch) {
    int64_t width = (s->heads + 2 * s->kv_heads) * s->head_dim, inner = s->heads * s->head_dim;
    float *qkv = scratch, *mixed = qkv + rows * width, *wide = mixed + rows * inner, *dense = wide + rows * 2 * s->ffn;
    float *part = dense + rows * s->ffn, *own = part + rows * s->hidden;
    float *norm = own + omp_get_thread_num() * (rows * s->hidden + s->heads / s->kv_heads * (s->context + 8));
    float *weights = norm + rows * s->hidden;
    for (int64_t l = 0; l < count; l++) {
        attention(s, layers + l, x, rows, start, norm, qkv, mixed, part, weights);
        const void *next = l + 1 < count ? share_of(s, layers[l + 1].qkv, width, s->hidden) : 0;
        feed_forward(s, layers + l, x, rows, next, norm, wide, dense, part);
    }
}
