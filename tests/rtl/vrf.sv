// A vector register file: banks by element, so that any L elements of T vectors are read or written in a cycle.
module vrf
  import npu::*;
#(
    parameter int DEPTH = 1
) (
    input  logic                clk,
    input  logic          [2:0] reads,    // the tile engines', the MFUs' (past the matrix unit), operands
    input  beat_address_t [2:0] address,
    input  logic [T*L-1:0]      present [2],
    output beat_data_t          data   [3],
    input  logic [T*L-1:0]      write,
    input  beat_address_t       write_address,
    input  beat_data_t          write_data,
    input  logic                load,     // the host's side
    input  count_t              load_address,
    input  half_t               load_data,
    output half_t               shown
);
  localparam int ELEMENTS = DEPTH * N;
  half_t elements[ELEMENTS];
  assign shown = load_address < ELEMENTS ? elements[load_address] : '0;
  always_comb
    for (int p = 0; p < 3; p++) begin
      data[p] = '0;
      if (reads[p])
        for (int i = 0; i < T * L; i++)
          if ((p == 2 || present[p%2][i]) && address[p][i] < ELEMENTS) data[p][i] = elements[address[p][i]];
    end
  always_ff @(posedge clk) begin
    if (load) elements[load_address] <= load_data;
    for (int i = 0; i < T * L; i++) if (write[i]) elements[write_address[i]] <= write_data[i];
  end
endmodule
