/* Memory, for the model and for the host. */
#ifndef FABELLA_MEMORY_H
#define FABELLA_MEMORY_H

#include "abi.h"
#include "simd.h"
#include <stdlib.h>

/* Zeroed, so that padding is zero; NULL also when the size does not fit this machine. */
static void *allocate_zeroed(uint64_t count, size_t size) {
    if (count > (SIZE_MAX / 2) / size) return NULL;
    return calloc(count ? (size_t)count : 1, size);
}

static float *allocate_floats(uint64_t rows, int row_size) { return allocate_zeroed(rows * pad4(row_size), 4); }

/* Makes each of an array's equal parts longer, with zeros in what is new. False, and everything as it was, when out of
 * memory. */
static bool grow(float **data, int parts, uint64_t old_size, uint64_t new_size) {
    float *grown = allocate_zeroed((uint64_t)parts * new_size, 4);
    if (!grown) return false;
    for (int i = 0; i < parts && old_size; i++)
        memcpy(grown + i * new_size, *data + i * old_size, (size_t)old_size * 4);
    free(*data);
    *data = grown;
    return true;
}

/* Memory that the host writes to. NULL when there is none left; `release` takes it back. */
EXPORT void *allocate(uint32_t size) { return malloc(size); }

EXPORT void release(void *data) { free(data); }

#endif
