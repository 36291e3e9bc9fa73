/* Computes one function of wasm/maths.h, simd.h or run.c natively, for tests/test_maths.py:
 *
 *   maths FUNCTION INPUT OUTPUT
 *
 * INPUT and OUTPUT are doubles for exp, log and cos_sin (two for each angle), floats for exp4, and for softmax:
 * the first that counts, the end of those that count, the cap, and then scores, a multiple of four. Of softmax the
 * scale is 1/2. tanh4 and gelu are as exp4.
 */
#include "../wasm/run.c"
#include <stdio.h>

enum { MOST = 1 << 20 };

int main(int argc, char **argv) {
    static double in[MOST], out[2 * MOST]; /* or floats */
    FILE *file = argc == 4 ? fopen(argv[2], "rb") : NULL;
    if (!file) return 2;
    const int size = (int)fread(in, 1, sizeof in, file), n = size / 8;
    fclose(file);

    int written = size;
    float *floats = (float *)(void *)in, *results = (float *)(void *)out;
    if (!strcmp(argv[1], "exp")) {
        for (int i = 0; i < n; i++) out[i] = exp_double(in[i]);
    } else if (!strcmp(argv[1], "log")) {
        for (int i = 0; i < n; i++) out[i] = log_double(in[i]);
    } else if (!strcmp(argv[1], "cos_sin")) {
        for (int i = 0; i < n; i++) cos_sin_double(in[i], &out[2 * i], &out[2 * i + 1]);
        written = 2 * size;
    } else if (!strcmp(argv[1], "exp4")) {
        for (int i = 0; i < size / 4; i += 4) f32x4_store(results + i, f32x4_exp(f32x4_load(floats + i)));
    } else if (!strcmp(argv[1], "softmax")) {
        written = size - 12;
        memcpy(results, floats + 3, (size_t)written);
        softmax(results, (int)floats[0], (int)floats[1], written / 4, 0.5f, floats[2]);
    } else if (!strcmp(argv[1], "tanh4")) {
        for (int i = 0; i < size / 4; i += 4) f32x4_store(results + i, f32x4_tanh(f32x4_load(floats + i)));
    } else if (!strcmp(argv[1], "gelu")) {
        static float ones[MOST];
        for (int i = 0; i < size / 4; i++) ones[i] = 1;
        memcpy(results, floats, (size_t)size);
        gated(results, ones, size / 4, true);
    }
    file = fopen(argv[3], "wb");
    if (!file) return 2;
    fwrite(out, 1, (size_t)written, file);
    return fclose(file) ? 2 : 0;
}
