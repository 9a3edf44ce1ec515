// Classify images with an okdc bundle: onnxruntime and zlib, nothing else.
//
//   run BUNDLE IMAGE [IMAGE ...]     the five likeliest classes of each image (PPM, PGM, or PNG of 8 bits)
//   run BUNDLE IMAGE --json          one JSON line an image
//   run BUNDLE --selftest            replay the bundle's own cases
//   run BUNDLE IMAGE --model int8    another of the bundle's models; --top N: that many classes
//
// The bundle's manifest.json says what an image has to become; the normalisation is inside the model. Exit code 0:
// done; 1: the self-test failed; 2: something could not be read.
//
// ORT is a folder with onnxruntime's include/ and lib/:
//
//   g++ -std=c++17 -O2 run.cpp -o run -I ORT/include -L ORT/lib -l onnxruntime -l z -Wl,-rpath,ORT/lib

#include <onnxruntime_cxx_api.h>

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <numeric>

#include "image.hpp"
#include "json.hpp"
#include "sha256.hpp"

namespace {

using json::Kind;

const char RULE[] = "exif-upright, rgb, shorter side to size (pillow bilinear, antialiased), centre crop";
const char LARGER[] = "exif-upright, rgb, shorter side to shorter_side (pillow bilinear, antialiased), centre crop";
constexpr std::size_t BATCH = 64;
constexpr int LARGEST = 4096;  // sides of a model's input

[[noreturn]] void refuse(const std::string& why) { throw std::runtime_error(why); }

// Gives a JSON file to `use`; what is wrong with it is said with its path.
template <typename Use>
void with_json(const std::string& path, Use use) {
    const std::string text = read_file(path);
    json::Value value;
    try {
        value = json::parse(text);
    } catch (const std::exception& error) {
        refuse(path + " is " + error.what());
    }
    if (value.kind != Kind::object) refuse(path + ": expected a JSON object");
    try {
        use(value);
    } catch (const json::Damaged& error) {
        refuse(path + " is damaged: " + error.what());
    } catch (const std::exception& error) {
        refuse(path + ": " + error.what());
    }
}

// A file that the bundle names itself. Raises where that leads out of the folder, links followed.
std::string inside(const std::string& folder, const std::string& name) {
    const bool odd = name.empty() || std::any_of(name.begin(), name.end(), [](unsigned char c) {
                         return c == '\\' || c == ':' || c < 0x20;
                     });
    const std::string below = "/" + name, path = folder + below;
    const bool up = below.find("//") != std::string::npos || (below + "/").find("/../") != std::string::npos;
    const auto leads_out = [&]() {
        const auto home = std::filesystem::canonical(folder), real = std::filesystem::weakly_canonical(path);
        return std::mismatch(home.begin(), home.end(), real.begin(), real.end()).first != home.end();
    };
    if (odd || up || leads_out()) refuse(folder + " names a file outside itself: " + json::quoted(name));
    return path;
}

// Where before `end` a protobuf varint with these low seven bits may begin; a hostile file writes it longer than it is.
std::vector<std::size_t> varints(const std::string& content, std::size_t end, int low) {
    std::vector<std::size_t> found;
    for (std::size_t at = end; at-- > 0 && end - at <= 10;) {
        const int byte = static_cast<unsigned char>(content[at]);
        if ((byte < 0x80) != (at + 1 == end)) break;
        if ((byte & 0x7F) == low) found.push_back(at);
    }
    return found;
}

// Whether the key "location" is in a model as protobuf writes it: such a model has weights in other files, and names
// them itself.
bool has_external_data(const std::string& model) {
    for (std::size_t at = model.find("location"); at != std::string::npos; at = model.find("location", at + 1))
        for (const std::size_t size : varints(model, at, 8))
            if (!varints(model, size, 0x0A).empty()) return true;
    return false;
}

int whole(const json::Value& from, const char* key) {
    const json::Value& found = from.at(key);
    const double value = found.number;
    if (found.kind != Kind::number || !(value >= 1 && value <= LARGEST) || value != std::floor(value))
        refuse("expected a square input of 1 to " + std::to_string(LARGEST) + " pixels; look at \"" + key + "\"");
    return int(value);
}

// The shortest decimal that reads back as this number, as Python writes it.
std::string shown(double value) {
    char digits[64];
    const auto written = [&](std::chars_format format) {
        return std::string(digits, std::to_chars(digits, digits + sizeof digits, value, format).ptr);
    };
    const std::string scientific = written(std::chars_format::scientific);
    const int exponent = std::stoi(scientific.substr(scientific.find('e') + 1));
    if (value != 0 && (exponent < -4 || exponent >= 16)) return scientific;
    const std::string fixed = written(std::chars_format::fixed);
    return fixed.find('.') == std::string::npos ? fixed + ".0" : fixed;
}

struct Answers {
    std::size_t classes = 0;
    std::vector<float> logits, probabilities;  // each images x classes
};

// A bundle's model and what its manifest says about it.
class Bundle {
  public:
    // Raises where the folder is no bundle that this program understands, or its model is another file.
    Bundle(const std::string& where, const std::string& which) : folder(where), precision(which) {
        const std::string path = folder + "/manifest.json";
        if (!std::filesystem::is_regular_file(path)) refuse(folder + " is no bundle: expected manifest.json in it");
        std::string file, expected;
        inside(folder, "manifest.json");
        with_json(path, [&](const json::Value& manifest) { read(manifest, file, expected); });
        const std::string model = inside(folder, file), content = read_file(model);
        if (sha256(content) != expected)
            refuse(model + " is not the file of the manifest (sha256 " + expected.substr(0, 12) + ")");
        if (has_external_data(content))
            refuse(model + " has weights in other files (external data), which no bundle has");
        session = Ort::Session(environment, content.data(), content.size(), Ort::SessionOptions());
    }

    // An image file as the model takes it.
    Image image(const std::string& path) const {
        const Image found = read_image(path);
        try {
            return fit(found, side, side, shorter);
        } catch (const std::exception& error) {
            refuse(path + ": " + error.what());
        }
    }

    Answers operator()(const std::vector<Image>& images) {
        std::vector<std::uint8_t> pixels;
        for (const Image& one : images) pixels.insert(pixels.end(), one.pixels.begin(), one.pixels.end());
        const std::array<std::int64_t, 4> shape = {std::int64_t(images.size()), side, side, 3};
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
        const Ort::Value input =
            Ort::Value::CreateTensor<std::uint8_t>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
        const char *const in[] = {"image"}, *const out[] = {"logits", "probabilities"};
        const std::vector<Ort::Value> found = session.Run(Ort::RunOptions(), in, &input, 1, out, 2);
        Answers answers;
        answers.classes = labels.size();
        for (std::size_t i = 0; i < 2; ++i) {
            const auto facts = found[i].GetTensorTypeAndShapeInfo();
            const std::vector<std::int64_t> expected = {shape[0], std::int64_t(labels.size())};
            if (facts.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || facts.GetShape() != expected)
                refuse(std::string(out[i]) + ": expected one float32 for each of the manifest's labels");
            const float* values = found[i].GetTensorData<float>();
            (i == 0 ? answers.logits : answers.probabilities).assign(values, values + facts.GetElementCount());
        }
        return answers;
    }

    const std::string folder, precision;
    std::vector<std::string> labels;

  private:
    int side = 0, shorter = 0;  // of the input; of an image before its centre is cut out
    Ort::Env environment{ORT_LOGGING_LEVEL_FATAL, "okdc"};  // what goes wrong comes as an exception: one line
    Ort::Session session{nullptr};

    void read(const json::Value& manifest, std::string& file, std::string& expected) {
        const json::Value& schema = manifest.at("schema");
        if (schema.kind != Kind::number || schema.number != 1)
            refuse("schema " + (schema.kind == Kind::number ? shown(schema.number) : json::NAMES[int(schema.kind)]) +
                   ", this program reads schema 1");
        const json::Value& spec = manifest.at("input", Kind::object);
        const bool larger = spec.find("shorter_side") != nullptr;
        const std::array<std::pair<const char*, std::string>, 5> words = {{{"name", "image"},
                                                                           {"layout", "NHWC"},
                                                                           {"dtype", "uint8"},
                                                                           {"colour", "RGB"},
                                                                           {"resize", larger ? LARGER : RULE}}};
        for (const auto& [key, known] : words)
            if (const std::string& word = spec.at(key, Kind::string).string; word != known)
                refuse(std::string("this program does not know the input ") + key + " " + json::quoted(word));
        if (!manifest.at("normalisation", Kind::object).at("in_graph", Kind::boolean).boolean)
            refuse("this program knows models that normalise inside (normalisation.in_graph true)");
        side = whole(spec, "height");
        shorter = larger ? whole(spec, "shorter_side") : side;
        if (whole(spec, "width") != side || shorter < side)
            refuse("expected a square input, and a shorter side that is no less");
        for (const json::Value& label : manifest.at("labels", Kind::array).items) {
            if (label.kind != Kind::string)
                throw json::Damaged(std::string("a label is ") + json::NAMES[int(label.kind)]);
            labels.push_back(label.string);
        }
        if (labels.empty()) throw json::Damaged("\"labels\" is empty");
        const json::Value& models = manifest.at("models", Kind::object);
        if (!models.find(precision)) {
            std::string there;
            for (const auto& member : models.members) there += (there.empty() ? "" : ", ") + member.first;
            refuse("no " + precision + " model, there is " + there);
        }
        file = models.at(precision, Kind::object).at("file", Kind::string).string;
        expected = manifest.at("files", Kind::object).at(file, Kind::object).at("sha256", Kind::string).string;
    }
};

void classify(Bundle& bundle, const std::vector<std::string>& paths, std::size_t top, bool as_json) {
    for (std::size_t start = 0; start < paths.size(); start += BATCH) {
        const std::size_t count = std::min(BATCH, paths.size() - start);
        std::vector<Image> images;
        for (std::size_t i = 0; i < count; ++i) images.push_back(bundle.image(paths[start + i]));
        const Answers answers = bundle(images);
        for (std::size_t i = 0; i < count; ++i) {
            const float* row = answers.probabilities.data() + i * answers.classes;
            std::vector<std::size_t> order(answers.classes);
            std::iota(order.begin(), order.end(), 0);
            if (!std::all_of(row, row + answers.classes, [](float p) { return std::isfinite(p); }))
                refuse("the model gives probabilities that are not finite");
            std::stable_sort(order.begin(), order.end(),
                             [row](std::size_t a, std::size_t b) { return row[a] > row[b]; });
            order.resize(std::min(top, order.size()));
            const std::string& path = paths[start + i];
            std::string line = as_json ? "{\"image\": " + json::quoted(path) + ", \"top\": [" : path + ":";
            for (std::size_t k = 0; k < order.size(); ++k) {
                const std::string& label = bundle.labels[order[k]];
                const double probability = row[order[k]];
                char percent[32];
                std::snprintf(percent, sizeof percent, "%.1f%%", 100 * probability);
                if (as_json)
                    line += (k ? ", {\"label\": " : "{\"label\": ") + json::quoted(label) + ", \"probability\": " +
                            shown(probability) + "}";
                else
                    line += (k ? "  " : " ") + label + " " + percent;
            }
            std::cout << line << (as_json ? "]}\n" : "\n");
        }
    }
}

// The bundle's cases again, from the files to the logits.
bool selftest(Bundle& bundle, bool as_json) {
    double tolerance = 0, worst = 0;
    std::vector<std::string> paths;
    std::vector<std::vector<double>> rows;
    with_json(inside(bundle.folder, "sample/expected.json"), [&](const json::Value& expected) {
        const json::Value& model = expected.at("models", Kind::object).at(bundle.precision, Kind::object);
        tolerance = model.at("tolerance", Kind::number).number;
        if (!std::isfinite(tolerance)) throw json::Damaged("\"tolerance\" is no number");
        for (const json::Value& one : expected.at("cases", Kind::array).items)
            paths.push_back(inside(bundle.folder, "sample/" + one.at("image", Kind::string).string));
        for (const json::Value& row : model.at("logits", Kind::array).items) {
            rows.emplace_back();
            for (const json::Value& logit : row.items)
                if (logit.kind == Kind::number && std::isfinite(logit.number)) rows.back().push_back(logit.number);
            if (rows.back().size() != bundle.labels.size()) throw json::Damaged("another number of logits than labels");
        }
        if (rows.size() != paths.size()) throw json::Damaged("another number of rows than cases");
    });
    const std::size_t count = paths.size();
    for (std::size_t i = 0; i < count; ++i) {
        const Answers found = bundle({bundle.image(paths[i])});
        double sum = 0;
        for (std::size_t k = 0; k < found.classes; ++k) {
            const double difference = std::abs(double(found.logits[k]) - rows[i][k]);
            worst = std::max(worst, std::isnan(difference) ? INFINITY : difference);
            sum += double(found.probabilities[k]);
        }
        worst = std::max(worst, std::isnan(sum) ? INFINITY : std::abs(sum - 1));
    }
    const bool good = worst <= tolerance && count > 0;
    char said[160];
    std::snprintf(said, sizeof said, "self-test %s: %zu images, max |d| %.1e (allowed %.1e)\n",
                  good ? "passed" : "FAILED", count, worst, tolerance);
    (as_json ? std::cerr : std::cout) << said;
    return good;
}

const char USAGE[] = "usage: run BUNDLE [IMAGE ...] [--top N] [--json] [--selftest] [--model float32|int8|float16]";

struct Options {
    std::vector<std::string> words;  // the bundle, then the images
    std::string precision = "float32";
    std::size_t top = 5;
    bool as_json = false, selftest = false, help = false;

    Options(int count, char** given) {
        bool only_words = false;
        for (int i = 1; i < count; ++i) {
            const std::string word = given[i];
            const std::size_t equals = word.find('=');
            const auto is = [&](const std::string& name) { return word.substr(0, equals) == name; };
            const auto value = [&]() -> std::string {
                if (equals != std::string::npos) return word.substr(equals + 1);
                if (i + 1 < count) return given[++i];
                refuse(word + ": expected a value");
            };
            if (only_words || word.size() < 2 || word[0] != '-') words.push_back(word);
            else if (word == "--") only_words = true;
            else if (word == "--json") as_json = true;
            else if (word == "--selftest") selftest = true;
            else if (word == "--help" || word == "-h") help = true;
            else if (is("--model")) precision = value();
            else if (is("--top")) top = positive(value());
            else refuse("unknown option " + word + "; expected --top N, --json, --selftest, --model NAME");
        }
        if (help) return;
        if (words.empty()) refuse(std::string("expected a bundle; ") + USAGE);
        if (words.size() == 1 && !selftest) refuse("expected an image, or --selftest");
        if (precision != "float32" && precision != "int8" && precision != "float16")
            refuse("--model " + precision + ": expected float32, int8 or float16");
    }
    static std::size_t positive(const std::string& text) {
        std::size_t value = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        if (error != std::errc() || end != text.data() + text.size() || value == 0)
            refuse("--top " + text + ": expected a number of classes");
        return value;
    }
};

}  // namespace

int main(int count, char** given) {
    try {
        if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr)
            refuse(std::string("onnxruntime ") + OrtGetApiBase()->GetVersionString() + " is older than the header (1." +
                   std::to_string(ORT_API_VERSION) + ") this program was built with");
        const Options options(count, given);
        if (options.help) {
            std::cout << USAGE << "\n";
            return 0;
        }
        Bundle bundle(options.words[0], options.precision);
        if (options.selftest && !selftest(bundle, options.as_json)) return 1;
        classify(bundle, {options.words.begin() + 1, options.words.end()}, options.top, options.as_json);
    } catch (const std::exception& error) {  // one line: what was wrong with which file
        const std::string what = error.what();
        std::cout.flush();
        std::cerr << "error: " << what.substr(0, what.find('\n')) << "\n";
        return 2;
    }
    return 0;
}
