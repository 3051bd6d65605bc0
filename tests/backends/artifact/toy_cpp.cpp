// Uses all of the C++ interface of the network toy: (a, b) -> (y, z), 37 floats each. Ends with 0 if all is well.
#include <array>
#include <cstdio>
#include <type_traits>
#include <utility>
#include <vector>

#include "toy.hpp"
#include "toy.hpp"  // guarded
#include "Toy_2.hpp"  // another network in the same program

using Net = irc::toy_network;

static_assert(!std::is_copy_constructible_v<Net> && !std::is_copy_assignable_v<Net>);
static_assert(std::is_nothrow_move_constructible_v<Net> && std::is_nothrow_move_assignable_v<Net>);
static_assert(std::is_same_v<Net::input_0_type, float> && Net::input_0_elements == 37);
static_assert(Net::output_1_scale == 0.5f && Net::output_1_zero_point == 3);

alignas(Net::memory_align) static std::byte memory[Net::memory_bytes + 1];

#define CHECK(condition) \
    if (!(condition)) return std::printf("line %d: %s\n", __LINE__, #condition), 1

// The code of an error that is thrown, or returned without exceptions.
template <class F> static int code_of(F f)
{
#if defined(__cpp_exceptions)
    try {
        return f();
    } catch (const irc::error &error) {
        return error.what() == irc::message(error.code()) ? error.code() : -1;
    }
#else
    return f();
#endif
}

int main()
{
    float a[37];
    std::array<float, 37> b{};
    std::vector<float> y(37), z(37), y2(37), z2(37);
    for (int i = 0; i < 37; i++) a[i] = 0.1f * static_cast<float>(i), b[static_cast<std::size_t>(i)] = 1.0f - a[i];

    Net heap;
    CHECK(heap && heap.status() == IRC_OK);
    CHECK(heap.run(a, b, y, z) == IRC_OK);
    const std::array<float, 37> &constant = b;
    CHECK(heap.run(a, constant, y2, z2) == IRC_OK && y == y2 && z == z2 && y[1] != y[2]);

    Net own(irc::span<std::byte>(memory, Net::memory_bytes));
    Net moved(std::move(own));
    CHECK(!own && moved);
    CHECK(moved.run(a, b, y2, z2) == IRC_OK && y == y2 && z == z2);
    CHECK(reinterpret_cast<std::byte *>(moved.ctx()) >= memory);
    heap = std::move(moved);
    CHECK(heap && !moved && heap.run(a, b, y2, z2) == IRC_OK && y == y2);
    irc::Toy_2_network other;
    CHECK(other.run(a, b, y2, z2) == IRC_OK && y == y2);

    CHECK(code_of([&] { return moved.run(a, b, y, z); }) == IRC_ERROR_NULL);
    CHECK(code_of([&] { return heap.run(a, b, irc::span<float>(y.data(), 36), z); }) == IRC_ERROR_ARGUMENT);
    CHECK(code_of([&] { return Net(irc::span<std::byte>(memory, 8)).status(); }) == IRC_ERROR_RAM);
    CHECK(code_of([&] { return Net(irc::span<std::byte>(memory + 1, Net::memory_bytes)).status(); }) == IRC_ERROR_ALIGN);
    return 0;
}
