// The matrix unit: T tile engines, the matrix register file, the reduction across engines, and the way back to fp16.
// Beat b of a step is read in cycle b; its result leaves in cycle b + MVM_LATENCY.
module mvm
  import npu::*;
(
    input  logic       clk,
    input  logic       run,
    input  beat_t      beat,       // cycle 0
    input  beat_data_t x,
    output beat_t      out_beat,   // cycle MVM_LATENCY
    output beat_data_t out,
    input  logic       load_mantissa,   // the host's side: (tile, row, column), (tile, row, block)
    input  logic       load_exponent,
    input  count_t     load_address,
    input  logic [63:0] load_data
);
  localparam int LATENCY = 2 * S + 7;  // of the stages below; the rest of MVM_LATENCY is delay
  if (MVM_LATENCY < LATENCY) begin : g_latency
    $error("MVM_LATENCY must be at least 2 * N / L + 7");
  end

  // What goes with the values: control[d] is that of the beat which was read d cycles ago.
  beat_t control[MVM_LATENCY+1];
  assign control[0] = beat;
  always_ff @(posedge clk)
    for (int d = 1; d <= MVM_LATENCY; d++) begin
      control[d] <= control[d-1];
      if (!run) control[d].valid <= 1'b0;
    end

  function automatic logic works(beat_t b);
    return b.valid && b.phase == 0;
  endfunction

  // The matrix register file. A word holds what one beat multiplies by: N rows, L columns.
  logic [N*L*(MANTISSA+1)-1:0] mantissas[MRF_TILES*S];
  logic [N*N_BLOCKS*9-1:0] exponents[MRF_TILES];
  always_ff @(posedge clk) begin
    automatic count_t tile = load_address / (N * N), row = load_address / N % N, column = load_address % N;
    automatic count_t rows = load_address / N_BLOCKS, block = load_address % N_BLOCKS;
    if (load_mantissa)
      mantissas[tile*S+column/L][(row*L+column%L)*(MANTISSA+1)+:MANTISSA+1] <= load_data[MANTISSA:0];
    if (load_exponent) exponents[rows/N][(rows%N*N_BLOCKS+block)*9+:9] <= load_data[8:0];
  end

  beat_data_t x1;
  always_ff @(posedge clk) x1 <= x;

  sum_t [N-1:0] sum[T];
  logic nan[T];
  for (genvar j = 0; j < T; j++) begin : g_engine
    count_t tile;
    assign tile = 32'(control[S+1].lane[j].tile);
    tile_engine engine (
        .clk,
        .collect(works(control[1])),
        .collect_beat(control[1].beat),
        .x(x1[j*L+:L]),
        .quantize(works(control[S+1]) && control[S+1].lane[j].valid),
        .quantize_beat(control[S+1].beat),
        .weights(mantissas[tile*S+control[S+1].beat]),
        .weight_exponents(exponents[tile]),
        .accumulate(works(control[S+4]) && control[S+4].lane[j].valid),
        .accumulate_beat(control[S+4].beat),
        .sum(sum[j]),
        .nan(nan[j])
    );
  end

  // The reduction: sums of neighbouring engines that belong to one row are added; what a row lacks at the end of the
  // step is carried to the next, one sum for each of the positions at once.
  sum_t [N-1:0] carry[T], row[T], running[T], so_far;
  logic carry_nan[T], row_nan[T], running_nan[T], so_far_nan;
  beat_t reduced;
  assign reduced = control[S+5];
  always_comb begin
    so_far = '0;
    so_far_nan = 1'b0;
    for (int j = 0; j < T; j++) begin
      automatic lane_t lane = reduced.lane[j];
      if (lane.enters) begin
        so_far = carry[lane.position];
        so_far_nan = carry_nan[lane.position];
      end
      if (lane.begins) {so_far, so_far_nan} = '0;
      for (int i = 0; i < N; i++) so_far[i] += sum[j][i];
      so_far_nan |= nan[j];
      running[j] = so_far;
      running_nan[j] = so_far_nan;
    end
  end
  always_ff @(posedge clk)
    if (works(reduced) && reduced.beat == S - 1) begin
      row <= running;
      row_nan <= running_nan;
      for (int j = 0; j < T; j++)
        if (reduced.lane[j].valid && reduced.lane[j].leaves) begin
          carry[reduced.lane[j].position] <= running[j];
          carry_nan[reduced.lane[j].position] <= running_nan[j];
        end
    end

  // Back: one rounding to float32, one to fp16.
  single_t single[T][N];
  half_t value[T][N];
  always_ff @(posedge clk) begin
    for (int j = 0; j < T; j++)
      for (int i = 0; i < N; i++) begin
        if (works(control[S+6]) && control[S+6].beat == S - 1 && control[S+6].lane[j].ends)
          single[j][i] <= row_nan[j] ? 32'h7fc00000 : half::single_of(row[j][i]);
        if (works(control[S+7]) && control[S+7].beat == S - 1 && control[S+7].lane[j].ends)
          value[j][i] <= half::from_single(single[j][i]);
      end
  end

  // Vectors leave beat by beat.
  beat_data_t leaving[MVM_LATENCY-LATENCY+1];
  always_comb
    for (int j = 0; j < T; j++)
      for (int l = 0; l < L; l++) leaving[0][j*L+l] = value[j][control[LATENCY].beat*L+l];
  for (genvar d = 1; d <= MVM_LATENCY - LATENCY; d++) begin : g_delay
    always_ff @(posedge clk) leaving[d] <= leaving[d-1];
  end
  assign out = leaving[MVM_LATENCY-LATENCY];
  always_comb begin
    out_beat = control[MVM_LATENCY];
    for (int j = 0; j < T; j++) out_beat.lane[j].valid &= out_beat.lane[j].ends;
  end
endmodule
