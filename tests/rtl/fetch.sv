// The control processor and the first half of dispatch: fetches a word in INSTRUCTION_CYCLES, collects a chain.
module fetch
  import npu::*;
(
    input  logic        clk,
    input  logic        run,
    input  logic        load_word,   // the host's side
    input  logic        load_block,
    input  count_t      load_address,
    input  logic [63:0] load_data,   // a word; or a block: repeat (63:32), words (31:0)
    input  logic        room,        // for one more chain in the queue, those of this cycle counted
    output logic        push,        // a chain is decoded in this cycle
    output chain_t      chain,
    output logic        finished
);
  logic [63:0] words [WORDS];
  logic [63:0] blocks[BLOCKS];
  count_t block_count;
  always_ff @(posedge clk) begin
    if (load_word) words[load_address[$clog2(WORDS)-1:0]] <= load_data;
    if (load_block) begin
      blocks[load_address[$clog2(BLOCKS)-1:0]] <= load_data;
      block_count <= load_address + 1;
    end
  end

  // The loop: which word of which turn of which block.
  count_t block, turn, first, at, timer;
  logic stalled, decodes;
  logic [63:0] current, word;
  assign current = blocks[block[$clog2(BLOCKS)-1:0]];
  assign word = words[at[$clog2(WORDS)-1:0]];
  assign finished = block == block_count;
  assign decodes = run && !finished && !stalled && timer == 0;
  always_ff @(posedge clk)
    if (!run) begin
      {block, turn, first, at} <= '0;
      timer <= INSTRUCTION_CYCLES;
      stalled <= 1'b0;
    end else if (!finished) begin
      timer <= timer - 1;
      if (decodes) begin
        at <= at + 1;
        if (at + 1 == first + current[31:0]) begin
          if (turn + 1 == current[63:32]) begin
            turn  <= 0;
            block <= block + 1;
            first <= at + 1;
          end else begin
            turn <= turn + 1;
            at   <= first;
          end
        end
      end
      if (decodes || stalled) begin
        stalled <= !room;
        timer   <= INSTRUCTION_CYCLES - 1;
      end
    end

  // Decoding.
  opcode_t opcode;
  access_t access;
  count_t registers[REGISTERS];
  assign opcode = opcode_t'(word[5:0]);
  assign access = '{mem: word[9:6], address: 32'(word[33:10]), step_x: 32'(word[47:34]), step_y: 32'(word[63:48])};

  chain_t part;                    // the chain as far as it came
  opcode_t read;
  count_t mfu, slot, writes;       // where the next pointwise instruction and the next write go
  logic active[MFUS];              // the activation units that the chain uses
  count_t queue_in, queue_out;     // vectors that chains took from the network queue and gave to it

  count_t unit, unit_slot;         // where the pointwise instruction in `word` goes
  always_comb begin
    unit = opcode >= V_RELU ? mfu : 32'(access.mem[1:0]);
    if (opcode >= V_RELU && active[mfu]) unit = mfu + 1;
    unit_slot = unit == mfu ? slot : 0;
  end

  always_ff @(posedge clk)
    if (!run) begin
      for (int i = 0; i < REGISTERS; i++) registers[i] <= 1;
      registers[CLIP_LOW]  <= 32'hff800000;
      registers[CLIP_HIGH] <= 32'h7f800000;
      {queue_in, queue_out} <= '0;
      {part, mfu, slot, writes} <= '0;
      for (int m = 0; m < MFUS; m++) active[m] <= 1'b0;
    end else if (decodes)
      case (opcode)
        V_RD, V_RD2, V_RD3, V_UNROLL: begin
          read <= opcode;
          part.read <= access;
        end
        MV_MUL: begin
          part.multiplies <= 1'b1;
          part.tile <= 32'(word[29:6]);
        end
        VV_ADD, VV_A_SUB_B, VV_B_SUB_A, VV_MAX, VV_MUL, V_RELU, V_SIGM, V_TANH, V_CLIP: begin
          part.mfu[unit].op[unit_slot] <= opcode;
          if (opcode < VV_MUL) part.mfu[unit].addend <= access;
          if (opcode == VV_MUL) part.mfu[unit].factor <= access;
          if (opcode >= V_RELU) active[unit] <= 1'b1;
          mfu  <= unit;
          slot <= unit_slot + 1;
        end
        V_WR, V_PACK: begin
          part.write[writes].valid <= 1'b1;
          part.write[writes].pack <= opcode == V_PACK;
          part.write[writes].access <= access;
          writes <= writes + 1;
        end
        S_WR: registers[word[9:6]] <= word[43:12];
        END_CHAIN: begin
          {part, mfu, slot, writes} <= '0;
          for (int m = 0; m < MFUS; m++) active[m] <= 1'b0;
          if (chain.read.mem == QUEUE) queue_in <= queue_in + positions * chain.columns;
          queue_out <= queue_end;
        end
        default: $fatal(1, "this core has no instruction %0d", opcode);
      endcase

  // What follows from the instructions and the registers, at end_chain.
  count_t positions, made, queue_end;

  // The vectors that an access touches, `reach` beyond the first of each iteration.
  function automatic range_t range(access_t a, count_t reach, logic elements, count_t x, count_t y);
    automatic count_t low = a.address, high = a.address + (x - 1) * a.step_x + (y - 1) * a.step_y + reach;
    return elements ? '{1'b1, low / N, high / N} : '{1'b1, low, high};
  endfunction

  function automatic count_t up(count_t a, count_t b);
    return (a + b - 1) / b;
  endfunction

  function automatic logic in_chain(mfu_t m, opcode_t low, opcode_t high);
    automatic logic found = 1'b0;
    for (int i = 0; i < SLOTS; i++) found |= m.op[i] >= low && m.op[i] <= high;
    return found;
  endfunction

  always_comb begin
    automatic count_t x = registers[ITERATIONS_X], y = registers[ITERATIONS_Y], reach;
    automatic range_t touched;
    automatic logic [2:0] count[MEMS];
    chain = part;
    chain.rows = registers[ROWS];
    chain.columns = registers[COLUMNS];
    chain.iterations_x = x;
    chain.iterations_y = y;
    chain.pixels = registers[PIXELS];
    chain.engines = T / registers[PIXELS];
    chain.width = registers[WIDTH];
    chain.clip_low = half::bound(registers[CLIP_LOW]);
    chain.clip_high = half::bound(registers[CLIP_HIGH]);
    positions = x * y;
    made = part.multiplies ? chain.rows : chain.columns;

    // The window: v_rd is one run of vectors, v_rd2 several.
    chain.unroll = read == V_UNROLL;
    {chain.outer, chain.middle, chain.pitch_outer, chain.pitch_middle} = {32'd1, 32'd1, 32'd0, 32'd0};
    chain.inner = read == V_RD ? chain.columns : registers[WINDOW_INNER];
    chain.pitch_inner = 1;
    if (read != V_RD) begin
      chain.middle = registers[WINDOW_MIDDLE];
      chain.pitch_middle = registers[PITCH_MIDDLE];
    end
    if (read == V_RD3 || read == V_UNROLL) begin
      chain.outer = registers[WINDOW_OUTER];
      chain.pitch_outer = registers[PITCH_OUTER];
      chain.pitch_inner = registers[PITCH_INNER];
    end

    // The network queue is a memory that is read and written from the first address to the last.
    queue_end = queue_out;
    if (chain.read.mem == QUEUE) begin
      chain.read.address = queue_in;
      chain.read.step_x = chain.columns;
      chain.read.step_y = chain.columns * x;
    end
    for (int i = 0; i < WRITES; i++)
      if (chain.write[i].valid && chain.write[i].access.mem == QUEUE) begin
        chain.write[i].access.address = queue_end;
        chain.write[i].access.step_x = made;
        chain.write[i].access.step_y = made * x;
        queue_end += positions * made;
      end

    // Ranges for the scoreboard.
    reach = (chain.outer - 1) * chain.pitch_outer + (chain.middle - 1) * chain.pitch_middle +
            (chain.inner - 1) * chain.pitch_inner;
    chain.read_range = range(chain.read, reach, chain.unroll, x, y);
    for (int m = 0; m < MFUS; m++) begin
      chain.addend_range[m] = '0;
      chain.factor_range[m] = '0;
      if (in_chain(part.mfu[m], VV_ADD, VV_MAX))
        chain.addend_range[m] = range(part.mfu[m].addend, made - 1, 1'b0, x, y);
      if (in_chain(part.mfu[m], VV_MUL, VV_MUL))
        chain.factor_range[m] = range(part.mfu[m].factor, made - 1, 1'b0, x, y);
    end
    chain.written = '0;
    for (int i = 0; i < MEMS; i++) count[i] = 0;
    chain.ports = 1;
    for (int i = 0; i < WRITES; i++)
      if (chain.write[i].valid) begin
        automatic mem_t mem = chain.write[i].access.mem;
        automatic logic pack = chain.write[i].pack;
        touched = range(chain.write[i].access, pack ? chain.width - 1 : made - 1, pack, x, y);
        if (chain.written[mem].valid && chain.written[mem].low < touched.low) touched.low = chain.written[mem].low;
        if (chain.written[mem].valid && chain.written[mem].high > touched.high) touched.high = chain.written[mem].high;
        chain.written[mem] = touched;
        chain.write[i].phase = count[mem];
        count[mem] += 1;
        if (count[mem] > chain.ports) chain.ports = count[mem];
      end

    // Steps, those that a second write to a memory adds included.
    chain.steps = part.multiplies
        ? up(positions, chain.pixels) * up(chain.rows * chain.columns, chain.engines)
        : up(positions * chain.columns, T);
    chain.steps *= 32'(chain.ports);
  end
  assign push = decodes && opcode == END_CHAIN;
endmodule
