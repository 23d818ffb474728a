// A multifunction unit. Its crossbar is unrolled in time: the i-th pointwise instruction that a chain has for this unit
// is done in slot i, whichever of the add, multiply and activation units it asks for.
module mfu
  import npu::*;
#(
    parameter int UNIT = 0
) (
    input  logic       clk,
    input  logic       run,
    input  beat_t      in_beat,    // the cycle before MFU_LATENCY begins: operands are read
    input  beat_data_t in,
    input  beat_data_t addend,
    input  beat_data_t factor,
    input  chain_t     chains[IN_FLIGHT],
    output beat_t      out_beat,
    output beat_data_t out
);
  if (MFU_LATENCY < SLOTS) begin : g_latency
    $error("MFU_LATENCY must be at least 3");
  end

  half_t sigmoid[1<<16];
  half_t tangent[1<<16];
  initial begin
    $readmemh("sigmoid.hex", sigmoid);
    $readmemh("tanh.hex", tangent);
  end

  // Registers d = 0 ... MFU_LATENCY - 1 hold what is d + 1 cycles old. Slot d lies behind the d-th.
  beat_t      control[MFU_LATENCY+1];
  beat_data_t value  [MFU_LATENCY+1];
  beat_data_t added  [SLOTS];
  beat_data_t scaled [SLOTS];
  always_ff @(posedge clk) begin
    control[0] <= in_beat;
    value[0] <= in;
    added[0] <= addend;
    scaled[0] <= factor;
    for (int d = 1; d < SLOTS; d++) begin
      added[d]  <= added[d-1];
      scaled[d] <= scaled[d-1];
    end
    for (int d = 1; d < MFU_LATENCY; d++) begin
      control[d] <= control[d-1];
      value[d]   <= d <= SLOTS ? done[d-1] : value[d-1];
    end
    if (!run) for (int d = 0; d < MFU_LATENCY; d++) control[d].valid <= 1'b0;
  end
  assign out_beat = control[MFU_LATENCY-1];
  assign out = MFU_LATENCY == SLOTS ? done[SLOTS-1] : value[MFU_LATENCY-1];

  beat_data_t done[SLOTS];
  for (genvar d = 0; d < SLOTS; d++) begin : g_slot
    opcode_t op;
    half_t low, high;
    assign op   = control[d].valid ? chains[control[d].slot].mfu[UNIT].op[d] : opcode_t'(0);
    assign low  = chains[control[d].slot].clip_low;
    assign high = chains[control[d].slot].clip_high;
    always_comb begin
      done[d] = value[d];
      for (int i = 0; i < T * L; i++) begin
        automatic half_t v = value[d][i], a = added[d][i];
        case (op)
          VV_ADD:     done[d][i] = half::add(v, a);
          VV_A_SUB_B: done[d][i] = half::add(v, a ^ 16'h8000);
          VV_B_SUB_A: done[d][i] = half::add(a, v ^ 16'h8000);
          VV_MAX:     done[d][i] = half::maximum(v, a);
          VV_MUL:     done[d][i] = half::multiply(v, scaled[d][i]);
          V_RELU:     done[d][i] = half::relu(v);
          V_SIGM:     done[d][i] = sigmoid[v];
          V_TANH:     done[d][i] = tangent[v];
          V_CLIP:     done[d][i] = half::clip(v, low, high);
          default:    ;
        endcase
      end
    end
  end
endmodule
