#include "dalle/storage/pickle_reader.h"

#include <gmock/gmock.h>

#include "dalle/storage/zip_archive.h"
#include "storage/scratch.h"

namespace dalle::storage {
namespace {

using ::testing::HasSubstr;
using Kind = PickleValue::Kind;
using namespace std::string_literals;

Pickle parse(const std::string& opcodes) { return Pickle::parse("\x80\x02" + opcodes, "test"); }

std::string message(const std::string& opcodes) {
  return message_of<CheckpointError>([&] { parse(opcodes); });
}

std::string golden_pickle(const std::string& name) {
  const ZipReader reader(fs::path(DALLE_SOURCE_DIR) / "tests/golden/torch" / name);
  return reader.read_text(*reader.find(fs::path(name).stem().string() + "/data.pkl"), 1 << 20);
}

/// Touches every value once: a dangling pointer would show here under a sanitizer.
size_t count_values(const PickleValue* value, std::set<const PickleValue*>& seen) {
  if (value == nullptr || !seen.insert(value).second) return 0;
  size_t count = 1 + describe(*value).size() % 1;
  for (const auto* item : value->items) count += count_values(item, seen);
  for (const auto& [key, held] : value->entries) count += count_values(key, seen) + count_values(held, seen);
  return count + count_values(value->type, seen) + count_values(value->arguments, seen) +
         count_values(value->state, seen);
}

TEST(PickleReader, ScalarsAreRead) {
  EXPECT_TRUE(parse("N.").root().is(Kind::kNone));
  EXPECT_EQ(parse("\x88.").root().integer, 1);
  EXPECT_TRUE(parse("\x89.").root().is(Kind::kBool));
  EXPECT_EQ(parse("K\xff.").root().integer, 255);
  EXPECT_EQ(parse("M\x01\x02.").root().integer, 0x0201);
  EXPECT_EQ(parse("J\xfe\xff\xff\xff.").root().integer, -2);
  EXPECT_EQ(parse("\x8a\x00."s).root().integer, 0);
  EXPECT_EQ(parse("\x8a\x01\x80.").root().integer, -128);
  EXPECT_EQ(parse("\x8a\x06\x00\x00\x00\x00\x00\x01."s).root().integer, int64_t{1} << 40);
  EXPECT_EQ(parse("G?\xb9\x99\x99\x99\x99\x99\x9a.").root().number, 0.1);
  EXPECT_EQ(parse("X\x03\x00\x00\x00"
                  "abc."s)
                .root()
                .text,
            "abc");
  EXPECT_EQ(parse("\x8c\x03"
                  "abc.")
                .root()
                .text,
            "abc");
  EXPECT_EQ(parse("\x8d\x03\x00\x00\x00\x00\x00\x00\x00"
                  "abc."s)
                .root()
                .text,
            "abc");
  EXPECT_TRUE(parse("C\x01z.").root().is(Kind::kBytes));
}

TEST(PickleReader, ContainersKeepOrderAndSharing) {
  const std::string x = "X\x01\x00\x00\x00x"s;
  const Pickle pickle = parse("}q\x01(" + x + "K\x02K\x05h\x01K\x06K\x03\x85" + x +
                              "](K\x07K\x08"
                              "eu.");
  const PickleValue& root = pickle.root();
  ASSERT_TRUE(root.is(Kind::kDict));
  ASSERT_EQ(root.entries.size(), 4u);
  EXPECT_EQ(root.entries[0].second->integer, 2);
  EXPECT_EQ(root.entries[1].second, &root) << "a dict that holds itself";
  EXPECT_TRUE(root.entries[2].second->is(Kind::kTuple));
  ASSERT_TRUE(root.find("x")->is(Kind::kList)) << "what was set last";
  EXPECT_EQ(root.find("x")->items.at(1)->integer, 8);
  EXPECT_EQ(root.find("y"), nullptr);
}

TEST(PickleReader, CallsAreKeptAndNeverMade) {
  const fs::path victim = fs::temp_directory_path() / str("dalle-pickle-victim-", ::getpid());
  const std::string command = "touch " + victim.string();
  const Pickle pickle =
      parse("cos\nsystem\nX" + std::string(1, static_cast<char>(command.size())) + "\0\0\0"s + command + "\x85R.");
  EXPECT_TRUE(pickle.root().is(Kind::kObject));
  EXPECT_EQ(pickle.root().type_name(), "os.system");
  EXPECT_EQ(pickle.root().arguments->items.at(0)->text, command);
  EXPECT_FALSE(fs::exists(victim));
  // builtins.eval by protocol 4, a class with __setstate__, a list subclass that runs code when appended to
  EXPECT_EQ(parse("\x8c\x08"
                  "builtins\x8c\x04"
                  "eval\x93)R.")
                .root()
                .type_name(),
            "builtins.eval");
  EXPECT_TRUE(parse("cm\nC\n)\x81}b.").root().state->is(Kind::kDict));
  EXPECT_EQ(parse("cm\nL\n)\x81K\x01"
                  "a.")
                .root()
                .items.size(),
            1u);
}

TEST(PickleReader, PlainTypesOfPyTorchAreData) {
  const Pickle ordered = parse(
      "ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00"
      "aK\x01u}X\x02\x00\x00\x00"
      "_mNsb."s);
  EXPECT_TRUE(ordered.root().is(Kind::kDict));
  EXPECT_EQ(ordered.root().find("a")->integer, 1);
  EXPECT_TRUE(ordered.root().attribute("_m")->is(Kind::kNone));
  const Pickle size = parse("ctorch\nSize\nK\x02K\x03\x86\x85R.");
  EXPECT_TRUE(size.root().is(Kind::kTuple));
  EXPECT_EQ(size.root().items.at(1)->integer, 3);
  const Pickle set = parse(
      "c__builtin__\nset\n]K\x05"
      "a\x85R.");
  EXPECT_TRUE(set.root().is(Kind::kSet));
  EXPECT_EQ(set.root().items.at(0)->integer, 5);
}

TEST(PickleReader, AModuleOfThePackageIsATreeOfAttributes) {
  const Pickle pickle = Pickle::parse(golden_pickle("encoder.pkl"), "test");
  const PickleValue& root = pickle.root();
  EXPECT_EQ(root.type_name(), "dall_e.encoder.Encoder");
  EXPECT_EQ(root.attribute("n_hid")->integer, 8);
  const PickleValue* blocks = root.attribute("_modules")->find("blocks");
  EXPECT_EQ(blocks->type_name(), "torch.nn.modules.container.Sequential");
  const PickleValue* w = blocks->attribute("_modules")->find("input")->attribute("_parameters")->find("w");
  EXPECT_EQ(w->type_name(), "torch._utils._rebuild_parameter");
  const PickleValue* storage = w->arguments->items.at(0)->arguments->items.at(0);
  EXPECT_TRUE(storage->is(Kind::kPersistentId));
  EXPECT_EQ(storage->items.at(0)->items.at(1)->text, "torch.FloatStorage");
  std::set<const PickleValue*> seen;
  EXPECT_GT(count_values(&root, seen), 2000u);
}

TEST(PickleReader, WhatIsNotAllowedIsNamed) {
  const std::pair<std::string, const char*> cases[] = {
      {"cos\nsystem\n(S'true'\nlR.", "opcode 'S'"},
      {"(cos\nsystem\nX\x01\x00\x00\x00xo."s, "opcode 'o'"},
      {"(X\x01\x00\x00\x00xios\nsystem\n."s, "opcode 'i'"},
      {"I42\n.", "opcode 'I'"},
      {"Pfoo\n.", "opcode 'P'"},
      {"\x82\x01.", "opcode"},  // extension registry
      {"\x97.", "opcode"},      // out-of-band buffers
      {"\x92.", "opcode"},      // NEWOBJ_EX
      {"\x96\x00\x00\x00\x00\x00\x00\x00\x00."s, "opcode"},
      {"K\x01)R.", "a class or function by its name, got 1"},
      {"cm\nf\n]R.", "a tuple of arguments, got a list"},
      {"]K\x01K\x02s.", "something to set keys in"},
      {"K\x01K\x02"
       "a.",
       "something to append to"},
      {"K\x01}b.", "an object to give attributes to"},
      {"}(K\x01u.", "as many values as keys"},
      {"(K\x01t0.", "opcode '0'"},
      {".", "one value at the end"},
      {"NN.", "one value at the end, got 2"},
      {"(N.", "one value at the end"},
      {"N.N", "nothing behind the end"},
      {"N", "1 more bytes"},
      {"(a.", "values on the stack"},
      {"N(\x85.", "1 values on the stack, got 0"},  // a mark is no value
      {"t.", "a mark"},
      {"h\x01.", "kept before"},
      {"q\x01.", "a value on the stack"},
      {"\x8a\x09\x01\x01\x01\x01\x01\x01\x01\x01\x01.", "at most 64 bits"},
      {"X\xff\xff\xff\xff.", "more bytes"},
      {"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", "more bytes"},
      {"\x95\xff\xff\xff\xff\xff\xff\xff\xff.", "a frame"},
      {"cno end of line", "the end of a line"},
      {"c" + std::string(600, 'm') + "\nf\n.", "a name of at most"},
  };
  for (const auto& [opcodes, says] : cases) {
    EXPECT_THAT(message(opcodes), HasSubstr(says));
    EXPECT_THAT(message(opcodes), HasSubstr("test (byte "));
  }
  EXPECT_THROW(Pickle::parse("", "test"), CheckpointError);
  EXPECT_THROW(Pickle::parse("\x80", "test"), CheckpointError);
  EXPECT_THROW(Pickle::parse("\x80\x01N.", "test"), CheckpointError);
  EXPECT_THROW(Pickle::parse("\x80\x06N.", "test"), CheckpointError);
  EXPECT_THROW(Pickle::parse("N.", "test"), CheckpointError);
}

TEST(PickleReader, MessagesShowNoControlCharacters) {
  const std::string text = message("X\x05\x00\x00\x00\x1b[31m)R."s);
  EXPECT_THAT(text, HasSubstr("'?[31m'"));
}

TEST(PickleReader, DepthCostsNothing) {
  const size_t depth = 300'000;
  std::string lists, tuples;
  for (size_t i = 0; i < depth; ++i) lists += "]";
  for (size_t i = 1; i < depth; ++i) lists += "a";
  const Pickle pickle = parse(lists + ".");
  EXPECT_EQ(pickle.num_values(), depth);
  tuples = "N" + std::string(depth, '\x85') + ".";
  EXPECT_EQ(parse(tuples).num_values(), depth + 1);
}

TEST(PickleReader, BombsAreRefused) {
  const size_t limit = Pickle::kMaxValues;
  EXPECT_THAT(message("(" + std::string(limit + 1, 'N') + "t."), HasSubstr("at most 1048576 values"));
  EXPECT_NO_THROW(parse("(" + std::string(limit - 1, 'N') + "t."));
  // One long list, made into a set again and again: each copy would cost six bytes of pickle.
  std::string sets = "c__builtin__\nset\nq\x01](" + std::string(100'000, 'N') + "e\x85q\x02";
  for (int i = 0; i < 100; ++i) sets += "h\x01h\x02R";
  EXPECT_THAT(message(sets + "."), HasSubstr("values"));
  // A doubling tuple ("billion laughs") stays small as long as nobody walks it.
  std::string laughs = "Nq\x01";
  for (int i = 0; i < 1000; ++i) laughs += "h\x01h\x01\x86q\x01";
  EXPECT_LT(parse("(" + laughs + "t.").num_values(), 1100u);
  // Names of classes, combined from two lists of texts.
  std::string names = "(";
  for (int i = 0; i < 100; ++i)
    names += "\x8c\x01" + std::string(1, static_cast<char>(i)) + "q" + std::string(1, static_cast<char>(i));
  for (int i = 0; i < 100; ++i) {
    for (int j = 0; j < 100; ++j) {
      names += "h" + std::string(1, static_cast<char>(i)) + "h" + std::string(1, static_cast<char>(j)) + "\x93";
    }
  }
  EXPECT_THAT(message(names + "t."), HasSubstr("names of classes"));
}

TEST(PickleReader, EveryTruncationIsAnError) {
  for (const char* name : {"state.pt", "state_protocol4.pt", "nested.pt"}) {
    const std::string whole = golden_pickle(name);
    EXPECT_NO_THROW(Pickle::parse(whole, "test"));
    for (size_t length = 0; length < whole.size(); ++length) {
      EXPECT_THROW(Pickle::parse(whole.substr(0, length), "test"), CheckpointError) << name << " " << length;
    }
  }
}

TEST(PickleReader, EveryValueOfEveryByteIsReadOrRefused) {
  for (const char* name : {"state.pt", "state_protocol4.pt", "nested.pt"}) {
    const std::string whole = golden_pickle(name);
    size_t refused = 0;
    for (size_t i = 0; i < whole.size(); ++i) {
      for (int value = 0; value < 256; value += (i < 64 ? 1 : 23)) {
        std::string damaged = whole;
        damaged[i] = static_cast<char>(value);
        try {
          const Pickle pickle = Pickle::parse(damaged, "test");
          EXPECT_LE(pickle.num_values(), whole.size());
          std::set<const PickleValue*> seen;
          count_values(&pickle.root(), seen);
        } catch (const CheckpointError&) {
          ++refused;
        }
      }
    }
    EXPECT_GT(refused, whole.size()) << name;
  }
}

}  // namespace
}  // namespace dalle::storage
