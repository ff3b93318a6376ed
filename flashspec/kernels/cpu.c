// Decode kernels for CPUs: float32 rows against float32, bfloat16, int8 or int4 weights.
// Every row's arithmetic is the same however many rows are computed together, so verification gives bit for bit
// what one-token decoding gives. Weights are read from memory once, however many rows there are.
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__FMA__) || defined(__AVX2__)
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif

typedef float v8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef uint32_t u8 __attribute__((vector_size(32)));
typedef uint16_t h8 __attribute__((vector_size(16)));

#define ALWAYS static inline __attribute__((always_inline))

ALWAYS v8 load_f32(const float *p) {
    v8 v;
    memcpy(&v, p, sizeof v);
    return v;
}

ALWAYS v8 load_bf16(const uint16_t *p) {
#ifdef __AVX2__
    return (v8)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
#else
    h8 half;
    memcpy(&half, p, sizeof half);
    u8 wide = __builtin_convertvector(half, u8) << 16;
    v8 v;
    memcpy(&v, &wide, sizeof v);
    return v;
#endif
}

ALWAYS v8 load_weight(const void *base, int bf16, int64_t at) {
    return bf16 ? load_bf16((const uint16_t *)base + at) : load_f32((const float *)base + at);
}

// a * b + sum, fused in every tile or in none: left to itself the compiler fuses in some of them, and rows come to depend on the tile.
ALWAYS v8 fused(v8 a, v8 b, v8 sum) {
#ifdef __FMA__
    return (v8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
    return a * b + sum;
#endif
}

ALWAYS float total(v8 v) {
    return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

// One tile: `rows` inputs against `cols` weight rows, one accumulator each, so the order of additions never depends on the tile.
// The weight rows from `ahead` on are fetched into the cache meanwhile, unless it is negative.
ALWAYS void tile(const float *x, const void *w, int bf16, int64_t first, int64_t ahead, int64_t depth, float *out, int64_t stride, int rows, int cols) {
    v8 sum[12] = {{0}};
    int64_t line = bf16 ? 32 : 16;
    const char *next = (const char *)w + ahead * depth * (bf16 ? 2 : 4);
    for (int64_t start = 0; start < depth; start += line) {
        if (ahead >= 0)
            for (int c = 0; c < cols; c++) __builtin_prefetch(next + (c * depth + start) * (bf16 ? 2 : 4));
        int64_t stop = start + line < depth ? start + line : depth;
        #pragma GCC unroll 4
        for (int64_t d = start; d < stop; d += 8) {
            v8 weight[8];
            for (int c = 0; c < cols; c++) weight[c] = load_weight(w, bf16, (first + c) * depth + d);
            for (int r = 0; r < rows; r++) {
                v8 in = load_f32(x + r * depth + d);
                for (int c = 0; c < cols; c++) sum[r * cols + c] = fused(in, weight[c], sum[r * cols + c]);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) out[r * stride + c] = total(sum[r * cols + c]);
}

// Weight rows [start, stop) of a matrix; the reader goes on at row `next`, which is fetched while the last ones are computed.
typedef struct {
    const void *w;
    int64_t start, stop, next, depth;
} Span;

#define DISTANCE 8
#define CASE(R, C) \
    case R: \
        for (; j + C <= s.stop; j += C) { \
            int64_t ahead = j + DISTANCE < s.stop ? j + DISTANCE : s.next < 0 ? -1 : s.next + (j + DISTANCE - s.stop); \
            tile(x, s.w, bf16, j, ahead, s.depth, out + j, stride, R, C); \
        } \
        for (; j < s.stop; j++) tile(x, s.w, bf16, j, -1, s.depth, out + j, stride, R, 1); \
        break;

// Up to seven rows against a span.
ALWAYS void few_rows(const float *x, int rows, Span s, int bf16, float *out, int64_t stride) {
    int64_t j = s.start;
    switch (rows) {
        CASE(1, 8) CASE(2, 4) CASE(3, 3) CASE(4, 2) CASE(5, 2) CASE(6, 2) CASE(7, 1)
    }
}

static void few_rows_f32(const float *x, int rows, Span s, float *out, int64_t stride) { few_rows(x, rows, s, 0, out, stride); }
static void few_rows_bf16(const float *x, int rows, Span s, float *out, int64_t stride) { few_rows(x, rows, s, 1, out, stride); }

#define WIDENED 8
// Many rows: a few weight rows at a time are widened to float32 once, and stay in the first cache for all rows.
static void many_rows(const float *x, int64_t rows, Span s, float *out, int64_t stride) {
    float wide[WIDENED * s.depth];
    for (int64_t j = s.start; j < s.stop; j += WIDENED) {
        int64_t some = s.stop - j < WIDENED ? s.stop - j : WIDENED;
        const uint16_t *from = (const uint16_t *)s.w + j * s.depth;
        for (int64_t d = 0; d < some * s.depth; d += 8) {
            if (d % 32 == 0) __builtin_prefetch(from + WIDENED * s.depth + d);
            v8 v = load_bf16(from + d);
            memcpy(wide + d, &v, sizeof v);
        }
        for (int64_t r = 0; r < rows; r += 6)
            few_rows_f32(x + r * s.depth, rows - r < 6 ? (int)(rows - r) : 6, (Span){wide, 0, some, -1, s.depth}, out + r * stride + j, stride);
    }
}

// out[r, j] = x[r] . w[j] for the span's weight rows j; each is read from memory once.
static void product(const float *x, int64_t rows, Span s, int bf16, float *out, int64_t stride) {
    if (rows <= 7 && bf16) few_rows_bf16(x, (int)rows, s, out, stride);
    else if (rows <= 7) few_rows_f32(x, (int)rows, s, out, stride);
    else if (bf16) many_rows(x, rows, s, out, stride);
    else
        for (int64_t j = s.start; j < s.stop; j += WIDENED)
            for (int64_t r = 0; r < rows; r += 6) {
                int64_t stop = j + WIDENED < s.stop ? j + WIDENED : s.stop;
                few_rows_f32(x + r * s.depth, rows - r < 6 ? (int)(rows - r) : 6, (Span){s.w, j, stop, r ? -1 : stop, s.depth}, out + r * stride, stride);
            }
}

static void share(int64_t count, int64_t *start, int64_t *stop) {
    int64_t each = (count + omp_get_num_threads() - 1) / omp_get_num_threads();
    each = (each + 7) / 8 * 8;
    *start = each * omp_get_thread_num();
    *stop = *start + each;
    if (*start > count) *start = count;
    if (*stop > count) *stop = count;
}

void fs_linear(const float *x, int64_t rows, const void *w, int64_t bf16, int64_t outputs, int64_t depth, float *out) {
#pragma omp parallel
    {
        int64_t start, stop;
        share(outputs, &start, &stop);
        product(x, rows, (Span){w, start, stop, -1, depth}, (int)bf16, out, outputs);
    }
}

// out[r, p, :] = blocks[chosen[r, p]] . x[r]: each chosen block of `cap` weight rows is read where it lies.
void fs_gather_linear(const float *x, int64_t rows, const void *blocks, int64_t bf16, int64_t cap, int64_t depth, const int64_t *chosen, int64_t probes, float *out) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows * probes; i++) {
        const float *row = x + i / probes * depth;
        int64_t first = chosen[i] * cap, next = i + 1 < rows * probes ? chosen[i + 1] * cap : -1;
        product(row, 1, (Span){blocks, first, first + cap, next, depth}, (int)bf16, out + i * cap - first, 0);
    }
}

typedef int8_t b8 __attribute__((vector_size(8)));

// Left to itself the compiler widens eight bytes one at a time.
ALWAYS i8 load_bytes(const int8_t *p) {
#ifdef __AVX2__
    return (i8)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
    b8 bytes;
    memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(bytes, i8);
#endif
}

// One tile against integer weights: every group of `group` columns is summed alone, then scaled and added to the whole.
// The rows DISTANCE further on are fetched into the cache meanwhile. int8 is a byte a column; int4 is two's complement nibbles, columns d..d+7 of sixteen in the low halves, d+8..d+15 in the high.
ALWAYS void packed_tile(const float *x, const int8_t *w, int bits, const float *scales, int64_t group, int64_t first, int64_t depth, float *out, int64_t stride, int rows, int cols) {
    int64_t groups = (depth + group - 1) / group, step = bits == 8 ? 8 : 16;
    v8 whole[8] = {{0}};
    for (int64_t g = 0; g < groups; g++) {
        int64_t stop = (g + 1) * group < depth ? (g + 1) * group : depth;
        v8 sum[8] = {{0}};
        for (int64_t d = g * group; d < stop; d += step) {
            for (int c = 0; c < cols; c++) {
                if (d % (512 / bits) == 0) __builtin_prefetch(w + ((first + c + DISTANCE) * depth + d) * bits / 8);
                i8 bytes = load_bytes(w + ((first + c) * depth + d) * bits / 8);
                v8 low = __builtin_convertvector(bits == 8 ? bytes : (bytes << 28) >> 28, v8);
                for (int r = 0; r < rows; r++) sum[r * cols + c] = fused(load_f32(x + r * depth + d), low, sum[r * cols + c]);
                if (bits == 8) continue;
                v8 high = __builtin_convertvector(bytes >> 4, v8);
                for (int r = 0; r < rows; r++) sum[r * cols + c] = fused(load_f32(x + r * depth + d + 8), high, sum[r * cols + c]);
            }
        }
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < cols; c++) whole[r * cols + c] = fused(sum[r * cols + c], (v8){0} + scales[(first + c) * groups + g], whole[r * cols + c]);
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) out[r * stride + c] = total(whole[r * cols + c]);
}

#define PACKED(R, C) \
    case R: \
        for (; j + C <= stop; j += C) packed_tile(x, w, bits, scales, group, j, depth, out + j, stride, R, C); \
        for (; j < stop; j++) packed_tile(x, w, bits, scales, group, j, depth, out + j, stride, R, 1); \
        break;

ALWAYS void packed_block(const float *x, const int8_t *w, int bits, const float *scales, int64_t group, int64_t start, int64_t stop, int64_t depth, float *out, int64_t stride, int rows) {
    int64_t j = start;
    switch (rows) {
        PACKED(1, 4) PACKED(2, 2) PACKED(3, 2) PACKED(4, 1)
    }
}

// out[r, j] = x[r] . w[j] for integer rows w[j] with a float32 scale for every group of columns, four rows of x at a time.
void fs_packed_linear(const float *x, int64_t rows, const int8_t *w, int64_t bits, const float *scales, int64_t group, int64_t outputs, int64_t depth, float *out) {
#pragma omp parallel
    {
        int64_t start, stop;
        share(outputs, &start, &stop);
        for (int64_t r = 0; r < rows; r += 4) {
            int some = rows - r < 4 ? (int)(rows - r) : 4;
            if (bits == 8)
                packed_block(x + r * depth, w, 8, scales, group, start, stop, depth, out + r * outputs, outputs, some);
            else
                packed_block(x + r * depth, w, 4, scales, group, start, stop, depth, out + r * outputs, outputs, some);
        }
    }
}

static void rms_norm(const float *x, const float *weight, float eps, int64_t width, float *out) {
    v8 sum = {0};
    for (int64_t d = 0; d < width; d += 8) {
        v8 v = load_f32(x + d);
        sum += v * v;
    }
    float scale = 1.0f / sqrtf(total(sum) / (float)width + eps);
    for (int64_t d = 0; d < width; d++) out[d] = weight[d] * (x[d] * scale);
}

void fs_rms_norm(const float *x, int64_t rows, const float *weight, double eps, int64_t width, float *out) {
    for (int64_t r = 0; r < rows; r++) rms_norm(x + r * width, weight, (float)eps, width, out + r * width);
}

// exp on eight lanes, relative error about 2e-7 (Cephes polynomial); above 88 it stays at exp(88), below -87 it is 0.
ALWAYS v8 exp8(v8 x) {
    const float rounding = 12582912.0f;
    i8 kept = x > -87.0f, large = x > 88.0f;
    v8 most = x * 0.0f + 88.0f;
    x = (v8)(((i8)x & ~large) | ((i8)most & large));
    v8 k = (x * 1.44269504f + rounding) - rounding;
    v8 f = x - k * 0.693359375f + k * 2.12194440e-4f;
    v8 p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    i8 bits = ((__builtin_convertvector(k, i8) + 127) << 23) & kept;
    v8 scale;
    memcpy(&scale, &bits, sizeof scale);
    i8 value;
    v8 result = p * scale;
    memcpy(&value, &result, sizeof value);
    value &= kept;
    memcpy(&result, &value, sizeof result);
    return result;
}

// log on eight lanes for normal positive numbers, relative error about 2e-7 (Cephes polynomial).
ALWAYS v8 log8(v8 x) {
    i8 bits;
    memcpy(&bits, &x, sizeof bits);
    i8 exponent = (bits >> 23) - 126;
    bits = (bits & 0x007fffff) | 0x3f000000;
    v8 m;
    memcpy(&m, &bits, sizeof m);
    i8 small = m < 0.70710678f;
    i8 extra;
    memcpy(&extra, &m, sizeof extra);
    extra &= small;
    v8 doubled;
    memcpy(&doubled, &extra, sizeof doubled);
    v8 e = __builtin_convertvector(exponent + small, v8);
    v8 f = m - 1.0f + doubled;
    v8 z = f * f, p = f * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    v8 y = p * f * z + e * -2.12194440e-4f - z * 0.5f;
    return f + y + e * 0.693359375f;
}

ALWAYS u8 mix(u8 x) {
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    return x ^ (x >> 16);
}

// Gumbel noise of hashed ids under one key a row: -log(-log(1 - u)), u uniform with fine grains near zero.
void fs_gumbel(const int32_t *hashed, int64_t same_ids, const int32_t *keys, int64_t rows, int64_t count, float *out) {
#pragma omp parallel for schedule(static) if (rows * count > 32768)
    for (int64_t at = 0; at < rows * count; at += 8) {
        int64_t r = at / count, c = at % count;
        u8 ids, key = (u8){0} + (uint32_t)keys[r];
        memcpy(&ids, hashed + (same_ids ? c : at), sizeof ids);
        u8 mixed = mix(ids ^ key);
        i8 whole;
        memcpy(&whole, &mixed, sizeof whole);
        v8 u = __builtin_convertvector(whole, v8) + 0.5f;
        i8 sign;
        memcpy(&sign, &u, sizeof sign);
        sign &= 0x7fffffff;
        memcpy(&u, &sign, sizeof u);
        u = u * 4.656612873077393e-10f;
        v8 below = (v8){0} + 0.99999994f;
        i8 over = u > below, low = u < 1e-3f, pick_u, pick_b;
        memcpy(&pick_u, &u, sizeof u);
        memcpy(&pick_b, &below, sizeof u);
        pick_u = (pick_u & ~over) | (pick_b & over);
        memcpy(&u, &pick_u, sizeof u);
        v8 series = u + u * u * (0.5f + u * 0.33333333f), direct = -log8(1.0f - u), wait;
        i8 a, b;
        memcpy(&a, &series, sizeof a);
        memcpy(&b, &direct, sizeof b);
        a = (a & low) | (b & ~low);
        memcpy(&wait, &a, sizeof wait);
        v8 noise = -log8(wait);
        memcpy(out + at, &noise, sizeof noise);
    }
}

typedef struct {
    const void *qkv, *out, *gate_up, *down;
    const float *attention_norm, *mlp_norm, *q_norm, *k_norm;
    float *keys, *values;
} Layer;

typedef struct {
    int64_t hidden, ffn, heads, kv_heads, head_dim, context, bf16, qk_norm;
    double eps;
    const float *cos, *sin;
} Shape;

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

ALWAYS v8 larger(v8 a, v8 b) {
    i8 first = a > b;
    return (v8)(((i8)a & first) | ((i8)b & ~first));
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
    product(query, group, (Span){keys, 0, seen, -1, hd}, 0, weights, padded);
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

static void attention(const Shape *s, const Layer *l, float *x, int64_t rows, int64_t start, float *norm, float *qkv, float *mixed, float *part, float *weights) {
    int64_t width = (s->heads + 2 * s->kv_heads) * s->head_dim, inner = s->heads * s->head_dim, from, to;
    for (int64_t r = 0; r < rows; r++) rms_norm(x + r * s->hidden, l->attention_norm, (float)s->eps, s->hidden, norm + r * s->hidden);
    share(width, &from, &to);
    product(norm, rows, (Span){l->qkv, from, to, -1, s->hidden}, (int)s->bf16, qkv, width);
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) place(s, l, qkv + r * width, start + r);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows * s->kv_heads; i++) {
        int64_t r = i / s->kv_heads, group = s->heads / s->kv_heads, h = i % s->kv_heads * group, kv = i % s->kv_heads * s->context * s->head_dim;
        attend(s, qkv + r * width + h * s->head_dim, group, l->keys + kv, l->values + kv, start + r + 1, weights, mixed + r * inner + h * s->head_dim);
    }
    share(s->hidden, &from, &to);
    product(mixed, rows, (Span){l->out, from, to, -1, inner}, (int)s->bf16, part, s->hidden);
    add_into(x, part, rows, s->hidden, from, to);
#pragma omp barrier
}

static void feed_forward(const Shape *s, const Layer *l, float *x, int64_t rows, float *norm, float *inner, float *dense, float *part) {
    int64_t from, to;
    for (int64_t r = 0; r < rows; r++) rms_norm(x + r * s->hidden, l->mlp_norm, (float)s->eps, s->hidden, norm + r * s->hidden);
    share(s->ffn, &from, &to);
    product(norm, rows, (Span){l->gate_up, from, to, s->ffn + from, s->hidden}, (int)s->bf16, inner, 2 * s->ffn);
    product(norm, rows, (Span){l->gate_up, s->ffn + from, s->ffn + to, -1, s->hidden}, (int)s->bf16, inner, 2 * s->ffn);
    gate(inner, rows, s->ffn, from, to);
    for (int64_t r = 0; r < rows; r++) memcpy(dense + r * s->ffn + from, inner + r * 2 * s->ffn + from, (to - from) * sizeof(float));
#pragma omp barrier
    share(s->hidden, &from, &to);
    product(dense, rows, (Span){l->down, from, to, -1, s->ffn}, (int)s->bf16, part, s->hidden);
    add_into(x, part, rows, s->hidden, from, to);
#pragma omp barrier
}

// Floats of scratch fs_span needs for `rows` rows on `threads` threads.
int64_t fs_scratch(const Shape *s, int64_t rows, int64_t threads) {
    int64_t width = (s->heads + 2 * s->kv_heads) * s->head_dim, inner = s->heads * s->head_dim;
    return rows * (width + inner + 3 * s->ffn + s->hidden) + threads * (rows * s->hidden + s->heads / s->kv_heads * (s->context + 8));
}

// Carry x [rows, hidden] in place through `count` layers; the first row stands at position `start`; scratch is for `threads`.
void fs_span(const Shape *s, const Layer *layers, int64_t count, float *x, int64_t rows, int64_t start, int64_t threads, float *scratch) {
    int64_t width = (s->heads + 2 * s->kv_heads) * s->head_dim, inner = s->heads * s->head_dim;
    float *qkv = scratch, *mixed = qkv + rows * width, *wide = mixed + rows * inner, *dense = wide + rows * 2 * s->ffn;
    float *part = dense + rows * s->ffn, *own = part + rows * s->hidden;
#pragma omp parallel num_threads((int)threads)
    {
        float *norm = own + omp_get_thread_num() * (rows * s->hidden + s->heads / s->kv_heads * (s->context + 8));
        float *weights = norm + rows * s->hidden;
        for (int64_t l = 0; l < count; l++) {
            attention(s, layers + l, x, rows, start, norm, qkv, mixed, part, weights);
            feed_forward(s, layers + l, x, rows, norm, wide, dense, part);
        }
    }
}
