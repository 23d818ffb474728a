/* Whole layers, from their activations to their results, shared out among threads. */
#include <string.h>

#include "kernels.h"
#include "share.h"

/* What a thread has found. */
typedef struct {
  _Alignas(64) fs_range range;
  int64_t before, behind; /* values that saturated in the steps before the product and behind it */
} findings;

typedef struct {
  const fs_layer *layer;
  const fs_bytes *image;
  float *room;
  int64_t items;
  int32_t mode;
  findings of[FS_MAX_THREADS];
} layer_work;

static void fill_item(void *work, int64_t item, int64_t thread) {
  layer_work *o = work;
  const fs_layer *l = o->layer;
  const int64_t rows = o->image->images * o->image->height;
  fs_source source = l->source;
  source.room = o->room + thread * l->room;
  o->of[thread].before += l->kernels->fill(l->format, &source, o->image, rows * item / o->items,
                                           rows * (item + 1) / o->items, &o->of[thread].range);
}

/* Pixels of an item are whole tiles of 4, 7 or 14, which most images' sides are multiples of. */
enum { TILES = 28 };

static void pixels_item(void *work, int64_t item, int64_t thread) {
  layer_work *o = work;
  const fs_layer *l = o->layer;
  const int64_t tiles = (l->pixels + TILES - 1) / TILES;
  const int64_t first = tiles * item / o->items * TILES, end = tiles * (item + 1) / o->items * TILES;
  o->of[thread].behind += l->kernels->conv2d(l->conv, o->mode, o->image, l->terms, l->weights, l->panel_bytes, l->chain,
                                             first, end < l->pixels ? end : l->pixels, 0, l->panels,
                                             o->room + thread * l->room, l->result);
}

static void panels_item(void *work, int64_t item, int64_t thread) {
  layer_work *o = work;
  const fs_layer *l = o->layer;
  l->kernels->conv2d(l->conv, o->mode, o->image, l->terms, l->weights, l->panel_bytes, NULL, 0, l->pixels,
                     l->panels * item / o->items, l->panels * (item + 1) / o->items, o->room + thread * l->room,
                     l->result);
}

static void chain_item(void *work, int64_t item, int64_t thread) {
  layer_work *o = work;
  const fs_layer *l = o->layer;
  const fs_chain *c = l->chain;
  o->of[thread].behind += l->stages(c->stages, c->count, c->pointwise, 1, l->result, l->conv->outputs,
                                    l->pixels * item / o->items, l->pixels * (item + 1) / o->items,
                                    o->room + thread * l->room, c->rounded, l->result);
}

/* Several items for each thread out of `count` rows, panels or the like; one if there is only one thread. */
static int64_t items_of(int64_t threads, int64_t count) {
  const int64_t most = threads <= 1 ? 1 : 8 * (threads < FS_MAX_THREADS ? threads : FS_MAX_THREADS);
  return count < most ? count : most;
}

static void share_out(layer_work *o, int64_t threads, int64_t count, fs_item_fn *run) {
  o->items = items_of(threads, count);
  fs_share(threads, o->items, run, o);
}

int32_t fs_bytes_layer(const fs_layer *l, int64_t threads, void *codes, float *scales, float *room,
                       int64_t *saturated) {
  fs_bytes image = l->image;
  image.codes = codes, image.scales = scales;
  layer_work o = {.layer = l, .image = &image, .room = room};
  threads = threads < FS_MAX_THREADS ? threads : FS_MAX_THREADS;
  fs_range range = {INT32_MAX, INT32_MIN, 0, 0, 0};
  for (int64_t i = 0; i < threads; i++) o.of[i] = (findings){range, 0, 0};
  share_out(&o, threads, image.images * image.height, fill_item);
  for (int64_t i = 0; i < threads; i++) {
    const fs_range *r = &o.of[i].range;
    range.low = r->low < range.low ? r->low : range.low;
    range.high = r->high > range.high ? r->high : range.high;
    range.largest = r->largest > range.largest ? r->largest : range.largest;
    range.nan |= r->nan;
  }
  o.mode = fs_bytes_fit(l->conv, l->kernels->layout, &range, l->weights_range);
  if (o.mode == FS_BYTES_NOT) return o.mode;
  /* By pixels every thread reads all weights, by panels all activations. */
  const int64_t codes_read = image.images * image.height * image.width * image.row, packed = l->panels * l->panel_bytes;
  if (threads > 1 && (l->pixels < threads || (packed > codes_read && l->panels >= 2 * threads))) {
    share_out(&o, threads, l->panels, panels_item);
    if (l->chain) share_out(&o, threads, l->pixels, chain_item);
  } else {
    share_out(&o, threads, (l->pixels + TILES - 1) / TILES, pixels_item);
  }
  saturated[0] = saturated[1] = 0;
  for (int64_t i = 0; i < threads; i++) saturated[0] += o.of[i].before, saturated[1] += o.of[i].behind;
  return o.mode;
}

typedef struct {
  fs_depthwise_fn *kernel;
  const fs_window *window;
  const float *x, *w;
  int64_t images, channels, multiplier;
  int32_t pointwise;
  const fs_chain *chain;
  int64_t items, room;
  float *scratch, *result;
  _Atomic int64_t saturated;
} depthwise_layer;

static void depthwise_item(void *work, int64_t item, int64_t thread) {
  depthwise_layer *o = work;
  const int64_t rows = o->images * o->window->out_height, width = o->window->out_width;
  o->saturated += o->kernel(o->window, o->x, o->w, o->channels, o->multiplier, o->pointwise, o->chain,
                            rows * item / o->items * width, rows * (item + 1) / o->items * width,
                            o->scratch + thread * o->room, o->result);
}

int64_t fs_depthwise_layer(fs_depthwise_fn *kernel, const fs_window *window, const float *x, const float *w,
                           int64_t images, int64_t channels, int64_t multiplier, int32_t pointwise,
                           const fs_chain *chain, int64_t threads, int64_t room, float *scratch, float *result) {
  const int64_t items = items_of(threads, images * window->out_height);
  depthwise_layer o = {kernel,    window, x,     w,    images,  channels, multiplier,
                       pointwise, chain,  items, room, scratch, result,   0};
  fs_share(threads, items, depthwise_item, &o);
  return o.saturated;
}
