/* Loading: a tensor's rows as they lie in the file, packed into a matrix or a vector, some at a time. */
#ifndef FABELLA_LOADING_H
#define FABELLA_LOADING_H

#include "matrix.h"
#include "memory.h"

/* How RoPE's pairs lie in a file: the first half of the numbers that it turns in a head, then those that they are turned
 * with. In memory they lie side by side. */
typedef struct {
    int head_size, rope_size; /* 0: as in memory */
} Halves;

/* The tensor whose rows are being packed; all zero between two tensors. */
typedef struct {
    Matrix *matrix;  /* one of these is where the rows go, */
    float **vector;  /* the other is NULL */
    int type, group; /* as in the file */
    int rows, cols, done;
    bool needed; /* the model does not run without it */
    Halves halves;
} Loading;

/* Where row `i` of the file goes, or number i of a vector. */
static int place_of(Halves halves, int i) {
    if (halves.head_size == 0) return i;
    const int in_head = i % halves.head_size, half = halves.rope_size / 2;
    if (in_head >= halves.rope_size) return i;
    return i - in_head + (in_head < half ? 2 * in_head : 2 * (in_head - half) + 1);
}

/* Makes room for a vector. Errors: E_TENSOR, E_MEMORY. */
static int begin_vector(Loading *loading, float **vector) {
    const int type = loading->type;
    if (*vector || !is_float_type(type)) return E_TENSOR;
    loading->vector = vector;
    return (*vector = allocate_floats(1, loading->cols)) ? OK : E_MEMORY;
}

/* Makes room for a matrix. Errors: E_TENSOR, E_MEMORY. */
static int begin_matrix(Loading *loading, Matrix *w) {
    if (w->panels) return E_TENSOR;
    const int rows = loading->rows, cols = loading->cols;
    const Layout layout = layout_for(loading->type, cols, loading->group);
    const uint64_t size = (uint64_t)pad4(rows) * matrix_row_bytes(layout, cols);
    /* Untouched until the rows come, so that memory fills only as fast as the host releases the file's bytes. */
    char *panels = size <= SIZE_MAX / 2 ? malloc((size_t)size) : NULL;
    if (!panels) return E_MEMORY;
    *w = (Matrix){layout, rows, cols, panels, NULL};
    pad_rows(w);
    loading->matrix = w;
    return OK;
}

static int load_row(Loading *loading, const char *data, const float *scales) {
    const int type = loading->type, row = place_of(loading->halves, loading->done);
    if (loading->matrix) return pack_row(loading->matrix, row, loading->done, type, data, scales, loading->group);
    for (int i = 0; i < loading->cols; i++)
        if (!is_finite((*loading->vector)[place_of(loading->halves, i)] = read_float(type, data, i)))
            return E_NOT_FINITE;
    return OK;
}

/* Packs the next rows, `size` bytes. Errors: E_TENSOR, E_NOT_FINITE, E_RANGE. */
static int load_rows(Loading *loading, const char *data, uint32_t size, const float *scales) {
    if (!loading->rows) return E_TENSOR;
    const uint64_t row_bytes = file_row_bytes(loading->type, loading->cols), rows = size / row_bytes;
    if (rows == 0 || size % row_bytes || rows > (uint64_t)(loading->rows - loading->done)) return E_TENSOR;
    if ((scales != NULL) != (loading->type == TYPE_I8)) return E_TENSOR;
    for (uint64_t i = 0; i < rows; i++, loading->done++) {
        int error = load_row(loading, data + i * row_bytes, scales);
        if (error) return error;
    }
    return OK;
}

/* Bytes that the tensor takes in memory. */
static uint64_t packed_bytes(const Loading *loading) {
    const Matrix *w = loading->matrix;
    return w ? pad4(w->rows) * matrix_row_bytes(w->layout, w->cols) : 4 * (uint64_t)pad4(loading->cols);
}

/* Frees a tensor that could not be loaded. */
static void discard(Loading *loading) {
    if (loading->matrix) {
        free(loading->matrix->panels);
        loading->matrix->panels = NULL;
    } else if (loading->vector) {
        free(*loading->vector);
        *loading->vector = NULL;
    }
}

#endif
