/* The vector vocabulary: four floats, four int32, eight int16 or sixteen int8 in 128 bits.
 *
 * The types are GCC/Clang vector extensions, so + - * work lane by lane and the same source compiles to wasm SIMD128,
 * to wasm relaxed SIMD and to native code. Only what the extensions cannot say is a function here. Every operation is
 * exact or correctly rounded IEEE arithmetic: the bits are the same in every build. Compile with -ffp-contract=off, so
 * that a * b + c is rounded twice; gcc needs -fno-tree-vectorize as well where the target can fuse the two.
 */
#ifndef FABELLA_SIMD_H
#define FABELLA_SIMD_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#if defined(__wasm_simd128__)
#include <wasm_simd128.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

/* The relaxed build multiplies int8 by int8. Natively it can be imitated (-DRELAXED), so that tests reach its code. */
#if defined(__wasm_relaxed_simd__) && __clang_major__ >= 19
#define RELAXED
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef int16_t i16x8 __attribute__((vector_size(16)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef int8_t i8x16 __attribute__((vector_size(16)));

INLINE f32x4 f32x4_load(const float *p) {
    f32x4 v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void f32x4_store(float *p, f32x4 v) { memcpy(p, &v, sizeof v); }

/* Four floats of which only the upper halves of the bits are there: bfloat16. */
INLINE f32x4 f32x4_load_upper_halves(const char *p) {
#ifdef __wasm_simd128__
    return (f32x4)((i32x4)wasm_u32x4_load16x4(p) << 16);
#else
    uint16_t halves[4];
    memcpy(halves, p, sizeof halves);
    i32x4 bits;
    for (int i = 0; i < 4; i++) bits[i] = (int32_t)((uint32_t)halves[i] << 16);
    return (f32x4)bits;
#endif
}

INLINE f32x4 f32x4_splat(float a) { return (f32x4){a, a, a, a}; }

INLINE i32x4 i32x4_splat(int32_t a) { return (i32x4){a, a, a, a}; }

INLINE i32x4 i32x4_load_int8(const int8_t *p) { return (i32x4){p[0], p[1], p[2], p[3]}; }

/* Buffers of floats are read and written four at a time. */
INLINE int pad4(int n) { return (n + 3) & ~3; }

/* Always in this order: sums over lanes are part of what "same bits" means. */
INLINE float f32x4_sum(f32x4 v) { return (v[0] + v[1]) + (v[2] + v[3]); }

/* a where `which` is all ones, b where it is 0. */
INLINE f32x4 f32x4_select(i32x4 which, f32x4 a, f32x4 b) { return (f32x4)(((i32x4)a & which) | ((i32x4)b & ~which)); }

INLINE f32x4 f32x4_max(f32x4 a, f32x4 b) {
#ifdef __wasm_simd128__
    return (f32x4)wasm_f32x4_pmax((v128_t)b, (v128_t)a);
#else
    return f32x4_select(a > b, a, b);
#endif
}

INLINE float f32x4_largest(f32x4 v) {
    float largest = v[0];
    for (int lane = 1; lane < 4; lane++) largest = v[lane] > largest ? v[lane] : largest;
    return largest;
}

/* All ones where a lane is neither infinite nor NaN. */
INLINE i32x4 f32x4_finite(f32x4 v) { return v - v == 0; }

/* True if any lane is not 0. */
INLINE bool i32x4_any(i32x4 a) {
#ifdef __wasm_simd128__
    return wasm_v128_any_true((v128_t)a);
#else
    return (a[0] | a[1] | a[2] | a[3]) != 0;
#endif
}

INLINE f32x4 f32x4_abs(f32x4 a) { return (f32x4)((i32x4)a & 0x7fffffff); }

INLINE f32x4 f32x4_from_i32x4(i32x4 a) { return __builtin_convertvector(a, f32x4); }

/* Nearest integer (ties to even) of |a| < 2^22: adding 1.5 * 2^23 pushes the fraction out of the mantissa. */
#define ROUND_MAGIC 12582912.0f
INLINE i32x4 i32x4_round_f32x4(f32x4 a) { return (i32x4)(a + ROUND_MAGIC) - (i32x4)f32x4_splat(ROUND_MAGIC); }

/* e^a. Range reduction to |r| <= ln(2)/2, a polynomial of degree 6, then 2^n by the exponent bits.
 * Relative error below 3e-7; 0 below -87 and for NaN, e^88 above 88. */
INLINE f32x4 f32x4_exp(f32x4 a) {
    i32x4 kept = a >= -87.0f;
    f32x4 clamped = (f32x4)((i32x4)a & kept);
    clamped = f32x4_select(clamped < 88.0f, clamped, f32x4_splat(88.0f));
    i32x4 n = i32x4_round_f32x4(clamped * 1.44269504f); /* log2(e) */
    f32x4 nf = f32x4_from_i32x4(n);
    f32x4 r = clamped - nf * 0.693359375f; /* ln(2) in two parts; the first has 10 bits, so nf * it is exact */
    r = r + nf * 2.12194440e-4f;
    f32x4 p = r * (1.0f / 720) + (1.0f / 120);
    p = p * r + (1.0f / 24);
    p = p * r + (1.0f / 6);
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    f32x4 power = (f32x4)((n + 127) << 23);
    return (f32x4)((i32x4)(p * power) & kept);
}

/* 2^a for -126 <= a <= 0, and 0 for all else, NaN among it: a weight beside the largest, which is 1. A polynomial of
 * degree 5, relative error below 2e-7; half of f32x4_exp's work. */
INLINE f32x4 f32x4_exp2_of_negative(f32x4 a) {
    i32x4 kept = f32x4_abs(a + 63.0f) <= 63.0f;
    f32x4 n = a + ROUND_MAGIC; /* its lowest bits are the nearest integer's */
    f32x4 r = a - (n - ROUND_MAGIC);
    f32x4 p = r * 1.32647261e-3f + 9.67151299e-3f;
    p = p * r + 5.55073358e-2f;
    p = p * r + 0.240222424f;
    p = p * r + 0.693147004f;
    p = p * r + 1.0f;
    return (f32x4)(((i32x4)p + ((i32x4)n << 23)) & kept);
}

/* From e^2a, so that small results have its error, below 3e-7, and not a small one of their own. -1 for NaN. */
INLINE f32x4 f32x4_tanh(f32x4 a) { return 1.0f - 2.0f / (f32x4_exp(a + a) + 1.0f); }

/* ---- integer dot products ----------------------------------------------------------------------------------------
 *
 * A lane of a dot product is a row of the matrix, so one vector of weights holds four rows, four columns of each, a byte
 * a weight. The activations of these columns are repeated for the four rows. Weights are -127 .. 127 or, of up to seven
 * bits, 0 .. 127; activations are -127 .. 127. The sums are exact in both builds.
 */

enum { DOT_COLS = 4 };

INLINE i8x16 weights_load(const int8_t *p) {
    i8x16 w;
    memcpy(&w, p, sizeof w);
    return w;
}

/* The lower or upper nibble of every byte. By 16 bits, because x86 has no shift of bytes. */
INLINE i8x16 nibbles(i8x16 bytes, bool upper) { return (i8x16)((upper ? (u16x8)bytes >> 4 : (u16x8)bytes) & 0x0f0f); }

/* Bit i of every byte, as its bit 4. */
INLINE i8x16 bits_at_4(i8x16 bytes, int i) {
    return (i8x16)((i < 4 ? (u16x8)bytes << (4 - i) : (u16x8)bytes >> (i - 4)) & 0x1010);
}

/* 32 bits for each of the four rows. */
INLINE i32x4 splat_32_bits(const void *p) {
    int32_t bits;
    memcpy(&bits, p, sizeof bits);
    return i32x4_splat(bits);
}

#ifdef RELAXED

enum { EVEN_OFFSET = 0 };
typedef int8_t Quantized; /* an activation */
typedef i8x16 Inputs;

/* Four activations, as inputs_splat wants them. */
INLINE void inputs_store(Quantized *p, i32x4 x) {
    for (int i = 0; i < DOT_COLS; i++) p[i] = (Quantized)x[i];
}

INLINE Inputs inputs_splat(const Quantized *p) { return (Inputs)splat_32_bits(p); }

/* sum + the products of four neighbours a[i] * b[i], where b is 0 .. 127: machines differ outside. */
INLINE i32x4 dot_i8_u7(i8x16 a, i8x16 b, i32x4 sum) {
#ifdef __wasm__
    return (i32x4)wasm_i32x4_relaxed_dot_i8x16_i7x16_add((v128_t)a, (v128_t)b, (v128_t)sum);
#else
    for (int i = 0; i < 16; i++) sum[i / 4] += a[i] * b[i];
    return sum;
#endif
}

/* For weights of eight bits: w * x = (w with the sign of x) * |x|. And for those of 0 .. 127. */
INLINE i32x4 dot_q8(i32x4 sum, i8x16 w, Inputs x) {
    i8x16 negative = x < 0;
    return dot_i8_u7((w ^ negative) - negative, (x ^ negative) - negative, sum);
}

INLINE i32x4 dot_u7(i32x4 sum, i8x16 w, Inputs x) { return dot_i8_u7(x, w, sum); }

#else

/* Two neighbouring weights are taken as one int16, 256 * odd + even, the even one as an unsigned byte: those of eight bits
 * are stored with 128 added. Multiplied by the even activation as it is, without unpacking, it gives 256 * odd * x_even
 * too much; that is taken back where the odd weight alone, 16 bits >> 8, meets x_odd - 256 * x_even. */
enum { EVEN_OFFSET = 128 };
typedef int16_t Quantized; /* an activation, or what inputs_store makes of two */
typedef struct {
    i16x8 pairs, odd; /* what to multiply them by */
} Inputs;

/* Four activations, as inputs_splat wants them. */
INLINE void inputs_store(Quantized *p, i32x4 x) {
    p[0] = (Quantized)x[0];
    p[1] = (Quantized)x[2];
    p[2] = (Quantized)(x[1] - 256 * x[0]);
    p[3] = (Quantized)(x[3] - 256 * x[2]);
}

INLINE Inputs inputs_splat(const Quantized *p) {
    return (Inputs){(i16x8)splat_32_bits(p), (i16x8)splat_32_bits(p + 2)};
}

/* sum + the products of two neighbours */
INLINE i32x4 dot_i16(i32x4 sum, i16x8 a, i16x8 b) {
#if defined(__wasm_simd128__)
    return sum + (i32x4)wasm_i32x4_dot_i16x8((v128_t)a, (v128_t)b);
#elif defined(__SSE2__) /* compilers do not find it by themselves */
    return sum + (i32x4)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    for (int i = 0; i < 8; i++) sum[i / 2] += a[i] * b[i];
    return sum;
#endif
}

INLINE i32x4 dot_q8(i32x4 sum, i8x16 w, Inputs x) {
    return dot_i16(dot_i16(sum, (i16x8)w, x.pairs), (i16x8)w >> 8, x.odd);
}

INLINE i32x4 dot_u7(i32x4 sum, i8x16 w, Inputs x) { return dot_q8(sum, w, x); }

#endif

#ifdef __clang__
#define NO_UNROLL _Pragma("clang loop unroll(disable)")
#else
#define NO_UNROLL
#endif

/* Before a loop over dot products. LLVM would unroll it, sort the sums anew and run out of registers: half the speed. */
#if defined(__clang__) && !defined(RELAXED)
#define KEEP_LOOP NO_UNROLL
#else
#define KEEP_LOOP
#endif

#endif
