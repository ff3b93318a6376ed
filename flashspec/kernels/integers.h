// Products of rounded rows with weights of 4, 6 or 8 bits. Products of integers are exact and the float additions have one
// order, so that a row's result is the same bits with any instruction set and however many rows are computed with it.
//
// Weights lie in panels of sixteen rows. A cell is a panel's next 32 columns: codes, then twice sixteen half-precision numbers.
// Vector j of the codes holds columns 4j to 4j + 3 of the sixteen rows, one row behind the other; in 4 bits vector j holds
// columns 4j to 4j + 3 in its low nibbles and 16 + 4j to 16 + 4j + 3 in its high ones. 6 bits are such nibbles, and two vectors
// with the upper two bits of vectors 0 to 3 and 4 to 7. A 4-bit weight is first * code - second; others are centred, and `first`
// scales the columns 0 to 15 of the cell, `second` the others.
#pragma once
#include "vectors.h"

#define PANEL 16
#define CELL 32
#define AT_ONCE 16
#define AHEAD 8192

ALWAYS int64_t codes_of(int kind) { return kind == U4 ? 256 : kind == S6 ? 384 : 512; }
ALWAYS int64_t cell_of(int kind) { return codes_of(kind) + 64; }
ALWAYS int centre_of(int kind) { return kind == S6 ? 32 : 128; }

// A row's 32 columns are `scale` times their codes, `offset` is scale times the sum of all. `sums` of each half: of the codes
// 4j and 4j + 1, as pairs of products are added up, and of the others.
typedef struct Rounded {
    float scale, offset;
    int16_t sums[2][2];
} Rounded;

ALWAYS int32_t sum_of(const Rounded *group, int half) { return group->sums[half][0] + group->sums[half][1]; }

typedef int8_t c8 __attribute__((vector_size(8)));

// Round x [depth] to integers of at most 127 by groups of 32 columns; a last group that is shorter is filled with zeros.
static void round_row(const float *x, int64_t depth, int8_t *codes, Rounded *groups) {
    const float rounding = 12582912.0f;
    for (int64_t g = 0; g * CELL < depth; g++) {
        int64_t count = depth - g * CELL < CELL ? depth - g * CELL : CELL;
        float from[CELL] = {0}, most = 0;
        memcpy(from, x + g * CELL, count * sizeof(float));
        v8 sizes = {0};
        i8 wrong = {0};
        for (int i = 0; i < CELL; i += 8) {
            v8 some = load_f32(from + i);
            sizes = larger(larger(some, -some), sizes);
            wrong |= some != some;
        }
        int bad = 0;
        for (int i = 0; i < 8; i++) most = sizes[i] > most ? sizes[i] : most, bad |= wrong[i];
        if (bad || most == INFINITY) {  // no code can say it, so the scale does
            memset(codes + g * CELL, 0, CELL);
            groups[g] = (Rounded){NAN, NAN, {{0}}};
            continue;
        }
        float inverse = most > 0 ? 127.0f / most : 0, scale = most / 127.0f;
        i8 sums[2] = {{0}, {0}};
        for (int i = 0; i < CELL; i += 8) {
            i8 whole = __builtin_convertvector((load_f32(from + i) * inverse + rounding) - rounding, i8);
            c8 bytes = __builtin_convertvector(whole, c8);
            memcpy(codes + g * CELL + i, &bytes, sizeof bytes);
            sums[i / 16] += whole;
        }
        Rounded *group = groups + g;
        *group = (Rounded){scale, 0, {{0}}};
        for (int i = 0; i < 16; i++) group->sums[i / 8][i % 4 / 2] += (int16_t)sums[i / 8][i % 8];
        group->offset = scale * (float)(sum_of(group, 0) + sum_of(group, 1));
    }
}

// A half-precision number, widened exactly.
ALWAYS float from_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023, bits;
    if (!exponent) {
        float small = (float)mantissa * 5.9604644775390625e-8f;
        return sign ? -small : small;
    }
    bits = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | mantissa << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The rows of one panel against up to AT_ONCE rounded rows `depth` codes apart: out[r * stride + lane].
typedef void Product(const uint8_t *cells, int kind, int64_t count, int rows, const int8_t *codes, const Rounded *groups, float *out, int64_t stride);

ALWAYS int code_at(const uint8_t *cell, int kind, int lane, int column) {
    int byte = lane * 4 + column % 4, vector = column / 4, half = column / 16;
    if (kind == S8) return cell[vector * 64 + byte];
    int low = cell[vector % 4 * 64 + byte] >> (half ? 4 : 0) & 15;
    return kind == U4 ? low : low | (cell[256 + half * 64 + byte] >> vector % 4 * 2 & 3) << 4;
}

ALWAYS float number_at(const uint8_t *cell, int kind, int lane, int which) {
    uint16_t half;
    memcpy(&half, cell + codes_of(kind) + which * 32 + lane * 2, sizeof half);
    return from_half(half);
}

// The weight itself.
ALWAYS float weight_of(const uint8_t *cell, int kind, int lane, int column) {
    float code = (float)code_at(cell, kind, lane, column);
    if (kind == U4) return number_at(cell, kind, lane, 0) * code - number_at(cell, kind, lane, 1);
    return number_at(cell, kind, lane, column / 16) * (code - (float)centre_of(kind));
}

// Any compiler, any processor: the twin of the others.
static void product_generic(const uint8_t *cells, int kind, int64_t count, int rows, const int8_t *codes, const Rounded *groups, float *out, int64_t stride) {
    for (int r = 0; r < rows; r++)
        for (int lane = 0; lane < PANEL; lane++) {
            float sum = 0;
            for (int64_t g = 0; g < count; g++) {
                const uint8_t *cell = cells + g * cell_of(kind);
                const int8_t *x = codes + (r * count + g) * CELL;
                Rounded group = groups[r * count + g];
                float first = number_at(cell, kind, lane, 0), second = number_at(cell, kind, lane, 1);
                int32_t dots[2] = {0, 0};
                for (int c = 0; c < CELL; c++) dots[c / 16] += code_at(cell, kind, lane, c) * x[c];
                if (kind == U4) {
                    sum = fmaf((float)(dots[0] + dots[1]) * group.scale, first, sum);
                    sum = fmaf(-group.offset, second, sum);
                } else {
                    for (int h = 0; h < 2; h++) dots[h] -= centre_of(kind) * sum_of(&group, h);
                    sum = fmaf((float)dots[0] * group.scale, first, sum);
                    sum = fmaf((float)dots[1] * group.scale, second, sum);
                }
            }
            out[r * stride + lane] = sum;
        }
}
