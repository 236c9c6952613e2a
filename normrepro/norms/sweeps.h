/* Sweeps over a batch, for REAL = float or double. Letters as in core.py: M groups of B images, C channels, S values
   per image and channel.

   Two layouts: planes x[m][b][c][s], and pixels x[m][p][c] (channels last; p runs over the P = B S values of a group).
   Statistics are (M, C). A unit is what has sums of its own: a group and channel of planes, a group of pixels. What is
   added up in which order depends on the shape alone, never on the number of threads or on an address, so the same
   batch gives the same bits. */
#include <stdlib.h>

#define ALONE 32768 /* values that one thread handles faster than several */
#define BLOCK 65536 /* values of a group of pixels that are added up together */

typedef struct {
    long M, B, C, S;
    int last, threads;
} Shape;

static int team(const Shape *d) { return d->M * d->B * d->C * d->S > ALONE ? d->threads : 1; }
static long units(const Shape *d) { return d->last ? d->M : d->M * d->C; }

/* Blocks of a group of pixels, and pixels of a block but the last. */
static long blocks(const Shape *d) { return (d->B * d->S * d->C + BLOCK - 1) / BLOCK; }
static long pixels(const Shape *d) { return (d->B * d->S + blocks(d) - 1) / blocks(d); }

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

/* Add the sums of block t (counted over all groups) to s and q (C). */
static void block_sums(const REAL *u, const REAL *x, const double *a, const double *k, const Shape *d, long t,
                       double *s, double *q)
{
    long m = t / blocks(d), from = t % blocks(d) * pixels(d), left = d->B * d->S - from;
    long at = (m * d->B * d->S + from) * d->C;
    pixel_sums(u + at, x + at, a + m * d->C, k + m * d->C, left < pixels(d) ? left : pixels(d), d->C, s, q);
}

/* Set s and q (M, C) of one unit to its sums; a and k are (M, C) as well. */
static void unit_sums(const REAL *u, const REAL *x, const double *a, const double *k, const Shape *d, long unit,
                      double *s, double *q)
{
    if (!d->last) {
        s[unit] = q[unit] = 0;
        for (long b = 0; b < d->B; b++) {
            long at = ((unit / d->C * d->B + b) * d->C + unit % d->C) * d->S;
            row_sums(u + at, x + at, a[unit], k[unit], d->S, s + unit, q + unit);
        }
        return;
    }
    double *part = malloc(2 * d->C * sizeof(double));
    for (long t = unit * blocks(d); t < (unit + 1) * blocks(d); t++) {
        for (long c = 0; c < 2 * d->C; c++)
            part[c] = 0;
        block_sums(u, x, a, k, d, t, part, part + d->C);
        for (long c = 0, i = unit * d->C, first = t % blocks(d) == 0; c < d->C; c++, i++) {
            s[i] = (first ? 0 : s[i]) + part[c];
            q[i] = (first ? 0 : q[i]) + part[d->C + c];
        }
    }
    free(part);
}

/* Set s and q (M, C) to sum(u - a) and sum((u - a)(x - k)) over each group. Where there are few groups, threads share
   the blocks of one; the sums of blocks are added in the same order. */
static void sums(const REAL *u, const REAL *x, const double *a, const double *k, const Shape *d, double *s, double *q)
{
    if (units(d) >= d->threads || blocks(d) == 1) {
#pragma omp parallel for num_threads(team(d)) schedule(static)
        for (long i = 0; i < units(d); i++)
            unit_sums(u, x, a, k, d, i, s, q);
        return;
    }
    long n = d->M * blocks(d) * d->C;
    double *part = calloc(2 * n, sizeof(double));
#pragma omp parallel for num_threads(team(d)) schedule(static)
    for (long t = 0; t < d->M * blocks(d); t++)
        block_sums(u, x, a, k, d, t, part + t * d->C, part + n + t * d->C);
    for (long i = 0; i < d->M * d->C; i++)
        s[i] = q[i] = 0;
    for (long j = 0; j < n; j++) {
        long i = j / d->C / blocks(d) * d->C + j % d->C;
        s[i] += part[j];
        q[i] += part[n + j];
    }
    free(part);
}

/* Coefficients (M, C) of y = e u + (f (x - k) + h). */
typedef struct {
    REAL *e, *f, *k, *h;
} Map;

static Map new_map(const Shape *d)
{
    long n = d->M * d->C;
    REAL *e = malloc(4 * n * sizeof(REAL));
    return (Map){e, e + n, e + 2 * n, e + 3 * n};
}

/* Apply it to a row of n values; without u where it is null. */
static inline void map_row(const REAL *u, const REAL *x, REAL e, REAL f, REAL k, REAL h, long n, REAL *restrict y)
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
static inline void map_pixels(const REAL *u, const REAL *x, const REAL *e, const REAL *f, const REAL *k, const REAL *h,
                              long n, long C, REAL *restrict y)
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

/* Apply a map to a stretch of a batch: the row of planes, or the block of pixels, with number t. */
static void map_part(const REAL *u, const REAL *x, Map w, const Shape *d, long t, REAL *y)
{
    if (d->last) {
        long i = t / blocks(d) * d->C, from = t % blocks(d) * pixels(d), left = d->B * d->S - from;
        long at = i * d->B * d->S + from * d->C, n = left < pixels(d) ? left : pixels(d);
        map_pixels(u ? u + at : 0, x + at, w.e + i, w.f + i, w.k + i, w.h + i, n, d->C, y + at);
    } else {
        long i = t / d->C / d->B * d->C + t % d->C, at = t * d->S;
        map_row(u ? u + at : 0, x + at, w.e[i], w.f[i], w.k[i], w.h[i], d->S, y + at);
    }
}

static void map_unit(const REAL *u, const REAL *x, Map w, const Shape *d, long unit, REAL *y)
{
    long K = d->last ? blocks(d) : d->B;
    for (long j = 0; j < K; j++)
        map_part(u, x, w, d, d->last ? unit * K + j : (unit / d->C * K + j) * d->C + unit % d->C, y);
}

static void map(const REAL *u, const REAL *x, Map w, const Shape *d, REAL *y)
{
    long parts = d->M * (d->last ? blocks(d) : d->B * d->C);
#pragma omp parallel for num_threads(team(d)) schedule(static)
    for (long t = 0; t < parts; t++)
        map_part(u, x, w, d, t, y);
}
