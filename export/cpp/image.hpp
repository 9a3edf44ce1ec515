// An image file to the pixels that a model is given: PPM (P6), PGM (P5) and PNG (grey or RGB, 8 bits, not interlaced).
//
// Every other kind of image is refused by name, and so is what would have to be turned or composited first: a client
// that has an image library gives `fit` upright 8-bit RGB and needs nothing else of this file.
#pragma once

#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
    int width = 0, height = 0;
    std::vector<std::uint8_t> pixels;  // height x width x 3, RGB
};

inline std::string read_file(const std::string& path) {
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) throw std::runtime_error(path + ": No such file or directory");
    if (!std::filesystem::is_regular_file(path, ignored)) throw std::runtime_error(path + ": not a file");
    std::ifstream stream(path, std::ios::binary);
    std::string content{std::istreambuf_iterator<char>(stream), {}};
    if (!stream.good() && !stream.eof()) throw std::runtime_error(path + ": cannot be read");
    return content;
}

namespace decoding {

// ---------------------------------------------------------------------------------------------------------------------
// Files

// More than this in one image is an attack, or a mistake (Pillow's own limit).
constexpr std::uint64_t MOST_PIXELS = (std::uint64_t(1) << 30) / 12;

[[noreturn]] inline void refuse(const std::string& why) { throw std::runtime_error(why); }

inline Image blank(std::uint64_t width, std::uint64_t height) {
    if (width == 0 || height == 0) refuse("an image without pixels");
    if (width > MOST_PIXELS || height > MOST_PIXELS || width * height > MOST_PIXELS)
        refuse(std::to_string(width) + "x" + std::to_string(height) + " pixels, more than this program reads");
    Image image;
    image.width = int(width);
    image.height = int(height);
    return image;
}

// One row of samples, each `channels` bytes a pixel, into RGB.
inline void put(Image& image, const std::uint8_t* samples, std::size_t count, std::size_t channels) {
    for (std::size_t i = 0; i < count; ++i, samples += channels)
        for (std::size_t c = 0; c < 3; ++c) image.pixels.push_back(samples[channels == 3 ? c : 0]);
}

inline Image netpbm(const std::string& content) {
    const std::size_t channels = content[1] == '6' ? 3 : 1;
    std::size_t at = 2;
    const auto number = [&]() {
        while (at < content.size() && (std::isspace(static_cast<unsigned char>(content[at])) || content[at] == '#')) {
            if (content[at] == '#') at = std::min(content.find('\n', at), content.size() - 1);
            ++at;
        }
        std::uint64_t value = 0;
        const std::size_t start = at;
        for (; at < content.size() && content[at] >= '0' && content[at] <= '9' && at - start < 10; ++at)
            value = 10 * value + std::uint64_t(content[at] - '0');
        if (at == start) refuse("a header that is no PPM or PGM");
        return value;
    };
    const std::uint64_t width = number(), height = number(), largest = number();
    if (largest != 255) refuse("samples up to " + std::to_string(largest) + "; this program reads 8 bits (255)");
    Image image = blank(width, height);
    const std::size_t size = std::size_t(width * height) * channels;
    ++at;  // one white space ends the header
    if (at > content.size() || content.size() - at < size)
        refuse("truncated: " + std::to_string(size) + " bytes of pixels expected, " +
               std::to_string(content.size() - std::min(at, content.size())) + " found");
    image.pixels.reserve(std::size_t(width * height) * 3);
    put(image, reinterpret_cast<const std::uint8_t*>(content.data()) + at, size / channels, channels);
    return image;
}

inline std::uint32_t big_endian(const std::string& content, std::size_t at) {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<unsigned char>(content[at + i]);
    return value;
}

// PNG (third edition): chunks in section 5, filters in section 9, DEFLATE by zlib.
inline Image png(const std::string& content) {
    Image image;
    std::size_t channels = 0;
    std::string packed;
    bool ended = false;
    for (std::size_t at = 8; !ended;) {
        if (content.size() - at < 12 || content.size() - at - 12 < big_endian(content, at)) refuse("a truncated PNG");
        const std::size_t size = big_endian(content, at);
        const std::string name = content.substr(at + 4, 4), data = content.substr(at + 8, size);
        const auto* checked = reinterpret_cast<const Bytef*>(content.data()) + at + 4;
        if (crc32(0, checked, uInt(size + 4)) != big_endian(content, at + 8 + size)) refuse("a damaged PNG");
        at += 12 + size;
        if ((channels == 0) != (name == "IHDR")) refuse("a PNG whose header is not its beginning");
        if (name == "IHDR") {
            if (size != 13) refuse("a PNG with an unknown header");
            image = blank(big_endian(data, 0), big_endian(data, 4));
            const int bits = data[8], colour = data[9], interlace = data[12];
            if (bits != 8 || (colour != 0 && colour != 2) || interlace != 0 || data[10] != 0 || data[11] != 0)
                refuse("a PNG of " + std::to_string(bits) + " bits, colour type " + std::to_string(colour) +
                       (interlace ? ", interlaced" : "") + "; this program reads 8 bits, grey (0) or RGB (2)");
            channels = colour == 2 ? 3 : 1;
        } else if (name == "tRNS") {
            refuse("a PNG with transparency; this program reads opaque ones");
        } else if (name == "IDAT") {
            packed += data;
        } else if (name == "eXIf" || data.find("tiff:Orientation") != std::string::npos ||
                   data.rfind("Raw profile type exif", 0) == 0) {
            refuse("a PNG with EXIF; this program does not turn images upright");
        } else if (name == "IEND") {
            ended = true;
        } else if (name != "PLTE" && !(name[0] & 0x20)) {
            refuse("a PNG with an unknown critical chunk");
        }
    }
    const std::size_t row = std::size_t(image.width) * channels;
    const std::size_t size = (row + 1) * std::size_t(image.height);
    if (packed.size() < size / 1040) refuse("a truncated PNG");  // DEFLATE packs no tighter than 1032 to 1
    std::vector<std::uint8_t> raw(size), before(row), line(row);
    uLongf found = uLongf(size);
    const auto* stream = reinterpret_cast<const Bytef*>(packed.data());
    const int code = uncompress(raw.data(), &found, stream, uLong(packed.size()));
    if (code != Z_OK || found != size) refuse("a PNG whose pixels are damaged or truncated");

    image.pixels.reserve(std::size_t(image.width) * std::size_t(image.height) * 3);
    for (const std::uint8_t* in = raw.data(); in < raw.data() + size; in += row + 1) {
        for (std::size_t i = 0; i < row; ++i) {
            const int left = i < channels ? 0 : line[i - channels], up = before[i];
            const int corner = i < channels ? 0 : before[i - channels];
            const int to_left = std::abs(up - corner), to_up = std::abs(left - corner);
            const int to_corner = std::abs(left + up - 2 * corner);
            int guess = 0;
            switch (in[0]) {
                case 0: break;
                case 1: guess = left; break;
                case 2: guess = up; break;
                case 3: guess = (left + up) / 2; break;
                case 4:
                    guess = to_left <= to_up && to_left <= to_corner ? left : to_up <= to_corner ? up : corner;
                    break;
                default: refuse("a PNG with an unknown filter");
            }
            line[i] = std::uint8_t(in[1 + i] + guess);
        }
        put(image, line.data(), std::size_t(image.width), channels);
        before = line;
    }
    return image;
}

// ---------------------------------------------------------------------------------------------------------------------
// The resize rule

// Pillow's antialiased bilinear in its fixed-point scheme, so that the bytes are Pillow's. An output pixel is a mean of
// the input pixels within one output pixel's distance (at least one input pixel's) of its centre, weighted by a
// triangle; the weights are integers, 2^22 to one, and what each of the two passes gives is rounded to uint8. Along the
// rows first, then down the columns, as ../python/run.py does: Pillow's own order depends on its version.
constexpr int FRACTION = 22;

struct Taps {
    int start;                 // the first input pixel
    std::vector<int> weights;  // of it and the next ones
};

// The taps of the output pixels first ... first + count - 1 of `to`, over `from` input pixels.
inline std::vector<Taps> triangle(int from, int to, int first, int count) {
    const double scale = double(from) / to, reach = std::max(scale, 1.0);
    std::vector<Taps> all;
    for (int out = first; out < first + count; ++out) {
        const double centre = (out + 0.5) * scale;
        const int start = std::max(int(centre - reach + 0.5), 0), end = std::min(int(centre + reach + 0.5), from);
        std::vector<double> shares;
        double sum = 0;
        for (int in = start; in < end; ++in) {
            shares.push_back(std::max(0.0, 1.0 - std::abs((in - centre + 0.5) * (1.0 / reach))));
            sum += shares.back();
        }
        Taps taps{start, {}};
        for (const double share : shares)
            taps.weights.push_back(int(0.5 + (sum != 0 ? share / sum : share) * (1 << FRACTION)));
        all.push_back(std::move(taps));
    }
    return all;
}

inline std::uint8_t rounded(std::int64_t sum) {
    return std::uint8_t(std::clamp<std::int64_t>((sum + (1 << (FRACTION - 1))) >> FRACTION, 0, 255));
}

// The part of `image` resized to width x height that begins at (left, top) and has the size of `out`.
inline void resize(const Image& image, int width, int height, int left, int top, Image& out) {
    const std::vector<Taps> across = triangle(image.width, width, left, out.width);
    const std::vector<Taps> down = triangle(image.height, height, top, out.height);
    const int begin = down.front().start;  // rows that nothing reads are not resized
    const int end = down.back().start + int(down.back().weights.size());
    const std::size_t row = std::size_t(out.width) * 3;
    std::vector<std::uint8_t> narrow;
    narrow.reserve(std::size_t(end - begin) * row);
    for (int y = begin; y < end; ++y)
        for (const Taps& taps : across)
            for (std::size_t c = 0; c < 3; ++c) {
                const std::size_t from = (std::size_t(y) * std::size_t(image.width) + std::size_t(taps.start)) * 3 + c;
                std::int64_t sum = 0;
                for (std::size_t i = 0; i < taps.weights.size(); ++i)
                    sum += taps.weights[i] * image.pixels[from + 3 * i];
                narrow.push_back(rounded(sum));
            }
    for (const Taps& taps : down)
        for (std::size_t x = 0; x < row; ++x) {
            std::int64_t sum = 0;
            for (std::size_t i = 0; i < taps.weights.size(); ++i)
                sum += taps.weights[i] * narrow[(std::size_t(taps.start - begin) + i) * row + x];
            out.pixels.push_back(rounded(sum));
        }
}

}  // namespace decoding

// An image of any size to width x height: the shorter side to `shorter`, the centre cut out.
inline Image fit(const Image& image, int width, int height, int shorter) {
    if (image.width == width && image.height == height) return image;
    const double scale = double(shorter) / std::min(image.width, image.height);
    const double wide = std::nearbyint(image.width * scale), high = std::nearbyint(image.height * scale);
    if (wide * high > double(decoding::MOST_PIXELS))  // a line of pixels, a few bytes in a file
        decoding::refuse("too narrow: it would become an image of too many pixels");
    const int across = std::max(shorter, int(wide)), down = std::max(shorter, int(high));
    Image out;
    out.width = width;
    out.height = height;
    decoding::resize(image, across, down, (across - width) / 2, (down - height) / 2, out);
    return out;
}

// Raises std::runtime_error, which begins with the path, for what is no image or none that this program reads.
inline Image read_image(const std::string& path) {
    const std::string content = read_file(path);
    try {
        if (content.rfind("\x89PNG\r\n\x1a\n", 0) == 0) return decoding::png(content);
        if (content.rfind("P6", 0) == 0 || content.rfind("P5", 0) == 0) return decoding::netpbm(content);
        decoding::refuse("not an image that this program reads: PPM (P6), PGM (P5) or 8-bit PNG");
    } catch (const std::exception& error) {
        throw std::runtime_error(path + ": " + error.what());
    }
}
