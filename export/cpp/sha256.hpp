// SHA-256 (FIPS 180-4, sections 4.1.2 to 6.2) of a string of bytes, in hexadecimal.
#pragma once

#include <cstdint>
#include <string>

inline std::string sha256(const std::string& bytes) {
    using Word = std::uint32_t;
    static const Word K[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    };
    Word state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    const auto turned = [](Word x, int n) { return x >> n | x << (32 - n); };
    const auto block = [&](const unsigned char* data) {
        Word w[64];
        for (int t = 0; t < 16; ++t, data += 4)
            w[t] = Word(data[0]) << 24 | Word(data[1]) << 16 | Word(data[2]) << 8 | Word(data[3]);
        for (int t = 16; t < 64; ++t) {
            const Word s0 = turned(w[t - 15], 7) ^ turned(w[t - 15], 18) ^ w[t - 15] >> 3;
            const Word s1 = turned(w[t - 2], 17) ^ turned(w[t - 2], 19) ^ w[t - 2] >> 10;
            w[t] = w[t - 16] + s0 + w[t - 7] + s1;
        }
        Word a = state[0], b = state[1], c = state[2], d = state[3];
        Word e = state[4], f = state[5], g = state[6], h = state[7];
        for (int t = 0; t < 64; ++t) {
            const Word s1 = turned(e, 6) ^ turned(e, 11) ^ turned(e, 25), choice = (e & f) ^ (~e & g);
            const Word s0 = turned(a, 2) ^ turned(a, 13) ^ turned(a, 22), majority = (a & b) ^ (a & c) ^ (b & c);
            const Word t1 = h + s1 + choice + K[t] + w[t], t2 = s0 + majority;
            h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d;
        state[4] += e, state[5] += f, state[6] += g, state[7] += h;
    };

    const auto* data = reinterpret_cast<const unsigned char*>(bytes.data());
    const std::size_t whole = bytes.size() / 64 * 64;
    for (std::size_t start = 0; start < whole; start += 64) block(data + start);
    std::string last = bytes.substr(whole) + char(0x80);  // padding: a one, zeros, the length in bits
    last.resize(last.size() <= 56 ? 56 : 120, '\0');
    for (int shift = 56; shift >= 0; shift -= 8) last += char(std::uint64_t(bytes.size()) * 8 >> shift & 255);
    for (std::size_t start = 0; start < last.size(); start += 64)
        block(reinterpret_cast<const unsigned char*>(last.data()) + start);

    std::string hex;
    for (const Word word : state)
        for (int shift = 28; shift >= 0; shift -= 4) hex += "0123456789abcdef"[word >> shift & 15];
    return hex;
}
