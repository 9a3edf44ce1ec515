// The JSON of a bundle, by nlohmann/json, with this program's limits and its words for what is wrong.
#pragma once

#include <cstdio>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

namespace json {

using Value = nlohmann::json;
using Kind = Value::value_t;

struct NotJson : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A member is missing, or has a value that it must not have.
struct Damaged : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Raises NotJson (RFC 8259), and Damaged for a number that no double holds.
inline Value parse(const std::string& text) {
    constexpr int DEEPEST = 64;  // brackets within brackets: a hostile file must not use up the stack
    const auto keep = [](int depth, Value::parse_event_t, const Value&) {
        if (depth > DEEPEST) throw NotJson("not JSON: nested too deeply");
        return true;
    };
    // The library skips a byte order mark and stops at a NUL; the other clients refuse both.
    if (text.rfind("\xEF\xBB\xBF", 0) == 0) throw NotJson("not JSON: it begins with a byte order mark");
    if (text.find('\0') != std::string::npos) throw NotJson("not JSON: it has a NUL byte");
    try {
        return Value::parse(text, keep);
    } catch (const Value::parse_error& error) {  // the library's words quote the file's bytes, printable or not
        throw NotJson("not JSON: it stops being JSON at byte " + std::to_string(error.byte));
    } catch (const Value::out_of_range&) {
        throw Damaged("a number is too large");
    }
}

// The member of that name. Raises Damaged where it is missing.
inline const Value& at(const Value& object, const std::string& key) {
    const auto member = object.find(key);
    if (member == object.end()) throw Damaged("\"" + key + "\" is missing");
    return *member;
}

// The member of that name. Raises Damaged where it is missing or of another kind; all numbers are of one kind.
inline const Value& at(const Value& object, const std::string& key, Kind kind) {
    const Value& member = at(object, key);
    const std::string actual = member.type_name(), expected = Value(kind).type_name();
    if (actual != expected) throw Damaged("\"" + key + "\": expected " + expected + ", found " + actual);
    return member;
}

// One line of JSON in ASCII. A byte that is no UTF-8 (a file name may have one) becomes U+FFFD.
template <typename Json>
std::string line(const Json& value) {
    return value.dump(-1, ' ', true, Json::error_handler_t::replace);
}
inline std::string quoted(const std::string& text) { return line(Value(text)); }

}  // namespace json

// One line that no terminal obeys: a class or a file may be called anything. `text` is UTF-8.
inline std::string shown(const std::string& text) {
    std::string line;
    for (std::size_t i = 0; i < text.size();) {
        const auto byte = [&](std::size_t k) { return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u; };
        unsigned code = byte(i), length = 1;
        if (code >= 0xc2 && code < 0xe0 && byte(i + 1) >> 6 == 2) {
            code = (code & 31) << 6 | (byte(i + 1) & 63), length = 2;
        } else if (code >> 4 == 14 && byte(i + 1) >> 6 == 2 && byte(i + 2) >> 6 == 2) {
            code = (code & 15) << 12 | (byte(i + 1) & 63) << 6 | (byte(i + 2) & 63), length = 3;
        } else if (code >= 0x80) {
            code = 0xffffff;  // of a longer letter, or of none
        }
        const bool unsafe = code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0x61c || code == 0x200e ||
                            code == 0x200f || (code >= 0x2028 && code <= 0x202e) ||
                            (code >= 0x2066 && code <= 0x2069) || code == 0xfeff;
        char escape[8];
        if (unsafe) std::snprintf(escape, sizeof escape, code < 256 ? "\\x%02x" : "\\u%04x", code);
        line += unsafe ? std::string(escape) : text.substr(i, length);
        i += length;
    }
    return line;
}
