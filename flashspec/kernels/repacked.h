// Rows of ggml's quantised types, 32 columns at a time, laid into panels of integers.
#pragma once
#include "products.h"

enum { Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14 };

// Eight bytes at once.
#define EACH 0x0101010101010101u
ALWAYS uint64_t eight(const uint8_t *p) {
    uint64_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    return bytes;
}
ALWAYS void put_eight(uint64_t bytes, uint8_t *p) { memcpy(p, &bytes, sizeof bytes); }

// The bits of a byte, each in a byte of its own.
ALWAYS uint64_t spread(uint8_t bits) { return ((bits * EACH & 0x8040201008040201) + 127 * EACH) >> 7 & EACH; }

// One row of a cell.
typedef struct Line {
    uint8_t codes[CELL];
    float first, second;
} Line;

ALWAYS float half_at(const uint8_t *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    return from_half(half);
}

// The nearest half-precision number, the even one of two.
ALWAYS uint16_t to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits >= 0x47800000) return sign | (bits > 0x7f800000 ? 0x7e00 : 0x7c00);
    if (bits < 0x38800000) {
        float small;
        memcpy(&small, &bits, sizeof small);
        return sign | (uint16_t)rintf(small * 16777216.0f);
    }
    bits += 0xfff + (bits >> 13 & 1);
    return sign | (uint16_t)((bits >> 13) - (112 << 10));
}

static int kind_of(int64_t type) { return type == Q4_0 || type == Q4_1 || type == Q4_K ? U4 : type == Q5_0 || type == Q6_K ? S6 : S8; }
static int64_t block_of(int64_t type) {
    switch (type) {
        case Q4_0: return 18;
        case Q4_1: return 20;
        case Q5_0: return 22;
        case Q5_1: return 24;
        case Q8_0: return 34;
        case Q4_K: return 144;
        case Q5_K: return 176;
        case Q6_K: return 210;
        default: return 0;
    }
}
static int64_t columns_in(int64_t type) { return type >= Q4_K ? 256 : 32; }

// The six-bit scale and minimum of a K block's eighth.
ALWAYS void eighth(const uint8_t *s, int part, int *scale, int *least) {
    *scale = part < 4 ? s[part] & 63 : (s[part + 4] & 15) | s[part - 4] >> 6 << 4;
    *least = part < 4 ? s[part + 4] & 63 : s[part + 4] >> 4 | s[part] >> 6 << 4;
}

// Eight-bit codes of 32 weights, a scale for each sixteen.
static void as_eight_bits(const float *w, Line *line) {
    for (int h = 0; h < 2; h++) {
        float extreme = 0;
        for (int i = h * 16; i < h * 16 + 16; i++) extreme = fabsf(w[i]) > fabsf(extreme) ? w[i] : extreme;
        float scale = from_half(to_half(extreme / -128));
        for (int i = h * 16; i < h * 16 + 16; i++) {
            float code = scale ? rintf(w[i] / scale) + 128 : 128;
            line->codes[i] = (uint8_t)(code > 255 ? 255 : code < 0 ? 0 : code);
        }
        *(h ? &line->second : &line->first) = scale;
    }
}

// Columns `cell` * 32 and on of a row.
ALWAYS Line line_of(const uint8_t *row, int64_t type, int64_t cell) {
    const uint8_t *b = row + cell * CELL / columns_in(type) * block_of(type);
    int part = (int)(cell % 8), nibble = part % 2 * 4, scale, least;
    float d = half_at(b), w[CELL];
    Line line = {{0}, d, d};
    switch (type) {
        case Q4_0:
            for (int i = 0; i < CELL; i++) line.codes[i] = b[2 + i % 16] >> i / 16 * 4 & 15;
            line.second = 8 * d;
            break;
        case Q4_1:
            for (int i = 0; i < CELL; i++) line.codes[i] = b[4 + i % 16] >> i / 16 * 4 & 15;
            line.second = -half_at(b + 2);
            break;
        case Q4_K:
            eighth(b + 4, part, &scale, &least);
            for (int i = 0; i < CELL; i += 8) put_eight(eight(b + 16 + part / 2 * 32 + i) >> nibble & 15 * EACH, line.codes + i);
            line.first = d * (float)scale, line.second = half_at(b + 2) * (float)least;
            break;
        case Q5_0:
            for (int i = 0; i < CELL; i += 8)
                put_eight(16 * EACH + ((eight(b + 6 + i % 16) >> i / 16 * 4 & 15 * EACH) | spread(b[2 + i / 8]) << 4), line.codes + i);
            break;
        case Q5_1:
            for (int i = 0; i < CELL; i++) w[i] = d * (float)((b[8 + i % 16] >> i / 16 * 4 & 15) | (b[4 + i / 8] >> i % 8 & 1) << 4) + half_at(b + 2);
            as_eight_bits(w, &line);
            break;
        case Q5_K:
            eighth(b + 4, part, &scale, &least);
            for (int i = 0; i < CELL; i++)
                w[i] = d * (float)scale * (float)((b[48 + part / 2 * 32 + i] >> nibble & 15) | (b[16 + i] >> part & 1) << 4) - half_at(b + 2) * (float)least;
            as_eight_bits(w, &line);
            break;
        case Q6_K: {
            const uint8_t *low = b + part / 4 * 64 + part % 2 * 32, *upper = b + 128 + part / 4 * 32;
            for (int i = 0; i < CELL; i += 8)
                put_eight((eight(low + i) >> part % 4 / 2 * 4 & 15 * EACH) | (eight(upper + i) >> part % 4 * 2 & 3 * EACH) << 4, line.codes + i);
            d = half_at(b + 208);
            line.first = d * (float)(int8_t)b[192 + part * 2], line.second = d * (float)(int8_t)b[193 + part * 2];
            break;
        }
        default:
            for (int i = 0; i < CELL; i++) line.codes[i] = b[2 + i] ^ 128;
    }
    return line;
}

ALWAYS uint32_t four(const uint8_t *codes) {
    uint32_t word;
    memcpy(&word, codes, sizeof word);
    return word;
}

// Put a line into a cell, four columns at a time.
ALWAYS void lay(const Line *line, int kind, int lane, uint8_t *cell) {
    uint16_t numbers[2] = {to_half(line->first), to_half(line->second)};
    for (int h = 0; h < 2; h++) memcpy(cell + codes_of(kind) + h * 32 + lane * 2, numbers + h, sizeof *numbers);
    for (int g = 0; g < (kind == S8 ? 8 : 4); g++) {
        uint32_t word = four(line->codes + g * 4);
        if (kind != S8) word = (word & 0x0f0f0f0f) | (four(line->codes + 16 + g * 4) & 0x0f0f0f0f) << 4;
        memcpy(cell + g * 64 + lane * 4, &word, sizeof word);
    }
    for (int h = 0; kind == S6 && h < 2; h++) {
        uint32_t word = 0;
        for (int g = 0; g < 4; g++) word |= (four(line->codes + h * 16 + g * 4) >> 4 & 0x03030303) << g * 2;
        memcpy(cell + 256 + h * 64 + lane * 4, &word, sizeof word);
    }
}

// One panel of `rows` rows of a type, at `out`, which is all zeros; inlined where the type is known, so that it is not asked for each line.
ALWAYS void one_panel(const uint8_t *raw, int64_t type, int64_t rows, int64_t depth, uint8_t *out) {
    int64_t row = depth / columns_in(type) * block_of(type), kind = kind_of(type);
    for (int64_t c = 0; c < cells_of(depth); c++, out += cell_of((int)kind))
        for (int64_t r = 0; r < rows; r++) {
            Line line = line_of(raw + r * row, type, c);
            lay(&line, (int)kind, (int)r, out);
        }
}

// Panels of `rows` rows of a type, at `out`, which is all zeros.
static void repack(const uint8_t *raw, int64_t type, int64_t rows, int64_t depth, uint8_t *out) {
    int64_t row = depth / columns_in(type) * block_of(type), panel = cells_of(depth) * cell_of(kind_of(type));
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < rows; first += PANEL) {
        const uint8_t *from = raw + first * row;
        uint8_t *to = out + first / PANEL * panel;
        int64_t some = rows - first < PANEL ? rows - first : PANEL;
        switch (type) {  // each a loop of its own
            case Q4_K: one_panel(from, Q4_K, some, depth, to); break;
            case Q5_0: one_panel(from, Q5_0, some, depth, to); break;
            case Q6_K: one_panel(from, Q6_K, some, depth, to); break;
            case Q8_0: one_panel(from, Q8_0, some, depth, to); break;
            default: one_panel(from, type, some, depth, to);
        }
    }
}

// The rows of these numbers as panels of their own: words of codes, then numbers of two bytes, from one lane to another.
static void take(const uint8_t *cells, int kind, int64_t depth, const int64_t *ids, int64_t count, uint8_t *out) {
    int64_t codes = codes_of(kind), panel = cells_of(depth) * cell_of(kind);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) {
        int64_t there = ids[i] % PANEL, here = i % PANEL;
        const uint8_t *from = cells + ids[i] / PANEL * panel;
        uint8_t *to = out + i / PANEL * panel;
        for (int64_t c = 0; c < cells_of(depth); c++, from += cell_of(kind), to += cell_of(kind)) {
            for (int64_t at = 0; at < codes; at += 64) memcpy(to + at + here * 4, from + at + there * 4, 4);
            for (int64_t at = codes; at < codes + 64; at += 32) memcpy(to + at + here * 2, from + at + there * 2, 2);
        }
    }
}
