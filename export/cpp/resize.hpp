// The resize rule: upright 8-bit RGB of any size to a model's input. It needs the standard library only.
//
// It is Pillow's antialiased bilinear in fixed point, so that the bytes are Pillow's. An output pixel is a mean of the
// input pixels within one output pixel's distance (at least one input pixel's) of its centre, weighted by a
// triangle; the weights are integers, 2^22 to one, and each of the two passes rounds to uint8. The rows are resized
// before the columns, as ../python/run.py does: Pillow's own order depends on its version.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

struct Image {
    int width = 0, height = 0;
    std::vector<std::uint8_t> pixels;  // height x width x 3, RGB
};

// More than this in one image is an attack, or a mistake (Pillow's own limit).
constexpr std::uint64_t MOST_PIXELS = (std::uint64_t(1) << 30) / 12;

namespace resizing {

constexpr int FRACTION = 22;  // bits of a weight after the point

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

}  // namespace resizing

// An image of any size to width x height: the shorter side to `shorter`, the centre cut out.
inline Image fit(const Image& image, int width, int height, int shorter) {
    if (image.width == width && image.height == height) return image;
    const double scale = double(shorter) / std::min(image.width, image.height);
    const double wide = std::nearbyint(image.width * scale), high = std::nearbyint(image.height * scale);
    if (wide * high > double(MOST_PIXELS))  // a line of pixels is a few bytes in a file
        throw std::runtime_error("too narrow: it would become an image of too many pixels");
    const int across = std::max(shorter, int(wide)), down = std::max(shorter, int(high));
    Image out;
    out.width = width;
    out.height = height;
    resizing::resize(image, across, down, (across - width) / 2, (down - height) / 2, out);
    return out;
}
