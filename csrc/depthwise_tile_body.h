/* One tile of a depthwise convolution in one kind of number: included once for each. FS_TILE_NAME is the function's name,
   FS_TILE_VALUES a vector of FS_TILE_LANES numbers, FS_TILE_LOAD(p) those at float *p, FS_TILE_STORE(p, v) the way back,
   FS_TILE_ROUND(v) what follows each operation, FS_TILE_BITS a vector of integers as long as the numbers. */

/* px neighbours in a row of outputs, all channels; `pads` if the window of some reaches beyond the image's sides.
   Returns the largest magnitude among them, as bits. */
FS_INLINE int32_t FS_TILE_NAME(const int pointwise, const int px, const int pads, const depthwise_work *o, int64_t image,
                       int64_t row, int64_t column, float *result) {
  const fs_window *v = o->window;
  const int64_t top = row * v->stride_height - v->pad_top, left = column * v->stride_width - v->pad_left;
  const int64_t reach = (px - 1) * v->stride_width + (v->kernel_width - 1) * v->dilation_width + 1;
  const FS_TILE_BITS sign = (FS_TILE_BITS)(-(FS_TILE_VALUES){0});
  FS_TILE_BITS largest = {0}, outside[DEPTHWISE_REACH];
  if (pads)
    for (int64_t i = 0; i < reach; i++) outside[i] = left + i < 0 || left + i >= v->width ? sign : (FS_TILE_BITS){0};
  (void)pointwise;
  for (int64_t c = 0; c < o->channels; c = next_run(c, FS_TILE_LANES, o->channels)) {
    FS_TILE_VALUES sum[DEPTHWISE_PIXELS], x[DEPTHWISE_REACH];
#pragma GCC unroll 8
    for (int i = 0; i < px; i++) sum[i] = -(FS_TILE_VALUES){0}; /* the first sum is the first product, also if that is -0 */
    for (int64_t kh = 0; kh < v->kernel_height; kh++) {
      const int64_t y = top + kh * v->dilation_height;
      if (y < 0 || y >= v->height) continue;
      const float *from = o->x + ((image * v->height + y) * v->width + left) * o->channels + c;
      for (int64_t i = 0; i < reach; i++, from += o->channels) {
        if (pads && (left + i < 0 || left + i >= v->width)) x[i] = (FS_TILE_VALUES){0};
        else x[i] = FS_TILE_LOAD(from);
      }
      const float *taps = o->w + kh * v->kernel_width * o->channels + c;
      for (int64_t kw = 0; kw < v->kernel_width; kw++, taps += o->channels) {
        const FS_TILE_VALUES w = FS_TILE_LOAD(taps);
        const FS_TILE_VALUES *at = x + kw * v->dilation_width;
        const FS_TILE_BITS *mask = outside + kw * v->dilation_width;
#pragma GCC unroll 8
        for (int i = 0; i < px; i++) {
          FS_TILE_VALUES product = FS_TILE_ROUND(at[i * v->stride_width] * w);
          /* Outside, 0 * w, whatever its sign, becomes -0: added, that changes no sum. */
          if (pads) product = (FS_TILE_VALUES)((FS_TILE_BITS)product | mask[i * v->stride_width]);
          sum[i] = FS_TILE_ROUND(sum[i] + product);
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < px; i++) {
      const FS_TILE_BITS size = (FS_TILE_BITS)sum[i] & ~sign;
      const FS_TILE_BITS more = size > largest;
      largest = (size & more) | (largest & ~more);
      FS_TILE_STORE(result + i * o->channels + c, sum[i]);
    }
  }
  int32_t most = 0;
  for (int i = 0; i < FS_TILE_LANES; i++) most = largest[i] > most ? largest[i] : most;
  return most;
}
#undef FS_TILE_NAME
#undef FS_TILE_VALUES
#undef FS_TILE_BITS
#undef FS_TILE_LANES
#undef FS_TILE_LOAD
#undef FS_TILE_STORE
#undef FS_TILE_ROUND
