/* Adapters (LoRA): what the matrices of a loaded model have beside them, put there, taken away and put back. */
#ifndef FABELLA_ADAPTER_H
#define FABELLA_ADAPTER_H

#include "loading.h"

enum { MAX_RANK = 1024 };

typedef struct {
    Matrix *matrix;
    Lora lora;
    Halves halves; /* of the matrix's rows in the file */
} Adapted;

typedef struct {
    Adapted *adapted; /* (room) */
    int room, count;
    bool off;
} Adapter;

/* Takes all of it away. */
static void adapter_clear(Adapter *adapter) {
    for (int i = 0; i < adapter->count; i++) {
        const Adapted *one = &adapter->adapted[i];
        one->matrix->lora = NULL;
        free(one->lora.a);
        free(one->lora.b);
        free(one->lora.inner);
    }
    free(adapter->adapted);
    *adapter = (Adapter){0};
}

/* Has all matrices, or none, add what they have. */
static void adapter_switch(Adapter *adapter, bool off) {
    adapter->off = off;
    for (int i = 0; i < adapter->count; i++) adapter->adapted[i].matrix->lora = off ? NULL : &adapter->adapted[i].lora;
}

/* Makes room for a matrix's A and B, zeros until they come, for `tokens` at once. Errors: E_TENSOR, E_CONFIG,
 * E_MEMORY. */
static int adapter_add(Adapter *adapter, Matrix *w, Halves halves, int rank, float scale, int tokens) {
    if (adapter->count == adapter->room || adapter->off || w->lora) return E_TENSOR;
    if (rank < 1 || rank > MAX_RANK || !is_finite(scale)) return E_CONFIG;
    Lora lora = {.rank = rank, .scale = scale};
    if (!(lora.a = allocate_floats((uint64_t)w->cols, rank)) || !(lora.b = allocate_floats((uint64_t)rank, w->rows)) ||
        !(lora.inner = allocate_floats((uint64_t)tokens, rank))) {
        free(lora.a);
        free(lora.b);
        return E_MEMORY;
    }
    Adapted *one = &adapter->adapted[adapter->count++];
    *one = (Adapted){w, lora, halves};
    w->lora = &one->lora;
    return OK;
}

/* Fills A, or B if `is_b`, of the matrix added last with its rows as they lie in the file. Errors: E_TENSOR,
 * E_NOT_FINITE. */
static int adapter_fill(Adapter *adapter, bool is_b, int type, const char *data, uint32_t size) {
    if (adapter->count == 0 || !is_float_type(type)) return E_TENSOR;
    Adapted *one = &adapter->adapted[adapter->count - 1];
    const int rank = one->lora.rank, rows = is_b ? one->matrix->rows : rank, cols = is_b ? rank : one->matrix->cols;
    const uint64_t row_bytes = file_row_bytes(type, cols);
    if (size != rows * row_bytes) return E_TENSOR;
    for (int r = 0; r < rows; r++) {
        const int place = is_b ? place_of(one->halves, r) : r;
        for (int c = 0; c < cols; c++) {
            const float weight = read_float(type, data + r * row_bytes, c);
            if (!is_finite(weight)) return E_NOT_FINITE;
            (is_b ? one->lora.b : one->lora.a)[(size_t)c * pad4(rows) + place] = weight;
        }
    }
    return OK;
}

#endif
