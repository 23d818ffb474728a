/* Whole layers, from their activations to their results, shared out among threads. */
#include <string.h>

#include "kernels.h"
#include "share.h"

/* What a thread has found. */
typedef struct {
  _Alignas(64) fs_range read, left; /* of the activations, and of the blocks for the next layer */
  int64_t before, behind; /* values that saturated in the steps before the product and behind it */
} findings;

typedef struct {
  const fs_layer *layer;
  float *room, *result;
  int64_t items;
  int32_t mode;
  findings of[FS_MAX_THREADS];
} layer_work;

static void fill_item(void *work, int64_t item, int64_t thread) {
  layer_work *o = work;
  const fs_layer *l = o->layer;
  const int64_t rows = l->image.images * l->image.height;
  fs_source source = l->source;
  source.room = o->room + thread * l->room;
  o->of[thread].before += l->kernels->fill(l->format, &source, &l->image, rows * item / o->items,
                                           rows * (item + 1) / o->items, &o->of[thread].read);
}

/* The layer's codes, if it leaves any, with the range of a thread. */
static const fs_codes *codes_of(layer_work *o, int64_t thread, fs_codes *own) {
  if (!o->layer->codes) return NULL;
  *own = *o->layer->codes;
  own->range = &o->of[thread].left;
  return own;
}

/* Pixels of an item are whole tiles of 4, 7 or 14, which most images' sides are multiples of. */
enum { TILES = 28 };

static void pixels_item(void *work, int64_t item, int64_t thread) {
  layer_work *o = work;
  const fs_layer *l = o->layer;
  const int64_t tiles = (l->pixels + TILES - 1) / TILES;
  const int64_t first = tiles * item / o->items * TILES, end = tiles * (item + 1) / o->items * TILES;
  fs_codes own;
  o->of[thread].behind += l->kernels->conv2d(l->conv, o->mode, &l->image, l->terms, l->weights, l->panel_bytes, l->chain,
                                             codes_of(o, thread, &own), first, end < l->pixels ? end : l->pixels, 0,
                                             l->panels, o->room + thread * l->room, l->result);
}

static void panels_item(void *work, int64_t item, int64_t thread) {
  layer_work *o = work;
  const fs_layer *l = o->layer;
  l->kernels->conv2d(l->conv, o->mode, &l->image, l->terms, l->weights, l->panel_bytes, NULL, NULL, 0, l->pixels,
                     l->panels * item / o->items, l->panels * (item + 1) / o->items, o->room + thread * l->room,
                     o->result);
}

static void chain_item(void *work, int64_t item, int64_t thread) {
  layer_work *o = work;
  const fs_layer *l = o->layer;
  const int64_t first = l->pixels * item / o->items, outputs = l->conv->outputs;
  fs_codes own;
  o->of[thread].behind += l->kernels->finish(l->chain, codes_of(o, thread, &own), outputs, first,
                                             l->pixels * (item + 1) / o->items, o->room + thread * l->room,
                                             o->result + first * outputs);
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

static void widen(fs_range *range, const fs_range *by) {
  range->low = by->low < range->low ? by->low : range->low;
  range->high = by->high > range->high ? by->high : range->high;
  range->largest = by->largest > range->largest ? by->largest : range->largest;
  range->nan |= by->nan;
}

void fs_bytes_share(fs_layer *l, int64_t threads) {
  threads = threads < FS_MAX_THREADS ? threads : FS_MAX_THREADS;
  const fs_bytes *x = &l->image;
  const int64_t codes = x->images * x->height * x->width * x->row, packed = l->panels * l->panel_bytes;
  l->threads = threads;
  l->by_panels = threads > 1 && (l->pixels < threads || (packed > codes && l->panels >= 2 * threads));
}

int32_t fs_bytes_layer(const fs_layer *l, float *room, int64_t *saturated) {
  const int64_t threads = l->threads;
  layer_work o = {.layer = l, .room = room, .result = l->result ? l->result : room + threads * l->room};
  const fs_range none = {INT32_MAX, INT32_MIN, 0, 0, 0};
  fs_range read = l->ready ? *l->ready : none, left = none;
  for (int64_t i = 0; i < threads; i++) o.of[i] = (findings){none, none, 0, 0};
  if (!l->ready) share_out(&o, threads, l->image.images * l->image.height, fill_item);
  for (int64_t i = 0; i < threads; i++) widen(&read, &o.of[i].read);
  o.mode = fs_bytes_fit(l->conv, l->kernels->layout, &read, l->weights_range);
  if (o.mode == FS_BYTES_NOT) return o.mode;
  if (l->by_panels) {
    share_out(&o, threads, l->panels, panels_item);
    if (l->chain) share_out(&o, threads, l->pixels, chain_item);
  } else {
    share_out(&o, threads, (l->pixels + TILES - 1) / TILES, pixels_item);
  }
  saturated[0] = saturated[1] = 0;
  for (int64_t i = 0; i < threads; i++) {
    saturated[0] += o.of[i].before, saturated[1] += o.of[i].behind;
    widen(&left, &o.of[i].left);
  }
  if (l->codes) *l->codes->range = left;
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
