// Draws from one row of logits: the best column, Gumbel noise, the inverse of the running sum.
#pragma once
#include "layers.h"

// exp(logits - the largest) of one row, `count` of them: their sum, NaN if one is NaN. `parts` gets the sums of every PART
// of them, and behind these the largest.
#define PART 256
static float unnormalised(const float *logits, int64_t count, float *parts) {
    v8 top = (v8){0} - INFINITY;
    i8 wrong = {0};
    int64_t even = count / 8 * 8;
    for (int64_t c = 0; c < even; c += 8) {
        v8 v = load_f32(logits + c);
        wrong |= v != v;
        top = larger(v, top);
    }
    float most = -INFINITY, whole = 0;
    for (int i = 0; i < 8; i++) {
        most = top[i] > most ? top[i] : most;
        if (wrong[i]) whole = NAN;
    }
    for (int64_t c = even; c < count; c++) {
        most = logits[c] > most ? logits[c] : most;
        if (logits[c] != logits[c]) whole = NAN;
    }
    for (int64_t start = 0; start < count; start += PART) {
        int64_t stop = start + PART < count ? start + PART : count, c = start;
        v8 sums = {0};
        for (; c + 8 <= stop; c += 8) sums += exp8(load_f32(logits + c) - most);
        float part = total(sums);
        for (; c < stop; c++) part += expf(logits[c] - most);
        whole += parts[start / PART] = part;
    }
    parts[(count + PART - 1) / PART] = most;
    return whole;
}

// A column drawn with probabilities softmax(logits) by the inverse of their running sum; -1 where there is NaN or nothing
// that can be drawn.
static int64_t drawn_column(const float *logits, int64_t count, double uniform) {
    float parts[count / PART + 2];
    double whole = unnormalised(logits, count, parts), most = parts[(count + PART - 1) / PART], goal = uniform * whole, seen = 0;
    int64_t block = 0, last = -1;
    if (!(whole > 0)) return -1;
    while ((block + 1) * PART < count && seen + parts[block] <= goal) seen += parts[block++];
    for (int64_t c = block * PART; c < count; c++) {
        double own = exp(logits[c] - most);
        if (own > 0) last = c;
        seen += own;
        if (own > 0 && seen > goal) break;
    }
    for (int64_t c = block * PART; last < 0 && c-- > 0;)  // rounding led behind everything that can be drawn
        if (exp(logits[c] - most) > 0) last = c;
    return last;
}

// The first column of the largest value, -1 where one is NaN.
static int64_t best_column(const float *values, int64_t count) {
    v8 top = (v8){0} - INFINITY;
    i8 wrong = {0};
    int64_t even = count / 8 * 8, c = 0;
    for (; c < even; c += 8) {
        v8 v = load_f32(values + c);
        wrong |= v != v;
        top = larger(v, top);
    }
    float most = -INFINITY;
    int bad = 0;
    for (int i = 0; i < 8; i++) most = top[i] > most ? top[i] : most, bad |= wrong[i];
    for (; c < count; c++) most = values[c] > most ? values[c] : most, bad |= values[c] != values[c];
    for (c = 0; !bad && c < count; c++)
        if (values[c] == most) return c;
    return -1;
}

ALWAYS u8 mix(u8 x) {
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    return x ^ (x >> 16);
}

// Gumbel noise of hashed ids under a key: -log(-log(1 - u)), u uniform with fine grains near zero.
ALWAYS v8 noise(u8 ids, uint32_t key) {
    u8 mixed = mix(ids ^ ((u8){0} + key));
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
    return -log8(wait);
}
