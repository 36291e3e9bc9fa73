/* Weight matrices in the layouts that the kernels like, and y = W x.
 *
 * A lane is a row. A matrix is cut into panels of rows (32 or 16 rows; the rows left over go in panels of 4, the last
 * one filled up with zero rows), and a panel's bytes lie in the order in which the kernel reads them:
 *
 *     f32    for each column:            the panel's rows, one float each
 *     bf16   for each column:            the panel's rows, the upper half of a float each
 *     q8     for each group of 32 columns:
 *                the panel's rows, one float scale each
 *                for each 4 columns:        the panel's rows, 4 int8 each
 *     q4     for each group of 32 columns:
 *                the panel's rows, one float scale each
 *                for each 8 columns:        the panel's rows, 4 bytes of two nibbles each
 *     q4m    as q4, but after the scales: the panel's rows, one float minimum each
 *     q5     as q4, but before the nibbles: the panel's rows, 4 bytes each, whose bit i belongs to the column that
 *            stands in this byte's place in the i-th 4 columns: the fifth bits
 *     q5m    as q5, with minima as in q4m
 *     q8s    as q8, but after the scales: for each 4 rows, 4 int8 that the first 16 columns are multiplied by and 4 for
 *            the last 16
 *
 * Integers are summed exactly, in whatever order a build likes. What is rounded is the same in every build: floats are
 * added once per group, in the order of the columns.
 *
 * So a kernel walks one pointer, needs no sum across lanes, and every row of the result is summed by the same
 * operations, whether one token is computed or many: prefill and decode give the same bits of finite numbers.
 */
#ifndef FABELLA_MATRIX_H
#define FABELLA_MATRIX_H

#include "groups.h"
#include "parallel.h"
#include "simd.h"
#include <stddef.h>
#include <stdlib.h>

/* Floats as they lie in the file, so that what is read for every token is no more than there is; F16 becomes F32. */
typedef struct {
    Layout layout; /* F32 or BF16 */
    char *data;
} FloatMatrix;

/* What an adapter adds to a matrix's product: y = W x + B (scale * A x), with A (rank, cols) and B (rows, rank). A lane
 * is a row here, too. */
typedef struct {
    int rank;
    float scale;
    FloatMatrix a; /* (cols, pad4(rank)): column by column, with zeros beyond the rank */
    FloatMatrix b; /* (rank, pad4(rows)) likewise */
    float *inner;  /* (n, pad4(rank)): scale * A x of the tokens that are being computed */
} Lora;

typedef struct {
    Layout layout;
    int rows, cols;
    char *panels;
    Lora *lora; /* NULL: none */
} Matrix;

typedef struct {
    int rows;   /* rows per panel: a multiple of 4 */
    char *data; /* the panel's first byte */
} Panel;

#ifdef RELAXED
enum { WIDE_FLOAT = 32, WIDE = 32 }; /* rows of a panel of floats, and of integers */
#else
enum { WIDE_FLOAT = 32, WIDE = 16 };
#endif

/* How a file's weights are packed. Int8 weights that do not fit groups of 32 become floats. */
static Layout layout_for(int type, int cols, int file_group) {
    if (type == TYPE_I8 && (cols % GROUP || file_group % GROUP)) return F32;
    return format_of(type).layout;
}

INLINE bool is_float(Layout layout) { return layout == F32 || layout == BF16; }

INLINE bool has_fifth_bits(Layout layout) { return layout == Q5 || layout == Q5M; }

INLINE bool has_nibbles(Layout layout) { return layout == Q4 || layout == Q4M || has_fifth_bits(layout); }

INLINE bool has_minimum(Layout layout) { return layout == Q5M || layout == Q4M; }

/* Bytes before a group's integers, or nibbles, per row. */
INLINE int group_head(Layout layout) {
    return 4 + (has_minimum(layout) ? 4 : 0) + (layout == Q8S ? 2 : 0) + (has_fifth_bits(layout) ? 4 : 0);
}

INLINE int group_bytes(Layout layout) { return group_head(layout) + (has_nibbles(layout) ? GROUP / 2 : GROUP); }

INLINE int float_bytes(Layout layout) { return layout == F32 ? 4 : 2; }

static uint64_t matrix_row_bytes(Layout layout, int cols) {
    return is_float(layout) ? (uint64_t)cols * float_bytes(layout) : (uint64_t)(cols / GROUP) * group_bytes(layout);
}

INLINE int wide_rows(const Matrix *w) { return is_float(w->layout) ? WIDE_FLOAT : WIDE; }

/* The panel that starts at this row. Before it lie `row` whole rows, whatever their panels were. */
INLINE Panel matrix_panel(const Matrix *w, int row) {
    const int wide = wide_rows(w);
    return (Panel){w->rows - row >= wide ? wide : 4, w->panels + (size_t)row * matrix_row_bytes(w->layout, w->cols)};
}

/* The first row of the panel that this row is in. */
INLINE int panel_start(const Matrix *w, int row) {
    const int wide = wide_rows(w), in_wide = w->rows / wide * wide;
    return row < in_wide ? row / wide * wide : in_wide + (row - in_wide) / 4 * 4;
}

/* Where things lie in a panel: a float weight, a group's scale (its minimum is panel.rows floats further), the first
 * of a row's two sub-scales (the other is 4 bytes further), the byte of a weight and how far its nibble is shifted
 * there. */
INLINE char *float_place(Panel panel, Layout layout, int row, int col) {
    return panel.data + ((size_t)col * panel.rows + row) * float_bytes(layout);
}

INLINE char *group_place(Panel panel, Layout layout, int g, int row) {
    return panel.data + (size_t)g * panel.rows * group_bytes(layout) + 4 * row;
}

INLINE int8_t *sub_scales(Panel panel, int g, int row) {
    return (int8_t *)group_place(panel, Q8S, g, panel.rows) + row / 4 * 8 + row % 4;
}

INLINE int8_t *integers(Panel panel, Layout layout, int g) {
    return (int8_t *)group_place(panel, layout, g, 0) + panel.rows * group_head(layout);
}

INLINE int8_t *integer_place(Panel panel, Layout layout, int g, int row, int i) {
    const int cols = has_nibbles(layout) ? 2 * DOT_COLS : DOT_COLS; /* for which 4 bytes of a row lie together */
    return integers(panel, layout, g) + (i / cols * panel.rows + row) * DOT_COLS + i % DOT_COLS;
}

/* The fifth bits of a row, which are the last before the nibbles. */
INLINE int8_t *fifth_bits(Panel panel, Layout layout, int g, int row) {
    return integers(panel, layout, g) - 4 * (panel.rows - row);
}

INLINE int nibble_shift(Layout layout, int i) { return has_nibbles(layout) && i % 8 >= 4 ? 4 : 0; }

/* What is added to a weight in its byte or nibble, so that it suits the dot product. */
enum { Q8S_OFFSET = 32, Q5_OFFSET = 16, Q4_OFFSET = 8 };
INLINE int offset_of(Layout layout, int i) {
    switch (layout) {
    case Q8: return i % 2 == 0 ? EVEN_OFFSET : 0;
    case Q8S: return Q8S_OFFSET;
    case Q5: return Q5_OFFSET;
    case Q4: return Q4_OFFSET;
    default: return 0;
    }
}

/* Puts 32 weights in their places. */
INLINE void pack_integers(const Layout layout, int8_t *place, int panel_rows, const int8_t *values) {
    const int cols = has_nibbles(layout) ? 2 * DOT_COLS : DOT_COLS;
    for (int c = 0; c < GROUP; c += cols, place += DOT_COLS * panel_rows) {
        for (int i = 0; i < DOT_COLS; i++) {
            int stored = values[c + i] + offset_of(layout, i);
            if (has_nibbles(layout)) stored = (stored & 15) | (values[c + DOT_COLS + i] + offset_of(layout, i)) << 4;
            place[i] = (int8_t)stored;
        }
    }
}

static void pack_fifth_bits(Layout layout, int8_t *place, const int8_t *values) {
    for (int i = 0; i < DOT_COLS; i++) {
        int bits = 0;
        for (int c = i; c < GROUP; c += DOT_COLS) bits |= (values[c] + offset_of(layout, c)) >> 4 << c / DOT_COLS;
        place[i] = (int8_t)bits;
    }
}

static void pack_group(Panel panel, Layout layout, int g, int row, const Group *group) {
    int8_t *place = integer_place(panel, layout, g, row, 0);
    memcpy(group_place(panel, layout, g, row), &group->scale, 4);
    if (has_minimum(layout)) memcpy(group_place(panel, layout, g, row + panel.rows), &group->minimum, 4);
    for (int half = 0; layout == Q8S && half < 2; half++) sub_scales(panel, g, row)[4 * half] = group->sub_scales[half];
    if (has_fifth_bits(layout)) pack_fifth_bits(layout, fifth_bits(panel, layout, g, row), group->values);
    switch (layout) {
    case Q8: pack_integers(Q8, place, panel.rows, group->values); break;
    case Q8S: pack_integers(Q8S, place, panel.rows, group->values); break;
    case Q5: pack_integers(Q5, place, panel.rows, group->values); break;
    case Q4: pack_integers(Q4, place, panel.rows, group->values); break;
    default: pack_integers(Q4M, place, panel.rows, group->values); /* Q5M, too: what is stored has no offset */
    }
}

/* Packs a row as it lies in the file, where it is row number `from`, as this row of the matrix. Scales are those of an I8
 * tensor, one for each `file_group` weights of it. */
static int pack_row(Matrix *w, int row, int from, int type, const char *source, const float *scales, int file_group) {
    const int first = panel_start(w, row);
    const Panel panel = matrix_panel(w, first);
    const uint64_t before = (uint64_t)from * w->cols; /* weights of the rows before */
    if (is_float(w->layout)) {
        for (int c = 0; c < w->cols; c++) {
            if (type == TYPE_I8 && (int8_t)source[c] == -128) return E_RANGE;
            const float f = type == TYPE_I8 ? scales[(before + c) / file_group] * (float)(int8_t)source[c]
                                            : read_float(type, source, c);
            if (!is_finite(f)) return E_NOT_FINITE;
            if (w->layout == F32)
                memcpy(float_place(panel, F32, row - first, c), &f, 4);
            else
                memcpy(float_place(panel, BF16, row - first, c), source + 2 * (size_t)c, 2);
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

/* Fills up the last panel, if it is a narrow one, with rows of zeros; before any row is packed. */
static void pad_rows(Matrix *w) {
    const int first = panel_start(w, w->rows - 1);
    const Panel panel = matrix_panel(w, first);
    if (panel.rows == 4) memset(panel.data, 0, 4 * (size_t)matrix_row_bytes(w->layout, w->cols));
}

/* Column c of a row of integers, which is row r of its panel. */
static float integer_weight(Panel panel, Layout layout, int r, int c) {
    const int g = c / GROUP, i = c % GROUP;
    const int stored = *integer_place(panel, layout, g, r, i) >> nibble_shift(layout, i);
    int value = (has_nibbles(layout) ? stored & 15 : (int8_t)(stored - offset_of(layout, i)));
    float scale, minimum;
    memcpy(&scale, group_place(panel, layout, g, r), 4);
    if (has_fifth_bits(layout)) value |= (fifth_bits(panel, layout, g, r)[i % DOT_COLS] >> i / DOT_COLS & 1) << 4;
    if (has_nibbles(layout)) value -= offset_of(layout, i);
    if (layout == Q8S) value *= sub_scales(panel, g, r)[i / 16 * 4];
    if (!has_minimum(layout)) return scale * (float)value;
    memcpy(&minimum, group_place(panel, layout, g, r + panel.rows), 4);
    return scale * (float)value + minimum;
}

/* Unpacks one row into out[cols], with zeros up to pad4(cols): the token embedding. */
static void matrix_row(const Matrix *w, int row, float *out) {
    const int first = panel_start(w, row), r = row - first;
    const Panel panel = matrix_panel(w, first);
    for (int c = 0; c < w->cols; c++)
        out[c] = is_float(w->layout)
                     ? read_float(w->layout == F32 ? TYPE_F32 : TYPE_BF16, float_place(panel, w->layout, r, c), 0)
                     : integer_weight(panel, w->layout, r, c);
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
    int32_t sum, even_sum, first_sum; /* of all the integers, of those in even columns, of the first 16 */
} InputGroup;

/* One matmul's input: n rows of activations, in f32 and, if a quantised matrix is to read them, as integers. */
typedef struct {
    View f32;           /* (n, cols) */
    Quantized *q;       /* (n, cols), four by four as inputs_store has them */
    InputGroup *groups; /* (n, cols / GROUP) */
    bool side_by_side;  /* whether a single row meets several panels at a time */
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
            i32x4 sum = {0}, first = {0};
            for (int i = 0; i < GROUP; i += DOT_COLS) {
                i32x4 q = i32x4_round_f32x4(f32x4_load(in + i) * inverse) & finite;
                if (i == GROUP / 2) first = sum;
                sum += q;
                inputs_store(x->q + at * GROUP + i, q);
            }
            const int even_sum = sum[0] + sum[2], first_sum = (first[0] + first[2]) + (first[1] + first[3]);
            x->groups[at] = (InputGroup){scale, even_sum + sum[1] + sum[3], even_sum, first_sum};
        }
    }
}

/* ---- kernels: NV vectors of four rows x NT tokens. Both are constants after inlining, so the sums live in registers.
 * NV * NT is at most 8. */

typedef enum { FRESH, ADDED } Sum; /* a sum begins at zero, or with what is there */

/* Four rows of a column. */
INLINE f32x4 floats_load(const Layout layout, const char *p) {
    return layout == F32 ? f32x4_load((const float *)p) : f32x4_load_upper_halves(p);
}

/* A column of weights begins `stride` bytes behind the one before. */
INLINE void float_kernel(const Layout layout, const char *w, size_t stride, View x, View y, int cols, Sum from,
                         const int NV, const int NT) {
    f32x4 sum[8];
    for (int v = 0; v < NV; v++)
        for (int t = 0; t < NT; t++)
            sum[v * NT + t] = from == ADDED ? f32x4_load(row_of(y, t) + 4 * v) : f32x4_splat(0);
    for (int c = 0; c < cols; c++, w += stride) {
        for (int v = 0; v < NV; v++) {
            f32x4 weight = floats_load(layout, w + 4 * v * float_bytes(layout));
            for (int t = 0; t < NT; t++) sum[v * NT + t] += weight * row_of(x, t)[c];
        }
    }
    for (int v = 0; v < NV; v++)
        for (int t = 0; t < NT; t++) f32x4_store(row_of(y, t) + 4 * v, sum[v * NT + t]);
}

INLINE void float_product(const Layout layout, const char *w, size_t stride, View x, View y, int rows, int cols, int n,
                          Sum from) {
    const int size = float_bytes(layout);
    for (int r = 0, step; r < rows; r += step, w += step * size, y.data += step) {
        step = rows - r >= 32 ? 32 : rows - r >= 16 ? 16 : 4;
        int t = 0;
        for (; step >= 16 && t + 2 <= n; t += 2)
            for (int half = 0; half < step; half += 16)
                float_kernel(layout, w + half * size, stride, view_from(x, t, 0), view_from(y, t, half), cols, from, 4,
                             2);
        for (; t < n; t++) {
            const View in = view_from(x, t, 0), out = view_from(y, t, 0);
            if (step == 32) float_kernel(layout, w, stride, in, out, cols, from, 8, 1);
            if (step == 16) float_kernel(layout, w, stride, in, out, cols, from, 4, 1);
            if (step == 4) float_kernel(layout, w, stride, in, out, cols, from, 1, 1);
        }
    }
}

/* y[t, row] = the sum over columns of w[col, row] * x[t, col], for n tokens and a multiple of 4 rows. Attention, too,
 * is made of these products. */
static void f32_product(View w, View x, View y, int rows, int cols, int n, Sum from) {
    float_product(F32, (const char *)w.data, (size_t)w.stride * sizeof(float), x, y, rows, cols, n, from);
}

/* The same for weights of 16 bits, `stride` bytes from column to column. */
static void bf16_product(const char *w, size_t stride, View x, View y, int rows, int cols, int n, Sum from) {
    float_product(BF16, w, stride, x, y, rows, cols, n, from);
}

/* dot[v, t] += the integer products of `count` columns, a byte a weight. */
INLINE void byte_dots(const Layout layout, const int8_t *w, int panel_rows, const Quantized *x, int cols,
                      const int count, i32x4 *dot, const int NV, const int NT) {
    KEEP_LOOP
    for (int i = 0; i < count; i += DOT_COLS, w += DOT_COLS * panel_rows) {
        Inputs in[2];
        for (int t = 0; t < NT; t++) in[t] = inputs_splat(x + t * cols + i);
        for (int v = 0; v < NV; v++) {
            i8x16 weights = weights_load(w + 16 * v);
            for (int t = 0; t < NT; t++)
                dot[v * NT + t] =
                    layout == Q8 ? dot_q8(dot[v * NT + t], weights, in[t]) : dot_u7(dot[v * NT + t], weights, in[t]);
        }
    }
}

/* The same of 32 columns, a nibble a weight; `fifth` are their fifth bits, if they have any. */
INLINE void nibble_dots(const Layout layout, const int8_t *w, const int8_t *fifth, int panel_rows, const Quantized *x,
                        int cols, i32x4 *dot, const int NV, const int NT) {
    for (int i = 0; i < GROUP; i += 8, w += 4 * panel_rows) {
        for (int part = 0; part < 2; part++) {
            Inputs in[2];
            for (int t = 0; t < NT; t++) in[t] = inputs_splat(x + t * cols + i + part * DOT_COLS);
            for (int v = 0; v < NV; v++) {
                i8x16 weights = nibbles(weights_load(w + 16 * v), part == 1);
                if (has_fifth_bits(layout)) weights |= bits_at_4(weights_load(fifth + 16 * v), i / DOT_COLS + part);
                for (int t = 0; t < NT; t++) dot[v * NT + t] = dot_u7(dot[v * NT + t], weights, in[t]);
            }
        }
    }
}

/* What the stored integers of a group are too large by, times the activations. */
INLINE int excess(const Layout layout, const InputGroup *group) {
    return layout == Q8 ? EVEN_OFFSET * group->even_sum : offset_of(layout, 0) * group->sum;
}

/* dot[v, t] = the integer products of group g. `w` is its first byte of the kernel's rows. */
INLINE void group_dots(const Layout layout, const int8_t *w, const int8_t *fifth, int panel_rows, const Quantized *x,
                       const InputGroup *in, int cols, i32x4 *dot, const int NV, const int NT) {
    for (int i = 0; i < NV * NT; i++) dot[i] = i32x4_splat(-excess(layout, &in[i % NT * (cols / GROUP)]));
    if (has_nibbles(layout))
        nibble_dots(layout, w, fifth, panel_rows, x, cols, dot, NV, NT);
    else
        byte_dots(layout, w, panel_rows, x, cols, GROUP, dot, NV, NT);
}

/* dot[v, t] = s[0] * the integer products of 16 columns + s[1] * those of the other 16, below 2^24. */
INLINE void half_group_dots(const int8_t *w, const int8_t *s, int panel_rows, const Quantized *x, const InputGroup *in,
                            int cols, i32x4 *dot, const int NV, const int NT) {
    for (int half = 0; half < 2; half++) {
        i32x4 part[8];
        for (int i = 0; i < NV * NT; i++) {
            const InputGroup *group = &in[i % NT * (cols / GROUP)];
            part[i] = i32x4_splat(-Q8S_OFFSET * (half ? group->sum - group->first_sum : group->first_sum));
        }
        byte_dots(Q8S, w + half * 16 * panel_rows, panel_rows, x + half * 16, cols, 16, part, NV, NT);
        for (int v = 0; v < NV; v++) {
            const i32x4 scales = i32x4_load_int8(s + 8 * v + 4 * half);
            for (int t = 0; t < NT; t++)
                dot[v * NT + t] = half ? dot[v * NT + t] + scales * part[v * NT + t] : scales * part[v * NT + t];
        }
    }
}

/* The layouts of integers: sum[v, t] += the products of group g. `first` is the first of the kernel's rows within the
 * panel, q and in are the group's activations. */
INLINE void add_group(const Layout layout, Panel panel, int g, int first, const Quantized *q, const InputGroup *in,
                      int cols, f32x4 *sum, const int NV, const int NT) {
    i32x4 dot[8];
    const int8_t *w = integers(panel, layout, g) + 4 * first;
    if (layout == Q8S)
        half_group_dots(w, sub_scales(panel, g, first), panel.rows, q, in, cols, dot, NV, NT);
    else
        group_dots(layout, w, fifth_bits(panel, layout, g, first), panel.rows, q, in, cols, dot, NV, NT);
    const float *weight_scales = (const float *)group_place(panel, layout, g, first);
    for (int v = 0; v < NV; v++) {
        for (int t = 0; t < NT; t++) {
            const InputGroup *group = &in[t * (cols / GROUP)];
            sum[v * NT + t] += (f32x4_load(weight_scales + 4 * v) * group->scale) * f32x4_from_i32x4(dot[v * NT + t]);
            if (has_minimum(layout))
                sum[v * NT + t] += f32x4_load(weight_scales + panel.rows + 4 * v) * (group->scale * (float)group->sum);
        }
    }
}

INLINE void q_kernel(const Layout layout, Panel panel, int first, const Activations *x, int token, View y, int cols,
                     const int NV, const int NT) {
    const int groups = cols / GROUP;
    const Quantized *q = x->q + (size_t)token * cols;
    const InputGroup *in = x->groups + token * groups;
    f32x4 sum[8];
    for (int i = 0; i < NV * NT; i++) sum[i] = f32x4_splat(0);
    for (int g = 0; g < groups; g++) add_group(layout, panel, g, first, q + g * GROUP, in + g, cols, sum, NV, NT);
    for (int v = 0; v < NV; v++)
        for (int t = 0; t < NT; t++) f32x4_store(row_of(y, t) + 4 * v, sum[v * NT + t]);
}

/* Wide panels that one token meets side by side, a group of each in turn. */
enum { STREAMS = 4 };

INLINE void q_streams(const Layout layout, Panel panel, const Activations *x, int cols, float *y) {
    enum { NV = WIDE / 4 };
    const size_t size = WIDE * (size_t)matrix_row_bytes(layout, cols);
    f32x4 sum[STREAMS][NV];
    memset(sum, 0, sizeof sum);
    for (int g = 0; g < cols / GROUP; g++) {
        NO_UNROLL
        for (int s = 0; s < STREAMS; s++)
            add_group(layout, (Panel){WIDE, panel.data + s * size}, g, 0, x->q + g * GROUP, x->groups + g, cols, sum[s],
                      NV, 1);
    }
    memcpy(y, sum, sizeof sum);
}

/* One panel times n tokens, so that it is read once for all of them while it is in the cache; or more rows than it has,
 * those of STREAMS panels, times one token. y begins at the panel's first row of the first token. Several tokens are
 * computed together as long as there are that many; the narrow panels take one at a time. */
INLINE void float_panel(const Layout layout, Panel panel, int rows, const Activations *x, int cols, View y, int n) {
    (void)rows;
    const size_t stride = (size_t)panel.rows * float_bytes(layout);
    float_product(layout, panel.data, stride, x->f32, y, panel.rows, cols, n, FRESH);
}

INLINE void q_panel(const Layout layout, Panel panel, int rows, const Activations *x, int cols, View y, int n) {
    enum { NV = 4, NT = 2 }; /* for several tokens */
    if (rows > panel.rows) {
        q_streams(layout, panel, x, cols, y.data);
        return;
    }
    const int wide = panel.rows == WIDE;
    int t = 0;
    for (; wide && t + NT <= n; t += NT)
        for (int r = 0; r < WIDE; r += 4 * NV) q_kernel(layout, panel, r, x, t, view_from(y, t, r), cols, NV, NT);
    for (; wide && t < n; t++) q_kernel(layout, panel, 0, x, t, view_from(y, t, 0), cols, WIDE / 4, 1);
    for (; t < n; t++) q_kernel(layout, panel, 0, x, t, view_from(y, t, 0), cols, 1, 1);
}

#define PANEL_FUNCTION(name, kernel, layout)                                                                           \
    static void name(Panel panel, int rows, const Activations *x, int cols, View y, int n) {                           \
        kernel(layout, panel, rows, x, cols, y, n);                                                                    \
    }
PANEL_FUNCTION(f32_panel, float_panel, F32)
PANEL_FUNCTION(bf16_panel, float_panel, BF16)
PANEL_FUNCTION(q8_panel, q_panel, Q8)
PANEL_FUNCTION(q8s_panel, q_panel, Q8S)
PANEL_FUNCTION(q5_panel, q_panel, Q5)
PANEL_FUNCTION(q5m_panel, q_panel, Q5M)
PANEL_FUNCTION(q4_panel, q_panel, Q4)
PANEL_FUNCTION(q4m_panel, q_panel, Q4M)

/* ---- y = W x, for several matrices that read the same input ------------------------------------------------------- */

typedef struct {
    const Matrix *w;
    float *y;          /* (n, pad4(w->rows)) */
    const float *bias; /* (pad4(w->rows)), added to each row of y; or NULL */
} Product;

typedef struct {
    const Product *products;
    int count;
    const Activations *x;
    int n;
} MatmulJob;

/* A step of the job: rows of one of the matrices, whole panels. */
enum { STEP = 32 };
_Static_assert(STEP % WIDE == 0 && STEP % WIDE_FLOAT == 0, "whole panels");

INLINE int steps(const Matrix *w) { return (w->rows + STEP - 1) / STEP; }

static void add_to_rows(View y, const float *bias, int rows, int n) {
    for (int t = 0; t < n; t++)
        for (int r = 0; r < rows; r += 4)
            f32x4_store(row_of(y, t) + r, f32x4_load(row_of(y, t) + r) + f32x4_load(bias + r));
}

/* 4 * NV rows of scale * A x, whose columns lie `stride` bytes apart. One chain of additions would keep the processor
 * waiting: CHAINS of them take turns at the columns, and are added up in pairs; then come the columns that are left. */
enum { CHAINS = 4 };
INLINE void lora_rows(const Layout layout, const char *a, size_t stride, const float *x, int cols, float scale,
                      float *inner, const int NV) {
    const int size = 4 * float_bytes(layout); /* of four rows */
    f32x4 sum[2][CHAINS];
    for (int v = 0; v < NV; v++)
        for (int i = 0; i < CHAINS; i++) sum[v][i] = f32x4_splat(0);
    int c = 0;
    for (; c + CHAINS <= cols; c += CHAINS)
        for (int i = 0; i < CHAINS; i++, a += stride)
            for (int v = 0; v < NV; v++) sum[v][i] += floats_load(layout, a + v * size) * x[c + i];
    for (int v = 0; v < NV; v++) sum[v][0] = (sum[v][0] + sum[v][2]) + (sum[v][1] + sum[v][3]);
    for (; c < cols; c++, a += stride)
        for (int v = 0; v < NV; v++) sum[v][0] += floats_load(layout, a + v * size) * x[c];
    for (int v = 0; v < NV; v++) f32x4_store(inner + 4 * v, scale * sum[v][0]);
}

/* scale * A x of a token. */
INLINE void lora_inner(const Layout layout, const Lora *lora, const float *x, int cols, float *inner) {
    const int size = float_bytes(layout), ranks = pad4(lora->rank);
    const char *a = lora->a.data;
    int r = 0;
    for (; r + 8 <= ranks; r += 8) lora_rows(layout, a + r * size, ranks * size, x, cols, lora->scale, inner + r, 2);
    if (r < ranks) lora_rows(layout, a + r * size, ranks * size, x, cols, lora->scale, inner + r, 1);
}

/* A step of this job: a token. */
static void lora_steps(void *context, int first, int end, int thread) {
    (void)thread;
    const MatmulJob *job = context;
    for (const Product *product = job->products; product < job->products + job->count; product++) {
        const Lora *lora = product->w->lora;
        if (!lora) continue;
        for (int t = first; t < end; t++) {
            const float *x = row_of(job->x->f32, t);
            float *inner = lora->inner + (size_t)t * pad4(lora->rank);
            if (lora->a.layout == F32)
                lora_inner(F32, lora, x, product->w->cols, inner);
            else
                lora_inner(BF16, lora, x, product->w->cols, inner);
        }
    }
}

/* y[t, :] += B inner[t, :] for rows of the matrix from `row` on. */
static void add_lora(const Matrix *w, int row, View y, int rows, int n) {
    const Lora *lora = w->lora;
    const View inner = {lora->inner, pad4(lora->rank)};
    const size_t size = float_bytes(lora->b.layout), stride = pad4(w->rows) * size;
    const char *b = lora->b.data + row * size;
    if (lora->b.layout == F32)
        f32_product((View){(float *)b, pad4(w->rows)}, inner, y, rows, lora->rank, n, ADDED);
    else
        bf16_product(b, stride, inner, y, rows, lora->rank, n, ADDED);
}

static void matmul_steps(void *context, int first, int end, int thread) {
    static void (*const panel_functions[])(Panel, int, const Activations *, int, View, int) = {
        [F32] = f32_panel, [BF16] = bf16_panel, [Q8] = q8_panel, [Q8S] = q8s_panel,
        [Q5] = q5_panel,   [Q5M] = q5m_panel,   [Q4] = q4_panel, [Q4M] = q4m_panel};
    (void)thread;
    const MatmulJob *job = context;
    const Product *product = job->products;
    for (int before = 0, stop; first < end; first = before + stop) {
        for (; first - before >= steps(product->w); product++) before += steps(product->w);
        const Matrix *w = product->w;
        stop = end - before < steps(w) ? end - before : steps(w);
        const int last = stop * STEP < w->rows ? stop * STEP : w->rows;
        const bool side_by_side = job->n == 1 && job->x->side_by_side && !is_float(w->layout);
        for (int row = (first - before) * STEP, rows; row < last; row += rows) {
            const Panel panel = matrix_panel(w, row);
            const View y = {product->y + row, pad4(w->rows)};
            rows = side_by_side && last - row >= STREAMS * WIDE ? STREAMS * WIDE : panel.rows;
            panel_functions[w->layout](panel, rows, job->x, w->cols, y, job->n);
            if (product->bias) add_to_rows(y, product->bias + row, rows, job->n);
        }
        const int row = (first - before) * STEP;
        if (w->lora) add_lora(w, row, (View){product->y + row, pad4(w->rows)}, pad4(last - row), job->n);
    }
}

/* For every product: y[t, :] = W x[t, :] + bias for n tokens, and what an adapter adds. */
static void matmul(const Product *products, int count, const Activations *x, int n) {
    MatmulJob job = {products, count, x, n};
    int all = 0;
    bool adapted = false;
    for (int i = 0; i < count; i++) {
        all += steps(products[i].w);
        adapted |= products[i].w->lora != NULL;
    }
    if (adapted) parallel(lora_steps, &job, n);
    parallel(matmul_steps, &job, all);
}

#endif
