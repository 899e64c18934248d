#include "dalle/core/str.h"
#include "dalle/storage/pickle_reader.h"
#include "printable.h"

namespace dalle::storage {

namespace {
using Kind = PickleValue::Kind;
}  // namespace

const PickleValue* PickleValue::find(std::string_view key) const {
  for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
    if (entry->first->is(Kind::kText) && entry->first->text == key) return entry->second;
  }
  return nullptr;
}

const PickleValue* PickleValue::attribute(std::string_view name) const {
  return state == nullptr ? nullptr : state->find(name);
}

std::string describe(const PickleValue& value) {
  switch (value.kind) {
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return value.integer != 0 ? "True" : "False";
    case Kind::kInteger:
      return str(value.integer);
    case Kind::kFloat:
      return str(value.number);
    case Kind::kText:
      return str("the text ", printable(value.text));
    case Kind::kBytes:
      return str(value.text.size(), " bytes");
    case Kind::kList:
      return "a list";
    case Kind::kTuple:
      return "a tuple";
    case Kind::kSet:
      return "a set";
    case Kind::kDict:
      return "a dict";
    case Kind::kGlobal:
      return str("the class or function ", printable(value.text));
    case Kind::kObject:
      return str("an object of ", printable(value.type_name()));
    case Kind::kPersistentId:
      return "a reference to a storage";
  }
  return "?";
}

}  // namespace dalle::storage
