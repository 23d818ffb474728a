/* fs_bytes_conv2d for one variant, after the kernel of a tile: its PANEL and PIXELS, the type `code` of activations,
   micros_of and leave_tiles. */
#include "bytes_tile.h"

/* The chain on pixels first <= p < last, whose sums are at `values` and whose numbers then are; with `codes` some pixels
   at a time, which are quantized while they are in the first-level cache. */
static __attribute__((noinline)) int64_t finish(const fs_chain *chain, const fs_codes *codes, filling *blocks,
                                                int64_t channels, int64_t first, int64_t last, const float *scratch,
                                                float *values) {
  const int64_t few = channels < FS_PIECE ? FS_PIECE / channels : 1, step = codes ? few : last - first;
  int64_t saturated = 0;
  for (int64_t p = first, n; p < last; p += n, values += n * channels) {
    n = step < last - p ? step : last - p;
    saturated += run_stages(chain->stages, chain->count, chain->pointwise, 1, values, channels, p, p + n, scratch,
                            chain->rounded, values);
    if (codes) fill_pixels(blocks, codes->place, codes->to, values, p, p + n);
  }
  return saturated;
}

static __attribute__((noinline)) int64_t bytes_conv2d(const fs_conv *c, int32_t mode, const fs_bytes *x,
                                                      const fs_term *terms, const uint8_t *packed,
                                                      int64_t panel_bytes, const fs_chain *chain,
                                                      const fs_codes *codes, int64_t first_pixel, int64_t last_pixel,
                                                      int64_t first_panel, int64_t last_panel, float *scratch,
                                                      float *result) {
  const fs_window *v = &c->window;
  const int64_t filters = c->outputs / c->groups, panels = (filters + PANEL - 1) / PANEL;
  const int64_t n = v->kernel_height * v->kernel_width * c->group_blocks, column = v->stride_width;
  micro_fn *const *table = micros_of(mode, x->block);
  tile_work o = {.a_pixel = column * x->row, .s_pixel = column * x->blocks, .out_pixel = c->outputs, .terms = terms,
                 .num_terms = n, .step = x->step, .accumulator = c->accumulator};
  /* Tiles of about equal width; a row of outputs never shares a tile with the next. */
  const int64_t per_row = (v->out_width + PIXELS - 1) / PIXELS;
  const int64_t width = (v->out_width + per_row - 1) / per_row;
  /* As many pixels as have their results in the second-level cache until the chain has passed over them. */
  const int64_t together = FS_TOGETHER / c->outputs / width * width, step = together > 0 ? together : width;
  int64_t saturated = 0;
  filling blocks;
  if (codes) blocks = begin_filling(codes->format, codes->format->max_code, codes->range);
  if (chain) repeat_operands(chain->stages, chain->count, c->outputs, scratch);
  for (int64_t begin = first_pixel; begin < last_pixel; begin += step) {
    const int64_t end = begin + step < last_pixel ? begin + step : last_pixel;
    float *values = result ? result + begin * c->outputs : scratch + chain->count * FS_PIECE;
    for (int64_t panel = first_panel; panel < last_panel; panel++) {
      const int64_t group = panel / panels, skip = panel % panels * PANEL, output = group * filters + skip;
      o.outs = filters - skip < PANEL ? filters - skip : PANEL;
      const int64_t first_block = group * (c->channels / c->groups) / c->block;
      o.w = packed + panel * panel_bytes;
      const uint8_t *stop_ahead = o.w + (panel + 1 < last_panel ? 2 : 1) * panel_bytes - FS_AHEAD * n;
      o.ahead = stop_ahead - panel_bytes + FS_AHEAD * n;
      int64_t line = begin / v->out_width, at = begin % v->out_width;
      for (int64_t p = begin; p < end;) {
        const int64_t row = line / v->out_height * x->height + line % v->out_height * v->stride_height;
        const int64_t stop = v->out_width - at < end - p ? v->out_width : at + end - p;
        for (; at < stop; at += width) {
          const int64_t pixel = row * x->width + at * column, left = stop - at, px = left < width ? left : width;
          table[px](&o, (int)px, (const code *)x->codes + pixel * x->row + first_block * x->block,
                    x->scales + pixel * x->blocks + first_block, values + (p - begin) * c->outputs + output);
          o.ahead = o.ahead + FS_AHEAD * n < stop_ahead ? o.ahead + FS_AHEAD * n : stop_ahead;
          p += px;
        }
        line++, at = 0;
      }
    }
    if (chain) saturated += finish(chain, codes, &blocks, c->outputs, begin, end, scratch, values);
  }
  if (codes) end_filling(&blocks);
  return saturated;
}

int64_t FS_FN(fs_bytes_conv2d)(const fs_conv *c, int32_t mode, const fs_bytes *x, const fs_term *terms,
                               const uint8_t *packed, int64_t panel_bytes, const fs_chain *chain,
                               const fs_codes *codes, int64_t first_pixel, int64_t last_pixel, int64_t first_panel,
                               int64_t last_panel, float *scratch, float *result) {
  fs_fp_state state = fs_fp_enter();
  const int64_t saturated = bytes_conv2d(c, mode, x, terms, packed, panel_bytes, chain, codes, first_pixel, last_pixel,
                                         first_panel, last_panel, scratch, result);
  leave_tiles();
  fs_fp_leave(state);
  return saturated;
}

static __attribute__((noinline)) int64_t finish_alone(const fs_chain *chain, const fs_codes *codes, int64_t channels,
                                                      int64_t first, int64_t last, float *scratch, float *values) {
  filling blocks;
  if (codes) blocks = begin_filling(codes->format, codes->format->max_code, codes->range);
  repeat_operands(chain->stages, chain->count, channels, scratch);
  const int64_t saturated = finish(chain, codes, &blocks, channels, first, last, scratch, values);
  if (codes) end_filling(&blocks);
  return saturated;
}

int64_t FS_FN(fs_bytes_finish)(const fs_chain *chain, const fs_codes *codes, int64_t channels, int64_t first_pixel,
                               int64_t last_pixel, float *scratch, float *values) {
  fs_fp_state state = fs_fp_enter();
  const int64_t saturated = finish_alone(chain, codes, channels, first_pixel, last_pixel, scratch, values);
  fs_fp_leave(state);
  return saturated;
}
