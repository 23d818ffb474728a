// A small matrix-vector core after docs/microarchitecture.md: fetch, dispatch, register files, matrix unit, MFUs, write.
// There is no DRAM here: tiles and constants are in the register files when a program begins, and no chain reads or
// writes DRAM. The matrix unit sums exactly, values between the units are fp16.
module core
  import npu::*;
(
    input  logic        clk,
    input  logic        run,
    output count_t      now,        // cycles since run
    output logic        idle,       // the program is over
    // What happens in this cycle.
    output logic        decoded,    // a chain's end_chain
    output logic        issued,     // a chain
    output logic        ended,      // a chain's last vector is written: it can be read in the next
    // The host's side, before and after a program.
    input  logic        load,
    input  logic [4:0]  memory,     // as in instructions; 3 tiles, 16 words, 17 blocks, 18 exponents, 19 queue out
    input  count_t      address,    // of an element
    input  logic [63:0] load_data,
    output half_t       shown
);
  if (N % L != 0 || N % BLOCK != 0) begin : g_sizes
    $error("L and BLOCK must divide N");
  end
  if (DISPATCH_CYCLES < 2) begin : g_dispatch
    $error("DISPATCH_CYCLES must be at least 2");
  end

  logic room, push, finished, empty, grant;
  chain_t fetched, granted;
  slot_t slot;
  count_t ends[IN_FLIGHT];
  chain_t chains[IN_FLIGHT];
  fetch fetch_i (
      .clk, .run, .load_word(load && memory == 16), .load_block(load && memory == 17), .load_address(address),
      .load_data, .room, .push, .chain(fetched), .finished
  );
  issue issue_i (
      .clk, .run, .now, .push, .pushed(fetched), .room, .grant, .granted, .slot, .issued, .empty, .ends
  );
  assign decoded = push;
  assign idle = finished && empty;
  always_ff @(posedge clk) begin
    now <= run ? now + 1 : 0;
    if (grant) chains[slot] <= granted;
  end

  // Reading: the tile engines' ports, and those past the matrix unit.
  beat_t tile_beat, pass_beat, mvm_beat;
  slot_t tile_slot, pass_slot;
  beat_address_t tile_address, pass_address;
  logic [T*L-1:0] tile_present, pass_present;
  beat_data_t tile_data, pass_data, mvm_data;
  reader #(.MATRIX(1'b1)) tile_reader (
      .clk, .run, .start(grant && granted.multiplies), .start_slot(slot), .slot(tile_slot), .chain(chains[tile_slot]),
      .beat(tile_beat), .address(tile_address), .present(tile_present)
  );
  reader #(.MATRIX(1'b0)) pass_reader (
      .clk, .run, .start(grant && !granted.multiplies), .start_slot(slot), .slot(pass_slot), .chain(chains[pass_slot]),
      .beat(pass_beat), .address(pass_address), .present(pass_present)
  );
  mvm mvm_i (
      .clk, .run, .beat(tile_beat), .x(tile_data), .out_beat(mvm_beat), .out(mvm_data),
      .load_mantissa(load && memory == 3), .load_exponent(load && memory == 18), .load_address(address), .load_data
  );

  // The elements that the vectors of a beat have in an access of their chain.
  function automatic beat_address_t elements(beat_t b, access_t a);
    for (int j = 0; j < T; j++) begin
      automatic count_t vector = a.address + 32'(b.lane[j].x) * a.step_x + 32'(b.lane[j].y) * a.step_y +
                                 32'(b.lane[j].vector);
      for (int l = 0; l < L; l++) elements[j*L+l] = vector * N + b.beat * L + l;
    end
  endfunction

  // MFU m takes what arrives at [m]; [MFUS] is written.
  beat_t arriving[MFUS+1];
  beat_data_t value[MFUS+1];
  assign arriving[0] = mvm_beat.valid ? mvm_beat : pass_beat;
  assign value[0] = mvm_beat.valid ? mvm_data : pass_data;
  beat_data_t addend[MFUS];
  beat_data_t factor[MFUS];
  for (genvar m = 0; m < MFUS; m++) begin : g_mfu
    mfu #(.UNIT(m)) unit (
        .clk, .run, .in_beat(arriving[m]), .in(value[m]), .addend(addend[m]), .factor(factor[m]), .chains,
        .out_beat(arriving[m+1]), .out(value[m+1])
    );
  end

  // Writing. A second write to a memory takes another step, in which the first one's vectors are played again.
  beat_t written;
  beat_data_t fresh, replay[S], write_data;
  chain_t owner;
  assign written = arriving[MFUS];
  assign fresh = value[MFUS];
  assign owner = chains[written.slot];
  assign write_data = written.phase == 0 ? fresh : replay[written.beat];
  always_ff @(posedge clk) if (written.valid && written.phase == 0) replay[written.beat] <= fresh;

  logic [T*L-1:0] enable[MEMS];
  beat_address_t target[MEMS];
  always_comb begin
    for (int i = 0; i < MEMS; i++) begin
      enable[i] = '0;
      target[i] = '0;
    end
    if (written.valid)
      for (int w = 0; w < WRITES; w++)
        if (owner.write[w].valid && owner.write[w].phase == written.phase) begin
          automatic write_t entry = owner.write[w];
          target[entry.access.mem] = elements(written, entry.access);
          for (int j = 0; j < T; j++)
            for (int l = 0; l < L; l++) begin
              automatic lane_t lane = written.lane[j];
              automatic count_t place = 32'(lane.vector) * N + written.beat * L + l;
              enable[entry.access.mem][j*L+l] = lane.valid && (!entry.pack || place < owner.width);
              if (entry.pack)
                target[entry.access.mem][j*L+l] = entry.access.address + 32'(lane.x) * entry.access.step_x +
                                                  32'(lane.y) * entry.access.step_y + place;
            end
        end
  end
  assign ended = written.valid && written.last;

  // The register files. `index` 0 initial, 1 queue in, 2 queue out, then those of the MFUs.
  localparam int FILES = 3 + 2 * MFUS;
  beat_data_t read[FILES][3];
  half_t show[FILES];
  for (genvar f = 0; f < FILES; f++) begin : g_file
    localparam int UNIT = (f - 3) % MFUS;
    localparam bit ADDS = f >= 3 && f < 3 + MFUS;
    localparam int MEM = f == 0 ? 0 : f == 1 ? 1 : f == 2 ? 19 : ADDS ? int'(ADDSUB) + UNIT : int'(MULTIPLY) + UNIT;
    localparam int WRITTEN = f == 2 ? 1 : MEM;  // what instructions call it
    localparam int DEPTH = f == 0 ? INITIAL_VRF : f <= 2 ? NET_QUEUE : ADDS ? ADDSUB_VRF : MULTIPLY_VRF;
    beat_address_t operand;
    if (f >= 3) begin : g_operand
      mfu_t instructions;
      assign instructions = chains[arriving[UNIT].slot].mfu[UNIT];
      assign operand = elements(arriving[UNIT], ADDS ? instructions.addend : instructions.factor);
      if (ADDS) begin : g_adds
        assign addend[UNIT] = read[f][2];
      end else begin : g_scales
        assign factor[UNIT] = read[f][2];
      end
    end else begin : g_no_operand
      assign operand = '0;
    end
    vrf #(.DEPTH(DEPTH)) file (
        .clk,
        .reads({f >= 3 && arriving[f>=3?UNIT : 0].valid,
                f != 2 && pass_beat.valid && int'(chains[pass_slot].read.mem) == MEM,
                f != 2 && tile_beat.valid && int'(chains[tile_slot].read.mem) == MEM}),
        .address({operand, pass_address, tile_address}),
        .present('{tile_present, pass_present}),
        .data(read[f]),
        .write(f == 1 ? '0 : enable[WRITTEN]),
        .write_address(target[WRITTEN]),
        .write_data,
        .load(load && int'(memory) == MEM),
        .load_address(address),
        .load_data(load_data[15:0]),
        .shown(show[f])
    );
  end
  always_comb begin
    tile_data = '0;
    pass_data = '0;
    shown = '0;
    for (int f = 0; f < FILES; f++) begin
      tile_data |= read[f][0];
      pass_data |= read[f][1];
      if (int'(memory) == (f == 0 ? 0 : f == 1 ? 1 : f == 2 ? 19 : f < 3 + MFUS ? 4 + f - 3 : 8 + f - 3 - MFUS))
        shown = show[f];
    end
  end

  // The units keep the times that the scoreboard counts on.
  always_ff @(posedge clk)
    if (run) begin
      if (mvm_beat.valid && pass_beat.valid) $fatal(1, "cycle %0d: two chains reach MFU 0", now);
      if (ended && ends[written.slot] != now + 1)
        $fatal(1, "cycle %0d: a chain ends that was to end in %0d", now + 1, ends[written.slot]);
    end
endmodule
