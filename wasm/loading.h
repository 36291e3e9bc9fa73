/* Loading: a tensor's rows as they lie in the file, packed into a matrix or a norm, some at a time. */
#ifndef FABELLA_LOADING_H
#define FABELLA_LOADING_H

#include "matrix.h"
#include "memory.h"

/* The tensor whose rows are being packed; all zero between two tensors. */
typedef struct {
    Matrix *matrix;  /* one of these is where the rows go, */
    float **norm;    /* the other is NULL */
    int type, group; /* as in the file */
    int rows, cols, done;
} Loading;

/* Makes room for a norm. Errors: E_TENSOR, E_MEMORY. */
static int begin_norm(Loading *loading, float **norm) {
    const int type = loading->type;
    if (*norm || (type != TYPE_F32 && type != TYPE_F16 && type != TYPE_BF16)) return E_TENSOR;
    loading->norm = norm;
    return (*norm = allocate_floats(1, loading->cols)) ? OK : E_MEMORY;
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
    *w = (Matrix){layout, rows, cols, panels};
    loading->matrix = w;
    return OK;
}

static int load_row(Loading *loading, const char *data, const float *scales) {
    if (loading->matrix) return pack_row(loading->matrix, loading->done, loading->type, data, scales, loading->group);
    for (int i = 0; i < loading->cols; i++)
        if (!is_finite((*loading->norm)[i] = read_float(loading->type, data, i))) return E_NOT_FINITE;
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

/* Frees a tensor that could not be loaded. */
static void discard(Loading *loading) {
    if (loading->matrix) {
        free(loading->matrix->panels);
        loading->matrix->panels = NULL;
    } else if (loading->norm) {
        free(*loading->norm);
        *loading->norm = NULL;
    }
}

#endif
