// One product by the kernels of this build, from a file to a file: for a processor that only an emulator has here.
//
// neon QUANT COMPUTE ROWS COLS TOKENS W X OUT: W packed rows, X and OUT float32. Returns what multiply returns.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

extern "C" int multiply(const char*, int, const uint8_t*, long, long, const float*, long, long, float*, long, int);

template <class T>
static std::vector<T> read_all(const char* name) {
    std::FILE* file = std::fopen(name, "rb");
    std::fseek(file, 0, SEEK_END);
    std::vector<T> all(static_cast<size_t>(std::ftell(file)) / sizeof(T));
    std::rewind(file);
    const size_t n = std::fread(all.data(), sizeof(T), all.size(), file);
    std::fclose(file);
    if (n != all.size()) std::abort();
    return all;
}

int main(int, char** words) {
    const long rows = std::atol(words[3]), cols = std::atol(words[4]), tokens = std::atol(words[5]);
    const std::vector<uint8_t> w = read_all<uint8_t>(words[6]);
    const std::vector<float> x = read_all<float>(words[7]);
    std::vector<float> out(static_cast<size_t>(rows * tokens));
    const int compute = std::atoi(words[2]), threads = 2;
    const int failed = multiply(
        words[1], compute, w.data(), rows, cols, x.data(), tokens, cols, out.data(), rows, threads);
    std::FILE* file = std::fopen(words[8], "wb");
    std::fwrite(out.data(), sizeof(float), out.size(), file);
    std::fclose(file);
    return failed;
}
