/* Tiles whose sums are fp16, bf16 or in fixed point, or fp32 joined by a tree: what conv_body.h, which includes this
   file, does not do in registers. */

/* A tree of 1024 engines has sums of 2^0 to 2^10 of them. */
enum { FS_LEVELS = 11 };

/* The sums of a tile: floats, or for fixed point integers modulo 2^64 or clamped, and floats that are 0 or NaN. */
typedef struct {
  v_float floats[FS_TILE][2];
  int64_t integers[FS_TILE][NR];
} running;

/* acc + q between -high - 1 and high. */
FS_INLINE int64_t add_clamped(int64_t acc, int64_t q, int64_t high) {
  if (q > 0) return acc > high - q ? high : acc + q;
  return acc < -high - 1 - q ? -high - 1 : acc + q;
}

/* One term in fixed point. It has 24 bits, so that from 2^24 on v is an integer. */
FS_INLINE void add_fixed(const fs_conv *c, double scale, int64_t high, float t, float *nan, int64_t *acc) {
  double v = (double)t * scale;
  const double magnitude = fabs(v), magic = 6755399441055744.0; /* 1.5 * 2^52 */
  if (magnitude != magnitude || (c->accumulator == FS_SUM_WRAP && magnitude > 1e300)) {
    *nan = NAN;
    return;
  }
  if (magnitude < 1e12) v = (v + magic) - magic;
  if (c->accumulator == FS_SUM_SATURATE) {
    if (magnitude < 0x1p62) {
      *acc = add_clamped(*acc, (int64_t)v, high);
      return;
    }
    v = v > 0x1p64 ? 0x1p64 : v < -0x1p64 ? -0x1p64 : v; /* from there on the sum is clamped whatever it was */
    for (int i = 0; i < 4; i++) *acc = add_clamped(*acc, (int64_t)(v * 0.25), high);
  } else if (magnitude < 0x1p63) {
    *acc = (int64_t)((uint64_t)*acc + (uint64_t)(int64_t)v);
  } else {
    const uint64_t u = fs_bits64(magnitude), digits = (u & 0xfffffffffffffu) | (uint64_t)1 << 52;
    const uint64_t places = (u >> 52) - 1075, q = places < 64 ? digits << places : 0;
    *acc = (int64_t)((uint64_t)*acc + (v < 0 ? -q : q));
  }
}

FS_INLINE int64_t highest(const fs_conv *c) { return (int64_t)(((uint64_t)1 << (c->bits - 1)) - 1); }

FS_INLINE void add_floats(int32_t accumulator, const int mr, v_float (*acc)[2], v_float (*t)[2]) {
  if (accumulator == FS_SUM_FP16) {
    for (int i = 0; i < mr; i++) acc[i][0] = add_fp16(acc[i][0], t[i][0]), acc[i][1] = add_fp16(acc[i][1], t[i][1]);
  } else if (accumulator == FS_SUM_BF16) {
    for (int i = 0; i < mr; i++) acc[i][0] = add_bf16(acc[i][0], t[i][0]), acc[i][1] = add_bf16(acc[i][1], t[i][1]);
  } else {
    for (int i = 0; i < mr; i++) acc[i][0] += t[i][0], acc[i][1] += t[i][1];
  }
}

FS_INLINE int is_fixed(const fs_conv *c) { return c->accumulator == FS_SUM_WRAP || c->accumulator == FS_SUM_SATURATE; }

FS_INLINE void add_terms(const fs_conv *c, const int mr, running *to, v_float (*t)[2]) {
  if (!is_fixed(c)) {
    add_floats(c->accumulator, mr, to->floats, t);
    return;
  }
  const double scale = fs_power(c->fraction);
  const int64_t high = highest(c);
  for (int i = 0; i < mr; i++) {
    float terms[NR], nans[NR];
    memcpy(terms, t[i], sizeof terms);
    memcpy(nans, to->floats[i], sizeof nans);
    for (int j = 0; j < NR; j++) add_fixed(c, scale, high, terms[j], &nans[j], &to->integers[i][j]);
    memcpy(to->floats[i], nans, sizeof nans);
  }
}

/* Adds the sums of another engine. */
FS_INLINE void join_engines(const fs_conv *c, const int mr, running *to, running *other) {
  if (!is_fixed(c)) {
    add_floats(c->accumulator, mr, to->floats, other->floats);
    return;
  }
  const int64_t high = highest(c);
  add_floats(FS_SUM_FP32, mr, to->floats, other->floats);
  for (int i = 0; i < mr; i++)
    for (int j = 0; j < NR; j++) {
      const int64_t a = to->integers[i][j], b = other->integers[i][j];
      to->integers[i][j] =
        c->accumulator == FS_SUM_SATURATE ? add_clamped(a, b, high) : (int64_t)((uint64_t)a + (uint64_t)b);
    }
}

/* The terms t (mr, NR) of one block: at and scale_at are those of the pixels. */
FS_INLINE void block_terms(const int is_float, const sum_mode mode, const int mr, const call *o, const char *const *at,
                           const float *const *scale_at, const char *weights, const float *weight_scales,
                           v_float (*t)[2]) {
  const int64_t n = o->c->padded;
  v_float df[FS_TILE][2] = {{{0}}};
  v_int32 di[FS_TILE][2] = {{{0}}};
  if (is_float) dot_floats(mr, at, weights, n, df);
  else if (mode == FLOATS) dot_integers(mr, at, weights, n / 2, di);
  if (mode == FLOATS) {
    const v_float s0 = *(const v_float *)weight_scales, s1 = *(const v_float *)(weight_scales + FS_LANES);
    for (int i = 0; i < mr; i++) {
      const float s = *scale_at[i];
      t[i][0] = (is_float ? df[i][0] : __builtin_convertvector(di[i][0], v_float)) * (s * s0);
      t[i][1] = (is_float ? df[i][1] : __builtin_convertvector(di[i][1], v_float)) * (s * s1);
    }
    return;
  }
  double dd[FS_TILE][NR] = {{0}};
  for (int64_t k = 0; !is_float && k < n / 2; k += o->chunk) {
    const char *part[FS_TILE];
    for (int i = 0; i < mr; i++) part[i] = at[i] + 4 * k;
    memset(di, 0, sizeof di);
    dot_integers(mr, part, weights + 4 * k * NR, n / 2 - k < o->chunk ? n / 2 - k : o->chunk, di);
    for (int i = 0; i < mr; i++)
      for (int j = 0; j < NR; j++) dd[i][j] += (double)di[i][j / FS_LANES][j % FS_LANES];
  }
  for (int i = 0; i < mr; i++)
    for (int j = 0; j < NR; j++) {
      const double d = is_float ? (double)df[i][j / FS_LANES][j % FS_LANES] : dd[i][j];
      t[i][j / FS_LANES][j % FS_LANES] = (float)(d * ((double)*scale_at[i] * (double)weight_scales[j]));
    }
}

/* Adds the blocks first, first + stride, … of the sum to `to`. */
FS_INLINE void add_blocks(const int is_float, const sum_mode mode, const int mr, const call *o, int64_t panel,
                          const int64_t *offsets, int64_t first, int64_t stride, running *to) {
  const fs_conv *c = o->c;
  const panel_shape shape = shape_of_panel(c, panel);
  const int64_t n = c->padded, bytes = is_float ? 4 : 2, base = panel * o->taps * c->group_blocks;
  for (int64_t step = first; step < o->taps * shape.blocks; step += stride) {
    const int64_t tap = c->chwk ? step % o->taps : step / shape.blocks;
    const int64_t block = shape.first_block + (c->chwk ? step / o->taps : step % shape.blocks);
    const int64_t *pixel = offsets + tap * FS_TILE;
    if (pixel[0] < 0) continue; /* all outside */
    const char *at[FS_TILE];
    const float *scale_at[FS_TILE];
    v_float t[FS_TILE][2];
    for (int i = 0; i < mr; i++) {
      at[i] = (const char *)o->x->mantissas + (pixel[i] * c->blocks + block) * n * bytes;
      scale_at[i] = o->x->scales + pixel[i] * c->blocks + block;
    }
    const char *weights = (const char *)o->w->mantissas + (base + step) * n * NR * bytes;
    block_terms(is_float, mode, mr, o, at, scale_at, weights, o->w->scales + (base + step) * NR, t);
    add_terms(c, mr, to, t);
  }
}

FS_INLINE void ordered_tile(const int is_float, const sum_mode mode, const int mr, const call *o, int64_t panel,
                            const int64_t *offsets, float *result) {
  const fs_conv *c = o->c;
  running sums, waiting[FS_LEVELS]; /* sums of 2^level engines that wait for their neighbour */
  for (int64_t engine = 0; engine < c->engines; engine++) {
    memset(&sums, 0, sizeof sums);
    add_blocks(is_float, mode, mr, o, panel, offsets, engine, c->engines, &sums);
    int level = 0;
    if (c->engines == 1) break;
    for (; engine >> level & 1; level++) join_engines(c, mr, &sums, &waiting[level]);
    waiting[level] = sums;
  }
  if (c->engines > 1) memset(&sums, 0, sizeof sums);
  for (int level = 0; c->engines > 1 && level < FS_LEVELS; level++)
    if (c->engines >> level & 1) join_engines(c, mr, &sums, &waiting[level]);

  const panel_shape shape = shape_of_panel(c, panel);
  const int unused = 64 - c->bits; /* what was added above the bits of FS_SUM_WRAP is shifted out */
  for (int i = 0; i < mr; i++)
    for (int64_t j = 0; j < shape.outputs; j++) {
      float value = sums.floats[i][j / FS_LANES][j % FS_LANES] + 0.0f;
      if (is_fixed(c))
        value += (float)((int64_t)((uint64_t)sums.integers[i][j] << unused) >> unused) * (float)fs_power(-c->fraction);
      result[i * c->outputs + shape.first_output + j] = value;
    }
}

#define ORDERED(name, is_float, mode, mr)                                                                       \
  static __attribute__((noinline)) void name(const call *o, int64_t panel, const int64_t *offsets, float *r) { \
    ordered_tile(is_float, mode, mr, o, panel, offsets, r);                                                    \
  }
ORDERED(integer_ordered_1, 0, FLOATS, 1)
ORDERED(integer_ordered_n, 0, FLOATS, FS_TILE)
ORDERED(integer_ordered_scaled_1, 0, SCALED, 1)
ORDERED(integer_ordered_scaled_n, 0, SCALED, FS_TILE)
ORDERED(float_ordered_1, 1, FLOATS, 1)
ORDERED(float_ordered_n, 1, FLOATS, FS_TILE)
ORDERED(float_ordered_scaled_1, 1, SCALED, 1)
ORDERED(float_ordered_scaled_n, 1, SCALED, FS_TILE)

/* By: floats, scaled, more than one pixel. */
static tile_fn *const ordered_tiles[2][2][2] = {
  {{integer_ordered_1, integer_ordered_n}, {integer_ordered_scaled_1, integer_ordered_scaled_n}},
  {{float_ordered_1, float_ordered_n}, {float_ordered_scaled_1, float_ordered_scaled_n}},
};

FS_INLINE int is_ordered(const fs_conv *c) {
  return c->accumulator != FS_SUM_EXACT && (c->accumulator != FS_SUM_FP32 || c->engines > 1);
}
