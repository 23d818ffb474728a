// The second half of dispatch: the queue of decoded chains, the scoreboard, and the decision to issue.
// A chain that begins in cycle a is granted in cycle a - 1, so that its reader starts from registers.
module issue
  import npu::*;
(
    input  logic   clk,
    input  logic   run,
    input  count_t now,
    input  logic   push,
    input  chain_t pushed,
    output logic   room,      // for one more chain, `push` counted
    output logic   grant,     // the chain at the head is issued in the next cycle
    output chain_t granted,
    output slot_t  slot,      // its place in the scoreboard
    output logic   issued,    // grant, one cycle later
    output logic   empty,     // nothing waits or is in flight
    output count_t ends[IN_FLIGHT]
);
  localparam int DRAIN = MFUS * MFU_LATENCY;

  chain_t queue[QUEUE_CHAINS];
  count_t decoded[QUEUE_CHAINS];  // when
  count_t head, stored, waiting;  // stored: in `queue`; waiting: decoded and not issued
  assign granted = queue[head];
  assign room = waiting + 32'(push) - 32'(issued) < QUEUE_CHAINS;

  // When units are free for a next chain; when the last chain ends.
  count_t mvm_free, mfu_free, last_end;
  // Chains in flight. A place is free again at its end.
  range_t [MEMS-1:0] written[IN_FLIGHT];

  count_t start, reach, work, finish;
  assign start  = now + 1;
  assign reach  = granted.multiplies ? S + MVM_LATENCY : S;  // from its issue to MFU 0
  assign work   = granted.steps * S;
  assign finish = start + reach + work - S + DRAIN;

  function automatic logic overlap(range_t a, range_t b);
    return a.valid && b.valid && a.low <= b.high && b.low <= a.high;
  endfunction

  logic hazard;
  always_comb begin
    hazard = 1'b0;
    if (IN_ORDER) hazard = start < last_end + DISPATCH_CYCLES;
    else
      for (int i = 0; i < IN_FLIGHT; i++)
        if (ends[i] > start) begin
          if (overlap(written[i][granted.read.mem], granted.read_range) && granted.read.mem != QUEUE) hazard = 1'b1;
          if (start + reach < ends[i] + S)
            for (int m = 0; m < MFUS; m++) begin
              if (overlap(written[i][int'(ADDSUB)+m], granted.addend_range[m])) hazard = 1'b1;
              if (overlap(written[i][int'(MULTIPLY)+m], granted.factor_range[m])) hazard = 1'b1;
            end
        end
  end
  assign grant = run && stored != 0
      && start >= decoded[head] + DISPATCH_CYCLES
      && ends[slot] <= start
      && (!granted.multiplies || mvm_free <= start)
      && mfu_free <= start + reach
      && !hazard;

  always_ff @(posedge clk)
    if (!run) begin
      {head, stored, waiting, slot, mvm_free, mfu_free, last_end, issued} <= '0;
      for (int i = 0; i < IN_FLIGHT; i++) ends[i] <= 0;
    end else begin
      issued  <= grant;
      waiting <= waiting + 32'(push) - 32'(issued);
      stored  <= stored + 32'(push) - 32'(grant);
      if (push) begin
        queue[(head+stored)%QUEUE_CHAINS]   <= pushed;
        decoded[(head+stored)%QUEUE_CHAINS] <= now;
      end
      if (grant) begin
        head <= (head + 1) % QUEUE_CHAINS;
        slot <= slot == slot_t'(IN_FLIGHT - 1) ? '0 : slot + 1;
        ends[slot] <= finish;
        written[slot] <= granted.written;
        mfu_free <= start + reach + work;
        if (granted.multiplies) mvm_free <= start + work;
        last_end <= finish;
      end
    end
  assign empty = waiting == 0 && !push && now >= last_end;
endmodule
