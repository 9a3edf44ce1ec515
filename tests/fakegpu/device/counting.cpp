// What was asked of the device, by kind and name.
#include <cxxabi.h>
#include <stdlib.h>

#include <map>
#include <utility>

#include "device.h"

namespace fake {

std::recursive_mutex& mutex() {
  static auto* the = new std::recursive_mutex;  // never destroyed: threads outlive the end of main
  return *the;
}

static std::map<std::pair<std::string, std::string>, long>& counts() {
  static auto* the = new std::map<std::pair<std::string, std::string>, long>;
  return *the;
}

void count(const char* kind, const std::string& name, long number) {
  Locked lock;
  counts()[{kind, name}] += number;
}

// A kernel's name as C++ writes it, without the namespaces that all of torch's have.
static const std::string& readable(const std::string& name) {
  static auto* known = new std::map<std::string, std::string>;
  auto [entry, is_new] = known->try_emplace(name, name);
  if (!is_new) return entry->second;
  std::string& text = entry->second;
  if (char* plain = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, nullptr)) {
    text = plain;
    free(plain);
  }
  for (const std::string part : {"void ", "at::native::", "(anonymous namespace)::"})
    for (size_t at; (at = text.find(part)) != std::string::npos;) text.erase(at, part.size());
  return text;
}

}  // namespace fake

// ---- for tests/fakegpu/counting.py

API void fake_reset() {
  fake::Locked lock;
  fake::counts().clear();
}

// A line for each name: kind, number and name between tabs. It lives until the next call.
API const char* fake_report() {
  fake::Locked lock;
  static std::string report;
  report.clear();
  for (const auto& [key, number] : fake::counts())
    report += key.first + "\t" + std::to_string(number) + "\t" + fake::readable(key.second) + "\n";
  return report.c_str();
}
