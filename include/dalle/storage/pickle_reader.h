// A reader of Python pickles that runs nothing. A pickle is a program for a little stack machine whose calls may name any
// function; here a call only notes what it would have called, with its arguments, and no name is ever looked up. Opcodes
// outside an allow-list (protocols 2 to 4 as torch.save writes them) are errors, every length is checked against the
// bytes that are left, and the number of values is limited.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dalle::storage {

/// One value of a pickle. Values may be shared and may contain themselves: whoever walks them limits depth and work.
struct PickleValue {
  enum class Kind {
    kNone,
    kBool,
    kInteger,
    kFloat,
    kText,
    kBytes,
    kList,
    kTuple,
    kSet,
    kDict,          // also collections.OrderedDict
    kGlobal,        // a class or function by its name, "torch._utils._rebuild_tensor_v2"
    kObject,        // what a call or a class would have made
    kPersistentId,  // a reference to something outside the pickle: for PyTorch, a storage
  };
  using Entry = std::pair<const PickleValue*, const PickleValue*>;

  Kind kind = Kind::kNone;
  int64_t integer = 0;  // kInteger; 0 or 1 of kBool
  double number = 0;    // kFloat
  std::string text;     // kText (UTF-8), kBytes; "module.name" of kGlobal
  std::vector<const PickleValue*>
      items;                          // kList, kTuple, kSet; the one id of kPersistentId; what was appended to kObject
  std::vector<Entry> entries;         // kDict, and what was set by key in kObject, in order
  const PickleValue* type = nullptr;  // of kObject: the kGlobal that was called
  const PickleValue* arguments = nullptr;  // of kObject: the tuple it was called with
  const PickleValue* state = nullptr;      // of kObject and kDict: its attributes, usually a kDict; nullptr: none

  bool is(Kind other) const { return kind == other; }
  /// "module.name" of an object's class or function; "" where this is no object.
  std::string_view type_name() const { return type == nullptr ? std::string_view{} : type->text; }
  /// The value of a text key, the last one where it was set twice, or nullptr.
  const PickleValue* find(std::string_view key) const;
  /// The attribute of this name, or nullptr.
  const PickleValue* attribute(std::string_view name) const;
};

/// "a list", "an object of class dall_e.encoder.Encoder": for messages.
std::string describe(const PickleValue& value);

/// Owns the values.
class Pickle {
 public:
  static constexpr size_t kMaxValues = size_t{1} << 20;

  /// `bytes` must be one whole pickle, with nothing behind its STOP. Throws CheckpointError, with `place`, the byte and
  /// the opcode in it.
  static Pickle parse(std::string_view bytes, const std::string& place);

  const PickleValue& root() const { return *root_; }
  size_t num_values() const { return values_.size(); }

 private:
  std::deque<PickleValue> values_;
  const PickleValue* root_ = nullptr;
};

}  // namespace dalle::storage
