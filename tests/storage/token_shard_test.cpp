#include "dalle/storage/token_shard.h"

#include <gmock/gmock.h>

#include <cstring>

#include "storage/scratch.h"
#include "support/token_shards.h"

namespace dalle::storage {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::token_captions;
using testing::token_code;
using testing::token_codes;
using testing::token_info;
using testing::token_key;
using testing::token_writer;

std::vector<int64_t> codes_of(const TokenShardReader& shard, int64_t sample, int64_t crop) {
  std::vector<int64_t> codes(static_cast<size_t>(shard.header().info.tokens_per_crop()));
  shard.read_codes(sample, crop, codes);
  return codes;
}

// 70,000 codes need 32 bits.
TEST(TokenShard, GivesBackWhatWasWritten) {
  const Scratch scratch("token-shard");
  for (const int64_t vocab_size : {1000, 65536, 65537, 70000}) {
    const auto info = token_info(9, vocab_size);
    const auto written = token_writer(info, 2, 8, {3, 5}).write(scratch / "a.shard");
    const TokenShardReader shard(scratch / "a.shard");
    EXPECT_EQ(shard.header().info, info);
    EXPECT_EQ(shard.header().checksum, written.checksum);
    EXPECT_EQ(shard.header().file_bytes, fs::file_size(scratch / "a.shard"));
    EXPECT_EQ(written.file_bytes, shard.header().file_bytes);
    EXPECT_EQ(shard.header().first_index, 2);
    EXPECT_EQ(shard.header().end_index, 8);
    ASSERT_EQ(shard.size(), 4);
    const std::vector<int64_t> indices{2, 4, 6, 7};
    for (const int64_t sample : {3, 0, 2, 1}) {  // any order
      const int64_t index = indices[static_cast<size_t>(sample)];
      EXPECT_EQ(shard.index(sample), index);
      EXPECT_EQ(shard.key(sample), token_key(index));
      EXPECT_EQ(shard.captions(sample), token_captions(index));
      for (const int64_t crop : {2, 0, 1})
        EXPECT_EQ(codes_of(shard, sample, crop), token_codes(index, crop, vocab_size));
    }
    EXPECT_NO_THROW(shard.verify());
  }
}

TEST(TokenShard, HoldsTheLargestCodes) {
  const Scratch scratch("token-largest");
  for (const int64_t vocab_size : {int64_t{65536}, int64_t{65537}, int64_t{1} << 31}) {
    auto info = token_info(1, vocab_size);
    info.num_crops = 1;
    TokenShardWriter writer(info, 0, 1);
    const std::vector<int64_t> codes{0, vocab_size - 1, 1, vocab_size - 2};
    writer.add({0, "", {}, codes});
    writer.write(scratch / "a.shard");
    const TokenShardReader shard(scratch / "a.shard");
    EXPECT_EQ(codes_of(shard, 0, 0), codes);
    EXPECT_EQ(shard.key(0), "");
    EXPECT_TRUE(shard.captions(0).empty());
  }
}

TEST(TokenShard, MayBeEmpty) {
  const Scratch scratch("token-empty");
  token_writer(token_info(5), 1, 4, {1, 2, 3}).write(scratch / "a.shard");
  const TokenShardReader shard(scratch / "a.shard");
  EXPECT_EQ(shard.size(), 0);
  EXPECT_NO_THROW(shard.verify());
  EXPECT_THROW(shard.key(0), c10::ValueError);
}

// docs/token_shards.md, followed by hand in scripts/golden/token_shard.py: the same bytes.
TEST(TokenShard, FollowsItsDocument) {
  const Scratch scratch("token-golden");
  const fs::path golden = fs::path(DALLE_SOURCE_DIR) / "tests/golden/token_set";
  testing::write_token_set(scratch / "set", token_info(6));
  for (const char* name : {"tokens-000000.shard", "tokens-000001.shard"}) {
    EXPECT_TRUE(read_file(scratch / "set" / name) == read_file(golden / name)) << name;
    EXPECT_NO_THROW(TokenShardReader(golden / name).verify());
  }
}

TEST(TokenShard, TheWriterRefusesWhatTheReaderWould) {
  TokenShardWriter writer(token_info(9), 2, 5);
  const std::vector<int64_t> codes(12, 3);
  EXPECT_THROW(writer.add({1, "k", {}, codes}), c10::ValueError) << "before the shard's range";
  EXPECT_THROW(writer.add({5, "k", {}, codes}), c10::ValueError) << "after it";
  writer.add({3, "k", {}, codes});
  EXPECT_THROW(writer.add({3, "k", {}, codes}), c10::ValueError) << "twice";
  EXPECT_THROW(writer.add({4, "k", {}, std::vector<int64_t>(11, 3)}), c10::ValueError);
  EXPECT_THROW(writer.add({4, "k", {}, std::vector<int64_t>(12, 1000)}), c10::ValueError);
  EXPECT_THROW(writer.add({4, "k", {}, std::vector<int64_t>(12, -1)}), c10::ValueError);
  EXPECT_THROW(TokenShardWriter(token_info(9), 5, 10), c10::ValueError);
  auto info = token_info(9);
  info.num_crops = 0;
  EXPECT_THROW(TokenShardWriter(info, 0, 1), c10::ValueError);
}

TEST(TokenShard, EveryCutIsNoticedWhenItIsOpened) {
  const Scratch scratch("token-cut");
  const fs::path path = scratch / "a.shard";
  token_writer(token_info(3), 0, 3).write(path);
  const std::string whole = read_file(path);
  for (size_t size = 0; size < whole.size(); ++size) {
    overwrite(path, whole.substr(0, size));
    EXPECT_THROW(TokenShardReader{path}, CheckpointError) << size << " of " << whole.size();
  }
  overwrite(path, whole + '\0');
  EXPECT_THAT(message_of<CheckpointError>([&] { TokenShardReader{path}; }),
              AllOf(HasSubstr("a.shard"), HasSubstr(str(whole.size(), " bytes, as its header says"))));
}

// Whatever byte is damaged: opening or verifying says so, and reading gives values in range or says so.
TEST(TokenShard, EveryDamagedByteIsNoticed) {
  const Scratch scratch("token-damage");
  const fs::path path = scratch / "a.shard";
  token_writer(token_info(3), 0, 3).write(path);
  const std::string whole = read_file(path);
  for (size_t at = 0; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0xA5);
    overwrite(path, damaged);
    EXPECT_THROW(TokenShardReader(path).verify(), CheckpointError) << "byte " << at;
    try {
      const TokenShardReader shard(path);
      for (int64_t sample = 0; sample < std::min<int64_t>(3, shard.size()); ++sample) {
        shard.key(sample);
        shard.captions(sample);
        shard.index(sample);
        for (const int64_t code : codes_of(shard, sample, 0)) EXPECT_LT(code, shard.header().info.vocab_size);
      }
    } catch (const CheckpointError&) {
    } catch (const c10::ValueError&) {
      FAIL() << "byte " << at << ": a number was used before it was checked";
    }
  }
}

/// Replaces a text in the header of a shard, whose length follows.
void replace_in_header(const fs::path& path, const std::string& from, const std::string& to) {
  const std::string bytes = read_file(path);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data() + 8, 8);
  std::string header = bytes.substr(32, length);
  ASSERT_NE(header.find(from), std::string::npos) << from;
  header.replace(header.find(from), from.size(), to);
  std::string changed = bytes.substr(0, 32) + header + bytes.substr(32 + length);
  length = header.size();
  std::memcpy(changed.data() + 8, &length, 8);
  overwrite(path, changed);
}

TEST(TokenShard, NumbersOfAHostileHeaderAreNotBelieved) {
  const Scratch scratch("token-hostile");
  const fs::path path = scratch / "a.shard";
  const std::pair<std::string, std::string> replacements[] = {
      {"\"num_crops\":3", "\"num_crops\":0"},
      {"\"num_crops\":3", "\"num_crops\":281474976710656"},
      {"\"grid_size\":2", "\"grid_size\":-2"},
      {"\"grid_size\":2", "\"grid_size\":4000000000"},
      {"\"grid_size\":2", "\"grid_size\":2.5"},
      {"\"vocab_size\":1000", "\"vocab_size\":99999"},
      {"\"num_samples\":3", "\"num_samples\":4"},
      {"\"num_samples\":3", "\"num_samples\":1e9"},
      {"\"num_captions\":6", "\"num_captions\":9223372036854775807"},
      {"\"key_bytes\":", "\"key_bytes\":-"},
      {"\"first_index\":0", "\"first_index\":1"},
      {"\"format_version\":1", "\"format_version\":2"},
      {"\"settings\":{", "\"settings\":{\"a\":1,"},
      {"\"seed\":7", "\"seed\":\"\""},
  };
  for (const auto& [from, to] : replacements) {
    token_writer(token_info(3), 0, 3).write(path);
    replace_in_header(path, from, to);
    EXPECT_THROW(TokenShardReader{path}, CheckpointError) << to;
  }
  // An empty shard may claim any grid: it costs no memory.
  token_writer(token_info(3), 0, 3, {0, 1, 2}).write(path);
  replace_in_header(path, "\"grid_size\":2", "\"grid_size\":32768");
  EXPECT_THAT(message_of<CheckpointError>([&] { TokenShardReader(path).verify(); }), HasSubstr("checksum"));
  token_writer(token_info(3), 0, 3).write(path);
  std::string bytes = read_file(path);
  const uint64_t length = ~uint64_t{0} - 8;
  std::memcpy(bytes.data() + 8, &length, 8);
  overwrite(path, bytes);
  EXPECT_THAT(message_of<CheckpointError>([&] { TokenShardReader{path}; }), HasSubstr("a header within the file"));
}

// A file that is whole by its checksum and still says nonsense: offsets that fall, codes outside the vocabulary.
TEST(TokenShard, NumbersOfAFaultyWriterAreNotBelieved) {
  const Scratch scratch("token-faulty");
  const fs::path path = scratch / "a.shard";
  const auto header = token_writer(token_info(3), 0, 3).write(path);
  const std::string whole = read_file(path);
  const size_t tokens =
      whole.size() - 72 - 24 - 2 * 32 - 56 - static_cast<size_t>(header.key_bytes + header.caption_bytes);
  const size_t indices = tokens + 72, key_offsets = indices + 24, starts = key_offsets + 32, offsets = starts + 32;
  const auto with_u64 = [&](size_t at, uint64_t value) {
    std::string changed = whole;
    std::memcpy(changed.data() + at, &value, 8);
    overwrite(path, changed);
    return TokenShardReader(path);
  };
  EXPECT_EQ(TokenShardReader(path).index(2), 2);
  EXPECT_THROW(with_u64(indices + 16, 3).index(2), CheckpointError);
  EXPECT_THROW(with_u64(key_offsets, 1000).key(0), CheckpointError);
  EXPECT_THROW(with_u64(key_offsets + 8, ~uint64_t{0}).key(0), CheckpointError);
  EXPECT_THROW(with_u64(starts + 8, 99).captions(0), CheckpointError);
  EXPECT_THROW(with_u64(starts + 8, 99).captions(1), CheckpointError);
  EXPECT_THROW(with_u64(offsets + 16, uint64_t{1} << 40).captions(1), CheckpointError);
  EXPECT_THROW(codes_of(with_u64(tokens, 1000), 0, 0), CheckpointError);
}

TEST(TokenShard, FilesThatCannotBeOpened) {
  const auto writer = token_writer(token_info(3), 0, 3);
  EXPECT_THROW(writer.write("/dev/full/a.shard"), FileError);
  EXPECT_THROW(TokenShardReader("/dev/null"), FileError);
  EXPECT_THROW(TokenShardReader("nowhere.shard"), FileError);
}

TEST(TokenShard, TheFirstDifferenceIsNamed) {
  const auto info = token_info(3);
  EXPECT_EQ(first_difference(info, info), "");
  auto other = info;
  other.grid_size = 4;
  EXPECT_EQ(first_difference(other, info), "grid_size is 4 where 2 was expected");
  other = info;
  other.settings["precision"] = "bf16";
  EXPECT_EQ(first_difference(other, info), "precision is 'bf16' where 'f32' was expected");
  other.settings.erase("precision");
  EXPECT_EQ(first_difference(other, info), "precision is not there where 'f32' was expected");
  for (int field = 0; field < 6; ++field) {
    other = info;
    int64_t* const numbers[] = {&other.picture_size, &other.vocab_size,   &other.num_crops,
                                &other.seed,         &other.dataset_size, &other.grid_size};
    ++*numbers[field];
    EXPECT_NE(first_difference(other, info), "") << field;
  }
}

}  // namespace
}  // namespace dalle::storage
