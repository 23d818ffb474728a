// The matrix-vector core's configuration and types. The configuration comes from the command line of the build (-DN=8).
package npu;
  localparam int N = `N;                        // elements of a vector
  localparam int L = `L;                        // lanes of a dot-product engine
  localparam int T = `T;                        // tile engines
  localparam int S = N / L;                     // cycles of a step
  localparam int MFUS = `MFUS;
  localparam int MVM_LATENCY = `MVM_LATENCY;
  localparam int MFU_LATENCY = `MFU_LATENCY;
  localparam int DISPATCH_CYCLES = `DISPATCH_CYCLES;
  localparam int INSTRUCTION_CYCLES = `INSTRUCTION_CYCLES;
  localparam int QUEUE_CHAINS = `QUEUE_CHAINS;  // decoded and not issued
  localparam int IN_FLIGHT = `IN_FLIGHT;        // issued and not ended
  localparam bit IN_ORDER = `IN_ORDER;          // the hazard rule; else it is `data`

  localparam int INITIAL_VRF = `INITIAL_VRF;    // depths, in vectors
  localparam int ADDSUB_VRF = `ADDSUB_VRF;
  localparam int MULTIPLY_VRF = `MULTIPLY_VRF;
  localparam int NET_QUEUE = `NET_QUEUE;
  localparam int MRF_TILES = `MRF_TILES;
  localparam int WORDS = `WORDS;                // of instructions
  localparam int BLOCKS = `BLOCKS;              // of instruction words

  // Block floating point: MANTISSA magnitude bits, EXPONENT = 5 or 8 bits shared by BLOCK elements.
  localparam int MANTISSA = `MANTISSA;
  localparam int EXPONENT = `EXPONENT;
  localparam int BLOCK = `BLOCK;
  localparam int N_BLOCKS = N / BLOCK;
  localparam int FRACTION = MANTISSA - 1;       // a mantissa q is worth q * 2^(exponent - FRACTION)
  localparam int X_MIN = EXPONENT == 5 ? -15 : -24, X_MAX = 15;  // exponents that fp16 vectors can have
  localparam int W_MIN = EXPONENT == 5 ? -15 : -127, W_MAX = EXPONENT == 5 ? 16 : 127;
  // An exact sum counts units of 2^SUM_UNIT; no sum of less than 2^24 products leaves SUM bits.
  localparam int SUM_UNIT = X_MIN + W_MIN - 2 * FRACTION;
  localparam int SUM = (X_MAX - X_MIN) + (W_MAX - W_MIN) + 2 * MANTISSA + 26;

  function automatic int gcd(int a, int b);
    return b == 0 ? a : gcd(b, a % b);
  endfunction
  localparam int GROUP = gcd(L, BLOCK);         // lanes that always share a block
  localparam int GROUPS = L / GROUP;

  typedef logic [15:0] half_t;
  typedef logic [31:0] single_t;
  typedef logic signed [MANTISSA:0] mantissa_t;
  typedef logic signed [8:0] exponent_t;
  typedef logic signed [SUM-1:0] sum_t;
  typedef logic [31:0] count_t;
  typedef logic [T*L-1:0][15:0] beat_data_t;    // L elements of each of T vectors
  typedef logic [T*L-1:0][31:0] beat_address_t; // of elements

  // Memories. The matrix register file and DRAM have no vectors that this core reads.
  typedef logic [3:0] mem_t;
  localparam mem_t QUEUE = 1, ADDSUB = 4, MULTIPLY = 8;  // the first of each kind
  localparam int MEMS = 12;

  typedef enum logic [5:0] {
    V_RD = 1, V_RD2, V_RD3, V_UNROLL, V_WR, V_PACK, M_RD, M_WR, MV_MUL, VV_ADD, VV_A_SUB_B, VV_B_SUB_A, VV_MAX, VV_MUL,
    V_RELU, V_SIGM, V_TANH, V_CLIP, S_WR, END_CHAIN
  } opcode_t;
  typedef enum logic [3:0] {
    ROWS, COLUMNS, ITERATIONS_X, ITERATIONS_Y, WINDOW_INNER, WINDOW_MIDDLE, WINDOW_OUTER, PITCH_INNER, PITCH_MIDDLE,
    PITCH_OUTER, WIDTH, PIXELS, CLIP_LOW, CLIP_HIGH
  } register_t;
  localparam int REGISTERS = 14;

  typedef struct packed {
    mem_t mem;
    count_t address;
    count_t step_x;
    count_t step_y;
  } access_t;

  typedef struct packed {
    logic valid;
    count_t low;
    count_t high;
  } range_t;

  localparam int WRITES = 6;  // v_wr and v_pack of one chain, at most
  typedef struct packed {
    logic valid;
    logic pack;
    logic [2:0] phase;  // how many writes of the chain go to the same memory before it
    access_t access;
  } write_t;

  localparam int SLOTS = 3;  // pointwise instructions of one chain in one MFU, in the order of the chain
  typedef struct packed {
    opcode_t [SLOTS-1:0] op;  // 0: none
    access_t addend;
    access_t factor;
  } mfu_t;

  // A vector chain, decoded.
  typedef struct packed {
    logic multiplies;
    count_t tile;
    logic unroll;
    access_t read;
    count_t inner, middle, outer, pitch_inner, pitch_middle, pitch_outer;
    count_t rows, columns, iterations_x, iterations_y;
    count_t pixels, engines;      // positions at once, tile engines for each
    mfu_t [MFUS-1:0] mfu;
    half_t clip_low, clip_high;
    write_t [WRITES-1:0] write;
    logic [2:0] ports;            // the most writes to one memory
    count_t width;
    count_t steps;
    range_t read_range;
    range_t [MFUS-1:0] addend_range, factor_range;
    range_t [MEMS-1:0] written;
  } chain_t;

  localparam int SLOT_BITS = IN_FLIGHT == 1 ? 1 : $clog2(IN_FLIGHT);
  typedef logic [SLOT_BITS-1:0] slot_t;

  // What goes with L elements of T vectors through the pipelines. In a step's S beats all but `beat` and `last` stay.
  typedef struct packed {
    logic valid;    // there is a vector (once the matrix unit is passed: a finished row)
    logic begins;   // matrix unit: first tile of its row
    logic ends;     // last tile of its row
    logic enters;   // first engine of its position
    logic leaves;   // last engine of its position
    count_t position;       // of the positions at once
    logic [15:0] x;
    logic [15:0] y;
    logic [15:0] vector;    // of those that the iteration makes
    logic [23:0] tile;
  } lane_t;
  typedef struct packed {
    logic valid;
    slot_t slot;          // whose chain
    count_t beat;         // 0 ... S - 1
    logic [2:0] phase;    // steps are repeated for a second write to the same memory
    logic last;           // of the chain
    lane_t [T-1:0] lane;
  } beat_t;
endpackage
