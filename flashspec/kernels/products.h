// Products of float32 rows with float32, bfloat16, int8 or int4 weights, as many lanes at a time as the processor has.
// Every row's arithmetic is the same however many rows are computed together, so verification gives bit for bit
// what one-token decoding gives. Weights are read from memory once, however many rows there are.
#pragma once
#include "vectors.h"

enum { F32, BF16, INT8, INT4 };
enum { PLAIN, BY_ROW, BY_GROUP };

// Rows of `depth` columns. Integers have float32 scales: one a row, or one for every `group` columns.
// int4 is two's complement nibbles, columns d..d+7 of sixteen in the low halves of eight bytes, d+8..d+15 in the high.
typedef struct {
    const void *w;
    const float *scales;
    int64_t kind, depth, group;
} Matrix;

ALWAYS int64_t bytes_of(int kind, int64_t columns) {
    return kind == F32 ? columns * 4 : kind == BF16 ? columns * 2 : kind == INT8 ? columns : columns / 2;
}

#ifdef __AVX512F__
#define LANES 16
typedef __m512 vw;
// Behind `tail`, eight columns are left: the upper lanes are zeros.
ALWAYS vw input(const float *p, int tail) {
    return tail ? _mm512_castpd_ps(_mm512_insertf64x4(_mm512_setzero_pd(), _mm256_castps_pd(_mm256_loadu_ps(p)), 0)) : _mm512_loadu_ps(p);
}

ALWAYS vw weight_at(const void *base, int kind, int64_t at, int tail) {
    const char *p = (const char *)base + bytes_of(kind, at);
    if (kind == F32) return input((const float *)p, tail);
    if (kind == BF16) {
        __m256i half = tail ? _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)p)) : _mm256_loadu_si256((const __m256i *)p);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    if (kind == INT8) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(tail ? _mm_loadl_epi64((const __m128i *)p) : _mm_loadu_si128((const __m128i *)p)));
    int64_t eight;
    memcpy(&eight, p, sizeof eight);
    const __m512i places = _mm512_set_epi32(24, 24, 24, 24, 24, 24, 24, 24, 28, 28, 28, 28, 28, 28, 28, 28);
    __m512i twice = _mm512_cvtepi8_epi32(_mm_set1_epi64x(eight));
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_sllv_epi32(twice, places), 28));
}

ALWAYS vw fused_wide(vw a, vw b, vw sum) { return _mm512_fmadd_ps(a, b, sum); }
ALWAYS vw all_lanes(float x) { return _mm512_set1_ps(x); }
ALWAYS float total_wide(vw v) {
    __m256 low = _mm512_castps512_ps256(v), high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
    return total((v8)low + (v8)high);
}
#else
#define LANES 8
typedef v8 vw;
typedef int8_t b8 __attribute__((vector_size(8)));

// Left to itself the compiler widens eight bytes one at a time.
ALWAYS i8 load_bytes(const void *p) {
#ifdef __AVX2__
    return (i8)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
    b8 bytes;
    memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(bytes, i8);
#endif
}

ALWAYS vw input(const float *p, int tail) { return load_f32(p); }

ALWAYS vw weight_at(const void *base, int kind, int64_t at, int tail) {
    const char *p = (const char *)base + bytes_of(kind, kind == INT4 ? at / 16 * 16 : at);
    if (kind == F32) return load_f32((const float *)p);
    if (kind == BF16) return load_bf16((const uint16_t *)p);
    if (kind == INT8) return __builtin_convertvector(load_bytes(p), v8);
    return __builtin_convertvector((load_bytes(p) << (at % 16 ? 24 : 28)) >> 28, v8);
}

ALWAYS vw fused_wide(vw a, vw b, vw sum) { return fused(a, b, sum); }
ALWAYS vw all_lanes(float x) { return (v8){0} + x; }
ALWAYS float total_wide(vw v) { return total(v); }
#endif

// LANES columns from `d` of `rows` inputs and of `cols` weight rows from `first`; one accumulator for each pair, so that the
// order of additions never depends on the tile.
ALWAYS void columns(const float *x, Matrix m, int kind, int64_t first, int64_t d, int tail, vw *sum, int rows, int cols) {
    vw weight[8];
    for (int c = 0; c < cols; c++) weight[c] = weight_at(m.w, kind, (first + c) * m.depth + d, tail);
    for (int r = 0; r < rows; r++) {
        vw in = input(x + r * m.depth + d, tail);
        for (int c = 0; c < cols; c++) sum[r * cols + c] = fused_wide(in, weight[c], sum[r * cols + c]);
    }
}

// One tile: `rows` inputs against `cols` weight rows. As many bytes from `ahead` on are fetched meanwhile, in the order of
// memory, so that the processor's own prefetchers run along; none where it is null.
ALWAYS void tile(const float *x, Matrix m, int kind, int scaled, int64_t first, const char *ahead, float *out, int64_t stride, int rows, int cols) {
    int64_t step = kind == F32 ? 64 : 512 / (kind == BF16 ? 16 : kind == INT8 ? 8 : 4), group = scaled == BY_GROUP ? m.group : m.depth;
    int64_t groups = (m.depth + group - 1) / group;
    vw whole[24], sum[24];
    for (int i = 0; i < rows * cols; i++) whole[i] = sum[i] = all_lanes(0);
    for (int64_t g = 0; g < groups; g++) {
        int64_t end = (g + 1) * group < m.depth ? (g + 1) * group : m.depth;
        for (int64_t start = g * group; start < end; start += step) {
            if (ahead)
                for (int64_t line = 0; line < cols * bytes_of(kind, step); line += 64, ahead += 64) __builtin_prefetch(ahead, 0, 2);
            int64_t stop = start + step < end ? start + step : end, d = start;
            #pragma GCC unroll 4
            for (; d + LANES <= stop; d += LANES) columns(x, m, kind, first, d, 0, sum, rows, cols);
            if (d < stop) columns(x, m, kind, first, d, 1, sum, rows, cols);
        }
        if (scaled != BY_GROUP) continue;
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < cols; c++) {
                vw *part = sum + r * cols + c;
                whole[r * cols + c] = fused_wide(*part, all_lanes(m.scales[(first + c) * groups + g]), whole[r * cols + c]);
                *part = all_lanes(0);
            }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
            float dot = total_wide((scaled == BY_GROUP ? whole : sum)[r * cols + c]);
            out[r * stride + c] = scaled == BY_ROW ? dot * m.scales[first + c] : dot;
        }
}

// Weight rows [start, stop) of a matrix. The reader goes on at `next`; what it will read `lead` bytes later is fetched meanwhile.
typedef struct {
    Matrix m;
    int64_t start, stop;
    const void *next;
    int64_t lead;
} Span;

#define DISTANCE 16384
ALWAYS const char *row_at(Matrix m, int64_t row) { return (const char *)m.w + bytes_of(m.kind, row * m.depth); }
static Span span(Matrix m, int64_t start, int64_t stop, const void *next) {
    return (Span){m, start, stop, next, DISTANCE + bytes_of(m.kind, 8 * m.depth)};
}

ALWAYS const char *fetched(Span s, int64_t j) {
    const char *end = row_at(s.m, s.stop);
    int64_t beyond = row_at(s.m, j) + s.lead - end;
    return beyond < 0 ? end + beyond : s.next ? (const char *)s.next + beyond : 0;
}

#define CASE(R, C) \
    case R: \
        for (; j + C <= s.stop; j += C) tile(x, s.m, kind, scaled, j, fetched(s, j), out + j, stride, R, C); \
        for (; j < s.stop; j++) tile(x, s.m, kind, scaled, j, 0, out + j, stride, R, 1); \
        break;

// Up to seven rows against a span.
ALWAYS void few_rows(const float *x, int rows, Span s, int kind, int scaled, float *out, int64_t stride) {
    int64_t j = s.start;
    switch (rows) {
#if LANES == 16
        CASE(1, 8) CASE(2, 8) CASE(3, 6) CASE(4, 5) CASE(5, 4) CASE(6, 4) CASE(7, 3)
#else
        CASE(1, 8) CASE(2, 4) CASE(3, 3) CASE(4, 2) CASE(5, 2) CASE(6, 2) CASE(7, 1)
#endif
    }
}

typedef void Few(const float *x, int rows, Span s, float *out, int64_t stride);
#define FEW(NAME, KIND, SCALED) \
    static void NAME(const float *x, int rows, Span s, float *out, int64_t stride) { few_rows(x, rows, s, KIND, SCALED, out, stride); }
FEW(few_f32, F32, PLAIN)
FEW(few_bf16, BF16, PLAIN)
FEW(few_int8, INT8, BY_ROW)
FEW(few_int4, INT4, BY_GROUP)
static Few *const AS_STORED[] = {few_f32, few_bf16, few_int8, few_int4};

#define TOGETHER 6
#define WINDOW 32
// Many rows: some weight rows at a time are read from memory once and stay in a cache for all rows.
static void many_rows(const float *x, int64_t rows, Span s, float *out, int64_t stride) {
    int64_t parts = (rows + TOGETHER - 1) / TOGETHER, each = (rows + parts - 1) / parts;
    for (int64_t j = s.start; j < s.stop; j += WINDOW) {
        int64_t stop = j + WINDOW < s.stop ? j + WINDOW : s.stop;
        Span window = span(s.m, j, stop, stop < s.stop ? row_at(s.m, stop) : s.next);
        for (int64_t r = 0; r < rows; r += each)
            AS_STORED[s.m.kind](x + r * s.m.depth, rows - r < each ? (int)(rows - r) : (int)each, window, out + r * stride, stride);
    }
}

// out[r, j] = x[r] . w[j] for the span's weight rows j; each is read from memory once.
static void product(const float *x, int64_t rows, Span s, float *out, int64_t stride) {
    if (rows <= 7) AS_STORED[s.m.kind](x, (int)rows, s, out, stride);
    else many_rows(x, rows, s, out, stride);
}

static void share(int64_t count, int64_t *start, int64_t *stop) {
    int64_t each = (count + omp_get_num_threads() - 1) / omp_get_num_threads();
    each = (each + 7) / 8 * 8;
    *start = each * omp_get_thread_num();
    *stop = *start + each;
    if (*start > count) *start = count;
    if (*stop > count) *stop = count;
}
