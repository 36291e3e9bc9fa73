/* Packs one matrix and multiplies it, natively: what tests/test_kernels.py compares with its own arithmetic.
 *
 *   kernels INPUT OUTPUT
 *
 * INPUT: int32 {type, rows, cols, group, tokens, bytes, scales}, the matrix as in a file, its float scales (of type
 * I8), float activations (tokens, cols). OUTPUT: float rows unpacked (rows, cols), then products (tokens, rows). A
 * refused matrix is the exit status 64 - error.
 */
#include "../wasm/matrix.h"
#include <stdio.h>

static void *read_exactly(FILE *file, size_t size) {
    void *data = malloc(size ? size : 1); /* a block of its own, so that a read past its end is caught */
    if (!data || fread(data, 1, size, file) != size) exit(100);
    return data;
}

static void *zeroed(size_t count, size_t size) {
    void *data = calloc(count ? count : 1, size);
    if (!data) exit(100);
    return data;
}

int main(int argc, char **argv) {
    int32_t head[7];
    FILE *in = argc == 3 ? fopen(argv[1], "rb") : NULL;
    if (!in || fread(head, sizeof head, 1, in) != 1) return 100;
    const int type = head[0], rows = head[1], cols = head[2], group = head[3], n = head[4], stride = pad4(cols);
    const int x_size = n * cols;
    char *source = read_exactly(in, (size_t)head[5]);
    float *scales = read_exactly(in, (size_t)head[6] * 4), *x = read_exactly(in, (size_t)x_size * 4);
    fclose(in);

    const Layout layout = layout_for(type, cols, group);
    Matrix w = {layout, rows, cols, zeroed(pad4(rows) * matrix_row_bytes(layout, cols), 1), NULL};
    int error = OK;
    pad_rows(&w);
    for (int row = 0; row < rows && !error; row++)
        error = pack_row(&w, row, row, type, source + row * file_row_bytes(type, cols), scales, group);

    float *padded = zeroed((size_t)n * stride, 4), *y = zeroed((size_t)n * pad4(rows), 4), *row = zeroed(stride, 4);
    Quantized *q = zeroed((size_t)x_size, sizeof *q);
    InputGroup *groups = zeroed((size_t)x_size, sizeof *groups);
    if (!error) {
        for (int t = 0; t < n; t++) memcpy(padded + t * stride, x + t * cols, (size_t)cols * 4);
        Activations a = {{padded, stride}, q, groups, n == 1};
        if (!is_float(layout)) quantize(&a, cols, n);
        matmul(&(Product){&w, y, NULL}, 1, &a, n);

        FILE *out = fopen(argv[2], "wb");
        if (!out) return 100;
        for (int r = 0; r < rows; r++) {
            matrix_row(&w, r, row);
            fwrite(row, 4, (size_t)cols, out);
        }
        for (int t = 0; t < n; t++) fwrite(y + t * pad4(rows), 4, (size_t)rows, out);
        if (fclose(out)) return 100;
    }
    void *owned[] = {source, scales, x, w.panels, padded, y, row, q, groups};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
    return error ? 64 - error : 0; /* sanitizers end with 1 */
}
