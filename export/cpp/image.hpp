// An image file to upright 8-bit RGB: JPEG by TurboJPEG, PNG (opaque, up to 8 bits) by libpng, PPM (P6) and PGM (P5).
//
// TurboJPEG decodes as Pillow does, to the bit. This file adds what the libraries leave to their caller: limits,
// checksums, and the orientation in EXIF and XMP.
#pragma once

#include <png.h>
#include <turbojpeg.h>
#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "files.hpp"
#include "resize.hpp"

namespace decoding {

[[noreturn]] inline void refuse(const std::string& reason) { throw std::runtime_error(reason); }

// An image whose pixels are not allocated yet. Refuses more of them than the limit.
inline Image blank(std::uint64_t width, std::uint64_t height) {
    if (width == 0 || height == 0) refuse("an image without pixels");
    if (width > MOST_PIXELS || height > MOST_PIXELS || width * height > MOST_PIXELS)
        refuse(std::to_string(width) + "x" + std::to_string(height) + " pixels, more than this program reads");
    Image image;
    image.width = int(width);
    image.height = int(height);
    return image;
}

inline std::size_t bytes(const Image& image) { return std::size_t(image.width) * std::size_t(image.height) * 3; }

inline const unsigned char* unsigned_bytes(const std::string& content) {
    return reinterpret_cast<const unsigned char*>(content.data());
}

// ---------------------------------------------------------------------------------------------------------------------
// Orientation

// An unsigned integer of `size` bytes. Raises std::out_of_range if the content is too short.
inline std::uint32_t integer(const std::string& content, std::size_t at, std::size_t size, bool little = false) {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < size; ++i)
        value = value << 8 | static_cast<unsigned char>(content.at(at + (little ? size - 1 - i : i)));
    return value;
}

// The orientation in a TIFF block (EXIF 2.3, 4.6.2): the value of tag 0x0112 in its first directory, or 0.
inline std::uint32_t exif_orientation(const std::string& exif) {
    if (exif.empty()) return 0;
    try {
        const bool little = exif[0] == 'I';
        if (exif.compare(0, 4, little ? std::string("II*\0", 4) : std::string("MM\0*", 4)) != 0)
            refuse("EXIF that is not TIFF");
        const std::size_t directory = integer(exif, 4, 4, little);
        for (std::size_t i = 0, entries = integer(exif, directory, 2, little); i < entries; ++i) {
            const std::size_t entry = directory + 2 + 12 * i;
            const std::uint32_t type = integer(exif, entry + 2, 2, little);
            if (integer(exif, entry, 2, little) == 0x0112 && (type == 3 || type == 4))  // SHORT, LONG
                return integer(exif, entry + 8, type == 3 ? 2 : 4, little);
        }
    } catch (const std::out_of_range&) {
        refuse("truncated EXIF");
    }
    return 0;
}

// The orientation in an XMP packet, an attribute or an element as Pillow searches them, or 0.
inline std::uint32_t xmp_orientation(const std::string& xmp) {
    const std::string name = "tiff:Orientation";
    for (std::size_t at = xmp.find(name); at != std::string::npos; at = xmp.find(name, at + 1))
        for (const std::string& before : {name + "=\"", name + ">"}) {
            const std::size_t digit = at + before.size();
            const bool written = xmp.compare(at, before.size(), before) == 0 && digit < xmp.size();
            if (written && xmp[digit] >= '0' && xmp[digit] <= '9')
                return std::uint32_t(xmp[digit] - '0');
        }
    return 0;
}

struct Metadata {
    std::string exif, xmp;
};

// Orientations 2 to 8 (EXIF 2.3, 4.6.4) mirror the columns, the rows, or both; 5 to 8 swap rows and columns, too.
inline Image upright(Image image, const Metadata& metadata) {
    const std::uint32_t exif = exif_orientation(metadata.exif);
    const std::uint32_t orientation = exif ? exif : xmp_orientation(metadata.xmp);
    if (orientation < 2 || orientation > 8) return image;
    const bool swap = orientation >= 5;
    const bool mirror_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool mirror_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    Image turned = image;
    if (swap) std::swap(turned.width, turned.height);
    auto out = turned.pixels.begin();
    for (int y = 0; y < turned.height; ++y)
        for (int x = 0; x < turned.width; ++x, out += 3) {
            const int column = swap ? y : x, row = swap ? x : y;
            const int from_x = mirror_x ? image.width - 1 - column : column;
            const int from_y = mirror_y ? image.height - 1 - row : row;
            std::copy_n(image.pixels.begin() + (std::ptrdiff_t(from_y) * image.width + from_x) * 3, 3, out);
        }
    return turned;
}

// ---------------------------------------------------------------------------------------------------------------------
// Files

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
    const std::size_t size = bytes(image) / 3 * channels;
    ++at;  // one white space ends the header
    if (at > content.size() || content.size() - at < size)
        refuse("truncated: " + std::to_string(size) + " bytes of pixels expected, " +
               std::to_string(content.size() - std::min(at, content.size())) + " found");
    image.pixels.reserve(bytes(image));
    for (std::size_t i = 0; i < bytes(image); ++i)
        image.pixels.push_back(unsigned_bytes(content)[at + (channels == 3 ? i : i / 3)]);
    return image;
}

// EXIF and XMP of a JPEG: the APP1 segments before the first scan.
inline Metadata jpeg_metadata(const std::string& content) {
    const std::string exif("Exif\0\0", 6), xmp("http://ns.adobe.com/xap/1.0/\0", 29);
    Metadata metadata;
    try {
        for (std::size_t at = 2; content.at(at) == '\xff';) {
            const std::uint32_t marker = integer(content, at + 1, 1);
            if (marker == 0xDA || marker == 0xD9) break;  // a scan begins, the image ends
            if (marker == 0xFF) {                          // a fill byte
                ++at;
                continue;
            }
            const std::size_t size = integer(content, at + 2, 2);
            const std::string segment = content.substr(at + 4, std::max<std::size_t>(size, 2) - 2);
            if (marker == 0xE1 && segment.rfind(exif, 0) == 0) metadata.exif += segment.substr(exif.size());
            if (marker == 0xE1 && segment.rfind(xmp, 0) == 0) metadata.xmp = segment.substr(xmp.size());
            at += 2 + size;
        }
    } catch (const std::out_of_range&) {
        refuse("a truncated JPEG");
    }
    return metadata;
}

inline Image jpeg(const std::string& content) {
    const std::unique_ptr<void, int (*)(tjhandle)> reader(tjInitDecompress(), tjDestroy);
    const auto check = [&](int code) {
        if (code != 0) refuse(std::string("a damaged JPEG: ") + tjGetErrorStr2(reader.get()));
    };
    const unsigned char* data = unsigned_bytes(content);
    const auto size = static_cast<unsigned long>(content.size());
    int width = 0, height = 0, sampling = 0, space = 0;
    check(tjDecompressHeader3(reader.get(), data, size, &width, &height, &sampling, &space));
    if (space == TJCS_CMYK || space == TJCS_YCCK) refuse("a JPEG in CMYK; this program reads grey and colour ones");
    Image image = blank(std::uint64_t(width), std::uint64_t(height));
    image.pixels.resize(bytes(image));
    constexpr int FLAGS = TJFLAG_ACCURATEDCT | TJFLAG_STOPONWARNING | TJFLAG_LIMITSCANS;
    check(tjDecompress2(reader.get(), data, size, image.pixels.data(), width, 0, height, TJPF_RGB, FLAGS));
    return upright(std::move(image), jpeg_metadata(content));
}

// libpng gets the critical chunks alone (PNG, third edition, section 5): it would apply gAMA, and Pillow does not.
inline Image png(const std::string& content) {
    Image image;
    Metadata metadata;
    std::string chunks = content.substr(0, 8);
    const std::string xmp("XML:com.adobe.xmp\0", 18);
    std::size_t packed = 0, row = 0;
    bool ended = false;
    for (std::size_t at = 8; !ended;) {
        if (content.size() - at < 12 || content.size() - at - 12 < integer(content, at, 4)) refuse("a truncated PNG");
        const std::size_t size = integer(content, at, 4);
        const std::string name = content.substr(at + 4, 4), data = content.substr(at + 8, size);
        if (crc32(0, unsigned_bytes(content) + at + 4, uInt(size + 4)) != integer(content, at + 8 + size, 4))
            refuse("a damaged PNG");
        if ((row == 0) != (name == "IHDR")) refuse("a PNG whose header is not its beginning");
        if (!(name[0] & 0x20)) chunks += content.substr(at, size + 12);
        at += 12 + size;
        if (name == "IHDR") {
            if (size != 13) refuse("a PNG with an unknown header");
            image = blank(integer(data, 0, 4), integer(data, 4, 4));
            const std::uint32_t bits = integer(data, 8, 1), colour = integer(data, 9, 1);
            if (bits > 8 || (colour != 0 && colour != 2 && colour != 3))
                refuse("a PNG of " + std::to_string(bits) + " bits, colour type " + std::to_string(colour) +
                       "; this program reads up to 8 bits, grey (0), RGB (2) or a palette (3)");
            row = (std::size_t(image.width) * bits * (colour == 2 ? 3 : 1) + 7) / 8;
        } else if (name == "tRNS") {
            refuse("a PNG with transparency; this program reads opaque ones");
        } else if (name == "IDAT") {
            packed += size;
        } else if (name == "eXIf") {
            metadata.exif = data;
        } else if (data.rfind("Raw profile type exif", 0) == 0) {
            refuse("a PNG with EXIF as text; this program reads the chunk eXIf");
        } else if (data.rfind(xmp, 0) == 0) {
            if (data[xmp.size()] != 0) refuse("a PNG with compressed XMP");
            metadata.xmp = data;
        } else if (name == "IEND") {
            ended = true;
        } else if (name != "PLTE" && !(name[0] & 0x20)) {
            refuse("a PNG with an unknown critical chunk");
        }
    }
    if (packed < row * std::size_t(image.height) / 1040) refuse("a truncated PNG");  // DEFLATE's best is 1032 to 1
    png_image reader{};
    reader.version = PNG_IMAGE_VERSION;
    const std::unique_ptr<png_image, void (*)(png_image*)> freed(&reader, png_image_free);
    image.pixels.resize(bytes(image));
    bool good = png_image_begin_read_from_memory(&reader, chunks.data(), chunks.size()) != 0;
    reader.format = PNG_FORMAT_RGB;
    good = good && png_image_finish_read(&reader, nullptr, image.pixels.data(), 0, nullptr) != 0;
    if (!good || reader.warning_or_error != 0) refuse(std::string("a damaged PNG: ") + reader.message);
    return upright(std::move(image), metadata);
}

}  // namespace decoding

// Raises std::runtime_error, which begins with the path, for an image that this program does not read.
inline Image read_image(const std::string& path) {
    const std::string content = read_file(path);
    try {
        if (content.rfind("\x89PNG\r\n\x1a\n", 0) == 0) return decoding::png(content);
        if (content.rfind("\xff\xd8\xff", 0) == 0) return decoding::jpeg(content);
        if (content.rfind("P6", 0) == 0 || content.rfind("P5", 0) == 0) return decoding::netpbm(content);
        decoding::refuse("not an image that this program reads: JPEG, PNG, PPM (P6) or PGM (P5)");
    } catch (const std::exception& error) {
        throw std::runtime_error(path + ": " + error.what());
    }
}
