/* exp, log, sine and cosine in double precision, from + - * / alone.
 *
 * A library's versions differ in the last bit from one machine to the next; these do not, and the rope table is made of
 * them. All series are plain Taylor series, long enough for double precision on their reduced range: errors stay below
 * 1e-15, relative ones for exp and log. Arguments outside the ranges given here have no meaning.
 */
#ifndef FABELLA_MATHS_H
#define FABELLA_MATHS_H

#include <stdint.h>
#include <string.h>

#define LOG2_E 1.44269504088896338700
#define LN2_HIGH 6.93147180369123816490e-01 /* its last 21 bits are zero, so small multiples are exact */
#define LN2_LOW 1.90821492927058770002e-10
#define HALF_PI_HIGH 1.57079632673412561417e+00 /* the first 33 bits of pi/2 */
#define HALF_PI_LOW 6.07710050650619224932e-11

static double power_of_two(int n) { /* -1022 <= n <= 1023 */
    uint64_t bits = (uint64_t)(n + 1023) << 52;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static int nearest(double a) { return (int)(a < 0 ? a - 0.5 : a + 0.5); }

/* e^a for |a| <= 700. */
static double exp_double(double a) {
    int n = nearest(a * LOG2_E);
    double r = (a - n * LN2_HIGH) - n * LN2_LOW; /* |r| <= 0.347 */
    double term = 1, sum = 1;
    for (int i = 1; i <= 14; i++) sum += term *= r / i;
    return sum * power_of_two(n);
}

/* Natural logarithm of a normal number 0 < a < 2^1023: a = m * 2^n with m in [0.7, 1.42],
 * log m = 2 artanh((m - 1) / (m + 1)). */
static double log_double(double a) {
    uint64_t bits;
    memcpy(&bits, &a, sizeof bits);
    int n = (int)(bits >> 52) - 1023;
    double m = a * power_of_two(-n);
    if (m > 1.41421356237309504880) m *= 0.5, n++;
    double s = (m - 1) / (m + 1), s2 = s * s, power = s, sum = 0;
    for (int i = 1; i <= 23; i += 2, power *= s2) sum += power / i;
    return n * LN2_HIGH + (2 * sum + n * LN2_LOW);
}

/* Cosine and sine of 0 <= a < 2^20, by quadrants. */
static void cos_sin_double(double a, double *cosine, double *sine) {
    int n = nearest(a / (HALF_PI_HIGH + HALF_PI_LOW));
    double r = (a - n * HALF_PI_HIGH) - n * HALF_PI_LOW, r2 = r * r; /* |r| <= pi/4 */
    double term = 1, c = 1, s = 1;
    for (int i = 2; i <= 18; i += 2) c += term *= -r2 / ((i - 1) * i);
    term = 1;
    for (int i = 2; i <= 18; i += 2) s += term *= -r2 / (i * (i + 1));
    s *= r;
    *cosine = n & 1 ? (n & 2 ? s : -s) : (n & 2 ? -c : c);
    *sine = n & 1 ? (n & 2 ? -c : c) : (n & 2 ? -s : s);
}

#endif
