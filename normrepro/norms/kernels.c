/* The functions of eager.py for CPUs, for REAL = float or double; a null pointer leaves its term out. Sums are taken in
   double precision, those of a variance about a value of the group, so an offset does no harm. */
#include "sweeps.h"
#include "layers.h"
#include <math.h>

/* What a layer's arithmetic is made of: (M, C), but weight and bias (C). */
typedef struct {
    const REAL *mean, *inv, *r, *t, *weight, *bias;
} Terms;

static double *doubles(long n, const REAL *values)
{
    double *result = calloc(n, sizeof(double));
    for (long i = 0; values && i < n; i++)
        result[i] = values[i];
    return result;
}

/* Room for the sums about the first value of each group, and those values: first, s, q (M, C). */
static double *about_first(const Shape *d, const REAL *x)
{
    long n = d->M * d->C, count = d->B * d->S;
    double *first = calloc(3 * n, sizeof(double));
    for (long i = 0; i < n; i++)
        first[i] = x[i / d->C * count * d->C + i % d->C * (d->last ? 1 : d->S)];
    return first;
}

/* Mean and variance of entry i from its sums. */
static void entry_moments(const Shape *d, const double *first, long i, REAL *mean, REAL *var)
{
    long n = d->M * d->C;
    double shift = first[n + i] / (d->B * d->S), v = first[2 * n + i] / (d->B * d->S) - shift * shift;
    mean[i] = first[i] + shift;
    var[i] = v < 0 ? 0 : v;
}

/* Mean and biased variance of each group. */
void moments(const Shape *d, const REAL *x, REAL *mean, REAL *var)
{
    long n = d->M * d->C;
    double *first = about_first(d, x);
    sums(x, x, first, first, d, first + n, first + 2 * n);
    for (long i = 0; i < n; i++)
        entry_moments(d, first, i, mean, var);
    free(first);
}

/* Mean of the squares of each group. */
void mean_square(const Shape *d, const REAL *x, REAL *out)
{
    long n = d->M * d->C;
    double *zero = doubles(3 * n, 0), *q = zero + 2 * n;
    sums(x, x, zero, zero, d, zero + n, q);
    for (long i = 0; i < n; i++)
        out[i] = q[i] / (d->B * d->S);
    free(zero);
}

/* The map of y = weight (r (x - mean) inv + t) + bias, entry i. */
static void forward_map(const Shape *d, const Terms *v, long i, Map w)
{
    REAL weight = v->weight ? v->weight[i % d->C] : 1;
    w.e[i] = 0;
    w.k[i] = v->mean ? v->mean[i] : 0;
    w.f[i] = (v->r ? v->inv[i] * v->r[i] : v->inv[i]) * weight;
    w.h[i] = (v->t ? v->t[i] * weight : 0) + (v->bias ? v->bias[i % d->C] : 0);
}

void affine(const Shape *d, const REAL *x, const Terms *v, REAL *y)
{
    Map w = new_map(d);
    for (long i = 0; i < d->M * d->C; i++)
        forward_map(d, v, i, w);
    map(0, x, w, d, y);
    free(w.e);
}

/* Moments and affine at once, inv = 1/sqrt(var + eps): the second sweep finds a unit in the cache. */
void normalize(const Shape *d, const REAL *x, const Terms *v, const double *eps, REAL *mean, REAL *var, REAL *inv,
               REAL *y)
{
    long n = d->M * d->C, width = d->last ? d->C : 1, apart = units(d) < d->threads;
    double *first = about_first(d, x), *s = first + n, *q = s + n;
    Terms own = {mean, inv, 0, 0, v->weight, v->bias};
    Map w = new_map(d);
    if (apart)
        sums(x, x, first, first, d, s, q);
#pragma omp parallel for num_threads(apart ? 1 : team(d)) schedule(static)
    for (long unit = 0; unit < units(d); unit++) {
        if (!apart)
            unit_sums(x, x, first, first, d, unit, s, q);
        for (long i = unit * width; i < (unit + 1) * width; i++) {
            entry_moments(d, first, i, mean, var);
            inv[i] = 1 / sqrt(var[i] + (REAL)*eps);
            forward_map(d, &own, i, w);
        }
        if (!apart)
            map_unit(0, x, w, d, unit, y);
    }
    if (apart)
        map(0, x, w, d, y);
    free(first);
    free(w.e);
}

/* g = mean(g') and psi = mean(g' z) of entry i, from the sums of u and u (x - mean); g' = weight r u, z = (x - mean) inv. */
static void entry(const Shape *d, const Terms *v, long i, double s, double q, REAL *g, REAL *psi)
{
    double each = (v->r ? v->r[i] : 1.0) * (v->weight ? v->weight[i % d->C] : 1.0) / (d->B * d->S);
    *g = each * s;
    *psi = each * q * v->inv[i];
}

/* The map of gx = inv (weight r u - gbar - z psibar), entry i. */
static void backward_map(const Shape *d, const Terms *v, long i, REAL gbar, REAL psibar, Map w)
{
    w.e[i] = v->inv[i] * (v->r ? v->r[i] : 1) * (v->weight ? v->weight[i % d->C] : 1);
    w.f[i] = -v->inv[i] * v->inv[i] * psibar;
    w.k[i] = v->mean ? v->mean[i] : 0;
    w.h[i] = -v->inv[i] * gbar;
}

/* The gradients of weight and bias (C). */
static void affine_gradients(const Shape *d, const Terms *v, const double *s, const double *q, REAL *gweight,
                             REAL *gbias)
{
    for (long c = 0; c < d->C; c++) {
        double by_weight = 0, by_bias = 0;
        for (long i = c; i < d->M * d->C; i += d->C) {
            by_weight += (v->r ? v->r[i] : 1.0) * q[i] * v->inv[i] + (v->t ? v->t[i] * s[i] : 0);
            by_bias += s[i];
        }
        gweight[c] = by_weight;
        gbias[c] = by_bias;
    }
}

/* The backward statistics g and psi (M, C) and the gradients of weight and bias. */
void backward_sums(const Shape *d, const REAL *x, const REAL *u, const Terms *v, REAL *g, REAL *psi, REAL *gweight,
                   REAL *gbias)
{
    long n = d->M * d->C;
    double *zero = doubles(3 * n, 0), *k = doubles(n, v->mean), *s = zero + n, *q = s + n;
    sums(u, x, zero, k, d, s, q);
    for (long i = 0; i < n; i++)
        entry(d, v, i, s[i], q[i], g + i, psi + i);
    affine_gradients(d, v, s, q, gweight, gbias);
    free(zero);
    free(k);
}

/* gx with given backward statistics. */
void combine(const Shape *d, const REAL *x, const REAL *u, const Terms *v, const REAL *gbar, const REAL *psibar,
             REAL *gx)
{
    Map w = new_map(d);
    for (long i = 0; i < d->M * d->C; i++)
        backward_map(d, v, i, gbar ? gbar[i] : 0, psibar ? psibar[i] : 0, w);
    map(u, x, w, d, gx);
    free(w.e);
}

/* backward_sums and combine at once, gbar = a g and psibar = b psi (1 where null): the second sweep finds a unit in the
   cache. */
void backward(const Shape *d, const REAL *x, const REAL *u, const Terms *v, const REAL *a, const REAL *b, REAL *gx,
              REAL *gweight, REAL *gbias)
{
    long n = d->M * d->C, width = d->last ? d->C : 1, apart = units(d) < d->threads;
    double *zero = doubles(3 * n, 0), *k = doubles(n, v->mean), *s = zero + n, *q = s + n;
    Map w = new_map(d);
    if (apart)
        sums(u, x, zero, k, d, s, q);
#pragma omp parallel for num_threads(apart ? 1 : team(d)) schedule(static)
    for (long unit = 0; unit < units(d); unit++) {
        if (!apart)
            unit_sums(u, x, zero, k, d, unit, s, q);
        for (long i = unit * width; i < (unit + 1) * width; i++) {
            REAL g, psi;
            entry(d, v, i, s[i], q[i], &g, &psi);
            backward_map(d, v, i, a ? a[i] * g : g, b ? b[i] * psi : psi, w);
        }
        if (!apart)
            map_unit(u, x, w, d, unit, gx);
    }
    if (apart)
        map(u, x, w, d, gx);
    affine_gradients(d, v, s, q, gweight, gbias);
    free(zero);
    free(k);
    free(w.e);
}
