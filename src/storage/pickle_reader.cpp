#include "dalle/storage/pickle_reader.h"

#include <bit>
#include <cstring>
#include <unordered_map>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "printable.h"

namespace dalle::storage {
namespace {

static_assert(std::endian::native == std::endian::little, "binary numbers of a pickle are little-endian");

using Kind = PickleValue::Kind;

/// The stack machine. Each group of opcodes is a function that says whether the opcode was one of its own.
class Machine {
 public:
  Machine(std::string_view bytes, std::deque<PickleValue>& values, const std::string& place)
      : bytes_(bytes), values_(values), place_(place) {}

  const PickleValue* run() {
    if (take(1) != "\x80") fail("a pickle of protocol 2 or later", "other bytes");
    const auto protocol = number<uint8_t>();
    if (protocol < 2 || protocol > 5) fail("a pickle of protocol 2 to 5", str("protocol ", int{protocol}));
    for (;;) {
      opcode_at_ = at_;
      const char opcode = take(1)[0];
      if (opcode == '.') break;
      if (!scalar(opcode) && !text(opcode) && !container(opcode) && !memo(opcode) && !object(opcode)) {
        fail("an opcode of the allow-list", str("opcode ", printable({&opcode, 1}), " (", int{uint8_t(opcode)}, ")"));
      }
    }
    if (stack_.size() != 1 || !marks_.empty()) fail("one value at the end", str(stack_.size()));
    if (at_ != bytes_.size()) fail("nothing behind the end of the pickle", str(bytes_.size() - at_, " bytes"));
    return stack_[0];
  }

 private:
  [[noreturn]] void fail(const std::string& expected, const std::string& got) const {
    throw CheckpointError(Problem{.place = str(place_, " (byte ", opcode_at_, " of the pickle)"),
                                  .expected = expected,
                                  .got = got,
                                  .hint = "the file is damaged, or it holds more than weights"});
  }

  // ---------------------------------------------------------------------------------------------------- bytes and values

  std::string_view take(uint64_t count) {
    if (count > bytes_.size() - at_) fail(str(count, " more bytes"), str(bytes_.size() - at_));
    const auto taken = bytes_.substr(at_, count);
    at_ += count;
    return taken;
  }

  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }

  std::string_view line() {
    const size_t end = bytes_.find('\n', at_);
    if (end == std::string_view::npos) fail("the end of a line", "the end of the pickle");
    const auto text = take(end - at_);
    at_ += 1;
    return text;
  }

  PickleValue* make(Kind kind) {
    if (values_.size() >= Pickle::kMaxValues) fail(str("at most ", Pickle::kMaxValues, " values"), "more");
    PickleValue& made = values_.emplace_back();
    made.kind = kind;
    return &made;
  }

  bool push(PickleValue* value) {
    stack_.push_back(value);
    return true;
  }
  bool push_integer(Kind kind, int64_t value) {
    PickleValue* made = make(kind);
    made->integer = value;
    return push(made);
  }
  bool push_text(Kind kind, std::string_view bytes) {
    PickleValue* made = make(kind);
    made->text = bytes;
    return push(made);
  }

  /// Values above the last mark, or all.
  size_t available() const { return stack_.size() - (marks_.empty() ? 0 : marks_.back()); }

  PickleValue* pop() {
    if (available() == 0) fail("a value on the stack", "none");
    PickleValue* value = stack_.back();
    stack_.pop_back();
    return value;
  }
  PickleValue* pop(Kind kind, const char* expected) {
    PickleValue* value = pop();
    if (!value->is(kind)) fail(expected, describe(*value));
    return value;
  }
  PickleValue* top() {
    if (available() == 0) fail("a value on the stack", "none");
    return stack_.back();
  }

  /// The values above the last mark; the mark goes too.
  std::vector<const PickleValue*> pop_to_mark() {
    if (marks_.empty()) fail("a mark on the stack", "none");
    std::vector<const PickleValue*> items(stack_.begin() + static_cast<ptrdiff_t>(marks_.back()), stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return items;
  }
  std::vector<const PickleValue*> pop_count(size_t count) {
    if (available() < count) fail(str(count, " values on the stack"), str(available()));
    std::vector<const PickleValue*> items(stack_.end() - static_cast<ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return items;
  }

  // ------------------------------------------------------------------------------------------------------------- opcodes

  bool scalar(char opcode) {
    switch (opcode) {
      case 'N':
        return push(make(Kind::kNone));
      case '\x88':
      case '\x89':
        return push_integer(Kind::kBool, opcode == '\x88' ? 1 : 0);
      case 'J':
        return push_integer(Kind::kInteger, number<int32_t>());
      case 'K':
        return push_integer(Kind::kInteger, number<uint8_t>());
      case 'M':
        return push_integer(Kind::kInteger, number<uint16_t>());
      case '\x8a':  // LONG1: little-endian two's complement of any length
        return push_integer(Kind::kInteger, long_integer(number<uint8_t>()));
      case 'G': {
        PickleValue* made = make(Kind::kFloat);
        made->number = std::bit_cast<double>(__builtin_bswap64(number<uint64_t>()));
        return push(made);
      }
      default:
        return false;
    }
  }

  int64_t long_integer(uint8_t size) {
    if (size > sizeof(int64_t)) fail("an integer of at most 64 bits", str(8 * int{size}, " bits"));
    const auto bytes = take(size);
    int64_t value = size > 0 && (bytes.back() & 0x80) != 0 ? -1 : 0;
    std::memcpy(&value, bytes.data(), bytes.size());
    return value;
  }

  bool text(char opcode) {
    switch (opcode) {
      case 'X':
        return push_text(Kind::kText, take(number<uint32_t>()));
      case '\x8c':
        return push_text(Kind::kText, take(number<uint8_t>()));
      case '\x8d':
        return push_text(Kind::kText, take(number<uint64_t>()));
      case 'U':  // a string of Python 2
        return push_text(Kind::kText, take(number<uint8_t>()));
      case 'B':
        return push_text(Kind::kBytes, take(number<uint32_t>()));
      case 'C':
        return push_text(Kind::kBytes, take(number<uint8_t>()));
      case '\x8e':
        return push_text(Kind::kBytes, take(number<uint64_t>()));
      case '\x95':  // a frame: its length only helps a reader of streams
        if (number<uint64_t>() > bytes_.size() - at_) fail("a frame within the pickle", "a longer one");
        return true;
      default:
        return false;
    }
  }

  bool container(char opcode) {
    switch (opcode) {
      case ']':
        return push(make(Kind::kList));
      case '}':
        return push(make(Kind::kDict));
      case ')':
        return push(make(Kind::kTuple));
      case '\x8f':
        return push(make(Kind::kSet));
      case '(':
        marks_.push_back(stack_.size());
        return true;
      case 't':
        return push_sequence(Kind::kTuple, pop_to_mark());
      case '\x85':
      case '\x86':
      case '\x87':
        return push_sequence(Kind::kTuple, pop_count(static_cast<size_t>(opcode - '\x84')));
      case '\x91':
        return push_sequence(Kind::kSet, pop_to_mark());
      case 'a':
        return extend({Kind::kList, Kind::kObject}, pop_count(1));
      case 'e':
        return extend({Kind::kList, Kind::kObject}, pop_to_mark());
      case '\x90':
        return extend({Kind::kSet, Kind::kObject}, pop_to_mark());
      case 's':
        return set_entries(pop_count(2));
      case 'u':
        return set_entries(pop_to_mark());
      default:
        return false;
    }
  }

  bool push_sequence(Kind kind, std::vector<const PickleValue*> items) {
    PickleValue* made = make(kind);
    made->items = std::move(items);
    return push(made);
  }

  bool extend(std::initializer_list<Kind> allowed, const std::vector<const PickleValue*>& items) {
    PickleValue* target = top();
    if (!target->is(allowed.begin()[0]) && !target->is(allowed.begin()[1])) {
      fail("something to append to", describe(*target));
    }
    target->items.insert(target->items.end(), items.begin(), items.end());
    return true;
  }

  bool set_entries(const std::vector<const PickleValue*>& items) {
    PickleValue* target = top();
    if (!target->is(Kind::kDict) && !target->is(Kind::kObject)) fail("something to set keys in", describe(*target));
    if (items.size() % 2 != 0) fail("as many values as keys", str(items.size(), " in all"));
    for (size_t i = 0; i < items.size(); i += 2) target->entries.emplace_back(items[i], items[i + 1]);
    return true;
  }

  bool memo(char opcode) {
    switch (opcode) {
      case 'q':
        memo_[number<uint8_t>()] = top();
        return true;
      case 'r':
        memo_[number<uint32_t>()] = top();
        return true;
      case '\x94':
        memo_[static_cast<uint32_t>(memo_.size())] = top();
        return true;
      case 'h':
        return push(remembered(number<uint8_t>()));
      case 'j':
        return push(remembered(number<uint32_t>()));
      default:
        return false;
    }
  }

  PickleValue* remembered(uint32_t key) const {
    const auto found = memo_.find(key);
    if (found == memo_.end()) fail("a value that was kept before", str("number ", key, ", which was not"));
    return found->second;
  }

  bool object(char opcode) {
    switch (opcode) {
      case 'c': {
        const auto module = line(), name = line();
        return push_global(module, name);
      }
      case '\x93': {
        const PickleValue* name = pop(Kind::kText, "the name of a class");
        const PickleValue* module = pop(Kind::kText, "the module of a class");
        return push_global(module->text, name->text);
      }
      case 'R':
      case '\x81': {  // f(*arguments), and class.__new__(class, *arguments)
        const PickleValue* arguments = pop(Kind::kTuple, "a tuple of arguments");
        const PickleValue* callee = pop(Kind::kGlobal, "a class or function by its name");
        return push_call(callee, arguments);
      }
      case 'b': {
        const PickleValue* state = pop();
        PickleValue* target = top();
        if (!target->is(Kind::kObject) && !target->is(Kind::kDict)) {
          fail("an object to give attributes to", describe(*target));
        }
        target->state = state;
        return true;
      }
      case 'Q': {
        const PickleValue* id = pop();
        return push_sequence(Kind::kPersistentId, {id});
      }
      default:
        return false;
    }
  }

  bool push_global(std::string_view module, std::string_view name) {
    constexpr size_t kMaxName = 512, kMaxGlobals = 4096;
    if (module.size() + name.size() > kMaxName)
      fail(str("a name of at most ", kMaxName, " characters"), "a longer one");
    PickleValue*& global = globals_[str(module, ".", name)];
    if (global != nullptr) return push(global);
    if (globals_.size() > kMaxGlobals) fail(str("at most ", kMaxGlobals, " names of classes"), "more");
    global = make(Kind::kGlobal);
    global->text = str(module, ".", name);
    return push(global);
  }

  /// A call is kept as it stands, but for three types that are plain data.
  bool push_call(const PickleValue* callee, const PickleValue* arguments) {
    const std::string& name = callee->text;
    const auto& given = arguments->items;
    if (name == "torch.Size" && given.size() == 1 && given[0]->is(Kind::kTuple)) {
      PickleValue* made = make(Kind::kTuple);
      copy_items(*given[0], *made);
      return push(made);
    }
    const bool is_set = name == "__builtin__.set" || name == "builtins.set";
    if (is_set && given.size() == 1 && given[0]->is(Kind::kList)) {
      PickleValue* made = make(Kind::kSet);
      copy_items(*given[0], *made);
      return push(made);
    }
    PickleValue* made = make(name == "collections.OrderedDict" && given.empty() ? Kind::kDict : Kind::kObject);
    made->type = callee;
    made->arguments = arguments;
    return push(made);
  }

  /// Copies count like new values: a few bytes could else ask for the same long list again and again.
  void copy_items(const PickleValue& from, PickleValue& to) {
    copied_ += from.items.size();
    if (copied_ > Pickle::kMaxValues) fail(str("at most ", Pickle::kMaxValues, " values"), "more");
    to.items = from.items;
  }

  std::string_view bytes_;
  std::deque<PickleValue>& values_;
  const std::string& place_;
  size_t at_ = 0, opcode_at_ = 0;
  std::vector<PickleValue*> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint32_t, PickleValue*> memo_;
  std::unordered_map<std::string, PickleValue*> globals_;
  size_t copied_ = 0;
};

}  // namespace

Pickle Pickle::parse(std::string_view bytes, const std::string& place) {
  Pickle pickle;
  pickle.root_ = Machine(bytes, pickle.values_, place).run();
  return pickle;
}

}  // namespace dalle::storage
