// Runs programs on the core. Standard input: commands, one a line, numbers in hex but for counts.
//   load MEMORY ADDRESS COUNT value ...   fills a memory from an element (a word, a block) on
//   run LIMIT                             to the end of the program, at most LIMIT cycles; prints the cycles
//   show MEMORY ADDRESS COUNT             prints elements
// The answer to `run` is "cycles C" behind a line "chain DECODED ISSUED ENDED" for each chain.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "Vbench.h"

static Vbench core;

static void tick() {
    core.clk = 0;
    core.eval();
    core.clk = 1;
    core.eval();
}

static void load(unsigned memory, uint32_t address, unsigned count) {
    core.load = 1;
    core.memory = memory;
    unsigned long long value;
    for (unsigned i = 0; i < count && std::scanf("%llx", &value) == 1; i++) {
        core.address = address + i;
        core.load_data = value;
        tick();
    }
    core.load = 0;
}

static int run(unsigned limit) {
    std::vector<unsigned> decoded, issued, ended;
    core.run = 0;
    tick();
    core.run = 1;
    core.eval();
    while (!core.idle && core.now < limit) {
        // Outputs are those of cycle `now`.
        core.clk = 0;
        core.eval();
        if (core.decoded) decoded.push_back(core.now);
        if (core.issued) issued.push_back(core.now);
        if (core.ended) ended.push_back(core.now + 1);
        core.clk = 1;
        core.eval();
    }
    if (!core.idle) {
        std::fprintf(stderr, "the program is not over after %u cycles\n", limit);
        return 1;
    }
    for (size_t i = 0; i < ended.size(); i++) std::printf("chain %u %u %u\n", decoded[i], issued[i], ended[i]);
    std::printf("cycles %u\n", ended.empty() ? 0 : ended.back());
    return 0;
}

int main(int argc, char **argv) {
    Verilated::commandArgs(argc, argv);
    char command[16];
    unsigned memory, address, count;
    while (std::scanf("%15s", command) == 1) {
        if (!std::strcmp(command, "load") && std::scanf("%u %u %u", &memory, &address, &count) == 3) {
            load(memory, address, count);
        } else if (!std::strcmp(command, "run") && std::scanf("%u", &count) == 1) {
            if (int error = run(count)) return error;
        } else if (!std::strcmp(command, "show") && std::scanf("%u %u %u", &memory, &address, &count) == 3) {
            core.memory = memory;
            for (unsigned i = 0; i < count; i++) {
                core.address = address + i;
                core.eval();
                std::printf("%x ", core.shown);
            }
            std::puts("");
        } else {
            std::fprintf(stderr, "no command %s\n", command);
            return 2;
        }
    }
}
