// Runs matrix products on the array. Standard input, for each product: dataflow m n k, then A and B in row order.
// Standard output, for each: cycles folds, then C in row order.
#include <cstdint>
#include <cstdio>

#include "Vbench.h"

static Vbench top;

static void tick() {
    top.clk = 0;
    top.eval();
    top.clk = 1;
    top.eval();
}

static void load(int which, int count) {
    top.load = which;
    for (int i = 0, value; i < count && std::scanf("%d", &value) == 1; i++) {
        top.address = i;
        top.load_data = value;
        tick();
    }
    top.load = 0;
}

int main() {
    unsigned dataflow, m, n, k;
    while (std::scanf("%u %u %u %u", &dataflow, &m, &n, &k) == 4) {
        top.dataflow = dataflow, top.m = m, top.n = n, top.k = k;
        load(1, m * k);
        load(2, k * n);
        top.start = 1;
        tick();
        top.start = 0;
        while (top.busy) tick();
        std::printf("%llu %u", (unsigned long long)top.cycles, top.folds);
        for (unsigned i = 0; i < m * n; i++) {
            top.address = i;
            top.eval();
            std::printf(" %d", (int32_t)top.read_data);
        }
        std::puts("");
    }
}
