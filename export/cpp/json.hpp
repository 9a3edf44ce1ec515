// JSON (RFC 8259) to a tree, and strings back to JSON. What is no JSON raises std::runtime_error with the place, what
// is missing in it or of another kind raises Damaged.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace json {

struct Damaged : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class Kind { null, boolean, number, string, array, object };
inline const char* const NAMES[] = {"null", "a boolean", "a number", "a string", "an array", "an object"};

struct Value {
    Kind kind = Kind::null;
    bool boolean = false;
    double number = 0;
    std::string string;
    std::vector<Value> items;
    std::vector<std::pair<std::string, Value>> members;

    // The member of that name, the last one where there are two; nullptr where there is none.
    const Value* find(const std::string& key) const {
        for (auto member = members.rbegin(); member != members.rend(); ++member)
            if (member->first == key) return &member->second;
        return nullptr;
    }
    const Value& at(const std::string& key) const {
        if (const Value* found = find(key)) return *found;
        throw Damaged("\"" + key + "\" is missing");
    }
    // The member of that name, which has to be of that kind.
    const Value& at(const std::string& key, Kind wanted) const {
        const Value& found = at(key);
        if (found.kind == wanted) return found;
        throw Damaged("\"" + key + "\" is " + NAMES[int(found.kind)] + ", expected " + NAMES[int(wanted)]);
    }
};

class Reader {
  public:
    explicit Reader(const std::string& text) : text_(text) {}

    Value document() {
        Value value = read(0);
        space();
        if (at_ != text_.size()) fail("more after the end");
        return value;
    }

  private:
    static constexpr int DEEPEST = 64;  // brackets within brackets: a hostile file must not use up the stack
    const std::string& text_;
    std::size_t at_ = 0;

    [[noreturn]] void fail(const std::string& what) const {
        throw std::runtime_error("not JSON: " + what + " at byte " + std::to_string(at_));
    }
    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    void space() {
        while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at_;
    }
    bool take(char wanted) {
        space();
        if (peek() != wanted) return false;
        ++at_;
        return true;
    }
    bool word(const char* wanted) {
        const std::string what = wanted;
        if (text_.compare(at_, what.size(), what) != 0) return false;
        at_ += what.size();
        return true;
    }

    Value read(int depth) {
        if (depth > DEEPEST) fail("nested too deeply");
        space();
        Value value;
        const char first = peek();
        if (first == '{') {
            value.kind = Kind::object;
            ++at_;
            if (take('}')) return value;
            do {
                space();
                std::string key = string();
                if (!take(':')) fail("expected ':'");
                value.members.emplace_back(std::move(key), read(depth + 1));
            } while (take(','));
            if (!take('}')) fail("expected ',' or '}'");
        } else if (first == '[') {
            value.kind = Kind::array;
            ++at_;
            if (take(']')) return value;
            do value.items.push_back(read(depth + 1));
            while (take(','));
            if (!take(']')) fail("expected ',' or ']'");
        } else if (first == '"') {
            value.kind = Kind::string;
            value.string = string();
        } else if (word("true") || word("false")) {
            value.kind = Kind::boolean;
            value.boolean = first == 't';
        } else if (!word("null")) {
            value.kind = Kind::number;
            value.number = number();
        }
        return value;
    }

    bool digits() {
        const std::size_t start = at_;
        while (peek() >= '0' && peek() <= '9') ++at_;
        return at_ > start;
    }
    double number() {
        const std::size_t start = at_;
        if (peek() == '-') ++at_;
        if (!digits()) fail("expected a value");
        if (peek() == '.') {
            ++at_;
            if (!digits()) fail("expected a digit");
        }
        if (peek() == 'e' || peek() == 'E') {
            ++at_;
            if (peek() == '+' || peek() == '-') ++at_;
            if (!digits()) fail("expected a digit");
        }
        return std::strtod(text_.substr(start, at_ - start).c_str(), nullptr);
    }

    unsigned hex4() {
        unsigned code = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            const char c = peek();
            if (c >= '0' && c <= '9') code = 16 * code + unsigned(c - '0');
            else if (c >= 'a' && c <= 'f') code = 16 * code + unsigned(c - 'a' + 10);
            else if (c >= 'A' && c <= 'F') code = 16 * code + unsigned(c - 'A' + 10);
            else fail("expected four hexadecimal digits");
        }
        return code;
    }
    static void append(std::string& out, unsigned code) {  // as UTF-8
        if (code < 0x80) {
            out += char(code);
        } else if (code < 0x800) {
            out += {char(0xC0 | code >> 6), char(0x80 | (code & 63))};
        } else if (code < 0x10000) {
            out += {char(0xE0 | code >> 12), char(0x80 | (code >> 6 & 63)), char(0x80 | (code & 63))};
        } else {
            out += {char(0xF0 | code >> 18), char(0x80 | (code >> 12 & 63)), char(0x80 | (code >> 6 & 63)),
                    char(0x80 | (code & 63))};
        }
    }
    std::string string() {
        if (peek() != '"') fail("expected a string");
        ++at_;
        std::string out;
        while (peek() != '"') {
            if (at_ >= text_.size()) fail("a string without an end");
            const char c = text_[at_++];
            if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
            if (c != '\\') {
                out += c;
                continue;
            }
            const std::string from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
            const char escape = peek();
            const std::size_t which = from.find(escape);
            if (at_ < text_.size()) ++at_;
            if (escape == 'u') {
                unsigned code = hex4();
                if (code >= 0xD800 && code < 0xDC00 && word("\\u")) {
                    const unsigned low = hex4();
                    if (low < 0xDC00 || low > 0xDFFF) fail("half of a surrogate pair");
                    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                }
                append(out, code);
            } else if (which != std::string::npos) {
                out += to[which];
            } else {
                fail("an unknown escape");
            }
        }
        ++at_;
        return out;
    }
};

inline Value parse(const std::string& text) { return Reader(text).document(); }

// A UTF-8 string as JSON in ASCII; a byte that is no UTF-8 (a file name may hold any) as Python's json writes it.
inline std::string quoted(const std::string& text) {
    static const char* const HEX = "0123456789abcdef";
    std::string out = "\"";
    const auto escape = [&out](unsigned code) {
        out += "\\u";
        for (int shift = 12; shift >= 0; shift -= 4) out += HEX[code >> shift & 15];
    };
    for (std::size_t i = 0; i < text.size();) {
        const unsigned first = static_cast<unsigned char>(text[i]);
        const std::string plain = "\"\\\b\f\n\r\t", letters = "\"\\bfnrt";
        const std::size_t which = first ? plain.find(char(first)) : std::string::npos;
        if (which != std::string::npos) {
            out += {'\\', letters[which]};
            ++i;
        } else if (first >= 0x20 && first < 0x7F) {
            out += text[i++];
        } else if (first < 0x80) {
            escape(first);
            ++i;
        } else {
            const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : first >= 0xC0 ? 1 : 0;
            unsigned code = first & (0x3Fu >> more);
            bool whole = more > 0 && first < 0xF8 && i + std::size_t(more) < text.size();
            for (int k = 1; whole && k <= more; ++k) {
                const unsigned next = static_cast<unsigned char>(text[i + std::size_t(k)]);
                whole = (next & 0xC0) == 0x80;
                code = code << 6 | (next & 63);
            }
            const unsigned least = more == 3 ? 0x10000 : more == 2 ? 0x800 : 0x80;
            if (!whole || code < least || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
                escape(0xDC00 + first);
                ++i;
            } else {
                if (code >= 0x10000) {
                    escape(0xD800 + ((code - 0x10000) >> 10));
                    escape(0xDC00 + ((code - 0x10000) & 0x3FF));
                } else {
                    escape(code);
                }
                i += std::size_t(more) + 1;
            }
        }
    }
    return out + "\"";
}

}  // namespace json
