/* What single layers need besides: MABN's centred filters, EvalNorm's sums of signs. */

/* Subtract from each of M rows of S values their mean. */
void centre(const Shape *d, const REAL *x, REAL *y)
{
#pragma omp parallel for num_threads(team(d)) schedule(static)
    for (long m = 0; m < d->M; m++) {
        double s = 0, q = 0;
        row_sums(x + m * d->S, x + m * d->S, 0, 0, d->S, &s, &q);
        map_row(0, x + m * d->S, 0, 1, s / d->S, 0, d->S, y + m * d->S);
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

/* signs = sum(sign(x - t)) and sizes = sum|x - t| over each group. */
void threshold_sums(const Shape *d, const REAL *x, const REAL *t, REAL *signs, REAL *sizes)
{
    long P = d->B * d->S;
#pragma omp parallel for num_threads(team(d)) schedule(static)
    for (long m = 0; m < d->M; m++) {
        double *s = calloc(2 * d->C, sizeof(double)), *q = s + d->C;
        const REAL *y = x + m * P * d->C, *at = t + m * d->C;
        if (d->last)
            pixel_signs(y, at, P, d->C, s, q);
        else
            for (long i = 0; i < d->B * d->C; i++)
                row_signs(y + i * d->S, at[i % d->C], d->S, s + i % d->C, q + i % d->C);
        for (long c = 0; c < d->C; c++) {
            signs[m * d->C + c] = s[c];
            sizes[m * d->C + c] = q[c];
        }
        free(s);
    }
}
