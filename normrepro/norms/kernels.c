/* The inner loops of core.py, for CPUs. Letters as there: M groups of B images, C channels, S values per image and channel.

   Two layouts: planes x[m][b][c][s], and pixels x[m][p][c] (channels last; p runs over the B S values of a group).
   Statistics are (M, C). Sums are taken in double precision, of differences to a value of the group where the sum itself
   is to have small variance, so an offset does no harm. What one thread does never depends on how many there are, so every
   number of threads gives the same bits. A null pointer leaves its term out. */
#ifndef REAL
#include <stdlib.h>

#define ALONE 32768 /* values that one thread handles faster than several */
#define BLOCK 65536 /* values of a channels-last group that are summed together */

typedef struct {
    long M, B, C, S;
    int last, threads;
} Shape;

static long size(const Shape *d) { return d->M * d->B * d->C * d->S; }
static int team(const Shape *d) { return size(d) > ALONE ? d->threads : 1; }

#define REAL float
#define NAME(f) f##_float
#include "kernels.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(f) f##_double
#include "kernels.c"
#else

/* s += sum(u - a) and q += sum((u - a)(x - k)) over a row of n values. */
static inline void NAME(row_sums)(const REAL *u, const REAL *x, double a, double k, long n, double *s, double *q)
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
static inline void NAME(pixel_sums)(const REAL *restrict u, const REAL *restrict x, const double *restrict a,
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
static void NAME(sum_pixels)(const REAL *u, const REAL *x, const double *a, const double *k, const Shape *d, double *s,
                             double *q)
{
    long P = d->B * d->S, C = d->C, blocks = (P * C + BLOCK - 1) / BLOCK, step = (P + blocks - 1) / blocks;
    double *part = blocks == 1 ? s : calloc(2 * d->M * blocks * C, sizeof(double));
    double *more = blocks == 1 ? q : part + d->M * blocks * C;
#pragma omp parallel for num_threads(team(d)) schedule(static)
    for (long t = 0; t < d->M * blocks; t++) {
        long m = t / blocks, from = t % blocks * step, n = from + step < P ? step : P - from;
        const long at = (m * P + from) * C;
        NAME(pixel_sums)(u + at, x + at, a + m * C, k + m * C, n, C, part + t * C, more + t * C);
    }
    if (blocks == 1)
        return;
    for (long t = 0; t < d->M * blocks; t++)
        for (long c = 0; c < C; c++) {
            s[t / blocks * C + c] += part[t * C + c];
            q[t / blocks * C + c] += more[t * C + c];
        }
    free(part);
}

/* s (M, C) += sum(u - a) and q (M, C) += sum((u - a)(x - k)) over each group, a and k (M, C). */
static void NAME(sums)(const REAL *u, const REAL *x, const double *a, const double *k, const Shape *d, double *s,
                       double *q)
{
    if (d->last) {
        NAME(sum_pixels)(u, x, a, k, d, s, q);
        return;
    }
#pragma omp parallel for num_threads(team(d)) schedule(static)
    for (long t = 0; t < d->M * d->C; t++)
        for (long b = 0; b < d->B; b++) {
            long at = ((t / d->C * d->B + b) * d->C + t % d->C) * d->S;
            NAME(row_sums)(u + at, x + at, a[t], k[t], d->S, s + t, q + t);
        }
}

/* y = e u + f (x - k) + h, all coefficients (M, C); without u where it is null. */
static void NAME(map)(const REAL *u, const REAL *x, const REAL *e, const REAL *f, const REAL *k, const REAL *h,
                      const Shape *d, REAL *y)
{
    long C = d->C, S = d->S, rows = d->M * d->B * (d->last ? S : C), per = rows / d->M;
#pragma omp parallel for num_threads(team(d)) schedule(static)
    for (long t = 0; t < rows; t++) {
        const long n = d->last ? C : S, at = t * n;
        const REAL *X = x + at, *U = u ? u + at : 0;
        REAL *restrict Y = y + at;
        if (d->last) {
            const REAL *E = e + t / per * C, *F = f + t / per * C, *K = k + t / per * C, *H = h + t / per * C;
            if (U)
#pragma omp simd
                for (long i = 0; i < n; i++)
                    Y[i] = E[i] * U[i] + (F[i] * (X[i] - K[i]) + H[i]);
            else
#pragma omp simd
                for (long i = 0; i < n; i++)
                    Y[i] = F[i] * (X[i] - K[i]) + H[i];
        } else {
            const long j = t / per * C + t % C;
            const REAL E = e[j], F = f[j], K = k[j], H = h[j];
            if (U)
#pragma omp simd
                for (long i = 0; i < n; i++)
                    Y[i] = E * U[i] + (F * (X[i] - K) + H);
            else
#pragma omp simd
                for (long i = 0; i < n; i++)
                    Y[i] = F * (X[i] - K) + H;
        }
    }
}
#endif
