// The array's own mode (docs/microarchitecture.md, section 5) with all operands in its memories: folds overlap, and a
// partial fold takes the rows and columns it has. Ports and dataflows are those of `systolic`.
//
// os: a fold's results leave on the columns' buses while the next one streams, which begins no sooner than the bus is
// free: as many cycles later as the fold has rows. ws and is: while a fold streams, the next one's operand is shifted
// in behind it. Each weight knows its row, is kept there beside the one in use, and takes its place when the next
// fold's wave comes by. Sums leave below a fold's last row; a full fold and a partial one behind it can do so in the
// same cycle, so a column has two buses, taken in turn.
module systolic_overlapped #(
    parameter int ROWS  = 4,
    parameter int COLS  = 4,
    parameter int BITS  = 8,
    parameter int SUM   = 32,
    parameter int DEPTH = 1 << 16
) (
    input  logic                   clk,
    input  logic                   start,
    input  logic [1:0]             dataflow,
    input  logic [31:0]            m,
    input  logic [31:0]            n,
    input  logic [31:0]            k,
    output logic                   busy,
    output logic [63:0]            cycles,
    output logic [31:0]            folds,
    input  logic [1:0]             load,
    input  logic [31:0]            address,
    input  logic signed [BITS-1:0] load_data,
    output logic signed [SUM-1:0]  read_data
);
  typedef logic [31:0] count_t;
  typedef logic signed [BITS-1:0] operand_t;
  typedef logic signed [SUM-1:0] sum_t;
  typedef struct packed {
    count_t row0, column0;  // where it lies
    count_t rows, columns;  // that it has
  } fold_t;
  // What moves right: an operand, and what is to be done with it.
  typedef struct packed {
    logic valid;
    logic first;   // of the fold
    logic last;
    logic final_;  // no fold comes after this one
    logic bus;
    count_t time_;
    fold_t fold;
    operand_t value;
  } token_t;
  // What moves down: os an operand, else a weight and the row it is for.
  typedef struct packed {
    logic valid;
    count_t row;
    operand_t value;
  } packet_t;

  operand_t a_mem[DEPTH];
  operand_t b_mem[DEPTH];
  sum_t     c_mem[DEPTH];
  assign read_data = c_mem[address];

  logic os, ws;
  count_t row_total, column_total, time_total;
  assign os = dataflow == 0;
  assign ws = dataflow == 1;
  assign row_total = os ? m : k;
  assign column_total = dataflow == 2 ? m : n;
  assign time_total = os ? k : ws ? m : n;

  // The controller: what streams, and what is shifted in meanwhile. Phase 0 of ws and is only shifts.
  function automatic count_t least(count_t a, count_t b);
    return a < b ? a : b;
  endfunction
  function automatic fold_t at(count_t row0, count_t column0);
    return '{row0, column0, least(ROWS, row_total - row0), least(COLS, column_total - column0)};
  endfunction

  // The fold behind f; without rows if there is none. os goes along the rows of folds, ws and is down their columns, so
  // that sums follow each other.
  function automatic fold_t following(fold_t f);
    if (os && f.column0 + COLS < column_total) return at(f.row0, f.column0 + COLS);
    if (f.row0 + ROWS < row_total) return at(f.row0 + ROWS, os ? 0 : f.column0);
    if (!os && f.column0 + COLS < column_total) return at(0, f.column0 + COLS);
    return '0;
  endfunction

  fold_t fold, next;
  logic streams, shifts, bus, phase_ends;
  count_t tick, duration;
  assign shifts = next.rows != 0;
  always_comb begin
    duration = streams ? time_total : 0;
    if (shifts && os && streams && fold.rows > duration) duration = fold.rows;
    if (shifts && !os && next.rows > duration) duration = next.rows;
    phase_ends = tick + 1 >= duration;
  end

  // The edges, before the skew.
  token_t  row_in[ROWS];
  packet_t column_in[COLS];
  always_comb begin
    for (int i = 0; i < ROWS; i++) begin
      automatic count_t row = fold.row0 + i;
      row_in[i] = '{
          valid: busy && streams && tick < time_total && i < fold.rows, first: tick == 0, last: tick + 1 == time_total,
          final_: !shifts, bus: bus, time_: tick, fold: fold, value: '0
      };
      if (row_in[i].valid) row_in[i].value = os ? a_mem[row*k+tick] : ws ? a_mem[tick*k+row] : b_mem[row*n+tick];
    end
    for (int j = 0; j < COLS; j++) begin
      automatic count_t row = next.row0 + next.rows - 1 - tick;
      column_in[j] = '{valid: 1'b0, row: next.rows - 1 - tick, value: '0};
      if (os && busy && streams && tick < time_total && j < fold.columns)
        column_in[j].value = b_mem[tick*n+fold.column0+j];
      if (!os && busy && shifts && tick < next.rows) begin
        column_in[j].valid = 1'b1;
        if (j < next.columns) column_in[j].value = ws ? b_mem[row*n+next.column0+j] : a_mem[(next.column0+j)*k+row];
      end
    end
  end

  // The skew: row i is i cycles late, column j j cycles.
  token_t  row_skew[ROWS][ROWS];
  packet_t column_skew[COLS][COLS];
  always_ff @(posedge clk) begin
    for (int i = 0; i < ROWS; i++) for (int d = 0; d < ROWS; d++) row_skew[i][d] <= d == 0 ? row_in[i] : row_skew[i][d-1];
    for (int j = 0; j < COLS; j++)
      for (int d = 0; d < COLS; d++) column_skew[j][d] <= d == 0 ? column_in[j] : column_skew[j][d-1];
    if (start) begin
      for (int i = 0; i < ROWS; i++) for (int d = 0; d < ROWS; d++) row_skew[i][d].valid <= 1'b0;
      for (int j = 0; j < COLS; j++) for (int d = 0; d < COLS; d++) column_skew[j][d].valid <= 1'b0;
    end
  end

  // The cells.
  token_t   right [ROWS][COLS];
  packet_t  down  [ROWS][COLS];
  operand_t kept  [ROWS][COLS];  // the next fold's
  operand_t used  [ROWS][COLS];
  sum_t     sum   [ROWS][COLS];
  token_t   t_in  [ROWS][COLS];
  packet_t  p_in  [ROWS][COLS];
  operand_t weight[ROWS][COLS];
  sum_t     out   [ROWS][COLS];
  always_comb
    for (int i = 0; i < ROWS; i++)
      for (int j = 0; j < COLS; j++) begin
        automatic sum_t before_ = os ? sum[i][j] : i == 0 ? '0 : sum[i-1][j];
        t_in[i][j] = j > 0 ? right[i][j-1] : i == 0 ? row_in[0] : row_skew[i][i-1];
        p_in[i][j] = i > 0 ? down[i-1][j] : j == 0 ? column_in[0] : column_skew[j][j-1];
        weight[i][j] = os ? p_in[i][j].value : t_in[i][j].first ? kept[i][j] : used[i][j];
        if (os && t_in[i][j].first) before_ = '0;
        out[i][j] = before_ + sum_t'(t_in[i][j].value) * sum_t'(weight[i][j]);
      end
  always_ff @(posedge clk)
    for (int i = 0; i < ROWS; i++)
      for (int j = 0; j < COLS; j++) begin
        right[i][j] <= t_in[i][j];
        down[i][j]  <= p_in[i][j];
        if (t_in[i][j].valid) begin
          used[i][j] <= weight[i][j];
          sum[i][j]  <= out[i][j];
        end
        if (p_in[i][j].valid && p_in[i][j].row == i) begin
          kept[i][j] <= p_in[i][j].value;
          down[i][j].valid <= 1'b0;
        end
        if (start) {right[i][j].valid, down[i][j].valid} <= '0;
      end

  // The buses: a sum that is done, and where it belongs.
  logic   leaves[COLS][2];
  sum_t   value [COLS][2];
  count_t where [COLS][2];
  logic   done;
  always_comb begin
    done = 1'b0;
    for (int j = 0; j < COLS; j++)
      for (int b = 0; b < 2; b++) begin
        leaves[j][b] = 1'b0;
        value[j][b] = '0;
        where[j][b] = '0;
        for (int i = 0; i < ROWS; i++) begin
          automatic token_t t = t_in[i][j];
          automatic count_t column = t.fold.column0 + j;
          if (t.valid && t.bus == b[0] && j < t.fold.columns && (os ? t.last : i + 1 == t.fold.rows)) begin
            leaves[j][b] = 1'b1;
            value[j][b] = out[i][j];
            where[j][b] = os ? (t.fold.row0 + i) * n + column : ws ? t.time_ * n + column : column * n + t.time_;
            if (t.final_ && t.last && i + 1 == t.fold.rows && j + 1 == t.fold.columns) done = 1'b1;
          end
        end
      end
  end
  // Sums of several folds add up in the memory, in whatever order they come: those of a partial fold can arrive before
  // or with those of the full fold ahead of it.
  logic [DEPTH-1:0] there;  // elements that hold a sum of this product
  always_ff @(posedge clk) begin
    for (int j = 0; j < COLS; j++) begin
      automatic logic meet = leaves[j][0] && leaves[j][1] && where[j][0] == where[j][1];
      for (int b = 0; b < 2; b++)
        if (leaves[j][b] && !(b == 1 && meet)) begin
          c_mem[where[j][b]] <= value[j][b] + (meet ? value[j][1] : '0) +
                                (there[where[j][b]] ? c_mem[where[j][b]] : '0);
          there[where[j][b]] <= 1'b1;
        end
    end
    if (start) there <= '0;
  end

  always_ff @(posedge clk) begin
    if (load[0]) a_mem[address] <= load_data;
    if (load[1]) b_mem[address] <= load_data;
    if (start) begin
      {tick, cycles, folds, bus} <= '0;
      busy <= 1'b1;
      streams <= os;
      fold <= at(0, 0);
      next <= os ? following(at(0, 0)) : at(0, 0);
    end else if (busy) begin
      cycles <= cycles + 1;
      tick   <= tick + 1;
      if (phase_ends && (streams || shifts)) begin
        tick    <= 0;
        bus     <= !bus;
        folds   <= folds + 32'(streams);
        streams <= shifts;
        fold    <= next;
        next    <= shifts ? following(next) : '0;
      end
      if (done) busy <= 1'b0;
    end
  end
endmodule
