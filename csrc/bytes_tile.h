/* What lies between a byte convolution's loop over a layer and the kernel of one tile of it. */
#ifndef FS_BYTES_TILE_H
#define FS_BYTES_TILE_H
#include "common.h"

/* Bytes that a tile fetches ahead with each of its terms: two lines of the cache. */
enum { FS_AHEAD = 128 };

/* Tiles of one panel of packed weights at `w`, of which `outs` filters are wanted. */
typedef struct {
  ptrdiff_t a_pixel, s_pixel, out_pixel; /* from one pixel of the tile to the next */
  const fs_term *terms;
  int64_t num_terms, step; /* step: codes that one step of a dot product takes, where the layout is bfloat16 */
  const uint8_t *w, *ahead; /* ahead: of the next panel's weights, what this tile is to fetch into the cache */
  int64_t outs;
  int pixels; /* that the CPU's tiles are set up for */
  int32_t accumulator;
  int64_t wary; /* for so many tiles quick sums are not tried */
} tile_work;

/* A tile of px pixels. */
typedef void micro_fn(tile_work *o, int px, const void *codes, const float *scales, float *out);
#endif
