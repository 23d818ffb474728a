// A grid of ROWS x COLS multiply-accumulate cells and the controller that walks a matrix product over it, fold by fold
// (docs/microarchitecture.md, section 5: folds are full-size and one after the other).
//
// The product is C (m x n) = A (m x k) * B (k x n). `dataflow` says what stays in the cells during a fold:
//   0 os  the sums:    rows m, columns n, time k. A moves right, B moves down, each sum leaves on its column's bus
//   1 ws  B:           rows k, columns n, time m. A moves right, sums move down
//   2 is  A transposed rows k, columns m, time n. B moves right, sums move down
// A fold ends when its last sum leaves the last column; that event, not a formula, lets the next one begin.
module systolic #(
    parameter int ROWS  = 4,
    parameter int COLS  = 4,
    parameter int BITS  = 8,        // of an operand, two's complement
    parameter int SUM   = 32,       // of a sum
    parameter int DEPTH = 1 << 16   // elements of each memory
) (
    input  logic                   clk,
    input  logic                   start,
    input  logic [1:0]             dataflow,
    input  logic [31:0]            m,
    input  logic [31:0]            n,
    input  logic [31:0]            k,
    output logic                   busy,
    output logic [63:0]            cycles,     // while busy
    output logic [31:0]            folds,
    // The host's side: fills A (0) and B (1), reads C.
    input  logic [1:0]             load,       // one hot
    input  logic [31:0]            address,
    input  logic signed [BITS-1:0] load_data,
    output logic signed [SUM-1:0]  read_data
);
  typedef logic signed [BITS-1:0] operand_t;
  typedef logic signed [SUM-1:0] sum_t;
  typedef struct packed {
    logic valid;
    logic first;  // begins a sum (os)
    logic last;   // ends the fold's stream
  } token_t;

  operand_t a_mem[DEPTH];
  operand_t b_mem[DEPTH];
  sum_t     c_mem[DEPTH];
  assign read_data = c_mem[address];

  // What the rows, columns and the time of a fold run over.
  logic os, ws;
  logic [31:0] row_total, column_total, time_total;
  assign os = dataflow == 0;
  assign ws = dataflow == 1;
  assign row_total = os ? m : k;
  assign column_total = dataflow == 2 ? m : n;
  assign time_total = os ? k : ws ? m : n;

  // Where the fold begins, and its clock.
  logic [31:0] row0, column0, tick;
  logic done;  // the last sum leaves in this cycle

  // The edges: what enters row i from the left and column j from above.
  operand_t left [ROWS];
  token_t   token[ROWS];
  operand_t above[COLS];
  logic loading;  // ws, is: the first ROWS cycles shift the stationary operand down, last row first
  assign loading = !os && tick < ROWS;
  always_comb begin
    for (int i = 0; i < ROWS; i++) begin
      automatic int t = int'(tick) - i - (os ? 0 : ROWS);
      automatic logic [31:0] row = row0 + 32'(i);
      token[i] = '0;
      left[i] = '0;
      if (busy && !loading && t >= 0 && t < int'(time_total)) begin
        token[i] = '{valid: 1'b1, first: t == 0, last: t == int'(time_total) - 1};
        if (row < row_total) left[i] = os ? a_mem[row*k+t] : ws ? a_mem[t*k+row] : b_mem[row*n+t];
      end
    end
    for (int j = 0; j < COLS; j++) begin
      automatic int t = int'(tick) - j;
      automatic logic [31:0] column = column0 + 32'(j);
      automatic logic [31:0] row = row0 + 32'(ROWS - 1) - tick;
      above[j] = '0;
      if (column < column_total) begin
        if (os && t >= 0 && t < int'(k)) above[j] = b_mem[t*n+column];
        if (loading && row < row_total) above[j] = ws ? b_mem[row*n+column] : a_mem[column*k+row];
      end
    end
  end

  // The cells. `right` and `flag` are the registers to the cell on the right, `down` to the one below (os: the
  // moving operand; else the stationary one), `sum` stays (os) or moves down.
  operand_t right[ROWS][COLS];
  token_t   flag [ROWS][COLS];
  operand_t down [ROWS][COLS];
  sum_t     sum  [ROWS][COLS];

  operand_t a_in[ROWS][COLS];
  token_t   f_in[ROWS][COLS];
  operand_t b_in[ROWS][COLS];
  sum_t     s_in[ROWS][COLS];
  sum_t     out [ROWS][COLS];
  operand_t factor;
  always_comb begin
    factor = '0;
    for (int i = 0; i < ROWS; i++)
      for (int j = 0; j < COLS; j++) begin
        a_in[i][j] = j == 0 ? left[i] : right[i][j-1];
        f_in[i][j] = j == 0 ? token[i] : flag[i][j-1];
        b_in[i][j] = i == 0 ? above[j] : down[i-1][j];
        if (os) s_in[i][j] = f_in[i][j].first ? '0 : sum[i][j];
        else s_in[i][j] = i == 0 ? '0 : sum[i-1][j];
        factor = os ? b_in[i][j] : down[i][j];
        out[i][j] = s_in[i][j] + sum_t'(a_in[i][j]) * sum_t'(factor);
      end
  end

  always_ff @(posedge clk)
    for (int i = 0; i < ROWS; i++)
      for (int j = 0; j < COLS; j++) begin
        right[i][j] <= a_in[i][j];
        flag[i][j]  <= f_in[i][j];
        if (os || loading) down[i][j] <= b_in[i][j];
        if (!os || f_in[i][j].valid) sum[i][j] <= out[i][j];
      end

  // One bus a column: in os the cell that ends its sum drives it, else the lowest cell.
  logic        leaves[COLS];
  sum_t        bus   [COLS];
  logic [31:0] at    [COLS];  // os: the row it comes from; else the time
  logic [31:0] age   [COLS];  // sums that have left the column in this fold
  always_comb
    for (int j = 0; j < COLS; j++) begin
      leaves[j] = !os && f_in[ROWS-1][j].valid;
      bus[j] = out[ROWS-1][j];
      at[j] = age[j];
      if (os)
        for (int i = 0; i < ROWS; i++)
          if (f_in[i][j].valid && f_in[i][j].last) begin
            leaves[j] = 1'b1;
            bus[j] = out[i][j];
            at[j] = row0 + 32'(i);
          end
    end
  assign done = busy && f_in[ROWS-1][COLS-1].valid && f_in[ROWS-1][COLS-1].last;

  always_ff @(posedge clk) begin
    for (int j = 0; j < COLS; j++) begin
      automatic logic [31:0] column = column0 + 32'(j);
      automatic logic [31:0] where = ws || os ? at[j] * n + column : column * n + at[j];
      age[j] <= done || !busy ? '0 : age[j] + 32'(leaves[j]);
      if (leaves[j] && column < column_total && at[j] < (os ? m : time_total))
        c_mem[where] <= bus[j] + (os || row0 == 0 ? '0 : c_mem[where]);
    end
  end

  always_ff @(posedge clk) begin
    if (load[0]) a_mem[address] <= load_data;
    if (load[1]) b_mem[address] <= load_data;
    if (start) begin
      {row0, column0, tick, cycles, folds} <= '0;
      busy <= 1'b1;
    end else if (busy) begin
      cycles <= cycles + 1;
      tick   <= tick + 1;
      if (done) begin
        tick  <= '0;
        folds <= folds + 1;
        column0 <= column0 + COLS;
        if (column0 + COLS >= column_total) begin
          column0 <= '0;
          row0 <= row0 + ROWS;
          if (row0 + ROWS >= row_total) busy <= 1'b0;
        end
      end
    end
  end
endmodule
