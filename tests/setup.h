/* For programs that do without the driver: RoPE as in a plain Llama. Behind wasm/run.c. */

/* Bytes at the beginning of what tests/records.py writes: a Config, and RoPE's base. */
enum { SETUP = sizeof(Config) + sizeof(double) };

/* Turns pair i of n by base^(-i / n) radians. Errors as set_rope's. */
static int set_plain_rope(Model *model, double base) {
    const int size = model->config.rope_size;
    double *angles = calloc((size_t)size / 2, sizeof *angles);
    if (!angles) return E_MEMORY;
    for (int i = 0; i < size / 2; i++) angles[i] = exponential(-2.0 * i / size * logarithm(base));
    const int code = set_rope(model, 0, angles, 1);
    free(angles);
    return code;
}
