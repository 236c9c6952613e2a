/* The functions of eager.py for CPUs, for REAL = float or double; a null pointer leaves its term out. Sums are taken in
   double precision, those of a variance about a value of the group, so an offset does no harm. */
#include "sweeps.h"

/* Mean and biased variance of each group. */
void moments(const Shape *d, const REAL *x, REAL *mean, REAL *var)
{
    long n = d->M * d->C, count = d->B * d->S;
    double *first = calloc(3 * n, sizeof(double)), *s = first + n, *q = s + n;
    for (long i = 0; i < n; i++)
        first[i] = x[d->last ? i / d->C * count * d->C + i % d->C : (i / d->C * d->B * d->C + i % d->C) * d->S];
    sums(x, x, first, first, d, s, q);
    for (long i = 0; i < n; i++) {
        double shift = s[i] / count, v = q[i] / count - shift * shift;
        mean[i] = first[i] + shift;
        var[i] = v < 0 ? 0 : v;
    }
    free(first);
}

/* Mean of the squares of each group. */
void mean_square(const Shape *d, const REAL *x, REAL *out)
{
    long n = d->M * d->C;
    double *zero = calloc(3 * n, sizeof(double));
    sums(x, x, zero, zero, d, zero + n, zero + 2 * n);
    for (long i = 0; i < n; i++)
        out[i] = zero[2 * n + i] / (d->B * d->S);
    free(zero);
}

/* y = weight (r (x - mean) inv + t) + bias. */
void affine(const Shape *d, const REAL *x, const REAL *mean, const REAL *inv, const REAL *r, const REAL *t,
            const REAL *weight, const REAL *bias, REAL *y)
{
    long n = d->M * d->C;
    REAL *k = calloc(3 * n, sizeof(REAL)), *scale = k + n, *shift = scale + n;
    for (long i = 0; i < n; i++) {
        REAL w = weight ? weight[i % d->C] : 1;
        k[i] = mean ? mean[i] : 0;
        scale[i] = (r ? inv[i] * r[i] : inv[i]) * w;
        shift[i] = (t ? t[i] * w : 0) + (bias ? bias[i % d->C] : 0);
    }
    map(0, x, k, scale, k, shift, d, y);
    free(k);
}

/* For every group g = mean(g') and psi = mean(g' z), g' = weight r u, z = (x - mean) inv; for every channel the gradients
   of weight and bias. */
void backward_sums(const Shape *d, const REAL *x, const REAL *u, const REAL *mean, const REAL *inv, const REAL *r,
                   const REAL *t, const REAL *weight, REAL *g, REAL *psi, REAL *gweight, REAL *gbias)
{
    long n = d->M * d->C, C = d->C;
    double *zero = calloc(4 * n + 2 * C, sizeof(double)), *k = zero + n, *s = k + n, *q = s + n, *gw = q + n;
    if (mean)
        for (long i = 0; i < n; i++)
            k[i] = mean[i];
    sums(u, x, zero, k, d, s, q);
    for (long i = 0; i < n; i++) {
        double sz = q[i] * inv[i], each = (r ? r[i] : 1) * (weight ? weight[i % C] : 1) / (d->B * d->S);
        g[i] = each * s[i];
        psi[i] = each * sz;
        gw[i % C] += (r ? r[i] * sz : sz) + (t ? t[i] * s[i] : 0);
        gw[C + i % C] += s[i];
    }
    for (long c = 0; c < C; c++) {
        gweight[c] = gw[c];
        gbias[c] = gw[C + c];
    }
    free(zero);
}

/* gx = inv (weight r u - gbar - z psibar). */
void combine(const Shape *d, const REAL *x, const REAL *u, const REAL *mean, const REAL *inv, const REAL *r,
             const REAL *weight, const REAL *gbar, const REAL *psibar, REAL *gx)
{
    long n = d->M * d->C;
    REAL *e = calloc(4 * n, sizeof(REAL)), *f = e + n, *k = f + n, *h = k + n;
    for (long i = 0; i < n; i++) {
        e[i] = inv[i] * (r ? r[i] : 1) * (weight ? weight[i % d->C] : 1);
        f[i] = psibar ? -inv[i] * inv[i] * psibar[i] : 0;
        k[i] = mean ? mean[i] : 0;
        h[i] = gbar ? -inv[i] * gbar[i] : 0;
    }
    map(u, x, e, f, k, h, d, gx);
    free(e);
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
