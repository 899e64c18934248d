#include "dalle/storage/torch_file.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <span>
#include <unordered_set>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/storage/pickle_reader.h"
#include "dalle/storage/zip_archive.h"
#include "input_file.h"
#include "printable.h"
#include "torch_tensors.h"

namespace dalle::storage {
namespace {

using Kind = PickleValue::Kind;

// What a walk through the values of one file may cost. Values can be shared, so a few bytes may stand for any number of
// modules within modules; real files stay far below these.
constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxEntries = 4'000'000;  // keys looked at
constexpr size_t kMaxTensors = 200'000;
constexpr size_t kMaxNameBytes = 1000;
constexpr uint64_t kMaxSharing = 16;  // bytes of all tensors for each byte of their storages

/// Collects the tensors below a value.
class Walk {
 public:
  Walk(TorchTensors& source, std::string place) : source_(source), place_(std::move(place)) {}

  std::vector<NamedTensor> run(const PickleValue& root) {
    visit(root, "");
    uint64_t bytes = 0;
    for (const auto& [name, tensor] : tensors_) bytes += tensor.nbytes();
    if (bytes / kMaxSharing > source_.storage_bytes()) {
      fail("", str("tensors of at most ", kMaxSharing, " times the ", source_.storage_bytes(), " bytes they share"),
           str(bytes, " bytes"));
    }
    return std::move(tensors_);
  }

 private:
  [[noreturn]] void fail(const std::string& name, const std::string& expected, const std::string& got) const {
    throw CheckpointError(Problem{
        .place = name.empty() ? place_ : str(place_, " (", printable(name), ")"), .expected = expected, .got = got});
  }

  void spend(const PickleValue& value, const std::string& name) {
    entries_ += 1 + value.entries.size();
    if (entries_ > kMaxEntries || depth_ > kMaxDepth || name.size() > kMaxNameBytes) {
      fail(name, str("at most ", kMaxEntries, " keys, ", kMaxDepth, " levels and ", kMaxNameBytes, " bytes a name"),
           "more");
    }
  }

  void visit(const PickleValue& value, const std::string& name) {
    ++depth_;
    spend(value, name);
    if (TorchTensors::is_tensor(value)) {
      add(value, name);
    } else if (value.is(Kind::kDict)) {
      visit_entries(value, name, nullptr);
    } else if (value.is(Kind::kObject) && value.attribute("_modules") != nullptr) {
      visit_module(value, name);
    } else if (is_script_module(value)) {
      spend(*value.state, name);
      visit_entries(*value.state, name, nullptr);
    }
    --depth_;
  }

  /// TorchScript's modules are objects whose attributes are their parameters, buffers and modules.
  static bool is_script_module(const PickleValue& value) {
    return value.is(Kind::kObject) && value.type_name().starts_with("__torch__.") && value.state != nullptr &&
           value.state->is(Kind::kDict);
  }

  /// In the order of nn.Module.state_dict(): own parameters, own buffers, then the modules below.
  void visit_module(const PickleValue& module, const std::string& name) {
    spend(*module.state, name);
    const PickleValue* skipped = module.attribute("_non_persistent_buffers_set");
    for (const char* part : {"_parameters", "_buffers", "_modules"}) {
      const PickleValue* entries = module.attribute(part);
      if (entries == nullptr) continue;
      if (!entries->is(Kind::kDict)) fail(name, str("a dict in ", part), describe(*entries));
      spend(*entries, name);
      visit_entries(*entries, name, part == std::string_view("_buffers") ? skipped : nullptr);
    }
  }

  void visit_entries(const PickleValue& dict, const std::string& name, const PickleValue* skipped) {
    const std::string prefix = name.empty() ? "" : name + ".";
    for (const auto& [key, value] : dict.entries) {
      if (!key->is(Kind::kText)) continue;  // an optimizer's state has numbers
      if (skipped != nullptr && holds(*skipped, key->text)) continue;
      visit(*value, prefix + key->text);
    }
  }

  bool holds(const PickleValue& set, const std::string& text) {
    entries_ += set.items.size();
    for (const auto* item : set.items) {
      if (item->is(Kind::kText) && item->text == text) return true;
    }
    return false;
  }

  void add(const PickleValue& value, const std::string& name) {
    if (tensors_.size() >= kMaxTensors) fail(name, str("at most ", kMaxTensors, " tensors"), "more");
    if (!names_.insert(name).second) fail(name, "each name once", "two tensors");
    tensors_.push_back({name, source_.make(value, name)});
  }

  TorchTensors& source_;
  std::string place_;
  std::vector<NamedTensor> tensors_;
  std::unordered_set<std::string> names_;
  size_t depth_ = 0;
  size_t entries_ = 0;
};

[[noreturn]] void refuse_torch_file(const std::string& place, const std::string& got, const std::string& hint) {
  throw CheckpointError(
      Problem{.place = place, .expected = "a file of torch.save (PyTorch 1.6 or later)", .got = got, .hint = hint});
}

/// PyTorch's older formats by their first bytes, for the hint.
void check_format(const std::filesystem::path& path) {
  const InputFile input(path);
  std::string start(std::min<uint64_t>(input.size(), 512), '\0');
  input.read_at(0, std::as_writable_bytes(std::span(start)));
  if (start.starts_with("PK")) return;
  const std::string again = "load it in PyTorch 1.6 or later and torch.save it again";
  if (start.starts_with("\x80")) refuse_torch_file(path.string(), "one of an older PyTorch (a bare pickle)", again);
  if (start.size() > 262 && start.substr(257, 5) == "ustar")
    refuse_torch_file(path.string(), "one of a very old PyTorch", again);
  if (start.size() > 8 && start[8] == '{')
    refuse_torch_file(path.string(), "a safetensors file", "name it FILE.safetensors");
  refuse_torch_file(path.string(), "other bytes", "");
}

/// "archive/" of "archive/data.pkl".
std::string find_prefix(const ZipReader& archive, const std::string& place) {
  constexpr std::string_view kPickle = "/data.pkl";
  std::vector<std::string> prefixes;
  for (const auto& member : archive.members()) {
    const size_t slash = member.name.find('/');
    if (slash != std::string::npos && std::string_view(member.name).substr(slash) == kPickle) {
      prefixes.push_back(member.name.substr(0, slash + 1));
    }
  }
  if (prefixes.size() != 1) {
    refuse_torch_file(place, str("a zip archive with ", prefixes.size(), " members FOLDER", kPickle), "");
  }
  return prefixes[0];
}

void check_byte_order(const ZipReader& archive, const std::string& prefix, const std::string& place) {
  const ZipMember* member = archive.find(prefix + "byteorder");
  if (member == nullptr) return;  // before PyTorch 2.1: little-endian on every machine that is still around
  const std::string order = archive.read_text(*member, 16);
  if (order != "little") {
    throw CheckpointError(Problem{.place = place,
                                  .expected = "little-endian data",
                                  .got = str("byte order ", printable(order)),
                                  .hint = "save it again on a little-endian machine"});
  }
}

std::string type_of(const PickleValue& root) {
  if (root.is(Kind::kDict)) return "dict";
  return root.is(Kind::kObject) ? std::string(root.type_name()) : describe(root);
}

}  // namespace

TorchFile read_torch_file(const std::filesystem::path& path) {
  constexpr uint64_t kMaxPickleBytes = uint64_t{64} << 20;
  const std::string place = path.string();
  check_format(path);
  const ZipReader archive(path);
  const std::string prefix = find_prefix(archive, place);
  check_byte_order(archive, prefix, place);
  const std::string bytes = archive.read_text(*archive.find(prefix + "data.pkl"), kMaxPickleBytes);
  const Pickle pickle = Pickle::parse(bytes, place);
  TorchTensors source(archive, prefix, place);
  TorchFile file{Walk(source, place).run(pickle.root()), type_of(pickle.root())};
  if (file.tensors.empty()) {
    throw CheckpointError(Problem{.place = place,
                                  .expected = "a state dict or a module with tensors",
                                  .got = str(type_of(pickle.root()), " without any")});
  }
  return file;
}

}  // namespace dalle::storage
