// Walks a chain step by step and says in each cycle which elements the T ports read. MATRIX: the port of a tile engine,
// which takes tile after tile of each position; else vectors are taken in the order of the chain, T in a step.
module reader
  import npu::*;
#(
    parameter bit MATRIX = 1'b1
) (
    input  logic          clk,
    input  logic          run,
    input  logic          start,    // begin in the next cycle ...
    input  slot_t         start_slot,
    output slot_t         slot,     // ... with the chain in this place
    input  chain_t        chain,
    output beat_t         beat,
    output beat_address_t address,
    output logic [T*L-1:0] present   // else the element is zero
);
  typedef struct packed {
    count_t x, y;                    // iteration
    count_t row, column;             // of the matrix; column: of the vectors read
    count_t inner, middle, outer;    // the same column as a place in the window
  } cursor_t;

  function automatic cursor_t next_column(cursor_t c, chain_t of);
    c.column += 1;
    c.inner += 1;
    if (c.inner == of.inner) begin
      c.inner = 0;
      c.middle += 1;
      if (c.middle == of.middle) begin
        c.middle = 0;
        c.outer += 1;
      end
    end
    if (c.column == of.columns) begin
      {c.column, c.inner, c.middle, c.outer} = '0;
      c.row += 1;
    end
    return c;
  endfunction

  function automatic cursor_t next_position(cursor_t c, chain_t of);
    {c.row, c.column, c.inner, c.middle, c.outer} = '0;
    c.x += 1;
    if (c.x == of.iterations_x) begin
      c.x = 0;
      c.y += 1;
    end
    return c;
  endfunction

  logic active;
  count_t at;             // beat of the step
  logic [2:0] phase;
  cursor_t base, after;   // of this step and the next
  cursor_t here[T];       // of each port

  always_comb begin
    automatic cursor_t cursor = base, first = base, row_end = base;
    automatic count_t engine = 0, position = 0;
    after = base;
    for (int j = 0; j < T; j++) begin
      here[j] = cursor;
      beat.lane[j] = '0;
      beat.lane[j].x = cursor.x[15:0];
      beat.lane[j].y = cursor.y[15:0];
      beat.lane[j].valid = cursor.y < chain.iterations_y;
      beat.lane[j].vector = cursor.column[15:0];
      if (MATRIX) begin
        beat.lane[j].valid &= position < chain.pixels && cursor.row < chain.rows;
        beat.lane[j].vector = cursor.row[15:0];
        beat.lane[j].begins = cursor.column == 0;
        beat.lane[j].ends = cursor.column + 1 == chain.columns;
        beat.lane[j].enters = engine == 0;
        beat.lane[j].leaves = engine + 1 == chain.engines;
        beat.lane[j].position = position;
        beat.lane[j].tile = 24'(chain.tile + cursor.row * chain.columns + cursor.column);
        cursor = next_column(cursor, chain);
        engine += 1;
        if (engine == chain.engines) begin
          engine = 0;
          position += 1;
          row_end = cursor;
          first = next_position(first, chain);
          if (position == chain.pixels) after = first;
          cursor = base;
          cursor.x = first.x;
          cursor.y = first.y;
        end
      end else begin
        cursor = next_column(cursor, chain);
        if (cursor.column == 0) cursor = next_position(cursor, chain);
        after = cursor;
      end
    end
    if (MATRIX && row_end.row < chain.rows) begin  // the positions have tiles left
      after = row_end;
      after.x = base.x;
      after.y = base.y;
    end
  end

  logic step_ends, chain_ends;
  assign step_ends = at == S - 1;
  assign chain_ends = after.y >= chain.iterations_y;
  assign beat.valid = active;
  assign beat.slot = slot;
  assign beat.beat = at;
  assign beat.phase = phase;
  assign beat.last = step_ends && phase + 1 == chain.ports && chain_ends;

  always_ff @(posedge clk)
    if (!run) begin
      active <= 1'b0;
    end else if (start) begin
      active <= 1'b1;
      slot <= start_slot;
      {at, phase, base} <= '0;
    end else if (active) begin
      at <= at + 1;
      if (step_ends) begin
        at <= 0;
        phase <= phase + 1;
        if (phase + 1 == chain.ports) begin
          phase <= 0;
          base <= after;
          if (chain_ends) active <= 1'b0;
        end
      end
    end

  // Addresses of elements. v_unroll finds each element's place in the window.
  always_comb
    for (int j = 0; j < T; j++) begin
      automatic count_t iteration = chain.read.address + here[j].x * chain.read.step_x + here[j].y * chain.read.step_y;
      automatic count_t vector = iteration + here[j].outer * chain.pitch_outer + here[j].middle * chain.pitch_middle +
                                 here[j].inner * chain.pitch_inner;
      for (int l = 0; l < L; l++) begin
        automatic count_t element = here[j].column * N + at * L + l;
        present[j*L+l] = active && beat.lane[j].valid;
        address[j*L+l] = vector * N + at * L + l;
        if (chain.unroll) begin
          present[j*L+l] &= element < chain.outer * chain.middle * chain.inner;
          address[j*L+l] = iteration + element % chain.inner * chain.pitch_inner +
                           element / chain.inner % chain.middle * chain.pitch_middle +
                           element / chain.inner / chain.middle * chain.pitch_outer;
        end
      end
    end
endmodule
