/* Weight matrices in the two layouts the kernels like, f32 and q8, and y = W x.
 *
 * A lane is a row. A matrix is cut into panels of rows (32 rows in f32, 16 in q8; the rows left over go in panels of
 * 4, the last one filled up with zero rows), and a panel's bytes lie in the order in which the kernel reads them:
 *
 *     f32 panel   for each column:    the panel's rows, one float each
 *     q8 panel    for each group of 32 columns:
 *                     the panel's rows, one float scale each
 *                     for each pair of columns: the panel's rows, two int8 each
 *
 * So a kernel walks one pointer, needs no sum across lanes, and every row of the result is summed in column order,
 * by the same operations, whether one token is computed or many: prefill and decode give the same bits.
 */
#ifndef FABELLA_MATRIX_H
#define FABELLA_MATRIX_H

#include "simd.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

enum { TYPE_F32 = 0, TYPE_Q8_0 = 8 }; /* GGUF's own numbers */
enum { GROUP = 32 };                  /* columns that share a scale in q8 */
enum { Q8_0_BLOCK = 2 + GROUP };      /* in a file: the scale as f16, then 32 int8 */

typedef struct {
    int type, rows, cols;
    char *panels;
} Matrix;

typedef struct {
    int rows;   /* rows per panel: a multiple of 4 */
    char *data; /* the panel's first byte */
} Panel;

/* Floats in buffers that a kernel writes: rows come four at a time. */
INLINE int pad4(int n) { return (n + 3) & ~3; }

static uint64_t matrix_row_bytes(int type, int cols) {
    return type == TYPE_F32 ? 4 * (uint64_t)cols : (uint64_t)(cols / GROUP) * (4 + GROUP);
}

/* The panel that starts at this row. Before it lie `row` whole rows, whatever their panels were. */
INLINE Panel matrix_panel(const Matrix *w, int row) {
    int wide = w->type == TYPE_F32 ? 32 : 16;
    return (Panel){w->rows - row >= wide ? wide : 4, w->panels + (size_t)row * matrix_row_bytes(w->type, w->cols)};
}

/* The first byte of group g's block in a q8 panel. */
INLINE char *q8_block(Panel panel, int g) { return panel.data + (size_t)g * panel.rows * (4 + GROUP); }

INLINE int8_t *q8_weight(Panel panel, int row, int col) {
    int in_group = col % GROUP;
    char *pairs = q8_block(panel, col / GROUP) + 4 * panel.rows;
    return (int8_t *)pairs + ((in_group / 2) * panel.rows + row) * 2 + in_group % 2;
}

INLINE float f32_from_f16(const char *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023, bits;
    if (exponent == 31) {
        bits = 0x7f800000 | mantissa << 13;
    } else if (exponent) {
        bits = (exponent + 112) << 23 | mantissa << 13;
    } else {
        float value = (float)mantissa * 5.9604644775390625e-8f; /* subnormal: mantissa * 2^-24 */
        memcpy(&bits, &value, sizeof bits);
    }
    bits |= sign;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

INLINE bool is_finite(float f) { return f - f == 0; }

/* Packs `source`, a row-major matrix as it lies in the file. False if a weight or a scale is not a finite number. */
static bool matrix_pack(Matrix *w, const char *source) {
    bool finite = true;
    for (int first = 0; first < w->rows; first += matrix_panel(w, first).rows) {
        Panel panel = matrix_panel(w, first);
        int rows = w->rows - first < panel.rows ? w->rows - first : panel.rows;
        memset(panel.data, 0, (size_t)panel.rows * matrix_row_bytes(w->type, w->cols));
        for (int r = 0; r < rows; r++) {
            if (w->type == TYPE_F32) {
                for (int c = 0; c < w->cols; c++, source += 4) {
                    float f;
                    memcpy(&f, source, sizeof f);
                    finite &= is_finite(f);
                    memcpy(panel.data + ((size_t)c * panel.rows + r) * 4, &f, sizeof f);
                }
            } else {
                for (int g = 0; g < w->cols / GROUP; g++, source += Q8_0_BLOCK) {
                    float scale = f32_from_f16(source);
                    finite &= is_finite(scale);
                    memcpy(q8_block(panel, g) + 4 * r, &scale, sizeof scale);
                    for (int i = 0; i < GROUP; i++) *q8_weight(panel, r, g * GROUP + i) = (int8_t)source[2 + i];
                }
            }
        }
    }
    return finite;
}

/* Unpacks one row into out[cols], with zeros up to pad4(cols): the token embedding. */
static void matrix_row(const Matrix *w, int row, float *out) {
    int wide = w->type == TYPE_F32 ? 32 : 16, in_wide = w->rows / wide * wide;
    int first = row < in_wide ? row / wide * wide : in_wide + (row - in_wide) / 4 * 4;
    Panel panel = matrix_panel(w, first);
    for (int c = 0; c < w->cols; c++) {
        if (w->type == TYPE_F32) {
            memcpy(&out[c], panel.data + ((size_t)c * panel.rows + row - first) * 4, 4);
        } else {
            float scale;
            memcpy(&scale, q8_block(panel, c / GROUP) + 4 * (row - first), sizeof scale);
            out[c] = scale * (float)*q8_weight(panel, row - first, c);
        }
    }
    for (int c = w->cols; c < pad4(w->cols); c++) out[c] = 0;
}

/* ---- activations ------------------------------------------------------------------------------------------------ */

/* One matmul's input: n rows of activations, in f32 and, if a q8 matrix is to read them, in int8 range with a scale a
 * group. The integers are stored as int16, which is what the SIMD128 dot product multiplies. */
typedef struct {
    const float *f32; /* (n, stride) */
    int stride;
    int16_t *q;    /* (n, cols) */
    float *scales; /* (n, cols / GROUP) */
} Activations;

static void quantize(const Activations *x, int cols, int n) {
    for (int t = 0; t < n; t++) {
        for (int g = 0; g < cols / GROUP; g++) {
            const float *in = x->f32 + (size_t)t * x->stride + g * GROUP;
            int16_t *out = x->q + (size_t)t * cols + g * GROUP;
            f32x4 max4 = f32x4_splat(0);
            for (int i = 0; i < GROUP; i += 4) max4 = f32x4_max(f32x4_abs(f32x4_load(in + i)), max4);
            float max = max4[0];
            for (int i = 1; i < 4; i++) max = max4[i] > max ? max4[i] : max;
            float inverse = max > 1e-30f ? 127.0f / max : 0; /* smaller ones would overflow the quotient */
            x->scales[(size_t)t * (cols / GROUP) + g] = inverse > 0 ? max / 127.0f : 0;
            for (int i = 0; i < GROUP; i += 4) {
                i32x4 q = i32x4_round_f32x4(f32x4_load(in + i) * inverse);
                for (int j = 0; j < 4; j++) out[i + j] = (int16_t)q[j];
            }
        }
    }
}

/* ---- kernels: NV vectors of four rows x NT tokens. Both are constants after inlining, so the sums live
 * in registers. NV * NT is at most 8. */

INLINE void f32_kernel(const float *w, int panel_rows, const float *x, int x_stride, float *y, int y_stride, int cols,
                       const int NV, const int NT) {
    f32x4 sum[8];
    for (int i = 0; i < NV * NT; i++) sum[i] = f32x4_splat(0);
    for (int c = 0; c < cols; c++, w += panel_rows) {
        for (int v = 0; v < NV; v++) {
            f32x4 weight = f32x4_load(w + 4 * v);
            for (int t = 0; t < NT; t++) sum[v * NT + t] += weight * x[t * x_stride + c];
        }
    }
    for (int v = 0; v < NV; v++)
        for (int t = 0; t < NT; t++) f32x4_store(y + t * y_stride + 4 * v, sum[v * NT + t]);
}

/* `first` is the first of the kernel's rows within the panel. */
INLINE void q8_kernel(Panel panel, int first, const int16_t *x, const float *scales, float *y, int y_stride, int cols,
                      const int NV, const int NT) {
    f32x4 sum[8];
    for (int i = 0; i < NV * NT; i++) sum[i] = f32x4_splat(0);
    for (int g = 0; g < cols / GROUP; g++) {
        const float *weight_scales = (const float *)q8_block(panel, g) + first;
        const int8_t *w = q8_weight(panel, first, g * GROUP);
        i32x4 dot[8];
        for (int i = 0; i < NV * NT; i++) dot[i] = (i32x4){0, 0, 0, 0};
        for (int pair = 0; pair < GROUP / 2; pair++, w += 2 * panel.rows) {
            for (int v = 0; v < NV; v++) {
                i16x8 weights = i16x8_load8x8(w + 8 * v);
                for (int t = 0; t < NT; t++)
                    dot[v * NT + t] += i32x4_dot_i16x8(weights, i16x8_splat_pair(x + t * cols + g * GROUP + 2 * pair));
            }
        }
        for (int v = 0; v < NV; v++)
            for (int t = 0; t < NT; t++)
                sum[v * NT + t] += (f32x4_load(weight_scales + 4 * v) * scales[t * (cols / GROUP) + g]) *
                                   f32x4_from_i32x4(dot[v * NT + t]);
    }
    for (int v = 0; v < NV; v++)
        for (int t = 0; t < NT; t++) f32x4_store(y + t * y_stride + 4 * v, sum[v * NT + t]);
}

/* One panel times n tokens, which is read once for all of them while it is in the cache. y is the panel's first row of
 * the first token. Several tokens go at a time as long as there are that many; the narrow panels take one by one. */
static void f32_panel(Panel panel, const Activations *x, int cols, float *y, int y_stride, int n) {
    const float *w = (const float *)panel.data, *in = x->f32;
    const int wide = panel.rows == 32, stride = x->stride;
    int t = 0;
    for (; wide && t + 2 <= n; t += 2)
        for (int r = 0; r < 32; r += 16)
            f32_kernel(w + r, 32, in + t * stride, stride, y + t * y_stride + r, y_stride, cols, 4, 2);
    for (; wide && t < n; t++) f32_kernel(w, 32, in + t * stride, stride, y + t * y_stride, y_stride, cols, 8, 1);
    for (; t < n; t++) f32_kernel(w, 4, in + t * stride, stride, y + t * y_stride, y_stride, cols, 1, 1);
}

static void q8_panel(Panel panel, const Activations *x, int cols, float *y, int y_stride, int n) {
    const int wide = panel.rows == 16, groups = cols / GROUP;
    int t = 0;
    for (; wide && t + 4 <= n; t += 4)
        for (int r = 0; r < 16; r += 8)
            q8_kernel(panel, r, x->q + t * cols, x->scales + t * groups, y + t * y_stride + r, y_stride, cols, 2, 4);
    for (; wide && t < n; t++)
        q8_kernel(panel, 0, x->q + t * cols, x->scales + t * groups, y + t * y_stride, y_stride, cols, 4, 1);
    for (; t < n; t++)
        q8_kernel(panel, 0, x->q + t * cols, x->scales + t * groups, y + t * y_stride, y_stride, cols, 1, 1);
}

/* y[t, :] = W x[t, :] for n tokens; y has pad4(rows) floats a token. */
static void matmul(float *y, const Matrix *w, const Activations *x, int n) {
    for (int row = 0; row < w->rows;) {
        Panel panel = matrix_panel(w, row);
        if (w->type == TYPE_F32)
            f32_panel(panel, x, w->cols, y + row, pad4(w->rows), n);
        else
            q8_panel(panel, x, w->cols, y + row, pad4(w->rows), n);
        row += panel.rows;
    }
}

#endif
