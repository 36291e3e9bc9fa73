/* How fast WebAssembly can read memory: the bound that no decoder can pass which reads each weight once a token. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <wasm_simd128.h>

enum {
    PLACES = 4,
    LOADS = 4
}; /* memory is read fastest at several places at once: of each so many loads, a sum each */

__attribute__((export_name("roofline_new"))) char *roofline_new(uint32_t bytes) {
    char *data = aligned_alloc(64, bytes);
    if (data) memset(data, 1, bytes); /* so that the pages exist */
    return data;
}

/* Reads `bytes`, a multiple of 256, once; what it returns only keeps the compiler from leaving it out. */
__attribute__((export_name("roofline_read"))) int roofline_read(const char *data, uint32_t bytes) {
    v128_t sums[PLACES * LOADS] = {0};
    const uint32_t part = bytes / PLACES;
    for (uint32_t at = 0; at < part; at += LOADS * 16)
        for (int i = 0; i < PLACES * LOADS; i++)
            sums[i] = wasm_v128_xor(sums[i], wasm_v128_load(data + i / LOADS * part + at + i % LOADS * 16));
    for (int i = 1; i < PLACES * LOADS; i++) sums[0] = wasm_v128_xor(sums[0], sums[i]);
    return wasm_i32x4_extract_lane(sums[0], 0) + wasm_i32x4_extract_lane(sums[0], 2);
}
