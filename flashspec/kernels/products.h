// Products of float32 rows with float32, bfloat16 or integer weights, as many lanes at a time as the processor has.
// Every row's arithmetic is the same however many rows are computed together, so verification gives bit for bit
// what one-token decoding gives. Weights are read from memory once, however many rows there are.
#pragma once
#if defined(__x86_64__) && !defined(__clang__)  // which knows no target pragma
#include "integers_x86.h"
#else
#include "integers.h"
#endif

// Rows of `depth` columns. Integers lie in panels of sixteen rows, see integers.h.
typedef struct {
    const void *w;
    int64_t kind, depth;
} Matrix;

ALWAYS int64_t cells_of(int64_t depth) { return (depth + CELL - 1) / CELL; }

// Bytes of `rows` rows, a multiple of sixteen where they are integers.
ALWAYS int64_t bytes_of(int kind, int64_t rows, int64_t depth) {
    return kind == F32 ? rows * depth * 4 : kind == BF16 ? rows * depth * 2 : rows / PANEL * cells_of(depth) * cell_of(kind);
}

#ifdef __AVX512F__
#define LANES 16
typedef __m512 vw;
// Behind `tail`, eight columns are left: the upper lanes are zeros.
ALWAYS vw input(const float *p, int tail) {
    return tail ? _mm512_castpd_ps(_mm512_insertf64x4(_mm512_setzero_pd(), _mm256_castps_pd(_mm256_loadu_ps(p)), 0)) : _mm512_loadu_ps(p);
}

ALWAYS vw weight_at(const void *base, int kind, int64_t at, int tail) {
    if (kind == F32) return input((const float *)base + at, tail);
    const uint16_t *p = (const uint16_t *)base + at;
    __m256i half = tail ? _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)p)) : _mm256_loadu_si256((const __m256i *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
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
ALWAYS vw input(const float *p, int tail) { return load_f32(p); }

ALWAYS vw weight_at(const void *base, int kind, int64_t at, int tail) {
    return kind == F32 ? load_f32((const float *)base + at) : load_bf16((const uint16_t *)base + at);
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
ALWAYS void tile(const float *x, Matrix m, int kind, int64_t first, const char *ahead, float *out, int64_t stride, int rows, int cols) {
    int64_t step = kind == F32 ? 64 : 32;
    vw sum[24];
    for (int i = 0; i < rows * cols; i++) sum[i] = all_lanes(0);
    for (int64_t start = 0; start < m.depth; start += step) {
        if (ahead)
            for (int64_t line = 0; line < bytes_of(kind, cols, step); line += 64, ahead += 64) __builtin_prefetch(ahead, 0, 2);
        int64_t stop = start + step < m.depth ? start + step : m.depth, d = start;
        #pragma GCC unroll 4
        for (; d + LANES <= stop; d += LANES) columns(x, m, kind, first, d, 0, sum, rows, cols);
        if (d < stop) columns(x, m, kind, first, d, 1, sum, rows, cols);
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) out[r * stride + c] = total_wide(sum[r * cols + c]);
}

// Weight rows [start, stop) of a matrix. The reader goes on at `next`; what it will read `lead` bytes later is fetched meanwhile.
typedef struct {
    Matrix m;
    int64_t start, stop;
    const void *next;
    int64_t lead;
} Span;

#define DISTANCE 16384
ALWAYS const char *row_at(Matrix m, int64_t row) { return (const char *)m.w + bytes_of(m.kind, row, m.depth); }
static Span span(Matrix m, int64_t start, int64_t stop, const void *next) {
    return (Span){m, start, stop, next, DISTANCE + bytes_of(m.kind, 8, m.depth)};
}

ALWAYS const char *fetched(Span s, int64_t j) {
    const char *end = row_at(s.m, s.stop);
    int64_t beyond = row_at(s.m, j) + s.lead - end;
    return beyond < 0 ? end + beyond : s.next ? (const char *)s.next + beyond : 0;
}

#define CASE(R, C) \
    case R: \
        for (; j + C <= s.stop; j += C) tile(x, s.m, kind, j, fetched(s, j), out + j, stride, R, C); \
        for (; j < s.stop; j++) tile(x, s.m, kind, j, 0, out + j, stride, R, 1); \
        break;

// Up to seven rows against a span.
ALWAYS void few_rows(const float *x, int rows, Span s, int kind, float *out, int64_t stride) {
    int64_t j = s.start;
    switch (rows) {
#if LANES == 16
        CASE(1, 8) CASE(2, 8) CASE(3, 6) CASE(4, 5) CASE(5, 4) CASE(6, 4) CASE(7, 3)
#else
        CASE(1, 8) CASE(2, 4) CASE(3, 3) CASE(4, 2) CASE(5, 2) CASE(6, 2) CASE(7, 1)
#endif
    }
}

static void few_f32(const float *x, int rows, Span s, float *out, int64_t stride) { few_rows(x, rows, s, F32, out, stride); }
static void few_bf16(const float *x, int rows, Span s, float *out, int64_t stride) { few_rows(x, rows, s, BF16, out, stride); }
static void few(const float *x, int rows, Span s, float *out, int64_t stride) { (s.m.kind == F32 ? few_f32 : few_bf16)(x, rows, s, out, stride); }

#define TOGETHER 6
#define WINDOW 32
// Many rows: some weight rows at a time are read from memory once and stay in a cache for all rows.
static void many_rows(const float *x, int64_t rows, Span s, float *out, int64_t stride) {
    int64_t parts = (rows + TOGETHER - 1) / TOGETHER, each = (rows + parts - 1) / parts;
    for (int64_t j = s.start; j < s.stop; j += WINDOW) {
        int64_t stop = j + WINDOW < s.stop ? j + WINDOW : s.stop;
        Span window = span(s.m, j, stop, stop < s.stop ? row_at(s.m, stop) : s.next);
        for (int64_t r = 0; r < rows; r += each)
            few(x + r * s.m.depth, rows - r < each ? (int)(rows - r) : (int)each, window, out + r * stride, stride);
    }
}

static int everywhere(void) { return 1; }

// The instruction sets of products with integers, the fastest first, and behind the last resort what is only used by name; any of them gives the same bits.
static const struct Isa {
    int64_t number;
    Product *product;
    int (*here)(void);
} ISAS[] = {
#if defined(__x86_64__) && !defined(__clang__)
    {0, product_avx512, has_avx512},
    {1, product_avxvnni, has_avxvnni},
    {2, product_avx2, has_avx2},
#endif
    {3, product_generic, everywhere},
#ifdef TILES
    {4, product_amx, has_amx},  // by name alone, as long as it has run nowhere but in its twin
#endif
};
static Product *panel_of_integers = product_generic;

// Rounded rows against panels [start, stop) of integers; the last panel may have rows that are nobody's.
static void rounded_product(const int8_t *codes, const Rounded *groups, int64_t rows, Matrix m, int64_t start, int64_t stop, float *out, int64_t stride) {
    int64_t count = cells_of(m.depth);
    for (int64_t j = start; j < stop; j += PANEL)
        for (int64_t r = 0; r < rows; r += AT_ONCE) {
            int few = rows - r < AT_ONCE ? (int)(rows - r) : AT_ONCE;
            const uint8_t *cells = (const uint8_t *)row_at(m, j);
            float last[AT_ONCE * PANEL], *to = stop - j < PANEL ? last : out + r * stride + j;
            panel_of_integers(cells, (int)m.kind, count, few, codes + r * count * CELL, groups + r * count, to, to == last ? PANEL : stride);
            for (int i = 0; to == last && i < few; i++) memcpy(out + (r + i) * stride + j, last + i * PANEL, (stop - j) * sizeof(float));
        }
}

#define ROUNDED_BYTES (1 << 18)
// Rows are rounded by the thread that needs them, as many at a time as its stack may hold.
static void integer_product(const float *x, int64_t rows, Span s, float *out, int64_t stride) {
    int64_t count = cells_of(s.m.depth), fit = ROUNDED_BYTES / (count * (int64_t)(CELL + sizeof(Rounded))), most = fit > 1 ? fit : 1;
    if (rows < most) most = rows;
    int8_t codes[most * count * CELL];
    Rounded groups[most * count];
    for (int64_t r = 0; r < rows; r += most) {
        int64_t some = rows - r < most ? rows - r : most;
        for (int64_t i = 0; i < some; i++) round_row(x + (r + i) * s.m.depth, s.m.depth, codes + i * count * CELL, groups + i * count);
        rounded_product(codes, groups, some, s.m, s.start, s.stop, out + r * stride, stride);
    }
}

// out[r, j] = x[r] . w[j] for the span's weight rows j; each is read from memory once, but integers once for the rows that fit.
static void product(const float *x, int64_t rows, Span s, float *out, int64_t stride) {
    if (s.m.kind >= U4) integer_product(x, rows, s, out, stride);
    else if (rows <= 7) few(x, (int)rows, s, out, stride);
    else many_rows(x, rows, s, out, stride);
}

// This thread's part of `count` rows, in panels.
static void share(int64_t count, int64_t *start, int64_t *stop) {
    int64_t each = (count + omp_get_num_threads() - 1) / omp_get_num_threads();
    each = (each + PANEL - 1) / PANEL * PANEL;
    *start = each * omp_get_thread_num();
    *stop = *start + each;
    if (*start > count) *start = count;
    if (*stop > count) *stop = count;
}
