/* Weight matrices in the layouts that the kernels like, and y = W x.
 *
 * A lane is a row. A matrix is cut into panels of rows (32 or 16 rows; the rows left over go in panels of 4, the last
 * one filled up with zero rows), and a panel's bytes lie in the order in which the kernel reads them:
 *
 *     f32    for each column:            the panel's rows, one float each
 *     q8     for each group of 32 columns:
 *                the panel's rows, one float scale each
 *                for each 4 columns:        the panel's rows, 4 int8 each
 *     q4     for each group of 32 columns:
 *                the panel's rows, one float scale each
 *                for each 8 columns:        the panel's rows, 4 bytes of two nibbles each
 *     q4m    as q4, but after the scales: the panel's rows, one float minimum each
 *
 * Integers are summed exactly, in whatever order a build likes. What is rounded is the same in every build: floats are
 * added once per group, in the order of the columns.
 *
 * So a kernel walks one pointer, needs no sum across lanes, and every row of the result is summed by the same
 * operations, whether one token is computed or many: prefill and decode give the same bits of finite numbers.
 */
#ifndef FABELLA_MATRIX_H
#define FABELLA_MATRIX_H

#include "formats.h"
#include "parallel.h"
#include "simd.h"
#include <stddef.h>
#include <stdlib.h>

typedef struct {
    Layout layout;
    int rows, cols;
    char *panels;
} Matrix;

typedef struct {
    int rows;   /* rows per panel: a multiple of 4 */
    char *data; /* the panel's first byte */
} Panel;

#ifdef RELAXED
enum { WIDE_F32 = 32, WIDE = 32 }; /* rows of a panel in f32, and in the other layouts */
#else
enum { WIDE_F32 = 32, WIDE = 16 };
#endif

/* How a file's weights are packed. Int8 weights that do not fit groups of 32 become floats. */
static Layout layout_for(int type, int cols, int file_group) {
    if (type == TYPE_I8 && (cols % GROUP || file_group % GROUP)) return F32;
    return format_of(type).layout;
}

/* Bytes before a group's integers, per row. */
INLINE int group_head(Layout layout) { return layout == Q4M ? 8 : 4; }

INLINE int group_bytes(Layout layout) { return group_head(layout) + (layout == Q8 ? GROUP : GROUP / 2); }

static uint64_t matrix_row_bytes(Layout layout, int cols) {
    return layout == F32 ? 4 * (uint64_t)cols : (uint64_t)(cols / GROUP) * group_bytes(layout);
}

/* The panel that starts at this row. Before it lie `row` whole rows, whatever their panels were. */
INLINE Panel matrix_panel(const Matrix *w, int row) {
    int wide = w->layout == F32 ? WIDE_F32 : WIDE;
    return (Panel){w->rows - row >= wide ? wide : 4, w->panels + (size_t)row * matrix_row_bytes(w->layout, w->cols)};
}

/* The first row of the panel that this row is in. */
INLINE int panel_start(const Matrix *w, int row) {
    int wide = w->layout == F32 ? WIDE_F32 : WIDE, in_wide = w->rows / wide * wide;
    return row < in_wide ? row / wide * wide : in_wide + (row - in_wide) / 4 * 4;
}

/* Where things lie in a panel: a float weight, a group's scale (its minimum is panel.rows floats further), the byte of
 * a q8 weight, the byte of a q4 weight and how far its nibble is shifted there. */
INLINE char *f32_place(Panel panel, int row, int col) { return panel.data + ((size_t)col * panel.rows + row) * 4; }

INLINE char *group_place(Panel panel, Layout layout, int g, int row) {
    return panel.data + (size_t)g * panel.rows * group_bytes(layout) + 4 * row;
}

INLINE int8_t *integers(Panel panel, Layout layout, int g) {
    return (int8_t *)group_place(panel, layout, g, 0) + panel.rows * group_head(layout);
}

INLINE int8_t *q8_place(Panel panel, int g, int row, int i) {
    return integers(panel, Q8, g) + (i / DOT_COLS * panel.rows + row) * DOT_COLS + i % DOT_COLS;
}

INLINE uint8_t *q4_place(Panel panel, Layout layout, int g, int row, int i) {
    return (uint8_t *)integers(panel, layout, g) + (i / 8 * panel.rows + row) * 4 + i % 4;
}

INLINE int q4_shift(int i) { return i % 8 / 4 * 4; }

/* What is added to a q8 weight in its byte. */
INLINE int q8_offset(int i) { return i % 2 == 0 ? EVEN_OFFSET : 0; }

/* Puts 32 weights in their places, which are zero before. */
static void pack_group(Panel panel, Layout layout, int g, int row, const Group *group) {
    memcpy(group_place(panel, layout, g, row), &group->scale, 4);
    if (layout == Q4M) memcpy(group_place(panel, layout, g, row + panel.rows), &group->minimum, 4);
    for (int i = 0; i < GROUP; i++) {
        if (layout == Q8) {
            *q8_place(panel, g, row, i) = (int8_t)(group->values[i] + q8_offset(i));
        } else {
            const int nibble = group->values[i] + (layout == Q4 ? 8 : 0);
            *q4_place(panel, layout, g, row, i) |= (uint8_t)(nibble << q4_shift(i));
        }
    }
}

/* Packs a row as it lies in the file. Scales are those of an I8 tensor, one for each `file_group` weights of it. */
static int pack_row(Matrix *w, int row, int type, const char *source, const float *scales, int file_group) {
    const int first = panel_start(w, row);
    const Panel panel = matrix_panel(w, first);
    const uint64_t before = (uint64_t)row * w->cols; /* weights of the rows before */
    if (row == first) memset(panel.data, 0, (size_t)panel.rows * matrix_row_bytes(w->layout, w->cols));
    if (w->layout == F32) {
        for (int c = 0; c < w->cols; c++) {
            if (type == TYPE_I8 && (int8_t)source[c] == -128) return E_RANGE;
            float f = type == TYPE_I8 ? scales[(before + c) / file_group] * (float)(int8_t)source[c]
                                      : read_float(type, source, c);
            if (!is_finite(f)) return E_NOT_FINITE;
            memcpy(f32_place(panel, row - first, c), &f, 4);
        }
        return OK;
    }
    for (int g = 0; g < w->cols / GROUP; g++) {
        Group group;
        if (type == TYPE_I8) group.scale = scales[(before + g * GROUP) / file_group];
        int error = read_group(type, source, g, &group);
        if (error) return error;
        pack_group(panel, w->layout, g, row - first, &group);
    }
    return OK;
}

/* Unpacks one row into out[cols], with zeros up to pad4(cols): the token embedding. */
static void matrix_row(const Matrix *w, int row, float *out) {
    const int first = panel_start(w, row), r = row - first;
    const Panel panel = matrix_panel(w, first);
    for (int c = 0; c < w->cols; c++) {
        const int g = c / GROUP, i = c % GROUP;
        float scale, minimum = 0;
        if (w->layout == F32) {
            memcpy(&out[c], f32_place(panel, r, c), 4);
            continue;
        }
        memcpy(&scale, group_place(panel, w->layout, g, r), 4);
        if (w->layout == Q8) {
            out[c] = scale * (float)(int8_t)(*q8_place(panel, g, r, i) - q8_offset(i));
        } else {
            const int nibble = *q4_place(panel, w->layout, g, r, i) >> q4_shift(i) & 15;
            if (w->layout == Q4M) memcpy(&minimum, group_place(panel, Q4M, g, r + panel.rows), 4);
            out[c] = scale * (float)(nibble - (w->layout == Q4 ? 8 : 0)) + minimum;
        }
    }
    for (int c = w->cols; c < pad4(w->cols); c++) out[c] = 0;
}

/* ---- rows of floats: activations, keys, values, results ------------------------------------------------------------ */

/* Row i begins at data + i * stride. */
typedef struct {
    float *data;
    int stride;
} View;

INLINE float *row_of(View view, int row) { return view.data + (ptrdiff_t)row * view.stride; }

/* The part that begins at this row and column. */
INLINE View view_from(View view, int row, int col) { return (View){row_of(view, row) + col, view.stride}; }

/* ---- activations ------------------------------------------------------------------------------------------------ */

/* A group of 32 activations: activation = scale * integer of -127 .. 127. */
typedef struct {
    float scale;
    int32_t sum, even_sum; /* of all the integers, and of those in even columns */
} InputGroup;

/* One matmul's input: n rows of activations, in f32 and, if a quantised matrix is to read them, as integers. */
typedef struct {
    View f32;           /* (n, cols) */
    Quantized *q;       /* (n, cols), four by four as inputs_store has them */
    InputGroup *groups; /* (n, cols / GROUP) */
} Activations;

static void quantize(const Activations *x, int cols, int n) {
    for (int t = 0; t < n; t++) {
        for (int g = 0; g < cols / GROUP; g++) {
            const size_t at = (size_t)t * (cols / GROUP) + g;
            const float *in = row_of(x->f32, t) + g * GROUP;
            f32x4 max4 = f32x4_splat(0);
            i32x4 finite = i32x4_splat(-1);
            for (int i = 0; i < GROUP; i += 4) {
                const f32x4 value = f32x4_load(in + i);
                max4 = f32x4_max(f32x4_abs(value), max4);
                finite &= f32x4_finite(value);
            }
            const float max = f32x4_largest(max4);
            const bool fine = finite[0] & finite[1] & finite[2] & finite[3];
            /* groups of up to 1e-30 count as 0: of far smaller ones the quotient would overflow */
            const float inverse = fine && max > 1e-30f ? 127.0f / max : 0;
            const float scale = inverse > 0 ? max / 127.0f : fine ? 0 : __builtin_nanf(""); /* NaN in, NaN out */
            i32x4 sum = {0};
            for (int i = 0; i < GROUP; i += DOT_COLS) {
                i32x4 q = i32x4_round_f32x4(f32x4_load(in + i) * inverse) & finite;
                sum += q;
                inputs_store(x->q + at * GROUP + i, q);
            }
            const int even_sum = sum[0] + sum[2];
            x->groups[at] = (InputGroup){scale, even_sum + sum[1] + sum[3], even_sum};
        }
    }
}

/* ---- kernels: NV vectors of four rows x NT tokens. Both are constants after inlining, so the sums live in registers.
 * NV * NT is at most 8. */

typedef enum { FRESH, ADDED } Sum; /* a sum begins at zero, or with what is there */

INLINE void f32_kernel(View w, View x, View y, int cols, Sum from, const int NV, const int NT) {
    f32x4 sum[8];
    for (int v = 0; v < NV; v++)
        for (int t = 0; t < NT; t++)
            sum[v * NT + t] = from == ADDED ? f32x4_load(row_of(y, t) + 4 * v) : f32x4_splat(0);
    for (int c = 0; c < cols; c++, w.data += w.stride) {
        for (int v = 0; v < NV; v++) {
            f32x4 weight = f32x4_load(w.data + 4 * v);
            for (int t = 0; t < NT; t++) sum[v * NT + t] += weight * row_of(x, t)[c];
        }
    }
    for (int v = 0; v < NV; v++)
        for (int t = 0; t < NT; t++) f32x4_store(row_of(y, t) + 4 * v, sum[v * NT + t]);
}

/* y[t, row] = the sum over columns of w[col, row] * x[t, col], for n tokens and a multiple of 4 rows. Attention, too,
 * is made of these products. */
static void f32_product(View w, View x, View y, int rows, int cols, int n, Sum from) {
    for (int r = 0, step; r < rows; r += step, w.data += step, y.data += step) {
        step = rows - r >= 32 ? 32 : rows - r >= 16 ? 16 : 4;
        int t = 0;
        for (; step >= 16 && t + 2 <= n; t += 2)
            for (int half = 0; half < step; half += 16)
                f32_kernel(view_from(w, 0, half), view_from(x, t, 0), view_from(y, t, half), cols, from, 4, 2);
        for (; t < n; t++) {
            const View in = view_from(x, t, 0), out = view_from(y, t, 0);
            if (step == 32) f32_kernel(w, in, out, cols, from, 8, 1);
            if (step == 16) f32_kernel(w, in, out, cols, from, 4, 1);
            if (step == 4) f32_kernel(w, in, out, cols, from, 1, 1);
        }
    }
}

/* dot[v, t] += the integer products of 32 columns. */
INLINE void q8_dots(const int8_t *w, int panel_rows, const Quantized *x, int cols, i32x4 *dot, const int NV,
                    const int NT) {
    KEEP_LOOP
    for (int i = 0; i < GROUP; i += DOT_COLS, w += DOT_COLS * panel_rows) {
        Inputs in[2];
        for (int t = 0; t < NT; t++) in[t] = inputs_splat(x + t * cols + i);
        for (int v = 0; v < NV; v++) {
            i8x16 weights = weights_load(w + 16 * v);
            for (int t = 0; t < NT; t++) dot[v * NT + t] = dot_q8(dot[v * NT + t], weights, in[t]);
        }
    }
}

INLINE void q4_dots(const int8_t *w, int panel_rows, const Quantized *x, int cols, i32x4 *dot, const int NV,
                    const int NT) {
    for (int i = 0; i < GROUP; i += 8, w += 4 * panel_rows) {
        for (int part = 0; part < 2; part++) {
            Inputs in[2];
            for (int t = 0; t < NT; t++) in[t] = inputs_splat(x + t * cols + i + part * DOT_COLS);
            for (int v = 0; v < NV; v++) {
                i8x16 weights = nibbles(weights_load(w + 16 * v), part == 1);
                for (int t = 0; t < NT; t++) dot[v * NT + t] = dot_q4(dot[v * NT + t], weights, in[t]);
            }
        }
    }
}

/* The three quantised layouts. `first` is the first of the kernel's rows within the panel, `token` of its tokens. */
INLINE void q_kernel(const Layout layout, Panel panel, int first, const Activations *x, int token, View y, int cols,
                     const int NV, const int NT) {
    const int groups = cols / GROUP;
    const Quantized *q = x->q + (size_t)token * cols;
    const InputGroup *in = x->groups + token * groups;
    f32x4 sum[8];
    for (int i = 0; i < NV * NT; i++) sum[i] = f32x4_splat(0);
    for (int g = 0; g < groups; g++) {
        i32x4 dot[8];
        for (int i = 0; i < NV * NT; i++) { /* what the stored integers are too large by, times the activations */
            const InputGroup *group = &in[i % NT * groups + g];
            dot[i] = i32x4_splat(layout == Q8 ? -EVEN_OFFSET * group->even_sum : layout == Q4 ? -8 * group->sum : 0);
        }
        const int8_t *w = integers(panel, layout, g) + 4 * first;
        if (layout == Q8)
            q8_dots(w, panel.rows, q + g * GROUP, cols, dot, NV, NT);
        else
            q4_dots(w, panel.rows, q + g * GROUP, cols, dot, NV, NT);
        const float *weight_scales = (const float *)group_place(panel, layout, g, first);
        for (int v = 0; v < NV; v++) {
            for (int t = 0; t < NT; t++) {
                const float scale = in[t * groups + g].scale;
                sum[v * NT + t] += (f32x4_load(weight_scales + 4 * v) * scale) * f32x4_from_i32x4(dot[v * NT + t]);
                if (layout == Q4M)
                    sum[v * NT + t] +=
                        f32x4_load(weight_scales + panel.rows + 4 * v) * (scale * (float)in[t * groups + g].sum);
            }
        }
    }
    for (int v = 0; v < NV; v++)
        for (int t = 0; t < NT; t++) f32x4_store(row_of(y, t) + 4 * v, sum[v * NT + t]);
}

/* One panel times n tokens, so that it is read once for all of them while it is in the cache. y begins at the panel's
 * first row of the first token. Several tokens are computed together as long as there are that many; the narrow panels
 * take one at a time. */
static void f32_panel(Panel panel, const Activations *x, int cols, View y, int n) {
    f32_product((View){(float *)panel.data, panel.rows}, x->f32, y, panel.rows, cols, n, FRESH);
}

INLINE void q_panel(const Layout layout, Panel panel, const Activations *x, int cols, View y, int n) {
    enum { NV = 4, NT = 2 }; /* for several tokens */
    const int wide = panel.rows == WIDE;
    int t = 0;
    for (; wide && t + NT <= n; t += NT)
        for (int r = 0; r < WIDE; r += 4 * NV) q_kernel(layout, panel, r, x, t, view_from(y, t, r), cols, NV, NT);
    for (; wide && t < n; t++) q_kernel(layout, panel, 0, x, t, view_from(y, t, 0), cols, WIDE / 4, 1);
    for (; t < n; t++) q_kernel(layout, panel, 0, x, t, view_from(y, t, 0), cols, 1, 1);
}

static void q8_panel(Panel panel, const Activations *x, int cols, View y, int n) { q_panel(Q8, panel, x, cols, y, n); }

static void q4_panel(Panel panel, const Activations *x, int cols, View y, int n) { q_panel(Q4, panel, x, cols, y, n); }

static void q4m_panel(Panel panel, const Activations *x, int cols, View y, int n) {
    q_panel(Q4M, panel, x, cols, y, n);
}

/* ---- y = W x, for several matrices that read the same input ------------------------------------------------------- */

typedef struct {
    const Matrix *w;
    float *y; /* (n, pad4(w->rows)) */
} Product;

typedef struct {
    const Product *products;
    const Activations *x;
    int n;
} MatmulJob;

/* A step of the job: rows of one of the matrices, whole panels. */
enum { STEP = 32 };
_Static_assert(STEP % WIDE == 0 && STEP % WIDE_F32 == 0, "whole panels");

INLINE int steps(const Matrix *w) { return (w->rows + STEP - 1) / STEP; }

static void matmul_steps(void *context, int first, int end, int thread) {
    static void (*const panel_functions[])(Panel, const Activations *, int, View, int) = {
        [F32] = f32_panel, [Q8] = q8_panel, [Q4] = q4_panel, [Q4M] = q4m_panel};
    (void)thread;
    const MatmulJob *job = context;
    const Product *product = job->products;
    for (int before = 0; first < end; first++) {
        for (; first - before >= steps(product->w); product++) before += steps(product->w);
        const Matrix *w = product->w;
        int row = (first - before) * STEP;
        const int last = row + STEP < w->rows ? row + STEP : w->rows;
        while (row < last) {
            Panel panel = matrix_panel(w, row);
            panel_functions[w->layout](panel, job->x, w->cols, (View){product->y + row, pad4(w->rows)}, job->n);
            row += panel.rows;
        }
    }
}

/* For every product: y[t, :] = W x[t, :] for n tokens. */
static void matmul(const Product *products, int count, const Activations *x, int n) {
    int all = 0;
    for (int i = 0; i < count; i++) all += steps(products[i].w);
    parallel(matmul_steps, &(MatmulJob){products, x, n}, all);
}

#endif
