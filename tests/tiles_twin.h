// What the tile instructions do, in plain C, so that the kernel that uses them runs where they are missing.
static _Thread_local struct {
    int rows, bytes;
    uint8_t data[16][64];
} TILE[8];

static void twin_config(const void *p) {
    const uint8_t *told = (const uint8_t *)p;
    for (int t = 0; t < 8; t++) {
        TILE[t].rows = told[48 + t];
        memcpy(&TILE[t].bytes, told + 16 + 2 * t, 2);
    }
}

static void twin_load(int t, const void *base, int64_t stride) {
    for (int r = 0; r < TILE[t].rows; r++) memcpy(TILE[t].data[r], (const char *)base + r * stride, (size_t)TILE[t].bytes);
}

static void twin_store(int t, void *base, int64_t stride) {
    for (int r = 0; r < TILE[t].rows; r++) memcpy((char *)base + r * stride, TILE[t].data[r], (size_t)TILE[t].bytes);
}

// Signed bytes of `a` times unsigned bytes of `b`, four and four, added to `c`.
static void twin_product(int c, int a, int b) {
    for (int m = 0; m < TILE[c].rows; m++)
        for (int k = 0; k < TILE[a].bytes / 4; k++)
            for (int n = 0; n < TILE[c].bytes / 4; n++)
                for (int i = 0; i < 4; i++) ((int32_t *)TILE[c].data[m])[n] += (int8_t)TILE[a].data[m][4 * k + i] * TILE[b].data[k][4 * n + i];
}

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbsud
#define _tile_loadconfig twin_config
#define _tile_loadd twin_load
#define _tile_stored twin_store
#define _tile_zero(t) memset(TILE[t].data, 0, sizeof TILE[t].data)
#define _tile_dpbsud twin_product
#define _tile_release() ((void)0)
