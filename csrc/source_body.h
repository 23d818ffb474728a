/* What a fill reads of its source, a row at a time: numbers as they lie, or windows of them, or after a chain. */
#include "unfold_body.h"

/* The numbers of row r of an image, `*step` floats from one pixel that is used to the next; by way of `from->room`
   where they do not lie in memory like that. `*saturated` counts what saturated in the chain. */
FS_INLINE void begin_source(const fs_source *from) {
  if (from->before) repeat_operands(from->before->stages, from->before->count, from->channels, from->room);
}

static __attribute__((noinline)) const float *source_row(const fs_source *from, int64_t image, int64_t r,
                                                         int64_t *step, int64_t *saturated) {
  const int64_t channels = from->channels, first = (image * from->height + r * from->row_stride) * from->width;
  const float *x = from->values + first * from->pitch;
  const fs_chain *chain = from->before;
  *step = from->column_stride * from->pitch;
  if (!from->window && !chain) return x;
  float *room = from->room, *row = room + (chain ? chain->count * FS_PIECE : 0);
  *step = channels;
  if (from->window) unfold(from->window, from->values, from->pitch, channels, first, first + from->columns, row);
  const int64_t strip = channels < FS_PIECE ? FS_PIECE / channels : 1;
  for (int64_t i = 0, n; chain && i < from->columns; i += n) {
    n = from->columns - i < strip ? from->columns - i : strip;
    for (int64_t j = i; j < i + n && !from->window; j++)
      memcpy(row + j * channels, x + j * from->column_stride * from->pitch, (size_t)channels * sizeof *row);
    float *these = row + i * channels;
    *saturated += run_stages(chain->stages, chain->count, chain->pointwise, 0, these, channels, i, i + n, room, NULL,
                             these);
  }
  return row;
}
