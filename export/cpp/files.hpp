// The bytes of a file and their hash (by libmd).
#pragma once

#include <sha2.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

// A regular file: a pipe would be waited for, a device has no end. Raises std::runtime_error naming the file.
inline std::string read_file(const std::string& path) {
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) throw std::runtime_error(path + ": No such file or directory");
    if (!std::filesystem::is_regular_file(path, ignored)) throw std::runtime_error(path + ": not a file");
    std::ifstream stream(path, std::ios::binary);
    std::string content{std::istreambuf_iterator<char>(stream), {}};
    if (!stream.good() && !stream.eof()) throw std::runtime_error(path + ": cannot be read");
    return content;
}

// SHA-256 in hexadecimal.
inline std::string sha256(const std::string& content) {
    char hex[SHA256_DIGEST_STRING_LENGTH];
    return SHA256Data(reinterpret_cast<const std::uint8_t*>(content.data()), content.size(), hex);
}
