// A tile engine with its converter: takes a vector of fp16 in S beats, quantizes it to block floating point once its
// blocks are complete, multiplies it by a tile in S beats with N dot-product engines of L lanes, and sums exactly.
module tile_engine
  import npu::*;
(
    input  logic                                clk,
    // cycle 1: beat b of the vector is there
    input  logic                                collect,
    input  count_t                              collect_beat,
    input  logic [L-1:0][15:0]                  x,
    // cycle S + 1: beat b is quantized; the weights of that beat are read
    input  logic                                quantize,
    input  count_t                              quantize_beat,
    input  logic [N*L*(MANTISSA+1)-1:0]         weights,
    input  logic [N*N_BLOCKS*9-1:0]             weight_exponents,
    // cycle S + 4: the products of beat b are added
    input  logic                                accumulate,
    input  count_t                              accumulate_beat,
    output sum_t [N-1:0]                        sum,
    output logic                                nan
);
  // Collecting: a copy of the vector and the largest magnitude of each block.
  half_t [N-1:0] collected, vector;
  logic [N_BLOCKS-1:0][14:0] largest, so_far, blocks;
  always_comb begin
    so_far = collect_beat == 0 ? '0 : largest;
    for (int l = 0; l < L; l++) begin
      automatic int b = (int'(collect_beat) * L + l) / BLOCK;
      if (x[l][14:0] > so_far[b]) so_far[b] = x[l][14:0];
    end
  end
  always_ff @(posedge clk)
    if (collect) begin
      largest <= so_far;
      for (int l = 0; l < L; l++) collected[int'(collect_beat)*L+l] <= x[l];
      if (collect_beat == S - 1) begin  // complete: hand over, so that the next vector can be collected
        blocks <= so_far;
        vector <= collected;
        for (int l = 0; l < L; l++) vector[(S-1)*L+l] <= x[l];
      end
    end

  // The exponent that a block shares: that of its largest element.
  function automatic exponent_t shared(logic [14:0] magnitude);
    automatic int e = magnitude[14:10] == 0 ? half::top_bit(64'(magnitude)) - 24 : int'(magnitude[14:10]) - 15;
    return e < X_MIN ? 9'(X_MIN) : 9'(e);
  endfunction

  // a / 2^(exponent - FRACTION) to nearest, ties to even, at most the largest mantissa.
  function automatic mantissa_t mantissa(half_t a, exponent_t exponent);
    /* verilator no_inline_task */
    automatic int shift = int'(exponent) - FRACTION - half::unit(a);
    automatic logic [31:0] digits = 32'(half::digits(a)), q, rest, middle;
    if (shift <= 0) q = digits << -shift;
    else if (shift > 12) q = 0;
    else begin
      q = digits >> shift;
      middle = 32'd1 << (shift - 1);
      rest = digits & ((middle << 1) - 1);
      if (rest > middle || (rest == middle && q[0])) q += 1;
    end
    if (q > (1 << MANTISSA) - 1) q = (1 << MANTISSA) - 1;
    return a[15] ? -mantissa_t'(q) : mantissa_t'(q);
  endfunction

  mantissa_t q[L];
  exponent_t [N_BLOCKS-1:0] exponents, exponents2, exponents3;
  count_t beat2, beat3;
  logic nan2, nan3, nan4;
  logic [N*L*(MANTISSA+1)-1:0] w;
  logic [N*N_BLOCKS*9-1:0] w_exponents2, w_exponents3;
  always_ff @(posedge clk)
    if (quantize) begin
      for (int l = 0; l < L; l++)
        q[l] <= mantissa(vector[int'(quantize_beat)*L+l], shared(blocks[(int'(quantize_beat)*L+l)/BLOCK]));
      nan2 <= 1'b0;
      for (int b = 0; b < N_BLOCKS; b++) begin
        exponents[b] <= shared(blocks[b]);
        if (blocks[b] >= 15'h7c00) nan2 <= 1'b1;  // an infinity or NaN makes its block NaN
      end
      w <= weights;
      w_exponents2 <= weight_exponents;
      beat2 <= quantize_beat;
    end

  // Multiplying: N rows of L lanes.
  localparam int PRODUCT = 2 * (MANTISSA + 1);
  logic signed [PRODUCT-1:0] product[N][L];
  always_ff @(posedge clk) begin
    for (int r = 0; r < N; r++)
      for (int l = 0; l < L; l++)
        product[r][l] <= PRODUCT'(q[l]) * PRODUCT'($signed(w[(r*L+l)*(MANTISSA+1)+:MANTISSA+1]));
    {exponents2, w_exponents3, beat3, nan3} <= {exponents, w_exponents2, beat2, nan2};
  end

  // Adding up the lanes that share a block.
  localparam int DOT = PRODUCT + $clog2(GROUP + 1);
  logic signed [DOT-1:0] dot[N][GROUPS];
  logic [9:0] shift[N][GROUPS];
  always_ff @(posedge clk) begin
    for (int r = 0; r < N; r++)
      for (int g = 0; g < GROUPS; g++) begin
        automatic logic signed [DOT-1:0] total = '0;
        automatic int b = (int'(beat3) * L + g * GROUP) / BLOCK;
        for (int l = 0; l < GROUP; l++) total += DOT'(product[r][g*GROUP+l]);
        dot[r][g] <= total;
        shift[r][g] <= 10'(int'($signed(exponents2[b])) - X_MIN +
                           int'($signed(w_exponents3[(r*N_BLOCKS+b)*9+:9])) - W_MIN);
      end
    nan4 <= nan3;
  end

  // Accumulating, exactly: every product is a whole number of 2^SUM_UNIT.
  always_ff @(posedge clk)
    if (accumulate) begin
      for (int r = 0; r < N; r++) begin
        automatic sum_t total = accumulate_beat == 0 ? '0 : sum[r];
        for (int g = 0; g < GROUPS; g++) total += sum_t'(dot[r][g]) <<< shift[r][g];
        sum[r] <= total;
      end
      nan <= nan4;
    end
endmodule
