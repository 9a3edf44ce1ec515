// Classify images with an okdc bundle: onnxruntime, TurboJPEG, libpng, nlohmann/json and libmd.
//
//   run BUNDLE IMAGE [IMAGE ...]     the five likeliest classes of each image (JPEG, opaque PNG, PPM or PGM)
//   run BUNDLE IMAGE --json          one JSON line an image
//   run BUNDLE --selftest            classify the bundle's samples and compare the logits
//   run BUNDLE IMAGE --model int8    another of the bundle's models; --top N: that many classes
//
// manifest.json describes the model's input; the model normalises inside. Exit code 0: done; 1: the self-test failed;
// 2: a file could not be read, or an option is wrong.
//
// ORT is a folder with onnxruntime's include/ and lib/:
//
//   g++ -std=c++17 -O2 run.cpp -o run -I ORT/include -LORT/lib -Wl,-rpath,ORT/lib -lonnxruntime -lturbojpeg -lpng -lz -lmd

#include <onnxruntime_cxx_api.h>

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <numeric>

#include "files.hpp"
#include "image.hpp"
#include "json.hpp"
#include "resize.hpp"

namespace {

using json::Kind;

const char RULE[] = "exif-upright, rgb, shorter side to size (pillow bilinear, antialiased), centre crop";
const char LARGER[] = "exif-upright, rgb, shorter side to shorter_side (pillow bilinear, antialiased), centre crop";
const char* const MODELS[] = {"float32", "int8", "float16"};
constexpr std::size_t BATCH = 64;
constexpr int LARGEST = 4096;  // pixels of a side of a model's input

[[noreturn]] void refuse(const std::string& reason) { throw std::runtime_error(reason); }

// Gives a JSON object to `use`. Every error names the file.
template <typename Use>
void with_json(const std::string& path, Use use) {
    const std::string text = read_file(path);
    try {
        const json::Value object = json::parse(text);
        if (!object.is_object()) refuse("expected a JSON object");
        use(object);
    } catch (const json::NotJson& error) {
        refuse(path + " is " + error.what());
    } catch (const json::Damaged& error) {
        refuse(path + " is damaged: " + error.what());
    } catch (const std::exception& error) {
        refuse(path + ": " + error.what());
    }
}

// The path of a file that the bundle names. Raises if it leads out of the folder, links followed.
std::string inside(const std::string& folder, const std::string& name) {
    const bool forbidden = name.empty() || std::any_of(name.begin(), name.end(), [](unsigned char c) {
                         return c == '\\' || c == ':' || c < 0x20;
                     });
    const std::string below = "/" + name, path = folder + below;
    const bool up = below.find("//") != std::string::npos || (below + "/").find("/../") != std::string::npos;
    const auto leads_out = [&]() {
        const auto home = std::filesystem::canonical(folder), real = std::filesystem::weakly_canonical(path);
        return std::mismatch(home.begin(), home.end(), real.begin(), real.end()).first != home.end();
    };
    if (forbidden || up || leads_out()) refuse(folder + " names a file outside itself: " + json::quoted(name));
    return path;
}

// The places before `end` where a protobuf varint with these low seven bits may begin. A hostile file pads its varints.
std::vector<std::size_t> varints(const std::string& content, std::size_t end, int low) {
    std::vector<std::size_t> places;
    for (std::size_t at = end; at-- > 0 && end - at <= 10;) {
        const int byte = static_cast<unsigned char>(content[at]);
        if ((byte < 0x80) != (at + 1 == end)) break;
        if ((byte & 0x7F) == low) places.push_back(at);
    }
    return places;
}

// True if a model has the key "location" as protobuf writes it: its weights are then in other files, which it names.
bool has_external_data(const std::string& model) {
    for (std::size_t at = model.find("location"); at != std::string::npos; at = model.find("location", at + 1))
        for (const std::size_t size : varints(model, at, 8))
            if (!varints(model, size, 0x0A).empty()) return true;
    return false;
}

// A side of the input in pixels.
int side_of(const json::Value& input, const char* key) {
    const json::Value& member = json::at(input, key);
    const double value = member.is_number() ? member.get<double>() : 0;
    if (!(value >= 1 && value <= LARGEST) || value != std::floor(value))
        refuse("expected a square input of 1 to " + std::to_string(LARGEST) + " pixels; look at \"" + key + "\"");
    return int(value);
}

struct Answers {
    std::size_t classes = 0;
    std::vector<float> logits, probabilities;  // each images x classes
};

// A bundle's model, its labels and its input.
class Bundle {
  public:
    // Raises if the manifest is unknown to this program, or the model's hash is not the manifest's.
    Bundle(const std::string& path_to, const std::string& model_name) : folder(path_to), precision(model_name) {
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

    // An image file to the model's input.
    Image image(const std::string& path) const {
        const Image image = read_image(path);
        try {
            return fit(image, side, side, shorter);
        } catch (const std::exception& error) {
            refuse(path + ": " + error.what());
        }
    }

    Answers operator()(const std::vector<Image>& images) {
        std::vector<std::uint8_t> pixels;
        for (const Image& image : images) pixels.insert(pixels.end(), image.pixels.begin(), image.pixels.end());
        const std::array<std::int64_t, 4> shape = {std::int64_t(images.size()), side, side, 3};
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
        const Ort::Value input =
            Ort::Value::CreateTensor<std::uint8_t>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
        const char *const in[] = {"image"}, *const out[] = {"logits", "probabilities"};
        const std::vector<Ort::Value> outputs = session.Run(Ort::RunOptions(), in, &input, 1, out, 2);
        Answers answers;
        answers.classes = labels.size();
        for (std::size_t i = 0; i < 2; ++i) {
            const auto type = outputs[i].GetTensorTypeAndShapeInfo();
            const std::vector<std::int64_t> expected = {shape[0], std::int64_t(labels.size())};
            if (type.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || type.GetShape() != expected)
                refuse(std::string(out[i]) + ": expected one float32 for each of the manifest's labels");
            const float* values = outputs[i].GetTensorData<float>();
            (i == 0 ? answers.logits : answers.probabilities).assign(values, values + type.GetElementCount());
        }
        return answers;
    }

    const std::string folder, precision;
    std::vector<std::string> labels;

  private:
    int side = 0, shorter = 0;  // of the input; of an image before its centre is cut out
    Ort::Env environment{ORT_LOGGING_LEVEL_FATAL, "okdc"};  // onnxruntime logs what it throws
    Ort::Session session{nullptr};

    void read(const json::Value& manifest, std::string& file, std::string& expected) {
        const json::Value& schema = json::at(manifest, "schema");
        if (schema != 1) refuse("schema " + json::line(schema) + ", this program reads schema 1");
        const json::Value& input = json::at(manifest, "input", Kind::object);
        const bool larger = input.contains("shorter_side");
        const std::array<std::pair<const char*, std::string>, 5> words = {{{"name", "image"},
                                                                           {"layout", "NHWC"},
                                                                           {"dtype", "uint8"},
                                                                           {"colour", "RGB"},
                                                                           {"resize", larger ? LARGER : RULE}}};
        for (const auto& [key, value] : words)
            if (const json::Value& word = json::at(input, key, Kind::string); word != value)
                refuse(std::string("this program does not know the input ") + key + " " + json::line(word));
        if (json::at(json::at(manifest, "normalisation", Kind::object), "in_graph", Kind::boolean) != true)
            refuse("this program knows models that normalise inside (normalisation.in_graph true)");
        side = side_of(input, "height");
        shorter = larger ? side_of(input, "shorter_side") : side;
        if (side_of(input, "width") != side || shorter < side)
            refuse("expected a square input, and a shorter side that is no less");
        for (const json::Value& label : json::at(manifest, "labels", Kind::array)) {
            if (!label.is_string()) throw json::Damaged(std::string("\"labels\": a label is ") + label.type_name());
            labels.push_back(label);
        }
        if (labels.empty()) throw json::Damaged("\"labels\" is empty");
        const json::Value& models = json::at(manifest, "models", Kind::object);
        if (!models.contains(precision)) {
            std::string names;
            for (const char* name : MODELS)
                if (models.contains(name)) names += (names.empty() ? "" : ", ") + std::string(name);
            refuse("no " + precision + " model, there is " + names);
        }
        file = json::at(json::at(models, precision, Kind::object), "file", Kind::string);
        const json::Value& hashed = json::at(json::at(manifest, "files", Kind::object), file, Kind::object);
        expected = json::at(hashed, "sha256", Kind::string);
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
            std::string text = path + ":";
            nlohmann::ordered_json best = nlohmann::ordered_json::array();
            for (std::size_t k = 0; k < order.size(); ++k) {
                const std::string& label = bundle.labels[order[k]];
                const double probability = row[order[k]];
                char percent[32];
                std::snprintf(percent, sizeof percent, "%.1f%%", 100 * probability);
                text += (k ? "  " : " ") + label + " " + percent;
                best.push_back({{"label", label}, {"probability", probability}});
            }
            const nlohmann::ordered_json line = {{"image", path}, {"top", best}};
            std::cout << (as_json ? json::line(line) : shown(text)) << "\n";
        }
    }
}

// Classifies the bundle's samples; true if every logit is within the model's tolerance of sample/expected.json.
bool selftest(Bundle& bundle, bool as_json) {
    double tolerance = 0, worst = 0;
    std::vector<std::string> paths;
    std::vector<std::vector<double>> rows;
    with_json(inside(bundle.folder, "sample/expected.json"), [&](const json::Value& expected) {
        const json::Value& models = json::at(expected, "models", Kind::object);
        const json::Value& model = json::at(models, bundle.precision, Kind::object);
        tolerance = json::at(model, "tolerance", Kind::number_float);
        for (const json::Value& sample : json::at(expected, "cases", Kind::array))
            paths.push_back(inside(bundle.folder, "sample/" + std::string(json::at(sample, "image", Kind::string))));
        for (const json::Value& row : json::at(model, "logits", Kind::array)) {
            rows.emplace_back();
            if (row.is_array())
                for (const json::Value& logit : row)
                    if (logit.is_number()) rows.back().push_back(logit);
            if (rows.back().size() != bundle.labels.size()) throw json::Damaged("another number of logits than labels");
        }
        if (rows.size() != paths.size()) throw json::Damaged("another number of rows than cases");
    });
    const std::size_t count = paths.size();
    for (std::size_t i = 0; i < count; ++i) {
        const Answers answers = bundle({bundle.image(paths[i])});
        double sum = 0;
        for (std::size_t k = 0; k < answers.classes; ++k) {
            const double difference = std::abs(double(answers.logits[k]) - rows[i][k]);
            worst = std::max(worst, std::isnan(difference) ? INFINITY : difference);
            sum += double(answers.probabilities[k]);
        }
        worst = std::max(worst, std::isnan(sum) ? INFINITY : std::abs(sum - 1));
    }
    const bool passed = worst <= tolerance && count > 0;
    char verdict[160];
    std::snprintf(verdict, sizeof verdict, "self-test %s: %zu images, max |d| %.1e (allowed %.1e)\n",
                  passed ? "passed" : "FAILED", count, worst, tolerance);
    (as_json ? std::cerr : std::cout) << verdict;
    return passed;
}

const char USAGE[] = "usage: run BUNDLE [IMAGE ...] [--top N] [--json] [--selftest] [--model float32|int8|float16]";

struct Options {
    std::vector<std::string> words;  // the bundle, then the images
    std::string precision = "float32";
    std::size_t top = 5;
    bool as_json = false, selftest = false, help = false;

    Options(int count, char** arguments) {
        bool only_words = false;
        for (int i = 1; i < count; ++i) {
            const std::string word = arguments[i];
            const std::size_t equals = word.find('=');
            const auto is = [&](const std::string& name) { return word.substr(0, equals) == name; };
            const auto value = [&]() -> std::string {
                if (equals != std::string::npos) return word.substr(equals + 1);
                if (i + 1 < count) return arguments[++i];
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

int main(int count, char** arguments) {
    try {
        if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr)
            refuse(std::string("onnxruntime ") + OrtGetApiBase()->GetVersionString() + " is older than the header (1." +
                   std::to_string(ORT_API_VERSION) + ") this program was built with");
        const Options options(count, arguments);
        if (options.help) {
            std::cout << USAGE << "\n";
            return 0;
        }
        Bundle bundle(options.words[0], options.precision);
        if (options.selftest && !selftest(bundle, options.as_json)) return 1;
        classify(bundle, {options.words.begin() + 1, options.words.end()}, options.top, options.as_json);
    } catch (const std::exception& error) {  // any library's error becomes one line
        const std::string what = error.what();
        std::cout.flush();
        std::cerr << "error: " << shown(what.substr(0, what.find('\n'))) << "\n";
        return 2;
    }
    return 0;
}
