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

// The norm that subtracts the mean and adds a bias.
static void layer_norm(const float *x, const float *weight, const float *bias, float eps, int64_t width, float *out) {
    v8 sum = {0}, squares = {0};
    for (int64_t d = 0; d < width; d += 8) sum += load_f32(x + d);
    float mean = total(sum) / (float)width;
    for (int64_t d = 0; d < width; d += 8) {
        v8 v = load_f32(x + d) - mean;
        squares += v * v;
    }
    float scale = 1.0f / sqrtf(total(squares) / (float)width + eps);
    for (int64_t d = 0; d < width; d++) out[d] = weight[d] * ((x[d] - mean) * scale) + bias[d];
}

// A norm's weight, and its bias where it is one that has a mean.
typedef struct {
    const float *weight, *bias;
} Norm;

static void normalise(const float *x, Norm n, float eps, int64_t width, float *out) {
    if (n.bias) layer_norm(x, n.weight, n.bias, eps, width, out);
    else rms_norm(x, n.weight, eps, width, out);
}

// Biases are null where there are none. Without a gate there is the projection up alone. Rows by position as they come into the
// layer are put into `passed` where it is not null.
typedef struct {
    Matrix q, k, v, out, gate, up, down;
    const float *qkv_bias, *out_bias, *gate_up_bias, *down_bias;
    Norm attention_norm, mlp_norm, q_norm, k_norm;
    float *keys, *values, *passed;
} Layer;

// `cos` and `sin` are null where nothing is rotated.
typedef struct {
    int64_t hidden, ffn, heads, kv_heads, head_dim, context, qk_norm, gated;
    double eps;
    const float *cos, *sin;
} Shape;

// Where rows stand: behind one another from `start` on; or, of several texts at once, each at one of `positions`, in the caches
// of its own text's layers, which `texts[numbers[r]]` points to.
typedef struct {
    int64_t start;
    const Layer **texts;
    const int64_t *numbers, *positions;
} Places;

static int64_t position_of(Places p, int64_t r) { return p.texts ? p.positions[r] : p.start + r; }
static const Layer *layer_of(const Layer *layers, int64_t l, Places p, int64_t r) { return (p.texts ? p.texts[p.numbers[r]] : layers) + l; }
static Places behind(Places p, int64_t rows) {
    return p.texts ? (Places){0, p.texts, p.numbers + rows, p.positions + rows} : (Places){.start = p.start + rows};
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
        if (s->qk_norm) normalise(head, h < s->heads ? l->q_norm : l->k_norm, (float)s->eps, hd, head);
        if (s->cos) rotate(s, head, position);
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
    product(query, group, span((Matrix){keys, F32, hd}, 0, seen, values), weights, padded);
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

// Add a bias, where there is one, to columns [start, stop) of rows that stand `stride` apart.
static void add_bias(float *x, const float *bias, int64_t rows, int64_t stride, int64_t start, int64_t stop) {
    for (int64_t r = 0; bias && r < rows; r++)
        for (int64_t d = start; d < stop; d++) x[r * stride + d] += bias[d];
}

// dense = silu(gate) * up, for columns [start, stop) of the two.
static void gate(const float *inner, int64_t rows, int64_t ffn, int64_t start, int64_t stop, float *dense) {
    for (int64_t r = 0; r < rows; r++) {
        const float *g = inner + r * 2 * ffn, *u = g + ffn;
        for (int64_t d = start; d + 8 <= stop; d += 8) {
            v8 v = load_f32(g + d);
            v8 silu = v / (1.0f + exp8(-v)) * load_f32(u + d);
            memcpy(dense + r * ffn + d, &silu, sizeof silu);
        }
    }
}

// dense = relu(up).
static void rectify(const float *inner, int64_t rows, int64_t ffn, int64_t start, int64_t stop, float *dense) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = start; d < stop; d++) dense[r * ffn + d] = inner[r * 2 * ffn + d] > 0 ? inner[r * 2 * ffn + d] : 0;
}

// This thread's part of a product with all of a matrix's `outputs` rows, and where its part of the matrix that is read `next` begins.
static void shared_product(const float *x, int64_t rows, Matrix m, int64_t outputs, const void *next, float *out, int64_t stride) {
    int64_t from, to;
    share(outputs, &from, &to);
    product(x, rows, span(m, from, to, next), out, stride);
}

static const void *share_of(Matrix m, int64_t outputs) {
    int64_t from, to;
    share(outputs, &from, &to);
    return row_at(m, from);
}

static void attention(const Shape *s, const Layer *layers, int64_t number, float *x, int64_t rows, Places places, float *norm, float *qkv, float *mixed, float *part, float *weights) {
    const Layer *l = layers + number;
    int64_t width = (s->heads + 2 * s->kv_heads) * s->head_dim, inner = s->heads * s->head_dim, from, to;
    for (int64_t r = 0; r < rows; r++) normalise(x + r * s->hidden, l->attention_norm, (float)s->eps, s->hidden, norm + r * s->hidden);
    int64_t kv = s->kv_heads * s->head_dim;
    shared_product(norm, rows, l->q, inner, share_of(l->k, kv), qkv, width);
    shared_product(norm, rows, l->k, kv, share_of(l->v, kv), qkv + inner, width);
    shared_product(norm, rows, l->v, kv, share_of(l->out, s->hidden), qkv + inner + kv, width);
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        add_bias(qkv + r * width, l->qkv_bias, 1, width, 0, width);
        place(s, layer_of(layers, number, places, r), qkv + r * width, position_of(places, r));
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows * s->kv_heads; i++) {
        int64_t r = i / s->kv_heads, group = s->heads / s->kv_heads, h = i % s->kv_heads * group, at = i % s->kv_heads * s->context * s->head_dim;
        const Layer *own = layer_of(layers, number, places, r);
        attend(s, qkv + r * width + h * s->head_dim, group, own->keys + at, own->values + at, position_of(places, r) + 1, weights, mixed + r * inner + h * s->head_dim);
    }
    share(s->hidden, &from, &to);
    product(mixed, rows, span(l->out, from, to, share_of(s->gated ? l->gate : l->up, s->ffn)), part, s->hidden);
    add_bias(part, l->out_bias, rows, s->hidden, from, to);
    add_into(x, part, rows, s->hidden, from, to);
#pragma omp barrier
}

// This thread's columns of what goes down again: gated, or rectified.
static void go_up(const Shape *s, const Layer *l, const float *norm, int64_t rows, float *inner, float *dense) {
    int64_t ffn = s->ffn, from, to;
    share(ffn, &from, &to);
    if (s->gated) product(norm, rows, span(l->gate, from, to, row_at(l->up, from)), inner, 2 * ffn);
    product(norm, rows, span(l->up, from, to, share_of(l->down, s->hidden)), inner + s->gated * ffn, 2 * ffn);
    add_bias(inner, l->gate_up_bias, rows, 2 * ffn, from, to);
    if (s->gated) add_bias(inner, l->gate_up_bias, rows, 2 * ffn, ffn + from, ffn + to);
    (s->gated ? gate : rectify)(inner, rows, ffn, from, to, dense);
}

static void feed_forward(const Shape *s, const Layer *l, float *x, int64_t rows, const void *next, float *norm, float *inner, float *dense, float *part) {
    int64_t from, to;
    for (int64_t r = 0; r < rows; r++) normalise(x + r * s->hidden, l->mlp_norm, (float)s->eps, s->hidden, norm + r * s->hidden);
    go_up(s, l, norm, rows, inner, dense);
#pragma omp barrier
    share(s->hidden, &from, &to);
    product(dense, rows, span(l->down, from, to, next), part, s->hidden);
    add_bias(part, l->down_bias, rows, s->hidden, from, to);
    add_into(x, part, rows, s->hidden, from, to);
#pragma omp barrier
}

enum { SOME = 256 };  // rows of a long prompt that are carried at once

// Floats of scratch that carrying `rows` rows on `threads` threads needs.
static int64_t carrying(const Shape *s, int64_t rows, int64_t threads) {
    rows = rows < SOME ? rows : SOME;
    int64_t width = (s->heads + 2 * s->kv_heads) * s->head_dim, inner = s->heads * s->head_dim;
    return rows * (width + inner + 3 * s->ffn + s->hidden) + threads * (rows * s->hidden + s->heads / s->kv_heads * (s->context + 8));
}

static void carry_some(const Shape *s, const Layer *layers, int64_t count, float *x, int64_t rows, Places places, float *scratch) {
    int64_t width = (s->heads + 2 * s->kv_heads) * s->head_dim, inner = s->heads * s->head_dim;
    float *qkv = scratch, *mixed = qkv + rows * width, *wide = mixed + rows * inner, *dense = wide + rows * 2 * s->ffn;
    float *part = dense + rows * s->ffn, *own = part + rows * s->hidden;
    float *norm = own + omp_get_thread_num() * (rows * s->hidden + s->heads / s->kv_heads * (s->context + 8));
    float *weights = norm + rows * s->hidden;
    for (int64_t l = 0; l < count; l++) {
        if (layers[l].passed) {  // nobody changes x before the barriers of the attention
#pragma omp for schedule(static) nowait
            for (int64_t r = 0; r < rows; r++)
                memcpy(layer_of(layers, l, places, r)->passed + position_of(places, r) * s->hidden, x + r * s->hidden, s->hidden * sizeof(float));
        }
        attention(s, layers, l, x, rows, places, norm, qkv, mixed, part, weights);
        const void *next = l + 1 < count ? share_of(layers[l + 1].q, inner) : 0;
        feed_forward(s, layers + l, x, rows, next, norm, wide, dense, part);
    }
}

// Carry x [rows, hidden] in place through `count` layers.
static void carry(const Shape *s, const Layer *layers, int64_t count, float *x, int64_t rows, Places places, float *scratch) {
    for (int64_t n; rows > 0; x += n * s->hidden, places = behind(places, n), rows -= n) {
        n = rows < SOME ? rows : SOME;
        carry_some(s, layers, count, x, n, places, scratch);
    }
}
