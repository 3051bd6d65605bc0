// Classifies one image with the C++ class of the network, in memory from the heap and in memory of its own.
#include <algorithm>
#include <array>
#include <cstdio>
#include <exception>
#include <utility>

#include "../digits/sample.h"
#include "digits.hpp"

using Net = irc::digits_network;
using Scores = std::array<Net::output_0_type, Net::output_0_elements>;

static long best(const Scores &scores) { return std::max_element(scores.begin(), scores.end()) - scores.begin(); }

int main()
{
    try {
        Net net;
        Scores scores{};
        net.run(digits_sample, scores);
        std::printf("class %ld\n", best(scores));

        // The same without a heap: workspace, context and all.
        alignas(Net::memory_align) static std::byte memory[Net::memory_bytes];
        Net second(memory);
        Net moved(std::move(second));
        Scores again{};
        moved.run(digits_sample, again);
        return scores == again && best(scores) == DIGITS_SAMPLE_LABEL ? 0 : 1;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
