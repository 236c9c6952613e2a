/* Sweeps over a batch, for REAL = float or double. Letters as in core.py: M groups of B images, C channels, S values
   per image and channel.

   Two layouts: planes x[m][b][c][s], and pixels x[m][p][c] (channels last; p runs over the B S values of a group).
   Statistics are (M, C). What is added up in which order depends on the shape alone, never on the number of threads or on
   an address, so the same batch gives the same bits. */
#include <stdlib.h>

#define ALONE 32768 /* values that one thread handles faster than several */
#define BLOCK 65536 /* values of a channels-last group that are added up together */

typedef struct {
    long M, B, C, S;
    int last, threads;
} Shape;

static int team(const Shape *d) { return d->M * d->B * d->C * d->S > ALONE ? d->threads : 1; }
static long blocks(const Shape *d) { return (d->B * d->S * d->C + BLOCK - 1) / BLOCK; }

/* s += sum(u - a) and q += sum((u - a)(x - k)) over a row of n values. */
static inline void row_sums(const REAL *u, const REAL *x, double a, double k, long n, double *s, double *q)
{
    double sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
    for (long i = 0; i < n; i++) {
        double v = u[i] - a;
        sum += v;
        product += v * (x[i] - k);
    }
    *s += sum;
    *q += product;
}

/* The same for n pixels and each of their C channels, four pixels at a time. */
static inline void pixel_sums(const REAL *restrict u, const REAL *restrict x, const double *restrict a,
                              const double *restrict k, long n, long C, double *restrict s, double *restrict q)
{
    for (; n >= 4; n -= 4, u += 4 * C, x += 4 * C)
#pragma omp simd
        for (long c = 0; c < C; c++) {
            double u0 = u[c] - a[c], u1 = u[c + C] - a[c], u2 = u[c + 2 * C] - a[c], u3 = u[c + 3 * C] - a[c];
            double x0 = x[c] - k[c], x1 = x[c + C] - k[c], x2 = x[c + 2 * C] - k[c], x3 = x[c + 3 * C] - k[c];
            s[c] += (u0 + u1) + (u2 + u3);
            q[c] += (u0 * x0 + u1 * x1) + (u2 * x2 + u3 * x3);
        }
    for (; n > 0; n--, u += C, x += C)
#pragma omp simd
        for (long c = 0; c < C; c++) {
            s[c] += u[c] - a[c];
            q[c] += (u[c] - a[c]) * (x[c] - k[c]);
        }
}

/* Sums over the blocks of a channels-last batch, then over the blocks of each group, always in the same order. */
static void sum_pixels(const REAL *u, const REAL *x, const double *a, const double *k, const Shape *d, double *s,
                       double *q)
{
    long P = d->B * d->S, C = d->C, K = blocks(d), step = (P + K - 1) / K;
    double *part = K == 1 ? s : calloc(2 * d->M * K * C, sizeof(double));
    double *more = K == 1 ? q : part + d->M * K * C;
#pragma omp parallel for num_threads(team(d)) schedule(static)
    for (long t = 0; t < d->M * K; t++) {
        long m = t / K, from = t % K * step, n = from + step < P ? step : P - from;
        const long at = (m * P + from) * C;
        pixel_sums(u + at, x + at, a + m * C, k + m * C, n, C, part + t * C, more + t * C);
    }
    if (K == 1)
        return;
    for (long t = 0; t < d->M * K; t++)
        for (long c = 0; c < C; c++) {
            s[t / K * C + c] += part[t * C + c];
            q[t / K * C + c] += more[t * C + c];
        }
    free(part);
}

/* s (M, C) += sum(u - a) and q (M, C) += sum((u - a)(x - k)) over each group, a and k (M, C). */
static void sums(const REAL *u, const REAL *x, const double *a, const double *k, const Shape *d, double *s,
                 double *q)
{
    if (d->last) {
        sum_pixels(u, x, a, k, d, s, q);
        return;
    }
#pragma omp parallel for num_threads(team(d)) schedule(static)
    for (long t = 0; t < d->M * d->C; t++)
        for (long b = 0; b < d->B; b++) {
            long at = ((t / d->C * d->B + b) * d->C + t % d->C) * d->S;
            row_sums(u + at, x + at, a[t], k[t], d->S, s + t, q + t);
        }
}

/* s += sum(sign(x - t)) and q += sum|x - t| over a row of n values. */
static inline void row_signs(const REAL *x, REAL t, long n, double *s, double *q)
{
    double sum = 0, size = 0;
#pragma omp simd reduction(+ : sum, size)
    for (long i = 0; i < n; i++) {
        REAL v = x[i] - t;
        sum += (v > 0) - (v < 0);
        size += v < 0 ? -v : v;
    }
    *s += sum;
    *q += size;
}

/* The same for n pixels and each of their C channels. */
static inline void pixel_signs(const REAL *restrict x, const REAL *restrict t, long n, long C, double *restrict s,
                               double *restrict q)
{
    for (; n >= 2; n -= 2, x += 2 * C)
#pragma omp simd
        for (long c = 0; c < C; c++) {
            REAL v = x[c] - t[c], w = x[c + C] - t[c];
            s[c] += ((v > 0) - (v < 0)) + ((w > 0) - (w < 0));
            q[c] += (v < 0 ? -v : v) + (w < 0 ? -w : w);
        }
    if (n)
#pragma omp simd
        for (long c = 0; c < C; c++) {
            REAL v = x[c] - t[c];
            s[c] += (v > 0) - (v < 0);
            q[c] += v < 0 ? -v : v;
        }
}

/* y = e u + (f (x - k) + h) for a row of n values; without u where it is null. */
static inline void map_row(const REAL *u, const REAL *x, REAL e, REAL f, REAL k, REAL h, long n,
                           REAL *restrict y)
{
    if (u)
#pragma omp simd
        for (long i = 0; i < n; i++)
            y[i] = e * u[i] + (f * (x[i] - k) + h);
    else
#pragma omp simd
        for (long i = 0; i < n; i++)
            y[i] = f * (x[i] - k) + h;
}

/* The same for n pixels, coefficients (C). */
static inline void map_pixels(const REAL *u, const REAL *x, const REAL *e, const REAL *f, const REAL *k,
                              const REAL *h, long n, long C, REAL *restrict y)
{
    for (; n > 0; n--, x += C, y += C)
        if (u) {
#pragma omp simd
            for (long c = 0; c < C; c++)
                y[c] = e[c] * u[c] + (f[c] * (x[c] - k[c]) + h[c]);
            u += C;
        } else
#pragma omp simd
            for (long c = 0; c < C; c++)
                y[c] = f[c] * (x[c] - k[c]) + h[c];
}

/* y = e u + (f (x - k) + h) for a batch, all coefficients (M, C). */
static void map(const REAL *u, const REAL *x, const REAL *e, const REAL *f, const REAL *k, const REAL *h,
                const Shape *d, REAL *y)
{
    long C = d->C, P = d->B * d->S, tasks = d->last ? blocks(d) : d->B * C, step = (P + tasks - 1) / tasks;
#pragma omp parallel for num_threads(team(d)) schedule(static)
    for (long t = 0; t < d->M * tasks; t++) {
        if (d->last) {
            long i = t / tasks * C, from = t % tasks * step, n = from + step < P ? step : P - from;
            long at = i * P + from * C;
            map_pixels(u ? u + at : 0, x + at, e + i, f + i, k + i, h + i, n, C, y + at);
        } else {
            long i = t / tasks * C + t % C, at = t * d->S;
            map_row(u ? u + at : 0, x + at, e[i], f[i], k[i], h[i], d->S, y + at);
        }
    }
}
