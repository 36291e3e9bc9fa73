/* Computes one function of wasm/maths.h, simd.h or run.c natively, for tests/test_maths.py:
 *
 *   maths FUNCTION INPUT OUTPUT
 *
 * INPUT and OUTPUT are doubles for exp, log and cos_sin (two for each angle), floats for exp4, and for softmax floats:
 * a count n and then scores, a multiple of four. Of softmax the scale is 1/2.
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
        written = size - 4;
        memcpy(results, floats + 1, (size_t)written);
        softmax(results, (int)floats[0], written / 4, 0.5f);
    }
    file = fopen(argv[3], "wb");
    if (!file) return 2;
    fwrite(out, 1, (size_t)written, file);
    return fclose(file) ? 2 : 0;
}
