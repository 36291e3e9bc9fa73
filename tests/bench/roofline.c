/* How fast WebAssembly can read memory: the bound that no decoder can pass which reads each weight once a token. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <wasm_simd128.h>

enum { STREAMS = 16 }; /* loads in flight, with a sum each */

__attribute__((export_name("roofline_new"))) char *roofline_new(uint32_t bytes) {
    char *data = aligned_alloc(64, bytes);
    if (data) memset(data, 1, bytes); /* so that the pages exist */
    return data;
}

/* Reads `bytes`, a multiple of 256, once; what it returns only keeps the compiler from leaving it out. */
__attribute__((export_name("roofline_read"))) int roofline_read(const char *data, uint32_t bytes) {
    v128_t sums[STREAMS] = {0};
    for (const char *end = data + bytes; data < end; data += STREAMS * 16)
        for (int i = 0; i < STREAMS; i++) sums[i] = wasm_v128_xor(sums[i], wasm_v128_load(data + i * 16));
    for (int i = 1; i < STREAMS; i++) sums[0] = wasm_v128_xor(sums[0], sums[i]);
    return wasm_i32x4_extract_lane(sums[0], 0) + wasm_i32x4_extract_lane(sums[0], 2);
}
