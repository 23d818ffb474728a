// fp16 arithmetic: one rounding, ties to even, results beyond the range become +-65504, subnormals are kept.
package half;
  import npu::*;

  localparam half_t NAN = 16'h7e00, LARGEST = 16'h7bff;

  function automatic logic is_nan(half_t a);
    return a[14:0] > 15'h7c00;
  endfunction

  function automatic logic is_infinite(half_t a);
    return a[14:0] == 15'h7c00;
  endfunction

  // A finite a is digits(a) * 2^unit(a).
  function automatic logic [10:0] digits(half_t a);
    return {a[14:10] != 0, a[9:0]};
  endfunction

  function automatic int unit(half_t a);
    return (a[14:10] == 0 ? 1 : int'(a[14:10])) - 25;
  endfunction

  // The highest 1 of a nonzero number.
  function automatic int top_bit(logic [63:0] a);
    automatic int top = 0;
    for (int width = 32; width > 0; width /= 2)
      if ((a >> (top + width)) != 0) top += width;
    return top;
  endfunction

  // magnitude * 2^lsb
  function automatic half_t round(logic negative, logic [63:0] magnitude, int lsb);
    /* verilator no_inline_task */
    automatic int ulp, shift, code;
    automatic logic [63:0] q, rest, middle;
    if (magnitude == 0) return {negative, 15'b0};
    ulp = top_bit(magnitude) + lsb - 10;
    if (ulp < -24) ulp = -24;
    shift = ulp - lsb;
    if (shift <= 0) q = magnitude << -shift;
    else if (shift > 63) q = 0;
    else begin
      q = magnitude >> shift;
      middle = 64'd1 << (shift - 1);
      rest = magnitude & ((middle << 1) - 1);
      if (rest > middle || (rest == middle && q[0])) q += 1;
    end
    code = (ulp + 24 << 10) + int'(q[31:0]);  // q carries the hidden bit into the exponent
    return {negative, code > int'(LARGEST) ? LARGEST[14:0] : code[14:0]};
  endfunction

  function automatic half_t add(half_t a, half_t b);
    /* verilator no_inline_task */
    automatic logic signed [63:0] x, y, total;
    if (is_nan(a) || is_nan(b) || (is_infinite(a) && is_infinite(b) && a != b)) return NAN;
    if (is_infinite(a)) return {a[15], LARGEST[14:0]};
    if (is_infinite(b)) return {b[15], LARGEST[14:0]};
    x = 64'(digits(a)) << (unit(a) + 24);
    y = 64'(digits(b)) << (unit(b) + 24);
    total = (a[15] ? -x : x) + (b[15] ? -y : y);
    if (total == 0) return {a[15] & b[15], 15'b0};
    return round(total < 0, total < 0 ? -total : total, -24);
  endfunction

  function automatic half_t multiply(half_t a, half_t b);
    /* verilator no_inline_task */
    automatic logic negative = a[15] ^ b[15];
    if (is_nan(a) || is_nan(b)) return NAN;
    if (is_infinite(a) || is_infinite(b)) return a[14:0] == 0 || b[14:0] == 0 ? NAN : {negative, LARGEST[14:0]};
    return round(negative, 64'(digits(a)) * 64'(digits(b)), unit(a) + unit(b));
  endfunction

  function automatic logic less(half_t a, half_t b);
    automatic int x = a[15] ? -int'(a[14:0]) : int'(a[14:0]);
    automatic int y = b[15] ? -int'(b[14:0]) : int'(b[14:0]);
    return x < y;
  endfunction

  function automatic half_t plus_zero(half_t a);
    return a == 16'h8000 ? 16'h0000 : a;
  endfunction

  function automatic half_t maximum(half_t a, half_t b);
    if (is_nan(a) || is_nan(b)) return NAN;
    return plus_zero(less(a, b) ? b : a);
  endfunction

  function automatic half_t relu(half_t a);
    return is_nan(a) ? NAN : a[15] ? 16'h0000 : a;
  endfunction

  function automatic half_t clip(half_t a, half_t low, half_t high);
    automatic half_t raised = less(a, low) ? low : a;
    return is_nan(a) ? NAN : plus_zero(less(high, raised) ? high : raised);
  endfunction

  // The fp16 number that a float32 is, or, of what the matrix unit sums up, is rounded to.
  function automatic half_t from_single(single_t a);
    /* verilator no_inline_task */
    if (a[30:0] > 31'h7f800000) return NAN;
    if (a[30:0] == 31'h7f800000) return {a[31], LARGEST[14:0]};
    return round(a[31], 64'({a[30:23] != 0, a[22:0]}), (a[30:23] == 0 ? 1 : int'(a[30:23])) - 150);
  endfunction

  // A register's bound of a clip: infinities stay.
  function automatic half_t bound(single_t a);
    return a[30:0] == 31'h7f800000 ? {a[31], 15'h7c00} : from_single(a);
  endfunction

  // An exact sum rounded once to float32, ties to even, gradual underflow, infinite above the range.
  function automatic single_t single_of(sum_t total);
    /* verilator no_inline_task */
    automatic logic negative = total[SUM-1];
    automatic sum_t absolute = negative ? -total : total;
    automatic logic [SUM+31:0] magnitude = {32'b0, absolute}, q, rest, middle;
    automatic int top = 0, ulp, shift;
    automatic longint code;
    if (total == 0) return 0;
    for (int word = 0; word <= SUM / 32; word++)
      if (magnitude[word*32+:32] != 0) top = word * 32;
    top += top_bit(64'(magnitude[top+:32]));
    ulp = top + SUM_UNIT - 23;
    if (ulp < -149) ulp = -149;
    shift = ulp - SUM_UNIT;
    if (shift <= 0) q = magnitude << -shift;
    else begin
      q = magnitude >> shift;
      middle = (SUM + 32)'(1) << (shift - 1);
      rest = magnitude & ((middle << 1) - 1);
      if (rest > middle || (rest == middle && q[0])) q += 1;
    end
    code = (longint'(ulp) + 149 << 23) + longint'(q[31:0]);
    return {negative, code >= 64'h7f800000 ? 31'h7f800000 : code[30:0]};
  endfunction
endpackage
