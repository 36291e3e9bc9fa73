/* What the host (py/fabella/abi.py) and the module agree on beside the functions: error codes. */
#ifndef FABELLA_ABI_H
#define FABELLA_ABI_H

/* What the host may call. */
#define EXPORT __attribute__((used))

enum {
    OK = 0,
    E_MEMORY = -1,     /* out of memory */
    E_CONFIG = -2,     /* sizes that no model can have */
    E_TENSOR = -3,     /* no such tensor, a wrong size or type, or loaded twice */
    E_NOT_FINITE = -4, /* a weight or a scale is not a finite number */
    E_INCOMPLETE = -5, /* forward before every tensor is loaded */
    E_TOKEN = -6,      /* a token outside the vocabulary */
    E_POSITION = -7,   /* a position outside the context, or one that leaves a gap */
    E_LOGITS = -8,     /* no logit is a finite number */
    E_RANGE = -9,      /* an int8 weight is -128, whose opposite does not fit an int8 */
};

#endif
